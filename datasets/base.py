"""What every dataset shares: the class table, finding files, and turning them into samples."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets import files, reading
from datasets.headers import LOSSLESS_SUFFIXES, SUFFIXES
from datasets.labels import LabelTable
from datasets.text import read_list
from datasets.walk import Listed, Partners, composed, split_ending, summary, walk_files
from engine import zips
from engine.errors import UserError

IGNORE = 255
UNKNOWN = 254  # marks raw ids that the class table does not hold; never in a sample
MAX_CLASSES = 254  # train ids are bytes, and two of them mean something else
HELD_OUT = 10  # where there is no split for validation, one image in so many


class Row(NamedTuple):
    """One class of a dataset: the id in its files, the id we train with, name and colour."""

    id: int
    train_id: int
    name: str
    colour: tuple[int, int, int] | None  # None: of an ignored id that no colour stands for
    category: str = ""
    category_id: int = 0
    has_instances: bool = False
    ignore_in_eval: bool = False


class NoLabels(UserError):
    """There are images, and no label of any of them."""


class SegmentationDataset(Dataset):
    """Images with labels of one dataset and split, as samples of uint8 tensors.

    A sample is a dict: `image` uint8 [3,H,W] RGB; `label` uint8 [h,w] of train ids with 255 for
    pixels to ignore (absent when unlabelled); `name`, the image's path relative to the root; and,
    where the ratio is kept and a square filled up, `extent`, int64 [2], the image's own w, h in it.

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
        links: how many images are links or lie in linked folders, where a folder was walked.
        left_out: how many files of the images' folders are no data, by reason.
        reading, label_reading: what the options say of how files are read.
    """

    name: ClassVar[str]
    rows: ClassVar[Sequence[Row]]
    raw_to_train: ClassVar[dict[int, int] | None] = None  # where files use ids of another table
    splits: ClassVar[tuple[str, ...]]
    layout: ClassVar[str]  # shown when files are missing
    subsets: ClassVar[dict[str, list[int]]] = {}
    short_names: ClassVar[dict[str, str]] = {}
    instance_sizes: ClassVar[dict[int, float]] = {}  # mean pixels of an instance, by id in files
    own_table: ClassVar[bool] = False  # people wrote the class table, and may have erred
    options: ClassVar[dict[str, Any]] = {
        "label_kind": ("labelIds", "trainIds"),  # trainIds: labels hold train ids (pseudo labels)
        "label_root": None,  # folder that label paths are relative to; None: the root
        "holdout": ("no", "leave", "only"),  # of a split: leave out, or take, every tenth image
        **reading.OPTIONS,
    }
    ignore_index = IGNORE

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str,
        list_file: str | Path | None = None,
        size: tuple[int, int] | int | None = None,
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
        sides = () if size is None else (size,) if isinstance(size, int) else tuple(size)
        if size is not None and (len(sides) != 2 - isinstance(size, int) or min(sides) < 1):
            raise UserError(f"size must be (width, height) of at least 1 pixel, got {size}")
        if num_images is not None and num_images < 1:
            raise UserError(f"the number of images must be at least 1, got {num_images}")
        self.split, self.resize_label, self.labelled = split, resize_label, labelled
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        self.seed, self.num_images, self.list_file = seed, num_images, list_file
        self.given_root = root
        self.option = self.resolve(options)
        self.links, self.left_out = 0, Counter()
        if "bands" in self.option:  # drawn images have no files
            self.reading, self.label_reading = reading.from_options(self.option)
        self.open_root(root)
        self.use_table(self.rows)
        self.pairs = self.from_list(list_file) if list_file else self.find()
        if self.option.get("holdout", "no") != "no":
            self.pairs = self.divided(only=self.option["holdout"] == "only")
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
                    f"dataset {self.name}: {key} must be one of {', '.join(map(str, allowed))}; "
                    f"got {value!r}"
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
            if not zips.is_dir(folder):
                raise UserError(f"{folder}: no such data folder; {self.name} is: {self.layout}")

    def use_table(self, rows: Sequence[Row]) -> None:
        """Derive names, palette and lookups from the class table."""
        trained = sorted((row for row in rows if row.train_id != IGNORE), key=lambda r: r.train_id)
        if len(trained) > MAX_CLASSES:
            raise UserError(f"dataset {self.name}: {len(trained)} classes; {MAX_CLASSES} at most")
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
        colours = [(row.colour, row.id % 256) for row in rows if row.colour is not None]
        if self.option.get("label_kind") == "trainIds":
            colours = [(row.colour, row.train_id) for row in trained]
        elif self.raw_to_train:  # the files' ids are of another table than the rows
            same = (row for row in rows if self.raw_to_train.get(row.id) == row.train_id)
            colours = [(row.colour, row.id % 256) for row in same]
        self.label_table = LabelTable(tuple(colours), tuple(self.lookup.tolist()))

    @classmethod
    def has_split(cls, root: str | Path | None, split: str) -> bool:
        """Return whether there is a split of this name; of people's own data, in this folder."""
        return split in cls.splits

    def find(self) -> list[tuple[str, str | None]]:
        """Return the pairs of the dataset's standard folder layout, sorted by image."""
        raise NotImplementedError

    def walk_images(self, folder: str, deep: bool = False, stem_ends: str = "") -> list[str]:
        """Return the image files of a folder, sorted, relative to the root.

        Args:
            folder: relative to the root.
            deep: look into subfolders too.
            stem_ends: what their names end with, before the ending.
        """
        found = walk_files(self.root / folder, SUFFIXES, deep)
        images = [path for path in found.files if split_ending(path)[0].endswith(stem_ends)]
        self.links += found.links
        self.left_out += found.left_out
        if len(images) < len(found.files):
            self.left_out[f"name without {stem_ends}"] += len(found.files) - len(images)
        if not images:
            raise UserError(
                f"{self.root / folder}: nothing here matches *{stem_ends}.png, .jpg, .tif or the "
                f"like (left out: {summary(self.left_out) or 'nothing'}); {self.name} is: "
                f"{self.layout}; or give a list"
            )
        return [f"{folder}/{path}" if folder else path for path in images]

    def label_of(self, image: str) -> str:
        """Return where the layout has an image's label, with .png; the ending may be another."""
        raise NotImplementedError

    def submitted_as(self, image: str) -> str | None:
        """Return the name without ending that a test server expects of train ids; None: no such."""
        return None

    def image_folders(self) -> list[str]:
        """Return where lists that name images alone may mean, relative to the root."""
        return []

    def pair_up(self, images: list[str]) -> list[tuple[str, str | None]]:
        """Return the images with the labels of the layout; with None in an unlabelled dataset."""
        partners, pairs, image_of = Partners(self.label_root, LOSSLESS_SUFFIXES), [], {}
        missing: tuple[str, str] | None = None  # the first label, and its image
        for image in images:
            wanted = self.label_of(image)
            other = image_of.setdefault(composed(split_ending(wanted)[0]), image)
            if other != image:
                raise UserError(f"{self.root / image}: has the same label as {self.root / other}")
            label = partners.find(wanted) if self.labelled else None
            if label is None and self.labelled:
                missing = missing or (wanted, image)
            pairs.append((image, label))
        if self.own_table:
            self.left_out["labels without an image"] += len(partners.alone())
        if missing is not None:
            alone = not any(label for _, label in pairs)
            raise (NoLabels if alone else UserError)(
                f"{self.label_root / missing[0]}: no such label, of image {missing[1]}; "
                f"{self.name} is: {self.layout}"
            )
        return pairs

    def from_list(self, list_file: str | Path) -> list[tuple[str, str | None]]:
        """Return the pairs of a list file, having checked that every file is there.

        A list of images alone (AdaptSegNet's) has the labels of the dataset's layout.
        """
        entries = read_list(list_file)
        images = Listed(self.root, self.image_folders(), SUFFIXES)
        labels = Listed(self.label_root, [], SUFFIXES)
        alone = all(len(fields) == 1 for _, fields in entries)
        pairs: list[tuple[str, str | None]] = []
        first_line: dict[str, int] = {}
        for number, fields in entries:
            where = f"{list_file}, line {number}"
            if self.labelled and not alone and len(fields) == 1:
                raise UserError(f"{where}: no label beside {fields[0]!r}; `image label` expected")
            image = self.listed(where, images, fields[0])
            if image in first_line:
                raise UserError(f"{where}: {image!r} stands already in line {first_line[image]}")
            first_line[image] = number
            with_label = self.labelled and not alone
            pairs.append((image, self.listed(where, labels, fields[1]) if with_label else None))
        return self.pair_up(list(first_line)) if self.labelled and alone else pairs

    def listed(self, where: str, tree: Listed, field: str) -> str:
        """Return the path of a list's field."""
        try:
            path = tree.find(field)
        except ValueError as error:
            raise UserError(f"{where}: {error}; paths in it are expected") from error
        if path is None:
            raise UserError(f"{where}: no such file: {os.path.join(tree.root, field)}")
        return path

    def first_of_shuffle(self, count: int, where: str | Path) -> list[tuple[str, str | None]]:
        """Return the first pairs of the seed's shuffle, which depends on the image names alone.

        Sorting by a hash gives nested subsets, the same for every version of every library and
        for every order of the list.
        """
        if count > len(self.pairs):
            raise UserError(f"{where}: {count} images asked for, {len(self.pairs)} available")
        return shuffled(self.pairs, self.seed)[:count]

    def divided(self, only: bool) -> list[tuple[str, str | None]]:
        """Return the pairs that are held out for validation, or the others, in their order.

        Every tenth of a shuffle that depends on the names alone, at least one: the same for every
        seed, so that runs are comparable.
        """
        if len(self.pairs) < 2:
            raise UserError(f"{self.root}: one image cannot be divided; give images to validate on")
        held_out = set(shuffled(self.pairs, 0)[: -(-len(self.pairs) // HELD_OUT)])
        rest = len(self.pairs) - len(held_out)
        self.left_out["to train on" if only else "held out for validation"] += (
            rest if only else len(held_out)
        )
        return [pair for pair in self.pairs if (pair in held_out) == only]

    def read_ids(self, path: Path) -> np.ndarray:
        """Read the ids that a label file holds, uint8 or uint16 [H,W]."""
        return files.read_label(path, self.label_table, self.label_reading)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray | None]:
        """Return the RGB image and the train ids uint8 [H,W], both in their own size, upright."""
        paths = self.paths(index)
        image = files.read_image(paths[0], self.reading)
        label = self.read_label(index)
        if label is not None and (image.height, image.width) != label.shape:
            raise UserError(
                f"{paths[1]}: the label is {label.shape[1]}x{label.shape[0]} pixels, "
                f"its image {paths[0]} {image.width}x{image.height}" + files.why_turned(paths[0])
            )
        return image, label

    def read_window(self, index: int, box: tuple[int, int, int, int]) -> Image.Image:
        """Return an image within (left, upper, right, lower), see `files.read_window`."""
        return files.read_window(self.paths(index)[0], box, self.reading)

    def read_label(self, index: int) -> np.ndarray | None:
        """Return the train ids uint8 [H,W] in their own size; None when unlabelled."""
        if self.pairs[index][1] is None:
            return None
        path = self.paths(index)[1]
        ids = self.read_ids(path)
        if ids.dtype != np.uint8 and ids.max(initial=0) > 255:
            raise UserError(f"{path}: label values outside the class table: {ids.max()}")
        label = self.lookup[ids]
        unknown = label == UNKNOWN
        if unknown.any():
            values = ", ".join(str(value) for value in np.unique(ids[unknown])[:10])
            raise UserError(
                f"{path}: label values outside the class table of {self.name}: {values} "
                f"(label_kind {self.option['label_kind']})"
            )
        return label

    @property
    def filled_up(self) -> bool:
        """Whether samples are squares that images of any ratio fill in part, to be batched."""
        return isinstance(self.size, int) and self.resize_label

    def fitted(self, own: tuple[int, int]) -> tuple[int, int]:
        """Return the width and height that an image of this own width and height is resized to."""
        if self.size is None:
            return own
        if not isinstance(self.size, int):
            return self.size
        longer = max(own)
        return tuple(max(1, (2 * side * self.size + longer) // (2 * longer)) for side in own)

    def resized(self, label: np.ndarray) -> np.ndarray:
        """Return a label in the size that samples hold, uint8 [h,w]."""
        size = self.fitted(label.shape[::-1])
        if self.resize_label and label.shape != size[::-1]:
            # Any other filter would invent class ids.
            label = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
        return filled_up(label, self.size, IGNORE) if self.filled_up else label

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
        size = self.fitted(image.size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels, sample = np.asarray(image), {"name": self.pairs[index][0]}
        if self.filled_up:
            pixels, sample["extent"] = filled_up(pixels, self.size, 0), torch.tensor(size)
        sample["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        if label is not None:
            sample["label"] = torch.from_numpy(self.resized(label).copy())
        return sample


def filled_up(pixels: np.ndarray, side: int, value: int) -> np.ndarray:
    """Return uint8 [H,W,...] with rows below and columns on the right up to a square of `side`."""
    more = [(0, side - length) for length in pixels.shape[:2]]
    return np.pad(pixels, more + [(0, 0)] * (pixels.ndim - 2), constant_values=value)


def shuffled(pairs: list[tuple[str, str | None]], seed: int) -> list[tuple[str, str | None]]:
    """Return pairs in an order that depends on the seed and on the names of the images alone."""

    def key(pair: tuple[str, str | None]) -> bytes:
        return hashlib.sha256(f"{seed} {pair[0]}".encode(errors="surrogateescape")).digest()

    return sorted(pairs, key=key)
