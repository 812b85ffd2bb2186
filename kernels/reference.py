"""Define every operation in plain torch: what the C++ and CUDA sources must reproduce bit for bit.

The dispatcher runs these wherever no compiled implementation is loaded. None of them synchronises
with the device. Each begins with the checks that the compiled ones make too (RuntimeError).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)
LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_ENTRIES = 16  # that one call can mix
MOST_SOFT_MEMBERS = 32  # of one soft_vote
MOST_RADIUS = 32767  # of boundary_map; what lies between rows is aged in 16 bits
ABSTAIN = 255  # what hard_vote writes where no member votes

# exp(x) = 2^n * P(r) with n = round(x / ln 2) and r = x - n * ln 2, where ln 2 = LN2_HIGH + LN2_LOW
# and n * LN2_HIGH is exact. P: Taylor coefficients, highest power first (|r| <= 0.35: < 2 ulp).
EXP_LOWEST, LOG2_E, LN2_HIGH, LN2_LOW = -87.0, 1.44269504, 0.693359375, -2.12194440e-4
ROUNDER = 1.5 * 2**23  # float32 numbers of this size are integers
EXP_POLYNOMIAL = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)


def _check(condition: bool, sentence: str) -> None:
    torch._check(condition, lambda: sentence)


def _check_classes(num_classes: int) -> None:
    _check(1 <= num_classes <= 256, f"num_classes must be 1..256, got {num_classes}")


def check_confusion_matrix(pred: Tensor, label: Tensor, num_classes: int) -> None:
    _check_classes(num_classes)
    for name, ids in (("pred", pred), ("label", label)):
        _check(ids.dtype in LABEL_DTYPES, f"{name} must be uint8, int32 or int64, got {ids.dtype}")
    _check(
        pred.shape == label.shape,
        f"pred and label differ in shape: {list(pred.shape)} and {list(label.shape)}",
    )
    _check(pred.device == label.device, f"pred is on {pred.device}, label on {label.device}")


def confusion_matrix(pred: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    check_confusion_matrix(pred, label, num_classes)
    side = num_classes + 1
    truth, pred = label.long(), pred.long()
    row, column = (
        torch.where((ids >= 0) & (ids < num_classes), ids, num_classes) for ids in (truth, pred)
    )
    # Ignored pixels get a row of their own after the spare one and are cut off at the end.
    row = torch.where(truth == ignore_index, side, row)
    return _histogram(row * side + column, (side + 1) * side)[: side * side].view(side, side)


def _histogram(index: Tensor, cells: int) -> Tensor:
    """Count indices without torch.bincount, which waits for a CUDA device."""
    index = index.flatten()
    counts = torch.zeros(cells, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))


def check_argmax_upsample(logits: Tensor, size: Sequence[int]) -> None:
    _check(
        logits.dtype in LOGIT_DTYPES,
        f"logits must be float32, bfloat16 or float16, got {logits.dtype}",
    )
    _check(logits.dim() == 4, f"logits must be [N, C, h, w], got {list(logits.shape)}")
    _check(len(size) == 2, f"size must be (H, W), got {list(size)}")
    _, num_classes, height, width = logits.shape
    _check_classes(num_classes)
    _check(height > 0, "logits have no rows")
    _check(width > 0, "logits have no columns")
    _check(size[0] >= 0, f"size must not be negative, got {size[0]} rows")
    _check(size[1] >= 0, f"size must not be negative, got {size[1]} columns")


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
    _check(
        1 <= len(members) <= MOST_SOFT_MEMBERS,
        f"there must be 1..{MOST_SOFT_MEMBERS} members, got {len(members)}",
    )
    _check(len(members) == len(weights), f"{len(members)} members but {len(weights)} weights")
    for member in members:
        check_argmax_upsample(member, size)
        _check(
            member.shape[:2] == members[0].shape[:2],
            f"members differ in N or C: {list(member.shape)} and {list(members[0].shape)}",
        )
        _check(
            member.device == members[0].device,
            f"tensors are on {member.device} and {members[0].device}",
        )
    _check(
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


def check_mix(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    _check(1 <= len(a) <= MOST_ENTRIES, f"there must be 1..{MOST_ENTRIES} entries, got {len(a)}")
    _check(len(a) == len(b), f"a has {len(a)} entries, b has {len(b)}")
    for ours, theirs in zip(a, b, strict=True):
        _check(
            ours.shape == theirs.shape and ours.dtype == theirs.dtype,
            f"a has {list(ours.shape)} {ours.dtype}, b has {list(theirs.shape)} {theirs.dtype}",
        )
        _check(
            ours.dim() in (3, 4), f"an entry must be [N, H, W] or [N, C, H, W], got {ours.dim()}-D"
        )
        _check(
            ours.shape[0] == a[0].shape[0] and ours.shape[-2:] == a[0].shape[-2:],
            f"entries differ in N, H or W: {list(ours.shape)} and {list(a[0].shape)}",
        )
        _check(
            ours.device == a[0].device and theirs.device == a[0].device,
            "all entries must be on one device",
        )


def check_cutmix(a: Sequence[Tensor], b: Sequence[Tensor], boxes: Tensor) -> None:
    check_mix(a, b)
    _check(boxes.dtype == torch.int64, f"boxes must be int64, got {boxes.dtype}")
    _check(
        boxes.dim() == 3 and boxes.shape[0] == a[0].shape[0] and boxes.shape[2] == 4,
        f"boxes must be [{a[0].shape[0]}, K, 4], got {list(boxes.shape)}",
    )
    _check(boxes.device == a[0].device, f"boxes are on {boxes.device}, a on {a[0].device}")


def cutmix(a: Sequence[Tensor], b: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    check_cutmix(a, b, boxes)
    height, width = a[0].shape[-2:]
    x0, y0, x1, y1 = boxes[:, :, None, :].unbind(-1)  # [N, K, 1] each
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)  # [N, K, W], [N, K, H]
    return _mix(a, b, (rows[..., None] & columns[:, :, None]).any(1))


def _mix(a: Sequence[Tensor], b: Sequence[Tensor], take_b: Tensor) -> list[Tensor]:
    """Take b where the mask [N, H, W] is set, else a."""
    return [
        torch.where(take_b if ours.dim() == 3 else take_b[:, None], theirs, ours).contiguous()
        for ours, theirs in zip(a, b, strict=True)
    ]


def check_classmix(
    a: Sequence[Tensor], b: Sequence[Tensor], label: Tensor, classes: Tensor
) -> None:
    check_mix(a, b)
    samples, (height, width) = a[0].shape[0], a[0].shape[-2:]
    _check(label.dtype == torch.uint8, f"label must be uint8, got {label.dtype}")
    _check(
        label.shape == (samples, height, width),
        f"label must be {[samples, height, width]}, got {list(label.shape)}",
    )
    _check(
        classes.dtype == torch.bool and classes.shape == (samples, 256),
        f"classes must be bool [{samples}, 256], got {classes.dtype} {list(classes.shape)}",
    )
    _check(
        label.device == a[0].device and classes.device == a[0].device,
        "label and classes must be on the device of the entries",
    )


def classmix(
    a: Sequence[Tensor], b: Sequence[Tensor], label: Tensor, classes: Tensor
) -> list[Tensor]:
    check_classmix(a, b, label, classes)
    return _mix(a, b, classes.gather(1, label.flatten(1).long()).view(label.shape))


def check_hard_vote(predictions: Tensor, num_classes: int, weights: Sequence[float] | None) -> None:
    _check_classes(num_classes)
    _check(predictions.dtype == torch.uint8, f"predictions must be uint8, got {predictions.dtype}")
    _check(predictions.dim() >= 1, "predictions must be [M, ...]")
    members = predictions.shape[0]
    _check(1 <= members <= 255, f"there must be 1..255 members, got {members}")
    if weights is not None:
        _check(len(weights) == members, f"{members} members but {len(weights)} weights")
        # The upper bound keeps the float32 sum of 255 weights finite.
        _check(
            all(1e-30 <= weight <= 1e30 for weight in weights),
            f"weights must lie in 1e-30..1e30, got {list(weights)}",
        )


def hard_vote(predictions: Tensor, num_classes: int, weights: Sequence[float] | None) -> Tensor:
    """Add up, for the class of each member, the weights of all that agree: float32, in order."""
    check_hard_vote(predictions, num_classes, weights)
    if weights is None:
        weights = [1.0] * predictions.shape[0]
    best = torch.zeros(predictions.shape[1:], device=predictions.device)
    winner = torch.full_like(predictions[0], ABSTAIN)
    for candidate in predictions:
        total = torch.zeros_like(best)
        for prediction, weight in zip(predictions, weights, strict=True):
            total = total + (prediction == candidate) * torch.tensor(weight, dtype=torch.float32)
        better = (total > best) | ((total == best) & (candidate < winner))
        better &= candidate.int() < num_classes  # 256 does not fit uint8
        best = torch.where(better, total, best)
        winner = torch.where(better, candidate, winner)
    return winner


def check_confidence_histogram(
    confidence: Tensor, pred: Tensor, num_classes: int, bins: int, label: Tensor | None
) -> None:
    _check_classes(num_classes)
    _check(1 <= bins <= 4096, f"bins must be 1..4096, got {bins}")
    _check(confidence.dtype == torch.float32, f"confidence must be float32: {confidence.dtype}")
    others = {"confidence": confidence, **({} if label is None else {"label": label})}
    for name, ids in (("pred", pred), ("label", label)):
        if ids is not None:
            _check(ids.dtype == torch.uint8, f"{name} must be uint8, got {ids.dtype}")
    for name, other in others.items():
        _check(
            other.shape == pred.shape,
            f"{name} and pred differ in shape: {list(other.shape)} and {list(pred.shape)}",
        )
        _check(other.device == pred.device, f"{name} is on {other.device}, pred on {pred.device}")


def confidence_histogram(
    confidence: Tensor,
    pred: Tensor,
    num_classes: int,
    bins: int,
    label: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    check_confidence_histogram(confidence, pred, num_classes, bins, label)
    position = confidence * bins
    ids = pred.long()  # a num_classes of 256 does not fit uint8
    counted = (ids < num_classes) & ~position.isnan()
    column = position.clamp(0, bins - 1).nan_to_num(0).long()
    index, shape = ids * bins + column, [num_classes, bins]
    if label is not None:
        counted &= label.long() != ignore_index
        index, shape = index * 2 + (pred == label), [*shape, 2]
    cells = math.prod(shape)
    return _histogram(torch.where(counted, index, cells), cells + 1)[:-1].view(shape)


def check_boundary_map(label: Tensor, radius: int) -> None:
    _check(label.dtype == torch.uint8, f"label must be uint8, got {label.dtype}")
    _check(label.dim() == 3, f"label must be [N, H, W], got {list(label.shape)}")
    _check(0 <= radius <= MOST_RADIUS, f"radius must be 0..{MOST_RADIUS}, got {radius}")


def boundary_map(label: Tensor, radius: int, border: bool) -> Tensor:
    """Compare the highest id of each window with the lowest."""
    check_boundary_map(label, radius)
    radius = min(radius, max(label.shape[1:]))
    if radius == 0 or label.numel() == 0:
        return torch.zeros_like(label, dtype=torch.bool)
    side = 2 * radius + 1

    def highest(plane: Tensor) -> Tensor:  # windows end where the plane does
        plane = F.max_pool2d(plane, (side, 1), 1, (radius, 0))
        return F.max_pool2d(plane, (1, side), 1, (0, radius))[:, 0]

    plane = label[:, None].float()
    if border:
        outside = F.pad(torch.zeros_like(plane), (radius,) * 4, value=1.0)
        height, width = label.shape[1:]
        near = highest(outside)[:, radius : radius + height, radius : radius + width] > 0
        return near | (highest(plane) != -highest(-plane))
    return highest(plane) != -highest(-plane)
