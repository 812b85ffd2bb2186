"""Target images with the labels that pseudo_label.py wrote for them."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datasets import files
from datasets.base import SegmentationDataset
from datasets.text import read_json
from engine.errors import UserError


class WithConfidence(Dataset):
    """A labelled dataset whose samples also hold `confidence`: uint8 like `label`, 255 = certain.

    Args:
        dataset: its label names are the confidence files' names.
        folder: of 8-bit grey PNGs, of their images' size.

    Raises:
        UserError: a file is missing; reading a sample raises it for one of another size.
    """

    def __init__(self, dataset: SegmentationDataset, folder: Path):
        self.dataset, self.folder = dataset, folder
        for _, label in dataset.pairs:
            if not self._path(label).is_file():
                raise UserError(f"{self._path(label)}: no such confidence, of label {label}")

    def _path(self, label: str) -> Path:
        """Return where the confidence of a label in train_ids/ is; earlier, no folder was."""
        return self.folder / label.removeprefix("train_ids/")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of an object that is not initialised yet, by copy
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        path = self._path(self.dataset.pairs[index][1])
        confidence = files.read_label(path)
        expected = self.dataset.full_size(index)
        if confidence.shape != expected:
            given, wanted = (f"{width}x{height}" for height, width in (confidence.shape, expected))
            raise UserError(f"{path}: the confidence is {given} pixels, its image {wanted}")
        confidence = self.dataset.resized(confidence)
        return sample | {"confidence": torch.from_numpy(confidence.copy())}


def check_classes(path: Path, class_names: list[str]) -> None:
    """Check in pseudo_label.py's summary that its labels are of these classes.

    Args:
        path: of pseudo.json.
        class_names: of the dataset that the labels are to be used with.

    Raises:
        UserError: they are not, or the file does not say.
    """
    try:
        classes = read_json(path, {"classes": [str], ...: object})["classes"]
    except UserError as error:
        raise UserError(f"{path}: not what pseudo_label.py writes: {error}") from error
    if classes != class_names:
        theirs = ", ".join(classes)
        raise UserError(f"{path}: labels of other classes: {theirs}, not {', '.join(class_names)}")
