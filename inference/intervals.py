"""How sure a score is: images are drawn anew, with replacement, and scored again and again.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 13.3 (percentile
intervals) and 16.4 (of a difference, the same draws for both). What is drawn are images: pixels of
one image are anything but independent. Frames of one film are not independent either; intervals
over them are too narrow.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """Where a value lies, in the units of the value: a share `LEVEL` of the draws is inside."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.1f}, {self.high:.1f}]"


def drawn(images: int, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Return how often each draw takes each image, float64 [draws,images]; rows add up to images.

    The same arguments give the same draws, so that two networks are scored on the same.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = torch.randint(images, (draws, images), generator=generator)
    counts = torch.zeros(draws, images, dtype=torch.float64)
    return counts.scatter_add_(1, taken, torch.ones_like(taken, dtype=torch.float64))


def drawn_miou(
    counts: Sequence[Tensor], scored: list[int] | None = None, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """Return the mIoU of each draw, float64 [draws], in percent, nan where nothing is left.

    Args:
        counts: of each of N images int64 [C+1,C+1]; see `ConfusionMatrix`.
        scored: classes of the mean; None for all.
        draws, seed: see `drawn`.
    """
    matrices = torch.stack(tuple(counts)).double()
    sums = drawn(len(counts), draws, seed) @ matrices.flatten(1)  # whole numbers below 2^53
    matrices = sums.view(draws, *matrices.shape[1:])[
        :, :-1
    ]  # what lies outside the classes is no truth
    hits = matrices.diagonal(dim1=1, dim2=2)
    union = matrices.sum(2) + matrices.sum(1)[:, :-1] - hits
    iou = hits / union  # 0 / 0 of an absent class is nan
    return 100 * (iou if scored is None else iou[:, scored]).nanmean(1)


def interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Return the percentile interval of draws, float64 [draws]."""
    outside = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return Interval(*values.nanquantile(outside).tolist())


class Difference(NamedTuple):
    """How much better one network is than another on the same images, in points of mIoU.

    Attributes:
        interval: of the difference.
        p_value: how often a difference as far from 0 would be drawn if there were none, two-sided.
    """

    interval: Interval
    p_value: float

    def __str__(self) -> str:
        return f"[{self.interval.low:+.1f}, {self.interval.high:+.1f}], p {self.p_value:.3f}"


def difference(one: Tensor, other: Tensor) -> Difference:
    """Compare the draws of two networks, which must be the same ones."""
    gains = one - other
    gains = gains[~gains.isnan()]
    below = torch.stack([(gains <= 0).sum(), (gains >= 0).sum()]).min()
    # one more than counted: no number of draws shows that something never happens
    return Difference(interval(gains), min(1.0, 2 * (below.item() + 1) / (len(gains) + 1)))


def beside_the_first(results: list[dict], draws: list) -> Iterator[tuple]:
    """Yield each network's place and its gain over the first, where both saw the same images."""
    same = ("dataset", "images", "count", "classes")
    for i, (result, own) in enumerate(zip(results, draws, strict=True)):
        comparable = all(result[key] == results[0][key] for key in same)
        if i > 0 and comparable and own is not None and draws[0] is not None:
            yield i, difference(own, draws[0])
