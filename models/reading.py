"""Read files of weights: tensors and plain values, never code, and no more than the file holds."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from engine.errors import UserError
from engine.files import open_regular
from models import safetensors


class _NumPyDtype:
    """What a pickle says of NumPy's dtype; the dtype itself is never made from it."""

    def __init__(self, kind: object, *_: object):
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: object) -> None:
        self.order = state[1]


def _numpy_scalar(dtype: _NumPyDtype, content: bytes) -> bool | int | float | complex:
    """Return NumPy's number as Python's."""
    known = np.dtype(f"{'>' if dtype.order == '>' else '<'}{dtype.kind}")
    if known.kind not in "biufc" or len(content) != known.itemsize:
        raise pickle.UnpicklingError("a scalar of NumPy that is no number")
    return np.frombuffer(content, known)[0].item()


# A number of NumPy beside the weights, a step or a score, is pickled as calls of these, which ours
# stand in for; NumPy called its module so before version 2.
SAFE = [
    (_NumPyDtype, "numpy.dtype"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
]


def read_weights_file(path: str | Path) -> object:
    """Read a file of torch.save or of the safetensors format onto the CPU.

    No code that it brings is run: tensors, plain values of Python and numbers of NumPy are
    accepted. Memory is bounded by the file's size.

    Args:
        path: a regular file.

    Returns:
        What was saved.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    with open_regular(path) as file:
        try:
            start = file.read(64)
            file.seek(0)
            _refuse_other_kinds(path, start.lstrip())
            if safetensors.meant(path, start):
                return _load_safetensors(path, file)
            if start.startswith(b"PK"):
                _check_archive(path, file)
            with torch.serialization.safe_globals(SAFE), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # lines about old kinds of files
                return torch.load(file, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path}: cannot read this file: {error}") from error
        except pickle.UnpicklingError as error:
            # PyTorch's message advises to load it all the same, which runs the code.
            needed = re.search(r"GLOBAL (\S+)", str(error))
            if needed:
                raise UserError(
                    f"{path} refused: loading it would run {needed[1]}; a file of tensors alone "
                    "is fine"
                ) from None
            raise UserError(f"{path} is no checkpoint of PyTorch, or it is damaged") from None
        except Exception as error:  # a damaged pickle can raise anything
            if "TorchScript" in str(error):
                raise UserError(f"{path} is a TorchScript program, not a checkpoint") from None
            raise UserError(f"{path} is truncated, damaged or no checkpoint of PyTorch") from None


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Raise UserError for what downloads leave in the place of a file of weights."""
    if not start:
        raise UserError(f"{path} is empty, not a checkpoint")
    if start.startswith(b"<"):
        raise UserError(f"{path} is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not a checkpoint: run git lfs pull")


def _load_safetensors(path: Path, file: BinaryIO) -> dict:
    try:
        return safetensors.load(file)
    except ValueError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from error


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise UserError for an archive that would unpack to more than itself, or is damaged.

    torch.save compresses nothing, and torch.load itself does not notice a damaged byte.
    """
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
        if packed or sum(info.file_size for info in infos) > path.stat().st_size:
            raise UserError(f"{path} is refused: it is compressed, which torch.save never does")
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
    file.seek(0)
