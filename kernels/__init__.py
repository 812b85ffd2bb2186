"""Count, resize, mix and vote on label maps: eight operations in C++ and CUDA.

Mixing has two forms, `cutmix` and `classmix`; each is an operator of its own to the dispatcher.

Schemas are declared here and plain-torch references registered for every device; importing this
package compiles and loads the faster implementations (see `build`), which the dispatcher then
prefers. So callers never ask which device they are on, and results are equal bit for bit.

To add one: its definition and checks in `reference`, schema, fake and function here, then a
TORCH_LIBRARY_IMPL entry in a *_cpu.cpp and a *_cuda.cu, and a table in tests/kernels/.
"""

import math
from collections.abc import Callable, Sequence

import engine  # noqa: F401 -- first: it says what is to be installed

# isort: split
import torch
from torch import Tensor

from kernels import build, reference

_library = torch.library.Library("segshift", "DEF")


def _define(schema: str, implementation: Callable, fake: Callable) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"segshift::{name}", fake, lib=_library)


def _fake_confusion_matrix(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    reference.check_confusion_matrix(pred, label, num_classes)
    return pred.new_empty((num_classes + 1, num_classes + 1), dtype=torch.int64)


def _fake_argmax_upsample(
    logits: Tensor, size: Sequence[int], align_corners: bool, with_confidence: bool
) -> tuple[Tensor, Tensor]:
    reference.check_argmax_upsample(logits, size)
    shape = (logits.shape[0], *size)
    confidence = logits.new_empty(shape if with_confidence else (0,), dtype=torch.float32)
    return logits.new_empty(shape, dtype=torch.uint8), confidence


def _fake_cutmix(a: Sequence[Tensor], b: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    reference.check_cutmix(a, b, boxes)
    return [entry.new_empty(entry.shape) for entry in a]


def _fake_classmix(
    a: Sequence[Tensor], b: Sequence[Tensor], label: Tensor, classes: Tensor
) -> list[Tensor]:
    reference.check_classmix(a, b, label, classes)
    return [entry.new_empty(entry.shape) for entry in a]


def _fake_hard_vote(
    predictions: Tensor, num_classes: int, weights: Sequence[float] | None
) -> Tensor:
    reference.check_hard_vote(predictions, num_classes, weights)
    return predictions.new_empty(predictions.shape[1:])


def _fake_confidence_histogram(
    confidence: Tensor,
    pred: Tensor,
    num_classes: int,
    bins: int,
    label: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    reference.check_confidence_histogram(confidence, pred, num_classes, bins, label)
    shape = (num_classes, bins) if label is None else (num_classes, bins, 2)
    return pred.new_empty(shape, dtype=torch.int64)


def _fake_soft_vote(
    members: Sequence[Tensor],
    size: Sequence[int],
    weights: Sequence[float],
    align_corners: bool,
    probabilities: bool,
    with_confidence: bool,
) -> tuple[Tensor, Tensor]:
    reference.check_soft_vote(members, size, weights)
    return _fake_argmax_upsample(members[0], size, align_corners, with_confidence)


def _fake_boundary_map(label: Tensor, radius: int, border: bool) -> Tensor:
    reference.check_boundary_map(label, radius)
    return label.new_empty(label.shape, dtype=torch.bool)


_define(
    "confusion_matrix(Tensor pred, Tensor label, int num_classes, int ignore_index) -> Tensor",
    reference.confusion_matrix,
    _fake_confusion_matrix,
)
_define(
    "argmax_upsample(Tensor logits, SymInt[] size, bool align_corners, bool with_confidence)"
    " -> (Tensor, Tensor)",
    reference.argmax_upsample,
    _fake_argmax_upsample,
)
_define("cutmix(Tensor[] a, Tensor[] b, Tensor boxes) -> Tensor[]", reference.cutmix, _fake_cutmix)
_define(
    "classmix(Tensor[] a, Tensor[] b, Tensor label, Tensor classes) -> Tensor[]",
    reference.classmix,
    _fake_classmix,
)
_define(
    "hard_vote(Tensor predictions, int num_classes, float[]? weights) -> Tensor",
    reference.hard_vote,
    _fake_hard_vote,
)
_define(
    "confidence_histogram(Tensor confidence, Tensor pred, int num_classes, int bins,"
    " Tensor? label=None, int ignore_index=255) -> Tensor",
    reference.confidence_histogram,
    _fake_confidence_histogram,
)
_define(
    "boundary_map(Tensor label, int radius, bool border) -> Tensor",
    reference.boundary_map,
    _fake_boundary_map,
)

_define(
    "soft_vote(Tensor[] members, SymInt[] size, float[] weights, bool align_corners,"
    " bool probabilities, bool with_confidence) -> (Tensor, Tensor)",
    reference.soft_vote,
    _fake_soft_vote,
)

_served_by = build.load()


def backend(device: str | torch.device) -> str:
    """Say which implementation serves a device and why.

    Args:
        device: "cpu", "cuda", "cuda:1", a torch.device, ...

    Returns:
        "C++ (library file)", "CUDA (library file)" or "reference: reason".
    """
    kind = torch.device(device).type
    return _served_by.get(kind, f"reference: no kernels are written for {kind}")


def confusion_matrix(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        pred: predicted ids, uint8, int32 or int64, any shape.
        label: true ids, uint8, int32 or int64, the same shape.
        num_classes: C, 1..256.
        ignore_index: pixels with this label are not counted, whatever was predicted there.

    Returns:
        int64 [C+1, C+1], rows = truth, columns = prediction. The last row and column count ids
        outside 0..C-1 (other than an ignored label), which a caller should report.

    Raises:
        RuntimeError: on another dtype, or shapes or devices that differ.
    """
    return torch.ops.segshift.confusion_matrix(pred, label, num_classes, ignore_index)


@torch.no_grad()
def argmax_upsample(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    with_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Resize logits bilinearly and take the best class, without full-size logits.

    Ties go to the lowest class. NaN never wins (nor infinity, where a weight is 0); class 0 stands
    where every value is NaN.

    Args:
        logits: float32, bfloat16 or float16 [N, C, h, w], any strides, C in 1..256.
        size: (H, W) of the result in pixels.
        align_corners: as in torch.nn.functional.interpolate.
        with_confidence: also return the largest softmax probability.

    Returns:
        uint8 [N, H, W]; with confidence also float32 [N, H, W], 0 where the best logit is not
        finite.

    Raises:
        RuntimeError: on another dtype, class count or an empty h or w.

    Source: the sampling of F.interpolate(mode="bilinear"). Deviation: rows are interpolated before
    columns, every value being float32 round(round(w0 * v0) + round(w1 * v1)); so where the two best
    classes are within rounding the winner may differ from interpolate + argmax.
    """
    pred, confidence = torch.ops.segshift.argmax_upsample(
        logits, size, align_corners, with_confidence
    )
    return (pred, confidence) if with_confidence else pred


@torch.no_grad()
def cutmix(a: Sequence[Tensor], b: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    """Paste boxes of b into a, images and labels at once.

    Args:
        a: 1..16 entries [N, H, W] or [N, C, H, W] of any dtype that share N, H and W.
        b: as many entries, of the same shapes and dtypes.
        boxes: int64 [N, K, 4] of x0, y0, x1, y1 in pixels, half-open; parts outside are clipped.

    Returns:
        One new contiguous tensor for each entry: b inside any of the K boxes, else a.

    Raises:
        RuntimeError: on entries that do not match, or other boxes.

    Source: Yun et al. 2019, CutMix (arXiv:1905.04899), as French et al. 2020 (arXiv:1906.01916)
    use it for segmentation. Deviation: any number of boxes.
    """
    return torch.ops.segshift.cutmix(list(a), list(b), boxes)


@torch.no_grad()
def classmix(
    a: Sequence[Tensor], b: Sequence[Tensor], label: Tensor, classes: Tensor
) -> list[Tensor]:
    """Paste the chosen classes of b into a, images and labels at once.

    Args:
        a: 1..16 entries [N, H, W] or [N, C, H, W] of any dtype that share N, H and W.
        b: as many entries, of the same shapes and dtypes.
        label: uint8 [N, H, W], what b shows.
        classes: bool [N, 256], the label ids to paste in each sample.

    Returns:
        One new contiguous tensor for each entry: b where classes[n, label[n]], else a.

    Raises:
        RuntimeError: on entries that do not match, or another label or classes.

    Source: Olsson et al. 2021, ClassMix (arXiv:2007.07936).
    """
    return torch.ops.segshift.classmix(list(a), list(b), label, classes)


def hard_vote(
    predictions: Tensor, num_classes: int, weights: Sequence[float] | None = None
) -> Tensor:
    """Let the members of an ensemble vote on every pixel.

    Args:
        predictions: uint8 [M, ...], M in 1..255. An id >= num_classes is an abstention.
        num_classes: C, 1..256.
        weights: M positive numbers, 1e-30..1e30; else each counts 1. Sums: float32.

    Returns:
        uint8 [...], the class with the largest sum, the lowest of them in a tie, 255 where every
        member abstains.

    Raises:
        RuntimeError: on another dtype, number of members or weights.
    """
    return torch.ops.segshift.hard_vote(predictions, num_classes, weights)


@torch.no_grad()
def soft_vote(
    members: Sequence[Tensor],
    size: Sequence[int],
    weights: Sequence[float] | None = None,
    align_corners: bool = False,
    probabilities: bool = True,
    with_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Average what several networks say, each at its own stride, and take the best class.

    Nothing of the result's size is made but the result. Ties go to the lowest class; NaN never
    wins (nor infinity, where a weight is 0).

    Args:
        members: 1..32 of float32, bfloat16 or float16 [N, C, h, w], any strides, C in 1..256; h
            and w may differ.
        size: (H, W) of the result in pixels.
        weights: of the members in the mean, each above 1e-30 of their sum; None for equal ones.
        align_corners: as in torch.nn.functional.interpolate.
        probabilities: members are softmax probabilities; else logits, whose means are logits.
        with_confidence: also return the mean probability of the best class; for logits the
            softmax of the means.

    Returns:
        uint8 [N, H, W]; with confidence also float32 [N, H, W], 0 where the best mean is not
        finite.

    Raises:
        RuntimeError: on members that do not match, or another dtype, size or weights.

    Source: the sampling and rounding of `argmax_upsample`, each member's row being multiplied by
    its share float32(weight / sum), the members being added in order.
    """
    weights = [1.0] * len(members) if weights is None else weights
    total = math.fsum(weights) or 1.0
    shares = [weight / total for weight in weights]
    pred, confidence = torch.ops.segshift.soft_vote(
        list(members), size, shares, align_corners, probabilities, with_confidence
    )
    return (pred, confidence) if with_confidence else pred


def confidence_histogram(
    confidence: Tensor,
    pred: Tensor,
    num_classes: int,
    bins: int,
    label: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Count pixels by predicted class and confidence, and by whether they are right.

    Args:
        confidence: float32 of any shape; values outside 0..1 count in the first or last bin.
        pred: uint8 of the same shape.
        num_classes: C, 1..256.
        bins: equal parts of 0..1, 1..4096; a pixel falls into trunc(float32(confidence * bins)).
        label: true ids, uint8 of the same shape, or None.
        ignore_index: pixels with this label are not counted.

    Returns:
        int64 [C, bins]; with a label [C, bins, 2], the wrong pixels and the right ones: what the
        expected calibration error is read off (Guo et al. 2017, arXiv:1706.04599, equation 3).
        Pixels with pred >= C or a NaN confidence are not counted.

    Raises:
        RuntimeError: on another dtype, or shapes or devices that differ.
    """
    return torch.ops.segshift.confidence_histogram(
        confidence, pred, num_classes, bins, label, ignore_index
    )


def boundary_map(label: Tensor, radius: int, border: bool = False) -> Tensor:
    """Find the pixels near a change of class.

    Args:
        label: ids, uint8 [N, H, W]; every id counts as a class, ignored ones too.
        radius: of the square window of 2 * radius + 1 pixels around each, 0..32767.
        border: what lies outside the image counts as another class.

    Returns:
        bool [N, H, W], whether the window holds another id than the pixel's own (with a radius of
        0 none does).

    Raises:
        RuntimeError: on another dtype, shape or radius.

    Source: the boundary region of Cheng et al. 2021, Boundary IoU (arXiv:2103.16562), section 4:
    with `border`, `boundary_map(label, d, True) & (label == c)` is the mask of class c less its
    erosion by d steps of a 3x3 square. All classes at once instead of mask by mask.
    """
    return torch.ops.segshift.boundary_map(label, radius, border)
