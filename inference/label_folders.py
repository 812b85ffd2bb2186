"""Folders of predicted labels: which PNG belongs to which image, reading them, writing them."""

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets.base import UNKNOWN
from datasets.files import image_size, read_label
from engine.errors import UserError

VOID = 255  # what a prediction holds where it names no class


def stems(dataset: Dataset) -> dict[str, str]:
    """Return the file name without suffix, folders kept, under which each image is predicted.

    Raises:
        UserError: two images would share a prediction (a.jpg and a.png).
    """
    result = {image: str(PurePosixPath(image).with_suffix("")) for image, _ in dataset.pairs}
    owner: dict[str, str] = {}
    for image, stem in result.items():
        if stem in owner:
            raise UserError(f"{image} and {owner[stem]} would be predicted into the same file")
        owner[stem] = image
    return result


def find_pngs(folder: str | Path) -> dict[str, Path]:
    """Return the PNGs below a folder by their stem.

    Left out are `*_color.png`, which are for the eye, what lies in hidden folders, and the maps
    that pseudo_label.py writes beside its labels.

    Raises:
        UserError: no such folder, or no PNG in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of predictions")
    maps = ("confidence", "variance") if (folder / "pseudo.json").is_file() else ()
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.png"))
        if not path.stem.endswith("_color")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1])
        and path.relative_to(folder).parts[0] not in maps
    }
    if not found:
        raise UserError(f"{folder}: no PNG in it")
    return found


def match(dataset: Dataset, folder: str | Path) -> list[Path]:
    """Return the prediction of every image of a dataset, in its order.

    A prediction has its image's relative path with the suffix .png, as evaluate.py and
    pseudo_label.py write it. In a folder where no file is called so, the file's name must begin
    with the image's (without `_leftImg8bit`), the rule of the Cityscapes server.

    Raises:
        UserError: an image without a prediction, with several, or a prediction without an image.
    """
    found = find_pngs(folder)
    wanted = list(stems(dataset).values())
    names = [PurePosixPath(stem).name.removesuffix("_leftImg8bit") for stem in wanted]
    if not any(stem in found for stem in wanted) and len(set(names)) == len(names):
        found, wanted = _by_prefix(found, names, folder), names
    missing = [stem for stem in wanted if stem not in found]
    if missing:
        raise UserError(f"{folder}: no prediction of {_some(missing)}")
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise UserError(f"{folder}: predictions of no image of the dataset: {_some(extra)}")
    return [found[stem] for stem in wanted]


def _by_prefix(found: dict[str, Path], names: list[str], folder: str | Path) -> dict[str, Path]:
    """Return the files under the image's name with which their own begins, else under their own."""
    renamed: dict[str, Path] = {}
    for stem, path in found.items():
        own = PurePosixPath(stem).name
        # the longest, as one image's name may begin with another's
        name = max((n for n in names if own == n or own.startswith(f"{n}_")), key=len, default=stem)
        if name in renamed:
            raise UserError(f"{folder}: {renamed[name]} and {path} are of the same image")
        renamed[name] = path
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
        self.paths = match(dataset, folder)
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
        return {"pred": self.read(index, label), "label": label}

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
    found = [find_pngs(folder) for folder in folders]
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


def read_together(paths: list[Path]) -> tuple[torch.Tensor, list | None]:
    """Return labels of one size as uint8 [M,H,W], and the colours of the first if it has any.

    Raises:
        UserError: one is no label image.
    """
    labels = [read_label(path) for path in paths]
    with Image.open(paths[0]) as image:
        colours = image.getpalette()
    palette = None if colours is None else np.reshape(colours, (-1, 3)).tolist()
    return torch.from_numpy(np.stack(labels)), palette


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder whose files move into `folder` when the block ends without an error.

    Raises:
        UserError: `folder` cannot be written.
    """
    folder = writable_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for path in sorted(Path(unfinished).rglob("*.png")):
            target = folder / path.relative_to(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def check_files_stay(dataset: Dataset, folder: str | Path) -> None:
    """Check that predictions in `folder` would not replace an image or label of the dataset.

    Raises:
        UserError: names the first that would.
    """
    theirs = {(dataset.root / image).resolve() for image, _ in dataset.pairs}
    theirs |= {(dataset.label_root / label).resolve() for _, label in dataset.pairs if label}
    for stem in stems(dataset).values():
        path = Path(folder, f"{stem}.png")
        if path.resolve() in theirs:
            raise UserError(f"{path} would be written over: give --save a folder of its own")


def writable_folder(path: str | Path) -> Path:
    """Make a folder if it is not there, and check that files can be written into it.

    Raises:
        UserError: they cannot.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"cannot write the folder {path}: {error.strerror}") from error
    return path


class Writers:
    """Call functions that write files in a few threads; what they raise surfaces in the caller.

    At most `max_waiting` calls wait: a slow disk then slows the network down instead of filling
    the memory. Used as a context, it ends when every file is written.
    """

    def __init__(self, num_threads: int = 2, max_waiting: int = 16) -> None:
        self._threads = ThreadPoolExecutor(num_threads)
        self._waiting: deque[Future] = deque()
        self._max_waiting = max_waiting

    def __call__(self, function: Callable, *args) -> None:
        """Call `function(*args)` soon; raise what an earlier call raised."""
        while len(self._waiting) >= self._max_waiting:
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(function, *args))

    def wait(self) -> None:
        """Return when every file is written; raise what an earlier call raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # After an error in the caller, what has not begun need not be written.
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.wait()
