"""nIoU, Cityscapes' instance-level IoU: every instance of a class weighs the same."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from engine import processes
from engine.errors import UserError
from inference.metrics import ConfusionMatrix, plain

FIRST = 1000  # an instance's id is 1000 times that of its class, and its number; smaller are none


class InstanceIoU:
    """Count what is found and missed of each instance, scaled to the mean size of its class.

    Args:
        dataset: labelled, with `instance_sizes`; its instance maps lie beside its labels.

    Raises:
        UserError: a dataset without instance maps.

    Source: Cordts et al. 2016, section 4.1; cityscapesScripts evalPixelLevelSemanticLabeling.py,
    evaluatePair, getInstanceIouScoreForLabel and -ForCategory, sums in the same order. Deviation:
    caravan and trailer, which are not scored, are no prediction of ours, so no vehicle either.
    """

    def __init__(self, dataset: Dataset):
        if not dataset.instance_sizes:
            raise UserError(f"--instances: {dataset.name} has no instance maps; cityscapes has")
        self.sizes, self.class_names = dataset.instance_sizes, dataset.class_names
        self.labels = {dataset.pairs[i][0]: dataset.paths(i)[1] for i in range(len(dataset))}
        rows = [row for row in dataset.rows if row.id >= 0]
        self.train_ids = {
            row.id: row.train_id for row in rows if row.has_instances and not row.ignore_in_eval
        }
        without = {row.category for row in rows if not row.has_instances}
        groups = {name: ids for name, ids in dataset.categories.items() if name not in without}
        self.members = {**{dataset.class_names[c]: [c] for c in self.train_ids.values()}, **groups}
        self.categories = list(groups)
        # of each class and category, what is found and what is missed
        self.counts = np.zeros((len(self.members), 2))

    def update(self, names: list[str], pred: Tensor) -> None:
        """Add a batch.

        Args:
            names: of the images.
            pred: uint8 [N,H,W] train ids, of the labels' size.

        Raises:
            UserError: an instance map is missing, unreadable or of another size.
        """
        for name, ids in zip(names, pred.cpu().numpy(), strict=True):
            self._add(read_instances(self.labels[name], ids.shape).ravel(), ids.ravel())

    def _add(self, instances: np.ndarray, pred: np.ndarray) -> None:
        sizes = np.bincount(instances)
        found = []
        for members in self.members.values():
            found.append(np.bincount(instances[np.isin(pred, members)], minlength=len(sizes)))
        for instance in np.flatnonzero(sizes):  # in the order of their ids, as there
            label = int(instance) // FIRST
            if instance <= FIRST or label not in self.train_ids:
                continue
            weight = self.sizes[label] / float(sizes[instance])
            for place, members in enumerate(self.members.values()):
                if self.train_ids[label] in members:
                    hits = int(found[place][instance])
                    missed = int(sizes[instance]) - hits
                    self.counts[place] += float(hits) * weight, float(missed) * weight

    def add_up_processes(self) -> None:
        """Add the counts of all processes, of which each saw other images."""
        self.counts = processes.add_up(torch.from_numpy(self.counts)).numpy()

    def summary(self, confusion: ConfusionMatrix, scored: list[int] | None) -> dict:
        """Return `niou`, its `mean_niou`, and the same of the categories, in percent.

        Args:
            confusion: of the same predictions.
            scored: classes whose mean is wanted; None for all.
        """
        scores = {}
        for (name, members), (found, missed) in zip(
            self.members.items(), self.counts.tolist(), strict=True
        ):
            either = found + confusion.false_positives(members) + missed
            scores[name] = found / either if either else math.nan
        chosen = range(len(self.class_names)) if scored is None else scored
        classes = {n: s for n, s in scores.items() if n not in self.categories}
        counted = [self.class_names[c] for c in chosen if self.class_names[c] in classes]
        return {
            "niou": {name: plain(100 * score) for name, score in classes.items()},
            "mean_niou": _mean([classes[name] for name in counted]),
            "category_niou": {name: plain(100 * scores[name]) for name in self.categories},
            "mean_category_niou": _mean([scores[name] for name in self.categories]),
        }


def lines(summary: dict) -> list[str]:
    """Return what is printed of `InstanceIoU.summary`."""
    rows = {**summary["niou"], **summary["category_niou"]}
    shown = [f"nIoU {n}\t{'-' if score is None else round(score, 2)}" for n, score in rows.items()]
    means = [summary["mean_niou"], summary["mean_category_niou"]]
    texts = ["-" if mean is None else f"{mean:.2f}" for mean in means]
    return [*shown, f"mean nIoU {texts[0]}, of categories {texts[1]}"]


def read_instances(label: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the instance map beside a label file, int64 [H,W].

    Raises:
        UserError: it is missing, unreadable or of another size.
    """
    ending = "labelTrainIds" if "labelTrainIds" in label.name else "labelIds"
    path = label.with_name(label.name.replace(ending, "instanceIds"))
    try:
        with Image.open(path) as image:
            instances = np.array(image).astype(np.int64)
    except OSError as error:
        raise UserError(f"--instances: {path}: {error.strerror or 'not a readable PNG'}") from None
    if instances.shape != shape or instances.min() < 0:
        size = "x".join(map(str, instances.shape[1::-1]))
        raise UserError(f"{path}: {size} pixels, its label and prediction {shape[1]}x{shape[0]}")
    return instances


def _mean(scores: list[float]) -> float | None:
    """Return the mean of fractions in percent, without those that are nan; None of none."""
    present = [score for score in scores if not math.isnan(score)]
    return 100 * (sum(present) / len(present)) if present else None
