"""What every dataset shares: the class table, finding files, and turning them into samples."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets import files
from engine.errors import UserError

IGNORE = 255
UNKNOWN = 254  # marks raw ids that the class table does not hold; never in a sample


class Row(NamedTuple):
    """One class of a dataset: the id in its files, the id we train with, name and colour."""

    id: int
    train_id: int
    name: str
    colour: tuple[int, int, int]
    category: str = ""
    category_id: int = 0
    has_instances: bool = False
    ignore_in_eval: bool = False


class SegmentationDataset(Dataset):
    """Images with labels of one dataset and split, as samples of uint8 tensors.

    A sample is a dict: `image` uint8 [3,H,W] RGB; `label` uint8 [h,w] of train ids with 255 for
    pixels to ignore (absent when unlabelled); `name`, the image's path relative to the root.

    A subclass states its class table and says in `find` where its files lie. `options` lists its
    own keyword options: a tuple holds the allowed values, the default first; anything else is the
    default of a free value.

    Attributes:
        num_classes: train ids are 0..num_classes-1.
        class_names: short name per train id.
        palette: (r, g, b) per train id.
        ignore_index: 255.
        pairs: (image, label or None) of each sample, relative to the root and the label root.
        categories: category -> its train ids, where the dataset has categories.
        subsets: name -> train ids that are scored alone by convention (SYNTHIA's 16 and 13).
        train_to_raw: uint8 [256], train id -> raw id, for submission files; ignored -> 255.
    """

    name: ClassVar[str]
    rows: ClassVar[Sequence[Row]]
    raw_to_train: ClassVar[dict[int, int] | None] = None  # where files use ids of another table
    splits: ClassVar[tuple[str, ...]]
    layout: ClassVar[str]  # shown when files are missing
    subsets: ClassVar[dict[str, list[int]]] = {}
    short_names: ClassVar[dict[str, str]] = {}
    options: ClassVar[dict[str, Any]] = {
        "label_kind": ("labelIds", "trainIds"),  # trainIds: labels hold train ids (pseudo labels)
        "label_root": None,  # folder that label paths are relative to; None: the root
    }
    ignore_index = IGNORE

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str,
        list_file: str | Path | None = None,
        size: tuple[int, int] | None = None,
        resize_label: bool = True,
        labelled: bool = True,
        num_images: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Find the files; arguments as in `datasets.build_dataset`."""
        if list_file is None and split not in self.splits:
            raise UserError(
                f"dataset {self.name} has no split {split!r}; it has: {', '.join(self.splits)}"
            )
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"size must be (width, height) of at least 1 pixel, got {size}")
        if num_images is not None and num_images < 1:
            raise UserError(f"the number of images must be at least 1, got {num_images}")
        self.split, self.size, self.resize_label, self.labelled = (
            split,
            size,
            resize_label,
            labelled,
        )
        self.seed, self.num_images, self.list_file = seed, num_images, list_file
        self.given_root = root
        self.option = self.resolve(options)
        self.open_root(root)
        self.use_table(self.rows)
        self.pairs = self.from_list(list_file) if list_file else self.find()
        if num_images is not None:
            self.pairs = self.first_of_shuffle(num_images, list_file or self.root)

    @property
    def arguments(self) -> dict[str, Any]:
        """Plain values that open these images again, for a checkpoint: which data scored it."""
        return {
            "root": None if self.given_root is None else str(self.given_root),
            "split": self.split,
            "list_file": None if self.list_file is None else str(self.list_file),
            "options": {**self.option, "seed": self.seed},
        }

    def resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return every option's value, the default where none is given."""
        for key, value in given.items():
            if key not in self.options:
                known = ", ".join(self.options) or "none"
                raise UserError(f"dataset {self.name} has no option {key!r}; it has: {known}")
            allowed = self.options[key]
            if isinstance(allowed, tuple) and value not in allowed:
                raise UserError(
                    f"dataset {self.name}: {key} must be one of {', '.join(allowed)}; got {value!r}"
                )
        defaults = {k: v[0] if isinstance(v, tuple) else v for k, v in self.options.items()}
        return defaults | given

    def open_root(self, root: str | Path | None) -> None:
        """Check the data folder and the label root."""
        if root is None:
            raise UserError(f"dataset {self.name} needs its data folder; layout: {self.layout}")
        self.root = Path(root)
        self.label_root = Path(self.option["label_root"] or root)
        for folder in (self.root, self.label_root):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such data folder; {self.name} is: {self.layout}")

    def use_table(self, rows: Sequence[Row]) -> None:
        """Derive names, palette and lookups from the class table."""
        trained = sorted((row for row in rows if row.train_id != IGNORE), key=lambda r: r.train_id)
        self.num_classes = len(trained)
        self.class_names = [self.short_names.get(row.name, row.name) for row in trained]
        self.palette = [row.colour for row in trained]
        self.categories: dict[str, list[int]] = {}
        for row in trained:
            if row.category:
                self.categories.setdefault(row.category, []).append(row.train_id)
        self.train_to_raw = np.full(256, IGNORE, np.uint8)
        self.train_to_raw[: self.num_classes] = [row.id for row in trained]
        self.lookup = np.full(256, UNKNOWN, np.uint8)
        self.lookup[IGNORE] = IGNORE
        if self.option.get("label_kind") == "trainIds":
            self.lookup[: self.num_classes] = range(self.num_classes)
        else:
            table = self.raw_to_train or {row.id: row.train_id for row in rows}
            for raw, train in table.items():
                self.lookup[raw % 256] = train  # an id of -1 is stored as 255

    def find(self) -> list[tuple[str, str | None]]:
        """Return the pairs of the dataset's standard folder layout, sorted by image."""
        raise NotImplementedError

    def walk(self, folder: str, pattern: str) -> list[Path]:
        """Return the files below `root/folder` that match, sorted, relative to the root."""
        found = sorted((self.root / folder).glob(pattern))
        if not found:
            raise UserError(
                f"{self.root / folder}: nothing here matches {pattern}; "
                f"{self.name} is: {self.layout}; or give a list"
            )
        return [path.relative_to(self.root) for path in found]

    def walk_images(self, folder: str) -> list[Path]:
        """Return the image files of any format below `root/folder`, sorted, as `walk`."""
        found = [
            path for path in self.walk(folder, "**/*") if path.suffix.lower() in files.SUFFIXES
        ]
        if not found:
            raise UserError(f"{self.root / folder}: no images; {self.name} is: {self.layout}")
        return found

    def pair_up(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str | None]]:
        """Drop the labels of an unlabelled dataset, else check that each is there."""
        if not self.labelled:
            return [(image, None) for image, _ in pairs]
        for image, label in pairs:
            if not (self.label_root / label).is_file():
                raise UserError(
                    f"{self.label_root / label}: no such label, of image {image}; "
                    f"{self.name} is: {self.layout}"
                )
        return list(pairs)

    def from_list(self, list_file: str | Path) -> list[tuple[str, str | None]]:
        """Return the pairs of a list file, having checked that every file is there."""
        pairs = []
        for number, image, label in files.read_list(list_file, self.labelled):
            for folder, entry in ((self.root, image), (self.label_root, label)):
                if entry is not None and not (folder / entry).is_file():
                    raise UserError(f"{list_file}, line {number}: no such file: {folder / entry}")
            pairs.append((image, label))
        return pairs

    def first_of_shuffle(self, count: int, where: str | Path) -> list[tuple[str, str | None]]:
        """Return the first pairs of the seed's shuffle, which depends on the image names alone.

        Sorting by a hash gives nested subsets, the same for every version of every library and
        for every order of the list.
        """
        if count > len(self.pairs):
            raise UserError(f"{where}: {count} images asked for, {len(self.pairs)} available")

        def key(pair: tuple[str, str | None]) -> bytes:
            return hashlib.sha256(f"{self.seed} {pair[0]}".encode()).digest()

        return sorted(self.pairs, key=key)[:count]

    def read_ids(self, path: Path) -> np.ndarray:
        """Read the ids that a label file stores, uint8 [H,W]."""
        return files.read_label(path)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray | None]:
        """Return the RGB image and the train ids uint8 [H,W], both in their own size."""
        paths = self.paths(index)
        image = files.read_image(paths[0])
        label = self.read_label(index)
        if label is not None and (image.height, image.width) != label.shape:
            raise UserError(
                f"{paths[1]}: the label is {label.shape[1]}x{label.shape[0]} pixels, "
                f"its image {paths[0]} {image.width}x{image.height}"
            )
        return image, label

    def read_label(self, index: int) -> np.ndarray | None:
        """Return the train ids uint8 [H,W] in their own size; None when unlabelled."""
        if self.pairs[index][1] is None:
            return None
        path = self.paths(index)[1]
        ids = self.read_ids(path)
        label = self.lookup[ids]
        unknown = label == UNKNOWN
        if unknown.any():
            values = ", ".join(str(value) for value in np.unique(ids[unknown])[:10])
            raise UserError(
                f"{path}: label values outside the class table of {self.name}: {values} "
                f"(label_kind {self.option['label_kind']})"
            )
        return label

    def resized(self, label: np.ndarray) -> np.ndarray:
        """Return a label in the size that samples hold, uint8 [h,w]."""
        if self.size is None or not self.resize_label or label.shape == tuple(self.size)[::-1]:
            return label
        # Any other filter would invent class ids.
        return np.asarray(Image.fromarray(label).resize(self.size, Image.Resampling.NEAREST))

    def paths(self, index: int) -> list[Path]:
        """Return the files that a sample is read from: the image, and the label if there is one."""
        image, label = self.pairs[index]
        return [self.root / image] + ([] if label is None else [self.label_root / label])

    def full_size(self, index: int) -> tuple[int, int]:
        """Return the height and width of an image in its own size, from the file's header."""
        width, height = files.image_size(self.root / self.pairs[index][0])
        return height, width

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(index)
        if self.size is not None and image.size != tuple(self.size):
            image = image.resize(self.size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image).transpose(2, 0, 1)
        sample = {"image": torch.from_numpy(pixels.copy()), "name": self.pairs[index][0]}
        if label is not None:
            sample["label"] = torch.from_numpy(self.resized(label).copy())
        return sample
