"""Polygons and run lengths to pixels and back, as COCO's own tools round them.

A polygon is scanned column by column on a grid five times as fine (`rleFrPoly` of COCO's mask API):
its rounded corners are joined by discrete lines, and where one passes the middle of a pixel's
column, that column's pixels from there down change sides. Here only those passages are computed,
all of a polygon's at once, and pixels are touched within its box alone. COCO's run lengths are the
same changes, listed down the columns of a whole image, first those of the background.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

FINE = 5  # steps a pixel, of COCO's grid
FAR = 1e8  # pixels; no corner is so far away, and fine steps of it still are whole numbers


class Region(NamedTuple):
    """Pixels of an image: `mask`, bool [h,w], whose upper left corner lies at `top`, `left`."""

    top: int
    left: int
    mask: np.ndarray

    def within(self, image: np.ndarray) -> np.ndarray:
        """Return the view of an image [H,W,...] that the mask is of."""
        height, width = self.mask.shape
        return image[self.top : self.top + height, self.left : self.left + width]

    def paint(self, image: np.ndarray, value: int | Sequence[int]) -> None:
        """Set the region's pixels of an image [H,W,...]."""
        self.within(image)[self.mask] = value


def polygon(points: np.ndarray, height: int, width: int) -> Region | None:
    """Return the pixels inside a polygon; where it overlaps itself, those inside an odd number of
    times.

    Args:
        points: float [K,2], x and y in pixels of its corners, (0, 0) the image's upper left corner;
            parts outside the image are cut off.
        height: of the image.
        width: of the image.
    Returns:
        None where there is no pixel.
    """
    if len(points) < 3:
        return None
    columns, rows = _passages(np.asarray(points, np.float64), height, width)
    # COCO's row below the last one is the next column's first, where the next passage undoes it
    kept = rows < height
    return _filled(rows[kept], columns[kept], height)


def _passages(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row, int64 [M] each, from which on the pixels of a column change sides."""
    # towards 0 as a cast in C rounds; below 0 it matters to nobody
    x, y = np.trunc(FINE * points.T + 0.5).astype(np.int64)
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    wide = np.abs(x_next - x) >= np.abs(y_next - y)
    turned = np.where(wide, x > x_next, y > y_next)
    x, x_next = np.where(turned, x_next, x), np.where(turned, x, x_next)
    y, y_next = np.where(turned, y_next, y), np.where(turned, y, y_next)
    # a column c is passed between the fine places 5c + 2 and 5c + 3
    left, right = np.minimum(x, x_next), np.maximum(x, x_next)
    first = np.maximum(0, -((2 - left) // FINE))
    count = np.maximum(0, np.minimum(width - 1, (right - 3) // FINE) - first + 1)
    line = np.repeat(np.arange(len(x)), count)
    column = np.arange(len(line)) - np.repeat(np.cumsum(count) - count - first, count)
    before = FINE * column + 2
    x, y, across, down = (part[line] for part in (x, y, x_next - x, y_next - y))
    wide = wide[line]
    slope = np.where(wide, down, across) / np.where(wide, across, down)
    # of lines wider than high: their lower end of two steps beside each other
    step = before - x
    fine = np.trunc(np.minimum(y + slope * step, y + slope * (step + 1)) + 0.5)
    # of lines higher than wide: the last step before the column's middle is passed
    steep = np.flatnonzero(~wide)
    slope, x, before = slope[steep], x[steep], before[steep]
    last = np.ceil((before + 0.5 - x) / slope) - 1
    for correction in (-1, 1):  # what dividing has rounded
        step = last + (correction > 0)
        passed = (np.trunc(x + slope * step + 0.5) > before) == (slope > 0)
        last = np.where(passed == (correction < 0), last + correction, last)
    fine[steep] = y[steep] + last
    row = np.ceil(np.clip((fine + 0.5) / FINE - 0.5, 0, height))
    return column, row.astype(np.int64)


def _filled(rows: np.ndarray, columns: np.ndarray, height: int) -> Region | None:
    """Return the region of changes: each is of a column's pixels from its row on, int64 [M]."""
    if not len(rows):
        return None
    top, left = int(rows.min()), int(columns.min())
    grid = np.zeros((height - top, int(columns.max()) - left + 1), np.uint8)
    places, counts = np.unique((rows - top) * grid.shape[1] + columns - left, return_counts=True)
    grid.ravel()[places[counts % 2 == 1]] = 1
    for above, row in itertools.pairwise(grid):
        row ^= above
    return _tight(top, left, grid.view(bool))


def _tight(top: int, left: int, mask: np.ndarray) -> Region | None:
    """Return a region without empty rows and columns around it."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(top + int(rows[0]), left + int(columns[0]), mask)


def run_lengths(counts: np.ndarray, height: int, width: int) -> Region | None:
    """Return the pixels of COCO's run lengths.

    Args:
        counts: int64 [R], pixels outside, inside, outside ... down the columns of the image.
        height: of the image.
        width: of the image.
    Returns:
        None where there is no pixel.
    Raises:
        ValueError: a count below 0, or counts of another number of pixels.
    """
    if (len(counts) and counts.min() < 0) or counts.sum() != height * width:
        raise ValueError(f"run lengths of {counts.sum()} pixels, the image has {height * width}")
    changes = np.cumsum(counts)
    changes = changes[changes < height * width]
    if not len(changes):
        return None
    columns, rows = np.divmod(changes, height)
    # a run that goes on at the top of a column begins there again
    tops = np.arange(columns[0], width)
    tops = tops[np.searchsorted(changes, tops * height) % 2 == 1]
    rows = np.concatenate([rows, np.zeros_like(tops)])
    return _filled(rows, np.concatenate([columns, tops]), height)


def united(regions: Iterable[Region | None]) -> Region | None:
    """Return the pixels of any of several regions; None where there is none."""
    parts = [region for region in regions if region is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.mask.shape[0] for part in parts)
    right = max(part.left + part.mask.shape[1] for part in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for part in parts:
        Region(part.top - top, part.left - left, part.mask).paint(mask, True)
    return Region(top, left, mask)


def counts_of(mask: np.ndarray) -> np.ndarray:
    """Return COCO's run lengths of a mask, bool [H,W]: int64 [R], the background's first."""
    flat = np.ascontiguousarray(mask.T).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0] if len(flat) and flat[0] else []
    edges = np.concatenate([[0], start, changes, [len(flat)]]).astype(np.int64)
    return np.diff(edges)


def compressed(counts: np.ndarray) -> str:
    """Return run lengths as COCO's text: differences to the one before the last, six bits a letter.

    Args:
        counts: int64 [R].
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    letters = []
    for value in values.tolist():
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(bits + (32 if more else 0) + 48)
    return bytes(letters).decode()


def expanded(text: str) -> np.ndarray:
    """Return the run lengths of COCO's text, int64 [R].

    Raises:
        ValueError: a letter that is none of its 64, or a text that is cut short.
    """
    letters = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if len(letters) and not 0 <= letters.min() <= letters.max() < 64:
        raise ValueError(
            f"{chr(text.encode()[int(np.argmax((letters < 0) | (letters > 63)))])!r} "
            "in compressed run lengths"
        )
    ends = np.flatnonzero(letters < 32)
    if len(letters) and (not len(ends) or ends[-1] != len(letters) - 1):
        raise ValueError("compressed run lengths are cut short")
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    if lengths.max(initial=0) > 7:  # 35 bits: no image has as many pixels
        raise ValueError("a compressed run length is larger than any image")
    place = np.arange(len(letters)) - np.repeat(starts, lengths)
    values = np.add.reduceat((letters & 31) << 5 * place, starts) if len(starts) else ends
    values = values - ((letters[ends] >> 4 & 1) << 5 * lengths)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def region_counts(region: Region, height: int, width: int) -> np.ndarray:
    """Return COCO's run lengths of a region of an image of this size, int64 [R]."""
    rows, columns = region.mask.shape
    edges = np.zeros((columns, rows + 1), np.int8)
    edges[:, :-1] = region.mask.T
    edges[:, 1:] -= region.mask.T
    column, row = np.nonzero(edges)
    places = (region.left + column) * height + region.top + row
    # of columns that are full to the end, which the next one goes on with, both changes vanish
    places, counts = np.unique(places, return_counts=True)
    places = places[counts == 1]
    changes = np.concatenate([[0], places, [height * width]])
    counts = np.diff(changes)
    return counts[:-1] if not counts[-1] else counts


def components(label: np.ndarray) -> list[tuple[int, Region]]:
    """Return the connected parts of a label map, with their ids, from its top to its bottom.

    Pixels of one id belong together where they touch, at a corner too. Rows are cut into runs of
    one id, and runs joined that touch those of the row below.

    Args:
        label: uint8 [H,W].
    """
    height, width = label.shape
    flat = np.ascontiguousarray(label).reshape(-1)
    new = np.concatenate([[True], flat[1:] != flat[:-1]])
    new[::width] = True
    starts = np.flatnonzero(new)
    ends, ids = np.concatenate([starts[1:], [height * width]]), flat[starts]
    row, left, right = starts // width, starts % width, ends - starts // width * width
    above = np.flatnonzero(row < height - 1)
    below = (row[above] + 1) * width
    first = np.searchsorted(starts, below + np.maximum(left[above] - 1, 0), "right") - 1
    last = np.searchsorted(starts, below + np.minimum(right[above], width - 1), "right") - 1
    count = last - first + 1
    one = np.repeat(above, count)
    other = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
    alike = ids[one] == ids[other]
    part = _joined(len(starts), one[alike], other[alike])
    order = np.argsort(part, kind="stable")
    bounds = np.flatnonzero(np.diff(part[order], prepend=-1))
    found = []
    for runs in np.split(order, bounds[1:]):
        top, west = int(row[runs[0]]), int(left[runs].min())
        mask = np.zeros((int(row[runs[-1]]) - top + 1, int(right[runs].max()) - west), bool)
        for run in runs.tolist():
            mask[row[run] - top, left[run] - west : right[run] - west] = True
        found.append((int(ids[runs[0]]), Region(top, west, mask)))
    return found


def _joined(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return for each of `count` things the least that pairs connect it with, int64 [count]."""
    least = np.arange(count)
    while True:
        low = np.minimum(least[one], least[other])
        before = least.copy()
        for ends in (one, other):
            np.minimum.at(least, before[ends], low)
        least = np.minimum(least, least[least])
        least = least[least]
        if np.array_equal(before, least):
            return least
