"""Files: regular ones alone are read, and they are written whole or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import torch

from engine import zips
from engine.errors import UserError

UNFINISHED = ".segshift-"  # how files begin that are not whole yet: nobody else's do
UMASK = os.umask(0)
os.umask(UMASK)  # there is no other way to read it
# The second for a pipe, the third for Windows, which would translate line ends.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
MAX_BYTES = 2**30  # of a file that is read whole


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, or one in an archive (`zips`).

    A pipe in its place would be waited for, for ever.

    Raises:
        UserError: missing, unreadable, or a folder, pipe, socket or device.
    """
    if (found := zips.inside(path)) and found[1]:
        return io.BytesIO(found[0].read(found[1]))
    try:
        handle = os.open(path, OPEN_FLAGS)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: cannot read this file: {error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def read_regular(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Return a regular file's bytes.

    Args:
        path: the file.
        limit: more bytes than these are refused.
    Raises:
        UserError: as `open_regular`, or more bytes than `limit`.
    """
    if (found := zips.inside(path)) and found[1]:
        return found[0].read(found[1], limit)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path}: {size} bytes are too many: {limit} at most")
        try:
            return file.read(size)
        except OSError as error:
            raise UserError(f"{path}: cannot read this file: {error}") from error


@contextlib.contextmanager
def whole(
    path: str | Path, mode: str = "wb", *, sync: bool = True, keep: Path | None = None
) -> Iterator[IO]:
    """Open a file that appears under its name when the block ends without an error.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Args:
        path: the file; a file of this name is replaced.
        mode: w or wb.
        sync: wait until the disk has it; a power cut may otherwise leave an empty file.
        keep: what the old file is called afterwards; at every moment one of the two is whole.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=".tmp")
    try:
        with os.fdopen(handle, mode) as file:
            if hasattr(os, "fchmod"):  # not on Windows
                os.fchmod(handle, 0o666 & ~UMASK)  # mkstemp's files are private
            yield file
            file.flush()
            if sync:
                os.fsync(handle)
        if keep is not None and path.exists():
            path.replace(keep)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = str(path)  # a full disk does not say which file it was
        raise


def refuse_replacing(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read.

    Args:
        outputs: files that are going to be written; they need not be there.
        inputs: files that are read. Links, and other spellings of a name, are seen through.

    Raises:
        UserError: names the first output that is an input.
    """
    there = {}
    for path in outputs:
        with contextlib.suppress(OSError):
            about = os.stat(path)
            there[about.st_dev, about.st_ino] = path
    for path in inputs if there else ():
        with contextlib.suppress(OSError):
            about = os.stat(path)
            output = there.get((about.st_dev, about.st_ino))
            if output is not None:
                raise UserError(
                    f"{output} would be written over, which is read: write somewhere else"
                )


def open_own(path: str | Path, flags: int) -> int | None:
    """Open a file for writing, made if absent, never through a link to another one.

    Args:
        path: the file.
        flags: of `os.open`: whether it is read too, or appended to.

    Returns:
        the handle; None where a link, a folder or no regular file stands there.

    Raises:
        OSError: for any other reason.
    """
    flags |= os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            return None
        raise
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and about.st_nlink <= 1:  # 0: removed since it was opened
        return handle
    os.close(handle)
    return None


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file of ours; never through a link.

    Raises:
        UserError: the file is a link, another user's, or cannot be written.
    """
    try:
        handle = open_own(path, os.O_WRONLY | os.O_APPEND)
        if handle is None:
            raise UserError(f"{path} is a link or no file: remove it")
        with os.fdopen(handle, "ab") as file:
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def digest(content: bytes) -> str:
    """Return 16 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Return 16 hexadecimal digits that tell the contents of files apart.

    Raises:
        UserError: the file cannot be read.
    """
    found = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return found.hexdigest()[:16]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all.

    Raises:
        UserError: it cannot be written; names it.
    """
    try:
        with whole(path, sync=False) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def save_tensors(
    value: dict,
    path: str | Path,
    keep: Path | None = None,
    save: Callable[[dict, IO], None] | None = None,
) -> None:
    """Write `value` so that `path` holds either the old file or the whole new one.

    Args:
        value: tensors and plain values.
        path: the file.
        keep: see `whole`.
        save: writes a value to an open file; None for torch.save.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    try:
        with whole(path, keep=keep) as file:
            (save or torch.save)(value, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
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
