"""The scores beside mIoU that are asked for: outlines, instances, calibration."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from inference import instances
from inference.boundaries import BoundaryIoU
from inference.calibration import Calibration
from inference.metrics import ConfusionMatrix


class Others:
    """Takes every labelled batch; nothing is counted that was not asked for.

    Args:
        dataset: labelled, or not: then nothing is counted.
        outlines: count Boundary IoU.
        each_instance: count nIoU.
        sureness: count how far confidences are from the share that is right.
    """

    def __init__(
        self, dataset: Dataset, outlines: bool, each_instance: bool, sureness: bool = False
    ) -> None:
        self.class_names, count = dataset.class_names, dataset.num_classes
        self.boundaries = BoundaryIoU(count) if outlines else None
        self.niou = instances.InstanceIoU(dataset) if each_instance else None
        self.calibration = Calibration(count, dataset.ignore_index) if sureness else None

    def update(self, batch: dict[str, Any], pred: Tensor, confidence: Tensor | None = None) -> None:
        """Take a batch with its predictions, uint8 [N,H,W], and confidences, float32 [N,H,W]."""
        if "label" not in batch:
            return
        if self.boundaries:
            self.boundaries.update(pred, batch["label"])
        if self.niou:
            self.niou.update(batch["name"], pred)
        if self.calibration:
            self.calibration.update(pred, confidence, batch["label"])

    def calibrated(self) -> dict[str, Any]:
        """Return what `Calibration.summary` does, of all processes; empty where there is none."""
        if self.calibration is None:
            return {}
        self.calibration.add_up_processes()
        return self.calibration.summary(self.class_names)

    def results(
        self, confusion: ConfusionMatrix, scored: list[int] | None
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the scores of all processes as plain values, and lines that say them."""
        found: dict[str, Any] = {}
        lines = []
        if self.boundaries:
            self.boundaries.add_up_processes()
            found |= self.boundaries.summary(self.class_names, scored)
            if found["boundary_miou"] is not None:
                lines.append(f"boundary mIoU {found['boundary_miou']:.2f}")
        if self.niou:
            self.niou.add_up_processes()
            own = self.niou.summary(confusion, scored)
            found |= own
            lines += instances.lines(own)
        return found, lines
