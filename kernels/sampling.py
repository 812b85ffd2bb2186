"""Define in plain torch what resizes: argmax_upsample and soft_vote; see `reference`."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.checks import check, check_classes

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_SOFT_MEMBERS = 32  # of one soft_vote
# exp(x) = 2^n * P(r) with n = round(x / ln 2) and r = x - n * ln 2, where ln 2 = LN2_HIGH + LN2_LOW
# and n * LN2_HIGH is exact. P: Taylor coefficients, highest power first (|r| <= 0.35: < 2 ulp).
EXP_LOWEST, LOG2_E, LN2_HIGH, LN2_LOW = -87.0, 1.44269504, 0.693359375, -2.12194440e-4
ROUNDER = 1.5 * 2**23  # float32 numbers of this size are integers
EXP_POLYNOMIAL = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)


def check_argmax_upsample(logits: Tensor, size: Sequence[int]) -> None:
    check(
        logits.dtype in LOGIT_DTYPES,
        f"logits must be float32, bfloat16 or float16, got {logits.dtype}",
    )
    check(logits.dim() == 4, f"logits must be [N, C, h, w], got {list(logits.shape)}")
    check(len(size) == 2, f"size must be (H, W), got {list(size)}")
    _, num_classes, height, width = logits.shape
    check_classes(num_classes)
    check(height > 0, "logits have no rows")
    check(width > 0, "logits have no columns")
    check(size[0] >= 0, f"size must not be negative, got {size[0]} rows")
    check(size[1] >= 0, f"size must not be negative, got {size[1]} columns")


def source_positions(
    in_size: int, out_size: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return per output position: lower and upper source index, weight of the lower, of the upper.

    All float32 and one rounding an operation, as F.interpolate does it.
    """
    position = torch.arange(out_size, dtype=torch.float32, device=device)
    numerator, denominator = (in_size - 1, out_size - 1) if align_corners else (in_size, out_size)
    scale = torch.tensor(float(numerator)) / torch.tensor(float(max(denominator, 1)))
    if not align_corners:
        position = position + 0.5
    position = position * scale
    if not align_corners:
        position = (position - 0.5).clamp(min=0)
    low = position.long().clamp(max=in_size - 1)
    high = (low + 1).clamp(max=in_size - 1)
    weight = position - low
    return low, high, 1 - weight, weight


def argmax_upsample(
    logits: Tensor, size: Sequence[int], align_corners: bool, with_confidence: bool
) -> tuple[Tensor, Tensor]:
    """Interpolate class by class: no tensor of C full-size planes is ever made."""
    check_argmax_upsample(logits, size)
    plane_of = _upsampler(logits, size, align_corners)
    best, winner = _best(plane_of, logits, size)
    if not with_confidence:
        return winner, best.new_empty(0)
    return winner, _softmax(plane_of, best, logits.shape[1])


def _upsampler(
    logits: Tensor, size: Sequence[int], align_corners: bool, weight: float = 1.0
) -> Callable[[int], Tensor]:
    """Return a function of a class that returns its full-size plane, float32 [N,H,W]."""
    axes = zip(logits.shape[2:], size, strict=True)
    down, across = (source_positions(*axis, align_corners, logits.device) for axis in axes)
    top, bottom, top_weight, bottom_weight = down
    left, right, left_weight, right_weight = across
    share = torch.tensor(weight, dtype=torch.float32)

    def plane_of(c: int) -> Tensor:
        plane = logits[:, c].float()  # [N, h, w]
        upper, lower = plane.index_select(1, top), plane.index_select(1, bottom)
        rows = share * (top_weight[:, None] * upper + bottom_weight[:, None] * lower)
        before, after = rows.index_select(2, left), rows.index_select(2, right)
        return left_weight * before + right_weight * after

    return plane_of


def _best(
    plane_of: Callable[[int], Tensor], logits: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the highest value of a class, float32 [N,H,W], and which it is, uint8."""
    best = torch.full((logits.shape[0], *size), -math.inf, device=logits.device)
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for c in range(logits.shape[1]):
        value = plane_of(c)
        better = value > best  # strict: the lowest class keeps a tie, and NaN never wins
        best = torch.where(better, value, best)
        winner = torch.where(better, c, winner)
    return best, winner


def _softmax(plane_of: Callable[[int], Tensor], best: Tensor, num_classes: int) -> Tensor:
    total = torch.zeros_like(best)
    for c in range(num_classes):
        total = total + _exp(plane_of(c) - best)
    return torch.where(best.isfinite(), 1 / total, 0.0)


def check_soft_vote(
    members: Sequence[Tensor], size: Sequence[int], weights: Sequence[float]
) -> None:
    check(
        1 <= len(members) <= MOST_SOFT_MEMBERS,
        f"there must be 1..{MOST_SOFT_MEMBERS} members, got {len(members)}",
    )
    check(len(members) == len(weights), f"{len(members)} members but {len(weights)} weights")
    for member in members:
        check_argmax_upsample(member, size)
        check(
            member.shape[:2] == members[0].shape[:2],
            f"members differ in N or C: {list(member.shape)} and {list(members[0].shape)}",
        )
        check(
            member.device == members[0].device,
            f"tensors are on {member.device} and {members[0].device}",
        )
    check(
        all(1e-30 <= weight <= 1e30 for weight in weights),
        f"weights must lie in 1e-30..1e30, got {list(weights)}",
    )


def soft_vote(
    members: Sequence[Tensor],
    size: Sequence[int],
    weights: Sequence[float],
    align_corners: bool,
    probabilities: bool,
    with_confidence: bool,
) -> tuple[Tensor, Tensor]:
    """Add up the weighted planes class by class, in the members' order."""
    check_soft_vote(members, size, weights)
    planes_of = [
        _upsampler(member, size, align_corners, weight)
        for member, weight in zip(members, weights, strict=True)
    ]

    def mean_of(c: int) -> Tensor:
        first, *others = (plane_of(c) for plane_of in planes_of)
        for plane in others:
            first = first + plane
        return first

    best, winner = _best(mean_of, members[0], size)
    if not with_confidence:
        return winner, best.new_empty(0)
    if probabilities:
        return winner, torch.where(best.isfinite(), best, 0.0)
    return winner, _softmax(mean_of, best, members[0].shape[1])


def _exp(x: Tensor) -> Tensor:
    """Evaluate exp for x <= 0 in a fixed order of float32 operations; NaN counts as EXP_LOWEST."""
    x = torch.where(x > EXP_LOWEST, x, EXP_LOWEST)
    n = (x * LOG2_E + ROUNDER) - ROUNDER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    value = torch.full_like(r, EXP_POLYNOMIAL[0])
    for coefficient in EXP_POLYNOMIAL[1:]:
        value = value * r + coefficient
    power_of_two = ((n.int() + 127) << 23).view(torch.float32)
    return value * power_of_two
