"""What every method is, and what a teacher's pseudo labels are watched for."""

import argparse
from collections.abc import Callable, Iterable

import torch
from torch import nn

import kernels


class Method(nn.Module):
    """What a method does when it does nothing."""

    needs: frozenset[str] = frozenset()

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the method's flags to the script's parser."""

    def check(self, model: nn.Module) -> None:
        """Raise UserError where the method cannot work on a network, before any step."""

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the weighted loss terms of one batch."""
        return {}

    def after_step(self, rate: float) -> dict[str, torch.Tensor]:
        """Train what is the method's own; `rate` is the schedule's factor. Return losses to log."""
        return {}

    def diagnose(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return values to log and warnings, of the time since the last call."""
        return {}, []

    def finish(self, model: nn.Module, batches: Iterable[torch.Tensor]) -> bool:
        """Change the trained model once, at the end, given normalised target images."""
        return False


class Watch:
    """Counts of what a teacher is sure of, kept on the device and read once an interval.

    Args:
        name: of the method, begins the values' names and the warnings.
        num_classes: C.
    """

    def __init__(self, name: str, num_classes: int):
        self.name, self.num_classes = name, num_classes
        self._pixels: int = 0
        self._counts: torch.Tensor | int = 0

    def count(self, pseudo: torch.Tensor, sure: torch.Tensor, source_label: torch.Tensor) -> None:
        """Count a batch; does not make the host wait.

        Args:
            pseudo: uint8 [N,H,W], the teacher's classes.
            sure: bool [N,H,W], where its confidence reaches the threshold.
            source_label: uint8 [N,H,W], 255 = ignore.
        """
        counts = []
        for label in (pseudo.masked_fill(~sure, 255), source_label):
            matrix = kernels.confusion_matrix(label, label, self.num_classes)
            counts.append(matrix.diagonal()[: self.num_classes])
        self._counts = self._counts + torch.stack(counts)
        self._pixels += pseudo.numel()

    def read(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return what was counted since the last call: values to log, and a warning or none.

        The values are the share of confident pixels, and among those the number of classes and
        the share of the most frequent one. The warnings are for a teacher that is never sure, and
        for pseudo labels that hold one class alone or less than half of the source's classes.
        """
        if not self._pixels:
            return {}, []
        sure, source = self._counts.tolist()
        share = sum(sure) / self._pixels
        largest = max(sure) / max(sum(sure), 1)
        classes, expected = (sum(n > 0 for n in counts) for counts in (sure, source))
        self._pixels, self._counts = 0, 0
        values = {"confident": share, "largest_class": largest, "classes": float(classes)}
        warning = None
        if share < 0.01:
            warning = f"the teacher never becomes confident: {share:.2%} of the pixels count"
        elif largest > 0.95:
            warning = f"the pseudo labels collapse: {largest:.1%} are class {sure.index(max(sure))}"
        elif 2 * classes < expected:
            warning = f"the pseudo labels collapse to {classes} classes; the source has {expected}"
        values = {f"{self.name}_{key}": torch.tensor(value) for key, value in values.items()}
        return values, [f"{self.name}: {warning}"] if warning else []
