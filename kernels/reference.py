"""Define every operation in plain torch: what the C++ and CUDA sources must reproduce bit for bit.

The dispatcher runs these wherever no compiled implementation is loaded. None of them synchronises
with the device. Each begins with the checks that the compiled ones make too (RuntimeError).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import check, check_classes
from kernels.sampling import (  # noqa: F401 -- one name for all definitions
    LOGIT_DTYPES,
    argmax_upsample,
    check_argmax_upsample,
    check_soft_vote,
    soft_vote,
)

LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)
MOST_ENTRIES = 16  # that one call can mix
MOST_RADIUS = 32767  # of boundary_map; what lies between rows is aged in 16 bits
ABSTAIN = 255  # what hard_vote writes where no member votes


def check_confusion_matrix(pred: Tensor, label: Tensor, num_classes: int) -> None:
    check_classes(num_classes)
    for name, ids in (("pred", pred), ("label", label)):
        check(ids.dtype in LABEL_DTYPES, f"{name} must be uint8, int32 or int64, got {ids.dtype}")
    check(
        pred.shape == label.shape,
        f"pred and label differ in shape: {list(pred.shape)} and {list(label.shape)}",
    )
    check(pred.device == label.device, f"pred is on {pred.device}, label on {label.device}")


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


def check_mix(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    check(1 <= len(a) <= MOST_ENTRIES, f"there must be 1..{MOST_ENTRIES} entries, got {len(a)}")
    check(len(a) == len(b), f"a has {len(a)} entries, b has {len(b)}")
    for ours, theirs in zip(a, b, strict=True):
        check(
            ours.shape == theirs.shape and ours.dtype == theirs.dtype,
            f"a has {list(ours.shape)} {ours.dtype}, b has {list(theirs.shape)} {theirs.dtype}",
        )
        check(
            ours.dim() in (3, 4), f"an entry must be [N, H, W] or [N, C, H, W], got {ours.dim()}-D"
        )
        check(
            ours.shape[0] == a[0].shape[0] and ours.shape[-2:] == a[0].shape[-2:],
            f"entries differ in N, H or W: {list(ours.shape)} and {list(a[0].shape)}",
        )
        check(
            ours.device == a[0].device and theirs.device == a[0].device,
            "all entries must be on one device",
        )


def check_cutmix(a: Sequence[Tensor], b: Sequence[Tensor], boxes: Tensor) -> None:
    check_mix(a, b)
    check(boxes.dtype == torch.int64, f"boxes must be int64, got {boxes.dtype}")
    check(
        boxes.dim() == 3 and boxes.shape[0] == a[0].shape[0] and boxes.shape[2] == 4,
        f"boxes must be [{a[0].shape[0]}, K, 4], got {list(boxes.shape)}",
    )
    check(boxes.device == a[0].device, f"boxes are on {boxes.device}, a on {a[0].device}")


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
    check(label.dtype == torch.uint8, f"label must be uint8, got {label.dtype}")
    check(
        label.shape == (samples, height, width),
        f"label must be {[samples, height, width]}, got {list(label.shape)}",
    )
    check(
        classes.dtype == torch.bool and classes.shape == (samples, 256),
        f"classes must be bool [{samples}, 256], got {classes.dtype} {list(classes.shape)}",
    )
    check(
        label.device == a[0].device and classes.device == a[0].device,
        "label and classes must be on the device of the entries",
    )


def classmix(
    a: Sequence[Tensor], b: Sequence[Tensor], label: Tensor, classes: Tensor
) -> list[Tensor]:
    check_classmix(a, b, label, classes)
    return _mix(a, b, classes.gather(1, label.flatten(1).long()).view(label.shape))


def check_hard_vote(predictions: Tensor, num_classes: int, weights: Sequence[float] | None) -> None:
    check_classes(num_classes)
    check(predictions.dtype == torch.uint8, f"predictions must be uint8, got {predictions.dtype}")
    check(predictions.dim() >= 1, "predictions must be [M, ...]")
    members = predictions.shape[0]
    check(1 <= members <= 255, f"there must be 1..255 members, got {members}")
    if weights is not None:
        check(len(weights) == members, f"{members} members but {len(weights)} weights")
        # The upper bound keeps the float32 sum of 255 weights finite.
        check(
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
    check_classes(num_classes)
    check(1 <= bins <= 4096, f"bins must be 1..4096, got {bins}")
    check(confidence.dtype == torch.float32, f"confidence must be float32: {confidence.dtype}")
    others = {"confidence": confidence, **({} if label is None else {"label": label})}
    for name, ids in (("pred", pred), ("label", label)):
        if ids is not None:
            check(ids.dtype == torch.uint8, f"{name} must be uint8, got {ids.dtype}")
    for name, other in others.items():
        check(
            other.shape == pred.shape,
            f"{name} and pred differ in shape: {list(other.shape)} and {list(pred.shape)}",
        )
        check(other.device == pred.device, f"{name} is on {other.device}, pred on {pred.device}")


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
    check(label.dtype == torch.uint8, f"label must be uint8, got {label.dtype}")
    check(label.dim() == 3, f"label must be [N, H, W], got {list(label.shape)}")
    check(0 <= radius <= MOST_RADIUS, f"radius must be 0..{MOST_RADIUS}, got {radius}")


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
