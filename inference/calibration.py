"""Whether confidences are right: of pixels that are 80 % sure, 80 % should be.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv:1706.04599): expected
calibration error, equation 3, with 15 equal bins; temperature scaling, equation 9. A class's error
is over the pixels that are predicted to be of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from engine import processes
from engine.errors import UserError

BINS = 15
PIXELS = 2000  # of an image, that a temperature is fitted on
SMALLEST, LARGEST = 0.05, 20.0  # temperatures that are believed


class Calibration:
    """Pixels, right ones, and confidence of each class and bin, on the device until they are read.

    Args:
        num_classes: C.
        ignore_index: true id that is not counted.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts: Tensor | None = None  # int64 [C,BINS,2], wrong and right
        self.sums: Tensor | None = None  # float64 [C,BINS], of confidences

    def update(self, pred: Tensor, confidence: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            pred: uint8 [N,H,W], train ids.
            confidence: float32 [N,H,W], 0 to 1.
            label: uint8 [N,H,W], train ids or `ignore_index`.
        """
        label = label.to(pred.device)
        counts = kernels.confidence_histogram(
            confidence, pred, self.num_classes, BINS, label, self.ignore_index
        )
        kept = (label != self.ignore_index) & (pred < self.num_classes) & ~confidence.isnan()
        sure = confidence[kept]
        place = pred[kept].long() * BINS + (sure * BINS).long().clamp(0, BINS - 1)
        sums = torch.zeros(self.num_classes * BINS, dtype=torch.float64, device=pred.device)
        sums = sums.index_add_(0, place, sure.double()).view(self.num_classes, BINS)
        self.counts = counts if self.counts is None else self.counts + counts
        self.sums = sums if self.sums is None else self.sums + sums

    def add_up_processes(self) -> None:
        """Add what all processes counted, of which each saw other images."""
        shape = (self.num_classes, BINS)
        counts = torch.zeros(*shape, 2, dtype=torch.int64) if self.counts is None else self.counts
        sums = torch.zeros(shape, dtype=torch.float64) if self.sums is None else self.sums
        self.counts, self.sums = processes.add_up(counts.cpu()), processes.add_up(sums.cpu())

    def summary(self, class_names: list[str]) -> dict[str, Any]:
        """Return plain values, in percent.

        Returns:
            `ece`, of all pixels together; `ece_by_class`, None where nothing was predicted; and
            `reliability`: "all" and each class -> for every bin pixels, accuracy, confidence.
        """
        counts, sums = self.counts.double(), self.sums
        rows = {"all": (counts.sum(0), sums.sum(0))}
        rows |= {name: (counts[c], sums[c]) for c, name in enumerate(class_names)}
        errors = {name: expected_error(*row) for name, row in rows.items()}
        diagrams = {name: _diagram(*row) for name, row in list(rows.items())[1:]}
        return {
            "ece": expected_error(*rows["all"]),
            "ece_by_class": {name: errors[name] for name in class_names},
            "reliability": {"bins": _diagram(*rows["all"]), "classes": diagrams},
        }


def expected_error(counts: Tensor, sums: Tensor) -> float | None:
    """Return the mean distance of accuracy from confidence over bins, in percent; None of nothing.

    Args:
        counts: float64 [BINS,2], wrong and right pixels.
        sums: float64 [BINS], of their confidences.
    """
    total = counts.sum().item()
    return 100 * (counts[:, 1] - sums).abs().sum().item() / total if total else None


def _diagram(counts: Tensor, sums: Tensor) -> list[list[float]]:
    found = []
    for (wrong, right), total in zip(counts.tolist(), sums.tolist(), strict=True):
        pixels = wrong + right
        shares = [100 * right / pixels, 100 * total / pixels] if pixels else [0.0, 0.0]
        found.append([int(pixels), *(round(share, 4) for share in shares)])
    return found


# ------------------------------------------------------------------ temperature


def sampled(logits: Tensor, label: Tensor, align_corners: bool, ignore: int, seed: int) -> tuple:
    """Return logits and labels of some pixels of an image, drawn among those that are not ignored.

    Args:
        logits: float32 [C,h,w], at the network's resolution.
        label: uint8 [H,W].
        align_corners: how logits are resized to the label.
        ignore: the label that is not scored.
        seed: of the draw.

    Returns:
        float64 [P,C] and int64 [P], P at most `PIXELS`, on the CPU.
    """
    label, generator = label.cpu(), torch.Generator().manual_seed(seed)
    there = (label.flatten() != ignore).nonzero().flatten()
    there = there[torch.randperm(len(there), generator=generator)[:PIXELS]]
    h, w = label.shape
    y, x = (there // w).double(), (there % w).double()
    if align_corners:
        x, y = 2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1
    else:
        x, y = (2 * x + 1) / w - 1, (2 * y + 1) / h - 1
    grid = torch.stack([x, y], 1)[None, None]
    how = {"mode": "bilinear", "padding_mode": "border", "align_corners": align_corners}
    found = F.grid_sample(logits.cpu().double()[None], grid, **how)[0, :, 0]
    return found.T, label.flatten()[there].long()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T under which softmax(logits / T) says the labels best.

    The mean of -log softmax(a * logits) is convex in a = 1 / T, so that Newton's steps, kept
    between the ends of where the minimum is known to lie, find it.

    Args:
        logits: float64 [P,C].
        labels: int64 [P].

    Raises:
        UserError: no pixel, or every one of them is right (or wrong) however sure it is: no finite
            temperature is best.
    """
    if not len(labels):
        raise UserError("no temperature can be fitted: no labelled pixel")
    low, high, a = 1 / LARGEST, 1 / SMALLEST, 1.0
    for _ in range(100):
        slope, curvature = _slope(logits, labels, a)
        if slope == 0 and curvature > 0:
            break
        # a slope of 0 without curvature: every probability is 0 or 1, and every pixel right
        low, high = (a, high) if slope <= 0 else (low, a)
        step = a - slope / curvature if curvature > 0 else high
        after = step if low < step < high else (low + high) / 2
        if abs(after - a) < 1e-10 * a:
            break
        a = after
    if not 1 / LARGEST * 1.001 < a < 1 / SMALLEST * 0.999:
        raise UserError(
            f"no temperature can be fitted: the best is beyond {SMALLEST} to {LARGEST}, as where "
            "every pixel is right, or none is more than chance"
        )
    return 1 / a


def _slope(logits: Tensor, labels: Tensor, a: float) -> tuple[float, float]:
    """Return the first and second derivative by a of the mean of -log softmax(a * logits)."""
    probs = (a * logits).softmax(1)
    # differences first: where a pixel is nearly sure, those of sums would be nothing but rounding
    above = logits - logits.gather(1, labels[:, None])
    slope = (probs * above).sum(1)
    variance = (probs * (above - slope[:, None]) ** 2).sum(1)
    return slope.mean().item(), variance.mean().item()
