"""How often classes occur in labels, and what training takes from it: weights, rare classes."""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset
from tqdm import tqdm

from datasets.cache import fingerprint
from datasets.facts import SAMPLE
from datasets.loading import make_loader
from datasets.order import RareClasses
from datasets.text import read_json
from engine.errors import UserError
from engine.files import write_text
from engine.shapes import Within
from engine.values import Loading


class _CountedLabels(Dataset):
    """How many pixels of each class each label has, int64 [C]; no image is decoded."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        label = self.dataset.resized(self.dataset.read_label(index))
        counts = np.bincount(label.ravel(), minlength=256)
        return torch.from_numpy(counts[: self.dataset.num_classes])


def class_counts(dataset: Dataset, folder: str | Path, loading: Loading) -> torch.Tensor:
    """Return the pixels of each class in each label, int64 [N,C], counted only the first time.

    Args:
        dataset: labelled, one or several joined.
        folder: where a file keeps the counts of each, under a name that changes with the data.
        loading: see `make_loader`.

    Raises:
        UserError: an unreadable label, or nothing but ignored pixels in all of them.
    """
    if isinstance(dataset, ConcatDataset):
        return torch.cat([class_counts(part, folder, loading) for part in dataset.datasets])
    path = Path(folder) / f"{fingerprint(dataset)}.class_counts.json"
    shape = [tuple([Within(0, 2**40)] * dataset.num_classes)]
    with contextlib.suppress(UserError):  # absent, torn, or of something else: counted again
        known = read_json(path, shape)
        if len(known) == len(dataset) and any(map(any, known)):
            return torch.tensor(known)
    loader = make_loader(_CountedLabels(dataset), loading, batch_size=8)
    counts = torch.cat(list(tqdm(loader, desc="counting classes", disable=None, leave=False)))
    if not counts.any():
        raise UserError(f"the labels of {dataset.name} hold no class, every pixel is ignored")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(counts.tolist()) + "\n")
    return counts


class Statistics(NamedTuple):
    """What is known of the labels that a network is trained on.

    Attributes:
        counts: of `class_counts`; None where nothing needs them.
        class_weight: of `class_weights`, None if it is not wanted.
        rare_classes: how rare classes are drawn, None if it is not wanted.
    """

    counts: torch.Tensor | None = None
    class_weight: torch.Tensor | None = None
    rare_classes: RareClasses | None = None


NOTHING_KNOWN = Statistics()


def class_statistics(
    dataset: Dataset,
    folder: str | Path,
    size: tuple[int, int] | int,
    *,
    balance: bool,
    temperature: float | None,
    loading: Loading,
    allow_missing: bool = False,
) -> Statistics:
    """Return what training takes from the frequencies of classes.

    Labels are counted if it takes anything, and where people wrote the class table themselves.

    Args:
        dataset, folder, loading: see `class_counts`.
        size: of the labels, see `build_dataset`.
        balance: whether the loss weighs the classes.
        temperature: of the sampling of rare classes; None for none.
        allow_missing: whether a class of people's own table may be in no label.

    Raises:
        UserError: as `class_counts`; a class that no label holds.
    """
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    # pseudo labels may well lack a class
    own = [p for p in parts if p.own_table and p.option["label_kind"] == "labelIds"]
    if not (balance or temperature is not None or own):
        return NOTHING_KNOWN
    counts = class_counts(dataset, folder, loading)
    if own and not allow_missing:
        _refuse_missing(dataset, own, counts)
    weight = class_weights(counts) if balance else None
    square = (size, size) if isinstance(size, int) else size
    rare = None if temperature is None else RareClasses(counts, square, temperature)
    return Statistics(counts, weight, rare)


def _refuse_missing(dataset: Dataset, parts: list[Dataset], counts: torch.Tensor) -> None:
    """Raise UserError if a class of people's own table is in no label; say what the files hold."""
    missing = [c for c, count in enumerate(counts.sum(0).tolist()) if count == 0]
    if not missing:
        return
    part, ids = parts[0], set()
    for index in range(min(len(part), SAMPLE)):
        ids.update(np.unique(part.read_ids(part.paths(index)[1])).tolist())
    names = ", ".join(f"{dataset.class_names[c]} (id {part.train_to_raw[c]})" for c in missing)
    holding = f"the first {SAMPLE} labels" if len(part) > SAMPLE else "the labels"
    raise UserError(
        f"{part.root}: no training label holds {names}; {holding} hold the ids "
        f"{', '.join(map(str, sorted(ids)))}: mend the class table, or give --allow-missing-classes"
    )


def class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return float32 [C]: sqrt(median frequency / frequency) of each class, within 0.3 to 4.

    Classes that never occur weigh 1.

    Args:
        counts: int64 [N,C], see `class_counts`.

    Source: Eigen and Fergus 2015, section 4.2 (median frequency balancing), with a square root and
    bounds, as the raw weights of rare classes destabilise small batches.
    """
    total = counts.sum(0).double().numpy()
    seen = total > 0
    weights = np.ones_like(total)
    weights[seen] = np.sqrt(np.median(total[seen]) / total[seen]).clip(0.3, 4.0)
    return torch.from_numpy(weights).float()
