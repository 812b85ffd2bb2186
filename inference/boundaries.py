"""Boundary IoU: how well outlines are followed, whatever the size of what they enclose."""

import math

import torch
from torch import Tensor

import kernels
from engine import processes
from inference.metrics import plain

SHARE = 0.02  # of the image's diagonal, the authors' width
NONE = -1  # an id that is no class: outside the boundary region


class BoundaryIoU:
    """Count truth against prediction inside the boundary regions of both.

    Args:
        num_classes: C, train ids 0..C-1.
        ignore_index: truth id that is not scored.

    Source: Cheng et al. 2021, Boundary IoU (arXiv:2103.16562), equation 1, with their width of 2 %
    of the diagonal, at least a pixel; summed over all images, as the mIoU is. The region of a class
    are its pixels within that distance of another class or of the image's border. Deviation: what
    is ignored counts as another class when regions are found, and its own pixels are not scored.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        side = num_classes + 1
        self.counts = torch.zeros(side, side, dtype=torch.int64)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            pred: uint8 [N,H,W] train ids.
            label: uint8 [N,H,W] on the same device, train ids or `ignore_index`.
        """
        radius = max(1, round(SHARE * math.hypot(*label.shape[1:])))
        near = kernels.boundary_map(pred, radius, border=True)
        pred = pred.int().masked_fill(~near, NONE)
        near = kernels.boundary_map(label, radius, border=True) | (label == self.ignore_index)
        label = label.int().masked_fill(~near, NONE)
        counts = kernels.confusion_matrix(pred, label, self.num_classes, self.ignore_index)
        self.counts = self.counts.to(counts.device) + counts

    def add_up_processes(self) -> None:
        """Add the counts of all processes, of which each saw other images."""
        self.counts = processes.add_up(self.counts.cpu())

    def compute(self) -> list[float]:
        """Return the IoU of each class, 0..100; nan where neither has a region of it."""
        counts = self.counts.cpu().double()
        hits = counts.diagonal()[:-1]
        either = counts.sum(0)[:-1] + counts.sum(1)[:-1] - hits
        return (100 * hits / either).tolist()

    def summary(self, class_names: list[str], scored: list[int] | None) -> dict:
        """Return `boundary_miou` and, by class name, `boundary_iou`, None where there is none.

        Args:
            class_names: C names.
            scored: classes whose mean is wanted; None for all.
        """
        every = self.compute()
        chosen = range(self.num_classes) if scored is None else scored
        present = [every[c] for c in chosen if not math.isnan(every[c])]
        return {
            "boundary_miou": sum(present) / len(present) if present else None,
            "boundary_iou": dict(zip(class_names, map(plain, every), strict=True)),
        }
