"""Decoded samples in one file, for the epochs and the runs to come."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from torch.utils.data import Dataset

from datasets.base import SegmentationDataset
from engine import zips
from engine.errors import UserError
from engine.locks import waited_for
from engine.parsing import show_size

FORMAT = 2  # of the file, and of the pixels in it: a change of either is another number


def fingerprint(dataset: SegmentationDataset) -> str:
    """Return a file name that stands for the samples of a dataset, whatever they depend on.

    Each file counts with its size and time of change, so that a changed one is noticed. Another
    Pillow may decode or resize to other pixels.
    """
    paths = [path for index in range(len(dataset)) for path in dataset.paths(index)]
    folders = (dataset.root, dataset.label_root) if paths else ()
    what = {
        "format": [FORMAT, PIL.__version__],
        "dataset": [dataset.name, dataset.option, dataset.lookup.tolist(), dataset.pairs],
        "colours": dataset.label_table.colours,  # labels may hold them instead of ids
        "size": [dataset.size, dataset.resize_label],
        "folders": [str(folder.resolve()) for folder in folders],
        "files": list(map(zips.state, paths)),
        "drawn from": None if paths else dataset.seed,
    }
    digest = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]
    size = show_size(dataset.size).replace(" ", "-")
    return f"{dataset.name}-{size}-{digest}"


class CachedDataset(Dataset):
    """A dataset whose samples are decoded once and copied from a file from then on.

    The file begins with a checksum for each sample, 0 for none yet; the samples' bytes follow, in
    places known beforehand. A sample counts only while its bytes have its checksum. So nothing
    has to be locked, flushed or in order: all who write write the same bytes to the same place,
    and whatever a kill, a power cut or a network file system left half there is decoded again.

    Attributes are those of the dataset.

    Args:
        dataset: whose files do not change while it is open.
        folder: of the file, made if absent; it may serve many datasets and runs at once.

    Raises:
        UserError: the folder cannot be written or has not enough space, found out at once.
    """

    def __init__(self, dataset: SegmentationDataset, folder: str | Path) -> None:
        self.dataset = dataset
        self.shapes = [sample_shapes(dataset, index) for index in range(len(dataset))]
        self.extents: list[dict] = [{}] * len(dataset)
        if dataset.filled_up:
            own = (dataset.full_size(index)[::-1] for index in range(len(dataset)))
            self.extents = [{"extent": torch.tensor(dataset.fitted(size))} for size in own]
        sizes = [sum(map(np.prod, shapes.values())) for shapes in self.shapes]
        self.starts = np.cumsum([4 * len(dataset), *sizes])
        self.path = Path(folder) / f"{fingerprint(dataset)}.samples"
        self.file = open_allocated(self.path, int(self.starts[-1]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of an object that is not initialised yet, by copy
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # from the end, where negative
        noted = int(self._read(4 * index, 4).view(np.uint32)[0])
        if noted:
            start, stop = self.starts[index : index + 2]
            content = self._read(start, stop - start)
            if checksum(content) == noted:
                about = {"name": self.dataset.pairs[index][0], **self.extents[index]}
                return {**about, **self._split(index, content)}
        sample = self.dataset[index]
        self._write(index, sample)
        return sample

    def _read(self, start: int, count: int) -> np.ndarray:
        """Return bytes of the file, uint8 [count]; 0 for those that it has no more.

        Not through a map: a file that is cut short, or a failing disk, would end the process by a
        signal.
        """
        content = np.zeros(count, np.uint8)
        with contextlib.suppress(OSError):  # what cannot be read is decoded again
            os.preadv(self.file.fileno(), [content], int(start))
        return content

    def _split(self, index: int, content: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the tensors of a sample, which share the memory of its bytes."""
        tensors, start = {}, 0
        for key, shape in self.shapes[index].items():
            stop = start + np.prod(shape)
            tensors[key] = torch.from_numpy(content[start:stop].reshape(shape))
            start = stop
        return tensors

    def _write(self, index: int, sample: dict[str, Any]) -> None:
        """Write a sample's bytes, then their checksum."""
        content = np.concatenate([sample[key].numpy().ravel() for key in self.shapes[index]])
        try:
            os.pwrite(self.file.fileno(), content, int(self.starts[index]))
            os.pwrite(self.file.fileno(), np.uint32(checksum(content)), 4 * index)
        except OSError as error:
            raise UserError(f"{self.path}: cannot write this cache: {error.strerror}") from error


def checksum(content: np.ndarray) -> int:
    """Return CRC-32 of the bytes, never 0."""
    return zlib.crc32(content) or 1


def sample_shapes(dataset: SegmentationDataset, index: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a sample's tensors; what depends on the file's size is in its header."""
    labelled = dataset.pairs[index][1] is not None
    if dataset.filled_up:
        image = label = (dataset.size, dataset.size)
    elif isinstance(dataset.size, tuple) and (dataset.resize_label or not labelled):
        image = label = dataset.size[::-1]
    else:
        label = dataset.full_size(index)
        image = dataset.fitted(label[::-1])[::-1]
        label = image if dataset.resize_label else label
    return {"image": (3, *image), **({"label": label} if labelled else {})}


def open_allocated(path: Path, size: int) -> BinaryIO:
    """Open a file for reading and writing, all its bytes reserved on the disk.

    Raises:
        UserError: it cannot be made, or there is not enough space; then it is removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise UserError(f"cannot write --cache {path.parent}: {error.strerror}") from error
    try:
        with waited_for(file):  # one process reserves, the others find it done
            _reserve(file, size, path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        file.close()
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"--cache {path.parent}: {path.name} needs {size / 1e9:.3f} GB, "
            f"{free / 1e9:.3f} GB are free: {error.strerror}"
        ) from error
    return file


def _reserve(file: BinaryIO, size: int, folder: Path) -> None:
    have = os.fstat(file.fileno())
    if have.st_size >= size:
        return
    if shutil.disk_usage(folder).free < size - 512 * getattr(have, "st_blocks", 0):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS: the disk may yet fill up
        file.truncate(size)
