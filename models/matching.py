"""Who is paired with whom at the lowest cost: the assignment problem."""

from __future__ import annotations

import numpy as np

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:
    linear_sum_assignment = None


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows with columns, each at most once and as many as there can be, at the lowest total.

    Args:
        cost: float [R,C], finite.

    Returns:
        int64 [min(R,C)] each: the rows, in order, and their columns. scipy finds them where it is
        installed, `shortest_paths` elsewhere.
    """
    if linear_sum_assignment is not None:
        rows, columns = linear_sum_assignment(cost)
        return rows.astype(np.int64), columns.astype(np.int64)
    if cost.shape[0] <= cost.shape[1]:
        return np.arange(cost.shape[0]), shortest_paths(cost)
    rows = shortest_paths(cost.T)
    order = rows.argsort()
    return rows[order], order


def shortest_paths(cost: np.ndarray) -> np.ndarray:
    """Return each row's column, int64 [R]; there are no fewer columns than rows.

    Rows are paired one after the other, along the cheapest path that ends at a free column: from a
    row to a column, from there to the row that has it, and so on. Prices on rows and columns keep
    every step's cost at 0 or above, so that Dijkstra's search finds that path.

    Source: Crouse 2016, On implementing 2D rectangular assignment algorithms, section III.
    """
    cost = np.asarray(cost, np.float64)
    count, width = cost.shape
    row_price, column_price = np.zeros(count), np.zeros(width)
    row_of = np.full(width, -1)  # that has the column; -1: nobody
    column_of = np.full(count, -1)
    for start in range(count):
        distance, before = np.full(width, np.inf), np.full(width, -1)
        done = np.zeros(width, bool)
        row, reached, rows = start, 0.0, [start]
        while True:
            through = reached + cost[row] - row_price[row] - column_price
            shorter = ~done & (through < distance)
            distance[shorter], before[shorter] = through[shorter], row
            column = int(np.where(done, np.inf, distance).argmin())
            reached = distance[column]
            if row_of[column] < 0:
                break
            done[column] = True
            row = int(row_of[column])
            rows.append(row)
        for row in rows:
            at = 0.0 if row == start else distance[column_of[row]]
            row_price[row] += reached - at
        column_price[done] -= reached - distance[done]
        while True:  # give the columns along the path to the rows before them
            row = int(before[column])
            row_of[column] = row
            column, column_of[row] = int(column_of[row]), column
            if row == start:
                break
    return column_of
