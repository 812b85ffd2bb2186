"""Divide images into folds that are alike in their classes, groups of images kept together.

Four things are to be alike, each a table of image and class: which images hold a class, how many
pixels each has, which class has most of an image, which of its classes is in the fewest images. Of
each table two differences count: of a class's share in a fold from that in all images, and of the
part of a class that a fold has from a fold's fair part; of both the largest and the mean square.
A greedy division by each table is made first (group after group, those of the most uneven classes
before, into the fold where the classes' parts then differ least: the plan of scikit-learn's
StratifiedGroupKFold). The best of these is improved by moving and exchanging groups; a share that
differs by more than in the best of the greedy divisions costs so much that it is hardly ever kept.
"""

from typing import NamedTuple

import numpy as np

CANDIDATES = 384  # changes that are tried at once
PATIENCE = 12  # rounds without an improvement after which some groups are thrown about
MAX_ROUNDS = 2500
MAX_THROWS = 40
SPREAD = 0.2  # what the root of a mean square costs beside the largest difference
WORSE = 60.0  # what a largest difference above the greedy ones costs
SHUFFLES = 12  # of groups, for further greedy divisions
# of shares, of parts, of the images: of the table of what is held, of pixels, largest, rarest
WEIGHTS = np.array([3, 3, 2, 2, 0.1, 0.1, 0.1, 0.1, 0.2])
# which of them cost more above the greedy ones: the parts of a class in two images must differ
SHARES = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])


class Parts(NamedTuple):
    """What is divided.

    Attributes:
        tables: float64 [G,T,C], what each group adds to each table.
        images: int64 [G], how many images a group has.
        folds: K.
    """

    tables: np.ndarray
    images: np.ndarray
    folds: int


def divide(counts: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold of every image, int64 [N]; the same for the same arguments.

    Args:
        counts: int64 [N,C], pixels of each class in each image.
        groups: int64 [N], 0..G-1; images of one group come into one fold.
        folds: K, at most G.
        seed: of the search.
    """
    tables = image_tables(counts)
    size = int(groups.max()) + 1
    summed = np.zeros((size, *tables.shape[1:]))
    np.add.at(summed, groups, tables)
    parts = Parts(summed, np.bincount(groups, minlength=size), folds)
    rng = np.random.RandomState(seed)  # whose numbers NumPy has frozen
    orders = [np.arange(size), *(rng.permutation(size) for _ in range(SHUFFLES))]
    starts = [_greedy(parts, table, o) for table in range(tables.shape[1]) for o in orders]
    least = np.min([_measured(parts, start)[0] for start in starts], 0)
    scale = np.maximum(least, 1e-4)
    costs = [_cost(*_measured(parts, start), least, scale) for start in starts]
    search = _Search(parts, starts[int(np.argmin(costs))], least, scale, rng)
    return search.best()[groups]


def image_tables(counts: np.ndarray) -> np.ndarray:
    """Return float64 [N,4,C]: held, pixels in parts of all, the largest class, the rarest one."""
    held = counts > 0
    images = held.sum(0)
    rarest = np.where(held, images, len(counts) + 1).argmin(1)
    some = held.any(1, keepdims=True)
    one = np.eye(counts.shape[1])
    tables = np.stack([held, counts, one[counts.argmax(1)] * some, one[rarest] * some], 1)
    return tables / np.maximum(tables.sum((0, 2)), 1)[:, None] * len(counts)


def _greedy(parts: Parts, table: int, order: np.ndarray) -> np.ndarray:
    """Return the fold of each group, [G]: the plan of StratifiedGroupKFold on one table."""
    values = parts.tables[:, table]
    share = values / np.maximum(values.sum(0), 1e-30)
    used = values.sum(0) > 0
    share, order = share[:, used], order[np.argsort(-values.std(1)[order], kind="stable")]
    sums, sizes = np.zeros((parts.folds, share.shape[1])), np.zeros(parts.folds)
    fold_of = np.zeros(len(values), np.int64)
    eye = np.eye(parts.folds)[:, :, None]
    for place, group in enumerate(order):
        if len(order) - place <= (sizes == 0).sum():  # every fold needs one
            fold = int(np.argmin(sizes))
        else:
            uneven = (sums + eye * share[group]).std(1).mean(1)
            near = np.flatnonzero(np.isclose(uneven, uneven.min()))
            fold = int(near[np.argmin(sizes[near])])
        fold_of[group] = fold
        sums[fold] += share[group]
        sizes[fold] += parts.images[group]
    return fold_of


def _totals(parts: Parts, fold_of: np.ndarray) -> np.ndarray:
    """Return float64 [K,T,C+1]: what each fold has of each table, and its images."""
    rows = _with_images(parts)
    totals = np.zeros((parts.folds, *rows.shape[1:]))
    np.add.at(totals, fold_of, rows)
    return totals


def _with_images(parts: Parts) -> np.ndarray:
    """Return float64 [G,T,C+1], the images behind each table's classes."""
    images = np.broadcast_to(parts.images[:, None, None], (*parts.tables.shape[:2], 1))
    return np.concatenate([parts.tables, images], 2)


def _differences(folds: np.ndarray, every: np.ndarray, count: int) -> tuple:
    """Return how folds differ from all images.

    Args:
        folds: float64 [...,T,C+1], see `_totals`.
        every: float64 [T,C+1], of all images.
        count: K.
    Returns:
        the largest, and the mean square: float64 [...,2T+1] each, of shares, of parts, and of the
        images.
    """
    held = np.maximum(folds[..., :-1].sum(-1, keepdims=True), 1e-30)
    # of the first table, classes overlap: its shares are of the images
    held[..., 0, :] = np.maximum(folds[..., 0, -1:], 1e-30)
    whole = every[:, :-1].sum(-1, keepdims=True)
    whole[0] = every[0, -1]
    share = np.abs(folds[..., :-1] / held - every[:, :-1] / np.maximum(whole, 1e-30))
    used = every > 0
    part = np.abs(folds / np.where(used, every, 1) - 1 / count) * used
    values = (share, part[..., :-1], part[..., 0, None, -1:])
    largest = [one.max(-1) for one in values]
    square = [(one**2).mean(-1) for one in values]
    return np.concatenate(largest, -1), np.concatenate(square, -1)


def _measured(parts: Parts, fold_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest differences of any fold and their mean squares, float64 [M] each."""
    totals = _totals(parts, fold_of)
    largest, square = _differences(totals, totals.sum(0), parts.folds)
    return largest.max(0), square.mean(0)


def _cost(
    largest: np.ndarray, square: np.ndarray, least: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Return what a division costs, from `_measured`, of many at once: [...]."""
    above = np.maximum(largest - least - 1e-12, 0)
    terms = largest + SPREAD * np.sqrt(square) + WORSE * above * SHARES
    return (WEIGHTS * terms / scale).sum(-1)


class _Search:
    """Moves and exchanges groups while that helps; then throws some about, and goes on.

    Args:
        parts: what is divided.
        fold_of: [G], where it begins.
        least, scale: see `_cost`.
        rng: of all choices.
    """

    def __init__(
        self,
        parts: Parts,
        fold_of: np.ndarray,
        least: np.ndarray,
        scale: np.ndarray,
        rng: np.random.RandomState,
    ) -> None:
        self.parts, self.least, self.scale, self.rng = parts, least, scale, rng
        rows = _with_images(parts)
        self.rows = np.concatenate([rows, np.zeros_like(rows[:1])])  # the last: no group
        self.rounds = 0
        self.begin(fold_of)

    def begin(self, fold_of: np.ndarray) -> None:
        """Take a division."""
        self.fold_of, self.totals = fold_of.copy(), _totals(self.parts, fold_of)
        self.every = self.totals.sum(0)
        self.largest, self.square = _differences(self.totals, self.every, self.parts.folds)
        self.cost = self.costs(self.largest.max(0), self.square.mean(0))

    def costs(self, largest: np.ndarray, square: np.ndarray) -> np.ndarray:
        """Return `_cost`."""
        return _cost(largest, square, self.least, self.scale)

    def best(self) -> np.ndarray:
        """Return the best division that was found, [G]."""
        self.improve()
        best, cost = self.fold_of, self.cost
        for _ in range(MAX_THROWS):
            if self.rounds >= MAX_ROUNDS:
                break
            thrown = best.copy()
            some = self.rng.randint(len(thrown), size=max(2, min(12, len(thrown) // 10)))
            thrown[some] = thrown[self.rng.permutation(some)]
            self.begin(thrown)
            self.improve()
            if self.cost < cost - 1e-9:
                best, cost = self.fold_of, self.cost
        return best

    def improve(self) -> None:
        """Change what helps most of some changes, until nothing helps for some rounds."""
        failures = 0
        while failures < PATIENCE and self.rounds < MAX_ROUNDS:
            self.rounds += 1
            failures = 0 if self.change() else failures + 1

    def change(self) -> bool:
        """Make the best of some random changes, where it helps; return whether it did."""
        count, folds = len(self.fold_of), self.parts.folds
        group, other = self.rng.randint(count, size=(2, CANDIDATES))
        alone = self.rng.rand(CANDIDATES) < 0.5
        source = self.fold_of[group]
        target = np.where(alone, self.rng.randint(folds, size=CANDIDATES), self.fold_of[other])
        other = np.where(alone, count, other)
        useful = np.flatnonzero(source != target)
        group, other, source, target = (x[useful] for x in (group, other, source, target))
        change = self.rows[other] - self.rows[group]
        changed = np.stack([self.totals[source] + change, self.totals[target] - change], 1)
        largest, square = _differences(changed, self.every, folds)
        rest = np.ones((len(useful), folds, 1), bool)
        rest[np.arange(len(useful)), source] = rest[np.arange(len(useful)), target] = False
        tops = np.maximum((self.largest * rest).max(1), largest.max(1))
        squares = ((self.square * rest).sum(1) + square.sum(1)) / folds
        empty = (changed[:, :, 0, -1] < 0.5).any(1)
        costs = np.where(empty, np.inf, self.costs(tops, squares))
        if not len(useful) or costs.min() >= self.cost - 1e-9:
            return False
        best = int(np.argmin(costs))
        ends = [source[best], target[best]]
        self.fold_of[group[best]] = target[best]
        if other[best] < count:
            self.fold_of[other[best]] = source[best]
        self.cost, self.totals[ends] = costs[best], changed[best]
        self.largest[ends], self.square[ends] = largest[best], square[best]
        return True
