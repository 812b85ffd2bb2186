"""Folders of predictions as parts of a page: predictions.json says of which images they are."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datasets import DATASETS, build_dataset
from datasets.photographs import Photographs
from datasets.text import read_json
from engine import processes
from engine.errors import UserError
from engine.files import write_text
from engine.shapes import Either
from inference.label_folders import PredictedPairs, find_labels, stems
from inference.page.gathering import Gathering

NAME, FORMAT = "predictions.json", "segshift predictions 1"
TEXT = Either(str, None)
DATA = {"root": TEXT, "split": TEXT, "list_file": TEXT, "options": dict}
SHAPE = {"format": str, "dataset": str, "labelled": bool, "data": DATA, "networks": [str]}


def write_about(folder: str | Path, dataset: Dataset, networks: list[str]) -> None:
    """Write which images a folder's predictions are of, and whose they are; process 0 does.

    Raises:
        UserError: it cannot be written.
    """
    if processes.rank() != 0:
        return
    data = dataset.arguments
    for key in ("root", "list_file"):
        data[key] = data[key] and str(Path(data[key]).resolve())
    about = {"format": FORMAT, "dataset": dataset.name, "labelled": dataset.labelled}
    about |= {"data": data, "networks": list(map(str, networks))}
    write_text(Path(folder, NAME), json.dumps(about, indent=1, default=str) + "\n")


def gather(folder: str | Path, into: Path) -> None:
    """Write the part of a page that shows a folder's predictions.

    Args:
        folder: of predictions, with `write_about`'s file.
        into: absent or empty.

    Raises:
        UserError: images that are not where they were, or predictions that do not fit them.
    """
    about = read_json(Path(folder, NAME), SHAPE, "file about predictions")
    if about["format"] != FORMAT:
        raise UserError(f"{Path(folder, NAME)}: {about['format']!r} is not {FORMAT!r}")
    try:
        dataset = _opened(about)
        if not dataset.labelled:  # an unreadable photograph has no prediction
            found = find_labels(folder, wanted=set(stems(dataset).values()))
            names = stems(dataset)
            dataset.pairs = [pair for pair in dataset.pairs if names[pair[0]] in found]
        pairs = PredictedPairs(dataset, folder)
    except UserError as error:
        raise UserError(f"{folder}: its images are not as they were: {error}") from error
    with Gathering(into, dataset.class_names, dataset.palette, dataset.ignore_index) as part:
        for index, (name, _) in enumerate(dataset.pairs):
            label = dataset.read_label(index) if dataset.labelled else None
            size = dataset.full_size(index) if label is None else label.shape
            pred = pairs.read(index, torch.empty(size, dtype=torch.uint8))
            label = None if label is None else torch.from_numpy(label)
            part.add((index, name), partial(_photograph, dataset, index), pred, label)
    networks = ", ".join(about["networks"])
    part.finish(Path(folder).name, {"predictions": str(folder), "of": networks})


def _photograph(dataset: Dataset, index: int) -> Any:
    return dataset.read(index)[0]


def _opened(about: dict[str, Any]) -> Dataset:
    data = about["data"]
    root, options = data["root"], dict(data["options"])
    if about["dataset"] == Photographs.name:
        known = {key: value for key, value in options.items() if key in Photographs.options}
        return Photographs(root, split="all", labelled=False, **known)
    if about["dataset"] not in DATASETS:
        raise UserError(f"no dataset {about['dataset']!r}")
    known = {k: v for k, v in options.items() if k in DATASETS[about["dataset"]].options}
    return build_dataset(
        about["dataset"],
        root,
        split=data["split"],
        list_file=data["list_file"],
        seed=options.get("seed", 0),
        labelled=about["labelled"],
        resize_label=False,
        **known,
    )
