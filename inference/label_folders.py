"""Folders of predicted labels: which file belongs to which image, and reading them."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.base import UNKNOWN
from datasets.files import image_size, read_label
from datasets.opening import opened
from datasets.walk import composed, split_ending, walk_files
from engine import zips
from engine.errors import UserError

VOID = 255  # what a prediction holds where it names no class
ENDINGS = frozenset((".png", ".tif", ".tiff"))  # of predictions, ours or others'


def stems(dataset: Dataset) -> dict[str, str]:
    """Return under which name each image is predicted: its path without the ending.

    Images of one stem (a.jpg, a.png) keep their endings.

    Raises:
        UserError: two images would share a prediction all the same (a.jpg, a.png and a.png.jpg).
    """
    result = {image: split_ending(image)[0] for image, _ in dataset.pairs}
    count = Counter(map(composed, result.values()))
    result = {
        image: stem if count[composed(stem)] == 1 else image for image, stem in result.items()
    }
    owner: dict[str, str] = {}
    for image, stem in result.items():
        other = owner.setdefault(composed(stem), image)
        if other != image:
            raise UserError(f"{image} and {other} would be predicted into the same file")
    return result


def find_labels(
    folder: str | Path, ids: str = "train", wanted: Collection[str] = ()
) -> dict[str, Path]:
    """Return the label files of a folder by their path without ending, accents composed.

    They lie in its train_ids/ (or label_ids/) where it has the shape of `outputs`; of any other
    folder all are taken. What lies beside them and is there to be looked at is left out: the maps
    of pseudo_label.py's folders, and X_color.png where there is X.png.

    Args:
        folder: of predictions, or a zip archive of them.
        ids: train or label, as in `PredictedPairs`.
        wanted: names that are no pictures of others, though they end in `_color`.

    Raises:
        UserError: no such folder, no label in it, or two of one name.
    """
    folder, inner = Path(folder), f"{ids}_ids"
    if not zips.is_dir(folder):
        raise UserError(f"{folder}: no such folder of predictions")
    shaped = zips.is_dir(folder / "train_ids")
    if shaped and not zips.is_dir(folder / inner):
        raise UserError(f"{folder}: no {inner} in it: the dataset's own ids are the train ids")
    root = folder / inner if shaped else folder
    found: dict[str, Path] = {}
    for path in walk_files(root, ENDINGS).files:
        stem = composed(split_ending(path)[0])
        if stem in found:
            raise UserError(f"{root}: {found[stem].name} and {path} have one stem: remove one")
        found[stem] = root / path
    if not shaped and folder.name != inner:
        maps = ("confidence/", "variance/") if zips.is_file(folder / "pseudo.json") else ()
        for stem in [stem for stem in found if stem.startswith(maps)] if maps else ():
            del found[stem]
        pictures = [stem for stem in found if stem.endswith("_color") and stem not in wanted]
        for stem in [stem for stem in pictures if stem.removesuffix("_color") in found]:
            del found[stem]
    if not found:
        raise UserError(f"{root}: no PNG in it")
    return found


def match(dataset: Dataset, folder: str | Path, ids: str = "train") -> list[Path]:
    """Return the prediction of every image of a dataset, in its order.

    A prediction has its image's relative path with another ending, as evaluate.py, pseudo_label.py
    and ensemble.py write it. In a folder where no file is called so, the file's name must begin
    with the image's (without `_leftImg8bit`), the rule of the Cityscapes server.

    Raises:
        UserError: an image without a prediction, with several, or a prediction without an image.
    """
    wanted = list(map(composed, stems(dataset).values()))
    found = find_labels(folder, ids, set(wanted))
    names = [stem.rpartition("/")[2].removesuffix("_leftImg8bit") for stem in wanted]
    if not any(stem in found for stem in wanted) and len(set(names)) == len(names):
        found, wanted = _by_prefix(found, set(names), folder), names
    missing = [stem for stem in wanted if stem not in found]
    if missing:
        raise UserError(f"{folder}: no prediction of {_some(missing)}")
    extra = sorted(found.keys() - set(wanted))
    if extra:
        raise UserError(f"{folder}: predictions of no image of the dataset: {_some(extra)}")
    return [found[stem] for stem in wanted]


def _by_prefix(found: dict[str, Path], names: set[str], folder: str | Path) -> dict[str, Path]:
    """Return the files under the image's name with which their own begins, else under their own."""
    renamed: dict[str, Path] = {}
    for stem, path in found.items():
        name = stem.rpartition("/")[2]
        # the longest, as one image's name may begin with another's
        while name and name not in names:
            name = name.rpartition("_")[0]
        if name in renamed:
            raise UserError(f"{folder}: {renamed[name]} and {path} are of the same image")
        renamed[name or stem] = path
    return renamed


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)})"


class PredictedPairs(Dataset):
    """Predictions beside their labels: dicts of `pred` and `label`, uint8 [H,W], train ids.

    Args:
        dataset: labelled, labels in their own size.
        folder: of PNGs; see `match`.
        ids: "train", or "label" for the ids that the dataset's label files hold. Ids of classes
            that are not trained become 255, which every prediction may hold.

    Raises:
        UserError: the folder does not fit the dataset. Reading a sample raises it for a file that
            is no label image, of another size than the label, or with ids that do not exist.
    """

    def __init__(self, dataset: Dataset, folder: str | Path, ids: str = "train") -> None:
        self.dataset = dataset
        self.paths = match(dataset, folder, ids)
        if ids == "label":
            self.lookup = dataset.lookup
        else:
            self.lookup = np.full(256, UNKNOWN, np.uint8)
            self.lookup[: dataset.num_classes] = range(dataset.num_classes)
            self.lookup[VOID] = VOID

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        label = self.dataset[index]["label"]
        name = self.dataset.pairs[index][0]
        return {"pred": self.read(index, label), "label": label, "name": name}

    def read(self, index: int, label: torch.Tensor) -> torch.Tensor:
        """Return the prediction of one image, uint8 [H,W], checked against its label."""
        path = self.paths[index]
        ids = read_label(path)
        if ids.shape != tuple(label.shape):
            raise UserError(
                f"{path}: the prediction is {ids.shape[1]}x{ids.shape[0]} pixels, "
                f"the label of {self.dataset.pairs[index][0]} {label.shape[1]}x{label.shape[0]}"
            )
        pred = self.lookup[ids]
        unknown = pred == UNKNOWN
        if unknown.any():
            raise UserError(
                f"{path}: ids that {self.dataset.name} does not have: "
                f"{', '.join(map(str, np.unique(ids[unknown])[:10]))} (see --prediction-ids)"
            )
        return torch.from_numpy(pred)


def same_images(folders: list[str]) -> list[dict[str, Path]]:
    """Return the PNGs of folders that must hold the same ones, by stem, in the same order.

    Raises:
        UserError: a folder lacks what another one has, or sizes differ; names the first of them.
    """
    found = [find_labels(folder) for folder in folders]
    everything = set().union(*found)
    lacking = [
        f"{folder} lacks {_some(missing)}"
        for folder, pngs in zip(folders, found, strict=True)
        if (missing := sorted(everything - set(pngs)))
    ]
    if lacking:
        raise UserError(f"the folders hold different predictions: {'; '.join(lacking)}")
    differing = []
    for stem in found[0]:
        paths = [pngs[stem] for pngs in found]
        sizes = [image_size(path) for path in paths]
        other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            shown = ["{} {}x{}".format(paths[i], *sizes[i]) for i in (0, other)]
            differing.append(" and ".join(shown))
    if differing:
        raise UserError(f"predictions of one image differ in size: {_some(differing)}")
    return found


def read_together(paths: list[Path]) -> torch.Tensor:
    """Return labels of one size as uint8 [M,H,W].

    Raises:
        UserError: one is no label image.
    """
    return torch.from_numpy(np.stack([read_label(path) for path in paths]))


def palette_of(folders: list[str]) -> list[list[int]] | None:
    """Return the colours of the first folder of predictions that has any: 256 of (r, g, b)."""
    for folder in map(Path, folders):
        shown = (folder.parent if folder.name == "train_ids" else folder) / "color"
        shown = shown if zips.is_dir(shown) else folder
        for path in walk_files(shown, ENDINGS).files[:1]:
            with opened(shown / path) as source:
                colours = source.pillow().getpalette()
            if colours is not None:
                return np.reshape(colours, (-1, 3)).tolist()
    return None
