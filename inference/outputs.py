"""Folders that predictions are written into: one shape for every command, held by one at a time.

    DIR/train_ids/STEM.png       the ids that networks are trained with, grey
    DIR/color/STEM_color.png     the same in the classes' colours
    DIR/label_ids/STEM.png       the dataset's own ids, where they are others
    DIR/submission/NAME.png      train ids as the dataset's test server names them, if it does
    DIR/overlay/STEM.jpg         the colours over the photograph
    DIR/confidence/STEM.png      pseudo_label.py's maps, and variance/

STEM is the image's path without its ending. `inference.label_folders` reads such a folder again.
"""

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from datasets import write_label_png
from engine import processes
from engine.errors import UserError
from engine.files import UNFINISHED, refuse_replacing
from engine.locks import FolderLock
from inference.label_folders import stems

ENDS = {
    "train_ids": ".png",
    "color": "_color.png",
    "label_ids": ".png",
    "submission": ".png",
    "overlay": ".jpg",
    "confidence": ".png",
    "variance": ".png",
}


def file_of(folder: str | Path, kind: str, stem: str) -> Path:
    """Return where a folder has one of `ENDS` of an image."""
    return Path(folder, kind, stem + ENDS[kind])


def at_once(function: Callable, *args) -> None:
    """Call a function; stands where `Writers` would call it later."""
    function(*args)


class Look(NamedTuple):
    """What is written of a prediction beside its train ids.

    Attributes:
        palette: (r, g, b) of each train id; None writes no color/.
        raw: uint8 [256], the dataset's own id of each train id; None where they are the same.
    """

    palette: Sequence[Sequence[int]] | None = None
    raw: np.ndarray | None = None

    @classmethod
    def of(cls, table: Dataset) -> "Look":
        """Return that of a dataset's classes."""
        own = table.train_to_raw[: table.num_classes]
        same = np.array_equal(own, np.arange(table.num_classes))
        return cls(table.palette, None if same else table.train_to_raw)

    @property
    def kinds(self) -> list[str]:
        """What is written, of `ENDS`, the train ids last: where they are, all is."""
        there = {"color": self.palette, "label_ids": self.raw is not None, "train_ids": True}
        return [kind for kind, written in there.items() if written]

    def write(self, write: Callable, folder: str | Path, stem: str, ids: np.ndarray) -> None:
        """Write a prediction.

        Args:
            write: `at_once` or `Writers`.
            folder, stem: see `file_of`.
            ids: uint8 [H,W], train ids.
        """
        for kind in self.kinds:
            values = self.raw[ids] if kind == "label_ids" else ids
            shown = self.palette if kind == "color" else None
            write(write_label_png, file_of(folder, kind, stem), values, shown)


def check_inputs_stay(
    folder: str | Path, kinds: Iterable[str], names: Iterable[str], inputs: Iterable[str | Path]
) -> None:
    """Check that what is going to be written into a folder replaces nothing that is read.

    Raises:
        UserError: names the first that would be, whatever link it is called by.
    """
    there = [Path(folder, kind) for kind in kinds if Path(folder, kind).is_dir()]
    outputs = [file_of(folder, path.name, stem) for stem in names for path in there]
    refuse_replacing(outputs, inputs)


def check_data_stay(folder: str | Path, kinds: Iterable[str], dataset: Dataset) -> None:
    """Check that predictions in `folder` would replace nothing of the dataset that they are of.

    Raises:
        UserError: they would, or would lie among the data; see `check_inputs_stay`.
    """
    inputs = [path for index in range(len(dataset)) for path in dataset.paths(index)]
    if inputs and Path(folder).is_dir() and Path(folder).samefile(dataset.root):
        raise UserError(f"--save {folder} is the data folder: give a folder of its own")
    inputs += filter(None, [dataset.list_file])
    check_inputs_stay(folder, kinds, stems(dataset).values(), inputs)


@contextlib.contextmanager
def held(path: str | Path) -> Iterator[Path]:
    """Yield a folder to write into, made if absent, which no other run has at the same time.

    Of several processes the first one holds it for all.

    Raises:
        UserError: it cannot be written, or another run holds it.
    """
    problem = lock = None
    if processes.rank() == 0:
        try:
            lock = _lock(path)
        except UserError as error:
            problem = str(error)
    problem = processes.gather(problem)[0]
    if problem is not None:
        raise UserError(problem)
    try:
        yield Path(path)
        processes.barrier()  # the others may still be writing
    finally:
        if lock is not None:
            lock.release(remove=True)


def _lock(path: str | Path) -> FolderLock:
    try:
        return FolderLock(writable_folder(path))
    except OSError as error:
        raise UserError(f"cannot write the folder {path}: {error.strerror}") from error


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move into `folder` when the block ends without an error."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as unfinished:
        yield Path(unfinished)
        for parent, _, names in os.walk(unfinished):
            target = folder / Path(parent).relative_to(unfinished)
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                os.replace(os.path.join(parent, name), target / name)


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
