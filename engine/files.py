"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

import torch

from engine.errors import UserError


def save_atomic(value: dict, path: str | Path, keep: Path | None = None) -> None:
    """Write `value` with torch.save so that `path` holds either the old file or the whole new one.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Args:
        value: tensors and plain values.
        path: the file.
        keep: what the old file is called afterwards; at every moment one of the two is whole.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        if "DataLoader worker" in str(cause):  # its death is raised wherever this process is
            raise cause from None
        needed = f"about {_megabytes(value):.0f} MB are needed"
        raise UserError(f"cannot write {path}: {cause}; {needed}") from error


def _megabytes(value: object) -> float:
    """Return the size of the tensors in nested dicts and lists."""
    if torch.is_tensor(value):
        return value.numel() * value.element_size() / 1e6
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_megabytes, value)) if isinstance(value, (list, tuple)) else 0


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
