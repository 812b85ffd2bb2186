"""Confusion matrix -> IoU, accuracies and the printed table."""

import math

import torch
from torch import Tensor

import kernels
from engine import processes
from engine.errors import UserError


class ConfusionMatrix:
    """Count truth against prediction on the device; read once at the end.

    `counts` is int64 [C+1,C+1] on the device of the first update (None before it): rows are truth,
    columns prediction, the last of each is what lies outside the classes. Several ranks sum it.

    Args:
        num_classes: C, train ids 0..C-1.
        class_names: C names, for the table and for messages.
        ignore_index: truth id that is not scored.
        allow_void: accept predictions outside the classes as "none of them": a miss of the true
            class and a false positive of nobody, which is what cityscapesScripts makes of a
            predicted id that is ignored in evaluation. Without it they are an error.
        each_image: keep the counts of each image too, in `images`.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: list[str],
        ignore_index: int = 255,
        *,
        allow_void: bool = False,
        each_image: bool = False,
    ) -> None:
        assert len(class_names) == num_classes
        self.num_classes = num_classes
        self.class_names = list(class_names)
        self.ignore_index = ignore_index
        self.allow_void = allow_void
        self.counts: Tensor | None = None
        self.images: list[Tensor] | None = [] if each_image else None

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Add a batch, without waiting for the device.

        Args:
            pred: uint8, any shape, train ids; where each image is kept, [N,H,W].
            label: uint8, the same shape and device, train ids or `ignore_index`.
        """
        if self.images is None:
            counts = kernels.confusion_matrix(pred, label, self.num_classes, self.ignore_index)
        else:
            own = [
                kernels.confusion_matrix(p, truth, self.num_classes, self.ignore_index)
                for p, truth in zip(pred, label, strict=True)
            ]
            self.images += own
            counts = torch.stack(own).sum(0)
        self.counts = counts if self.counts is None else self.counts + counts

    def add_up_processes(self) -> None:
        """Add the counts of all processes, of which each saw other images."""
        if self.counts is None:
            side = self.num_classes + 1
            self.counts = torch.zeros(side, side, dtype=torch.int64)
        # on the CPU: a process without an image does not know the others' device
        self.counts = processes.add_up(self.counts.cpu())
        if self.images is not None:
            total = int(processes.add_up(torch.tensor(len(self.images))))
            of_all = torch.zeros(total, *self.counts.shape, dtype=torch.int64)
            if self.images:
                of_all[list(processes.share(total))] = torch.stack(self.images).cpu()
            self.images = list(processes.add_up(of_all))

    @property
    def is_empty(self) -> bool:
        """Whether no pixel was counted: no label is there, or every one is ignored."""
        return self.counts is None or not self.counts.any()

    def compute(self, scored: list[int] | None = None) -> dict:
        """Read the matrix and return the scores, in percent.

        A class that is neither in the truth nor predicted has no IoU: it is nan, and the mean
        leaves it out, as AdaptSegNet (nanmean) and cityscapesScripts do.

        Args:
            scored: classes whose mean is wanted, for instance the 16 of SYNTHIA; None for all.
                The pixels of the other classes stay in the matrix: they are false positives of the
                scored ones, as with DAFormer's mIoU16 = mIoU19 * 19 / 16.

        Returns:
            dict of floats 0..100: `iou` and `accuracy` (lists with C entries, nan where there is
            none), `miou`, `mean_accuracy` (over `scored`, each class weighing the same),
            `pixel_accuracy`, `fw_iou` (over every class); `classes_scored`, the number of IoUs in
            the mean; `scored`, the classes asked for; `void_share`, the percentage of scored
            pixels that were given no class.

        Raises:
            UserError: nothing was counted, or an id lies outside the classes.

        Source: cityscapesScripts evalPixelLevelSemanticLabeling.py, getIouScoreForLabel and
        getScoreAverage, computed in the same order, so that the results are the same floats.
        """
        matrix = self._read()
        classes = range(self.num_classes)
        scored = list(classes) if scored is None else scored
        hits = [matrix[c][c] for c in classes]
        truth = [sum(matrix[c]) for c in classes]
        predicted = [sum(row[c] for row in matrix) for c in classes]
        total = sum(truth)

        iou = [_ratio(hits[c], truth[c] + predicted[c] - hits[c]) for c in classes]
        accuracy = [_ratio(hits[c], truth[c]) for c in classes]
        # A class without truth has weight 0, whether or not it has an IoU.
        weighted = [truth[c] * iou[c] for c in classes if truth[c]]
        return {
            "iou": [100 * value for value in iou],
            "accuracy": [100 * value for value in accuracy],
            "miou": 100 * _nanmean([iou[c] for c in scored]),
            "mean_accuracy": 100 * _nanmean([accuracy[c] for c in scored]),
            "pixel_accuracy": 100 * _ratio(sum(hits), total),
            "fw_iou": 100 * _ratio(sum(weighted), total),
            "classes_scored": sum(not math.isnan(iou[c]) for c in scored),
            "scored": scored,
            "void_share": 100 * _ratio(sum(row[-1] for row in matrix[:-1]), total),
        }

    def summary(self, scored: list[int] | None = None) -> dict:
        """Return the scores as plain values for checkpoints and JSON.

        Returns:
            `miou`, `pixel_accuracy`, `mean_accuracy`, `fw_iou`, `classes_scored` of `compute`, and
            `iou` by class name, None for a class that does not occur.
        """
        scores = self.compute(scored)
        kept = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "classes_scored")
        iou = dict(zip(self.class_names, map(plain, scores["iou"]), strict=True))
        return {**{key: plain(scores[key]) for key in kept}, "iou": iou}

    def group_iou(self, groups: dict[str, list[int]]) -> dict[str, float]:
        """Return the IoU of groups of classes in percent, nan where a group does not occur.

        Args:
            groups: name -> train ids, for instance the seven categories of Cityscapes. A pixel
                taken for another class of its own group counts as right.

        Raises:
            UserError: nothing was counted, or an id lies outside the classes.

        Source: cityscapesScripts evalPixelLevelSemanticLabeling.py, getIouScoreForCategory.
        """
        matrix = self._read()
        result = {}
        for name, members in groups.items():
            hits = sum(matrix[t][p] for t in members for p in members)
            truth = sum(sum(matrix[t]) for t in members)
            predicted = sum(row[p] for row in matrix for p in members)
            result[name] = 100 * _ratio(hits, truth + predicted - hits)
        return result

    def false_positives(self, members: list[int]) -> int:
        """Return the pixels of other classes that were taken for one of these.

        Raises:
            UserError: as of `group_iou`.
        """
        rows = [row for truth, row in enumerate(self._read()[:-1]) if truth not in members]
        return sum(row[p] for row in rows for p in members)

    def lines(self, scores: dict) -> list[str]:
        """Return AdaptSegNet's table: one `===>name:` line per scored class, then the mean.

        Args:
            scores: what `compute` returned.
        """
        rows = [
            f"===>{self.class_names[c]}:\t{round(scores['iou'][c], 2)}" for c in scores["scored"]
        ]
        return [*rows, f"===> mIoU: {round(scores['miou'], 2)}"]

    def _read(self) -> list[list[int]]:
        """Return the counts as Python integers, after checking the spare row and column."""
        matrix = [] if self.counts is None else self.counts.tolist()
        if not any(map(any, matrix)):
            raise UserError("no pixel was scored: there is no image, or every label is ignored")
        bad_label = sum(matrix[-1])
        bad_pred = 0 if self.allow_void else sum(row[-1] for row in matrix[:-1])
        if bad_label or bad_pred:
            raise UserError(
                f"{bad_label} pixels of the labels and {bad_pred} of the predictions are outside "
                f"the {self.num_classes} classes 0..{self.num_classes - 1} "
                f"(a label may also be {self.ignore_index})"
            )
        return matrix


def plain(score: float) -> float | None:
    """Return a score, None for nan, which JSON cannot hold."""
    return None if math.isnan(score) else score


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _nanmean(values: list[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
