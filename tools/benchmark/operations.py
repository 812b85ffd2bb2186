"""Time the kernels: the same inputs for ours, the plain way, and other libraries if installed."""

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import kernels
from kernels import reference
from tools.benchmark.scenes import IGNORE, NUM_CLASSES, ignore_bottom, regions, smooth_logits
from tools.benchmark.timing import alternate, compare

STRIDES = (8, 8, 8, 16, 16)  # of the members of a vote


@dataclass
class Case:
    """One operation on one input: our call, the plain one, and the checked definition."""

    name: str
    ours: Callable
    plain: Callable
    reference: Callable
    num_bytes: int  # that must be read and written
    others: dict[str, Callable] = field(default_factory=dict)


def run(
    machine: dict, device: torch.device, *, size: tuple[int, int], repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield a row and a remark for every operation, its result compared with the reference first.

    Args:
        machine: `copy_gb_per_s` is read.
        device: where the operations run.
        size: W, H of the maps in pixels.
        repeats: rounds of each pair of calls; other libraries have three at most.
    """
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(size, device, Path(folder)):
            check_equal(case)
            ours, plain = alternate([case.ours, case.plain], device, repeats)
            others = alternate(list(case.others.values()), device, min(repeats, 3))
            row = {"name": case.name, **compare(ours, plain)}
            copied = case.num_bytes / (machine["copy_gb_per_s"] * 1e9)
            row["of_copy"] = copied / statistics.median(ours)
            row["others_ms"] = {
                name: statistics.median(seconds) * 1e3
                for name, seconds in zip(case.others, others, strict=True)
            }
            remark = f"{row['of_copy']:4.0%} of the copy rate"
            for name, ms in row["others_ms"].items():
                remark += f", {name} {ms:.1f} ms, {ms / row['ours_ms']:.0f}x"
            yield row, remark


def check_equal(case: Case) -> None:
    """Stop unless ours is the reference's result, bit for bit, and something can be read off it."""
    ours, expected = case.ours(), case.reference()
    if isinstance(ours, Tensor):
        ours, expected = [ours], [expected]
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y), f"{case.name} differs from the reference"
        assert x.any(), f"{case.name} gives zeros only: not worth timing"
    for name, count in case.others.items():
        matrix = torch.as_tensor(np.asarray(count(), np.int64))
        own = ours[0][:NUM_CLASSES, :NUM_CLASSES].cpu()
        assert torch.equal(matrix[:NUM_CLASSES, :NUM_CLASSES], own), f"{name} counts differently"


def cases(size: tuple[int, int], device: torch.device, folder: Path) -> Iterator[Case]:
    """Yield every operation on inputs of this size, a label map with 10% ignored among them."""
    generator = torch.Generator().manual_seed(0)
    width, height = size
    ids = regions(size, generator)
    label, moved = ignore_bottom(ids).to(device), ids.roll((2, 2), (0, 1)).to(device)
    guesses = torch.randint(0, NUM_CLASSES, (height, width), generator=generator).byte()
    guessed = torch.rand(height, width, generator=generator) < 0.2
    noisy = torch.where(guessed.to(device), guesses.to(device), moved)
    yield from confusion_cases(label, {"moved borders": moved, "20% random": noisy}, folder)
    yield from upsample_cases(size, device, generator)
    yield vote_case(moved)
    yield from soft_vote_cases(size, device, generator)
    yield from mix_cases(label, moved, generator)
    yield from histogram_cases(moved, label, generator)
    yield from boundary_cases(moved)


# ---- counting ----------------------------------------------------------------------------------


def confusion_cases(label: Tensor, predictions: dict[str, Tensor], folder: Path) -> Iterator[Case]:
    """Yield uint8 maps beside NumPy, and int64 maps beside torch.bincount."""
    wide_label = label.long()
    for name, pred in predictions.items():
        wide_pred = pred.long()
        y, x = wide_label.cpu().numpy(), pred.cpu().numpy()
        on_torch = lambda p=wide_pred: torch_hist(wide_label, p)  # noqa: E731
        on_numpy = lambda y=y, x=x: fast_hist(y, x)  # noqa: E731
        yield Case(
            f"confusion_matrix uint8, {name}",
            lambda p=pred: kernels.confusion_matrix(p, label, NUM_CLASSES),
            on_numpy if label.device.type == "cpu" else on_torch,
            lambda p=pred: reference.confusion_matrix(p, label, NUM_CLASSES, IGNORE),
            2 * label.numel(),
            other_counts(label, pred, folder / name.replace(" ", "-")),
        )
        yield Case(
            f"confusion_matrix int64, {name}",
            lambda p=wide_pred: kernels.confusion_matrix(p, wide_label, NUM_CLASSES),
            on_torch,
            lambda p=wide_pred: reference.confusion_matrix(p, wide_label, NUM_CLASSES, IGNORE),
            2 * 8 * label.numel(),
        )


def fast_hist(label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Count as AdaptSegNet's compute_iou.py does: keep what is labelled, then bincount.

    Args:
        label: int64, what mapping raw ids to train ids makes there of a PNG's uint8.
        pred: uint8, as read from a PNG.
    """
    kept = (label >= 0) & (label < NUM_CLASSES)
    return np.bincount(NUM_CLASSES * label[kept].astype(int) + pred[kept], minlength=NUM_CLASSES**2)


def torch_hist(label: Tensor, pred: Tensor) -> Tensor:
    """Count the same way with torch."""
    kept = (label >= 0) & (label < NUM_CLASSES)
    return torch.bincount(NUM_CLASSES * label[kept] + pred[kept], minlength=NUM_CLASSES**2)


def other_counts(label: Tensor, pred: Tensor, folder: Path) -> dict[str, Callable]:
    """Return the confusion matrices of other libraries, those that are installed."""
    found = {}
    with contextlib.suppress(ImportError):
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        wide = (pred.long(), label.long())
        how = {"num_classes": NUM_CLASSES, "ignore_index": IGNORE}
        found["torchmetrics"] = lambda: multiclass_confusion_matrix(*wide, **how).cpu()
    if label.device.type != "cpu":
        return found
    y, x = label.numpy(), pred.numpy()
    with contextlib.suppress(ImportError):
        from sklearn.metrics import confusion_matrix

        classes = range(NUM_CLASSES)
        found["scikit-learn"] = lambda: confusion_matrix(y.ravel(), x.ravel(), labels=classes)
    with contextlib.suppress(ImportError):
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

        folder.mkdir()
        Image.fromarray(y).save(folder / "label.bmp")
        Image.fromarray(x).save(folder / "pred.bmp")
        found["cityscapesScripts"] = lambda: official_counts(official.evaluatePair, folder)
    return found


def official_counts(evaluate_pair: Callable, folder: Path) -> np.ndarray:
    """Count with cityscapesScripts, which reads files: uncompressed ones here, to favour it."""
    counts = np.zeros((256, 256), np.ulonglong)
    how = SimpleNamespace(
        evalInstLevelScore=False, evalPixelAccuracy=False, evalLabels=list(range(256))
    )
    files = (str(folder / "pred.bmp"), str(folder / "label.bmp"))
    evaluate_pair(*files, counts, {}, {}, how)
    return counts


def vote_case(pred: Tensor) -> Case:
    """Return five shifted predictions beside torch.mode."""
    votes = torch.stack([pred.roll((i, 2 * i), (0, 1)) for i in range(5)])
    return Case(
        "hard_vote of 5",
        lambda: kernels.hard_vote(votes, NUM_CLASSES),
        lambda: torch.mode(votes, 0).values,
        lambda: reference.hard_vote(votes, NUM_CLASSES, None),
        6 * pred.numel(),
    )


def histogram_cases(pred: Tensor, label: Tensor, generator: torch.Generator) -> Iterator[Case]:
    """Yield confidences near 1 beside torch.bincount, without labels and with."""
    confidence = torch.rand(pred.shape, generator=generator).pow(0.1).to(pred.device)
    for truth in (None, label):
        yield Case(
            "confidence_histogram, 100 bins" + ", labels" * (truth is not None),
            lambda y=truth: kernels.confidence_histogram(confidence, pred, NUM_CLASSES, 100, y),
            lambda y=truth: bincount_confidence(confidence, pred, 100, y),
            lambda y=truth: reference.confidence_histogram(confidence, pred, NUM_CLASSES, 100, y),
            (5 if truth is None else 6) * pred.numel(),
        )


def bincount_confidence(
    confidence: Tensor, pred: Tensor, bins: int, label: Tensor | None = None
) -> Tensor:
    """Count class, bin and rightness as one number."""
    column = (confidence * bins).long().clamp(max=bins - 1)
    cell = pred.long() * bins + column
    if label is None:
        return torch.bincount(cell.flatten(), minlength=NUM_CLASSES * bins)
    cell = (2 * cell + (pred == label))[label != IGNORE]
    return torch.bincount(cell, minlength=2 * NUM_CLASSES * bins)


def boundary_cases(ids: Tensor) -> Iterator[Case]:
    """Yield a narrow window, and that of Boundary IoU, beside max pooling."""
    ids = ids[None]
    radii = {"radius 2": 2, "2 % of the diagonal": round(0.02 * math.hypot(*ids.shape[1:]))}
    for name, radius in radii.items():
        yield Case(
            f"boundary_map, {name}",
            lambda r=radius: kernels.boundary_map(ids, r),
            lambda r=radius: pooled_changes(ids, r),
            lambda r=radius: reference.boundary_map(ids, r, False),
            2 * ids.numel(),
        )


def pooled_changes(ids: Tensor, radius: int) -> Tensor:
    """Mark the pixels beside a change, and widen the marks along each axis."""
    changed = torch.zeros(ids.shape, device=ids.device)
    changed[:, :, 1:] += ids[:, :, 1:] != ids[:, :, :-1]
    changed[:, 1:] += ids[:, 1:] != ids[:, :-1]
    rows = F.max_pool2d(changed[:, None], (1, 2 * radius + 1), 1, (0, radius))
    return F.max_pool2d(rows, (2 * radius + 1, 1), 1, (radius, 0))[:, 0] > 0


# ---- upsampling and mixing ---------------------------------------------------------------------


def upsample_cases(
    size: tuple[int, int], device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    """Yield smooth and random logits of stride 16 beside F.interpolate and argmax."""
    width, height = size
    out = (height, width)
    smooth = smooth_logits(size, NUM_CLASSES, generator).to(device)
    noise = torch.randn(smooth.shape, generator=generator).to(device)
    for name, logits in (("smooth", smooth), ("random", noise)):
        for confident in (False, True):
            parts = slice(None) if confident else 0
            yield Case(
                f"argmax_upsample {name}" + ", confidence" * confident,
                lambda x=logits, c=confident: kernels.argmax_upsample(x, out, True, c),
                lambda x=logits, c=confident: interpolate_argmax(x, out, c),
                lambda x=logits, c=confident, parts=parts: reference.argmax_upsample(
                    x, out, True, c
                )[parts],
                height * width * (5 if confident else 1),
            )


def soft_vote_cases(
    size: tuple[int, int], device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    """Yield five members' means of probabilities and of logits beside full-size ones.

    The members see the same scene, each with noise of its own.
    """
    width, height = size
    out, shares = (height, width), [0.3, 0.1, 0.2, 0.2, 0.2]
    scene, logits = smooth_logits(size, NUM_CLASSES, generator), []
    for stride in STRIDES:
        grid = (height // stride + 1, width // stride + 1)
        member = F.interpolate(scene, grid, mode="bilinear", align_corners=True)
        noise = 0.5 * torch.randn(member.shape, generator=generator)
        logits.append((member + noise).to(device))
    probs = [member.softmax(1) for member in logits]
    for name, members, confident in (
        ("probabilities", probs, False),
        ("probabilities, confidence", probs, True),
        ("logits, confidence", logits, True),
    ):
        soft = name.startswith("logits")
        words = (shares, True, not soft, confident)
        parts = slice(None) if confident else 0
        yield Case(
            f"soft_vote of 5, {name}",
            lambda x=members, w=words: kernels.soft_vote(x, out, *w),
            lambda x=members, s=soft, c=confident: full_size_mean(x, shares, out, s, c),
            lambda x=members, w=words, parts=parts: reference.soft_vote(x, out, *w)[parts],
            height * width * (5 if confident else 1),
        )


def full_size_mean(
    members: list[Tensor], shares: list[float], size: tuple[int, int], soft: bool, confident: bool
):
    """Resize every member, add them up, then reduce."""
    mean = 0
    for member, share in zip(members, shares, strict=True):
        mean = mean + share * F.interpolate(member, size=size, mode="bilinear", align_corners=True)
    if not confident:
        return mean.argmax(1)
    return (mean.softmax(1) if soft else mean).max(1)


def interpolate_argmax(logits: Tensor, size: tuple[int, int], confident: bool):
    """Resize the logits, then reduce them."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return full.softmax(1).max(1) if confident else full.argmax(1)


def mix_cases(label: Tensor, pred: Tensor, generator: torch.Generator) -> Iterator[Case]:
    """Yield the mixing of four images and labels beside torch.where on an expanded mask."""
    height, width = label.shape
    device, pixels = label.device, 4 * label.numel()
    image = torch.randint(0, 256, (4, 3, height, width), generator=generator).byte().to(device)
    a = [image, label.expand(4, height, width).contiguous()]
    b = [image.flip(0).contiguous(), pred.expand(4, height, width).contiguous()]
    x0, y0, x1, y1 = box = (width // 4, height // 5, width * 9 // 10, height * 8 // 10)
    boxes = torch.tensor([[box]] * 4, device=device)
    inside = torch.zeros(4, height, width, dtype=torch.bool, device=device)
    inside[:, y0:y1, x0:x1] = True
    yield Case(
        "cutmix images and labels, batch 4",
        lambda: kernels.cutmix(a, b, boxes),
        lambda: where(a, b, inside),
        lambda: reference.cutmix(a, b, boxes),
        2 * 4 * pixels,
    )
    classes = (torch.rand(4, 256, generator=generator) < 0.5).to(device)
    yield Case(
        "classmix images and labels, batch 4",
        lambda: kernels.classmix(a, b, b[1], classes),
        lambda: where(a, b, classes.gather(1, b[1].flatten(1).long()).view(b[1].shape)),
        lambda: reference.classmix(a, b, b[1], classes),
        (2 * 4 + 1) * pixels,
    )


def where(a: list[Tensor], b: list[Tensor], mask: Tensor) -> list[Tensor]:
    """Choose by a mask [N,H,W]."""
    return [
        torch.where((mask if x.dim() == 3 else mask[:, None]).expand_as(x), y, x)
        for x, y in zip(a, b, strict=True)
    ]
