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
from datasets.order import ClassesInTurn, RareClasses
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
        raise UserError(
            f"the labels of {dataset.name} ({dataset.root}) hold no class, every pixel is ignored"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(counts.tolist()) + "\n")
    return counts


class Statistics(NamedTuple):
    """What is known of the labels that a network is trained on.

    Attributes:
        counts: of `class_counts`; None where nothing needs them.
        class_weight: of `class_weights`, None if it is not wanted.
        by_class: draws images by the classes they hold, None if it is not wanted.
    """

    counts: torch.Tensor | None = None
    class_weight: torch.Tensor | None = None
    by_class: RareClasses | ClassesInTurn | None = None


NOTHING_KNOWN = Statistics()


def class_statistics(
    dataset: Dataset,
    folder: str | Path,
    size: tuple[int, int] | int,
    *,
    balance: str | bool,
    temperature: float | None,
    in_turn: bool = False,
    loading: Loading,
    allow_missing: bool = False,
) -> Statistics:
    """Return what training takes from the frequencies of classes.

    Labels are counted if it takes anything, and where people wrote the class table themselves.

    Args:
        dataset, folder, loading: see `class_counts`.
        size: of the labels, see `build_dataset`.
        balance: how the loss weighs the classes, see `class_weights`; False for not at all.
        temperature: of the sampling of rare classes; None for none.
        in_turn: whether images are drawn for every class in turn.
        allow_missing: whether a class of people's own table may be in no label.

    Raises:
        UserError: as `class_counts`; a class that no label holds.
    """
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    # pseudo labels may well lack a class
    own = [p for p in parts if p.own_table and p.option["label_kind"] == "labelIds"]
    if not (balance or temperature is not None or in_turn or own):
        return NOTHING_KNOWN
    counts = class_counts(dataset, folder, loading)
    if own and not allow_missing:
        _refuse_missing(dataset, own, counts)
    weight = class_weights(counts, balance) if balance else None
    square = (size, size) if isinstance(size, int) else size
    by_class = ClassesInTurn(counts, square) if in_turn else None
    if temperature is not None:
        by_class = RareClasses(counts, square, temperature)
    return Statistics(counts, weight, by_class)


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


def class_weights(counts: torch.Tensor, kind: str | bool = True) -> torch.Tensor:
    """Return what the pixels of each class weigh in the loss, float32 [C].

    Classes that never occur weigh 1, as do the others on average (inverse, effective).

    Args:
        counts: int64 [N,C], see `class_counts`; n below is its sum over the images.
        kind: root-median or True, sqrt(median n / n) within 0.3 to 4; median, median f / f, f being
            the share of the class in the images that hold it; inverse, 1 / n; effective,
            1 / (1 - (1 - 1 / m) ** n), m the mean of n.

    Source: Eigen and Fergus 2015, section 4.2 (median); root-median, this project's, tempers it, as
    the raw weights of rare classes destabilise small batches. Cui et al. 2019, equation 2
    (effective number of samples), whose beta (m - 1) / m is set by hand there.
    """
    total = counts.sum(0).double().numpy()
    seen = total > 0
    if kind == "median":
        of_holders = ((counts > 0) * counts.sum(1, keepdim=True)).sum(0).double().numpy()
        share = total[seen] / of_holders[seen]
        chosen = np.median(share) / share
    elif kind == "inverse":
        chosen = 1 / total[seen] / (1 / total[seen]).mean()
    elif kind == "effective":
        number = -np.expm1(total[seen] * np.log1p(-1 / max(total[seen].mean(), 2)))
        chosen = 1 / number / (1 / number).mean()
    else:
        assert kind in (True, "root-median"), kind
        chosen = np.sqrt(np.median(total[seen]) / total[seen]).clip(0.3, 4.0)
    weights = np.ones_like(total)
    weights[seen] = chosen
    return torch.from_numpy(weights).float()
