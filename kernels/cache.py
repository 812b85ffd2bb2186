"""Where compiled libraries are kept, and which of them may be loaded.

Loading a library runs its code, so each must be this user's own, in folders that nobody else can
write. A finished one has a file `complete` beside it that holds its size and SHA-256: one that was
cut short would otherwise end the process by a signal.
"""

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

from engine.files import write_text

COMPLETE = "complete"
MOST_RECORDED = 1 << 16  # bytes of it that are read


class Refused(Exception):
    """A folder or file that may not be used; the sentence says why."""


def roots() -> list[Path]:
    """Return the folders that may hold ours, in the order in which they are tried."""
    chosen = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/segshift").expanduser()
    # That one may be a link of the user's; the other is anybody's to make, links included.
    return [chosen.resolve(), Path(tempfile.gettempdir()) / f"segshift-{os.getuid()}"]


def make(folder: Path) -> None:
    """Make a folder of a library and what is missing above it, each for this user alone.

    Raises:
        Refused: see `check`.
        OSError: it cannot be made.
    """
    for level in [*reversed(folder.parents), folder]:
        if not level.exists():
            level.mkdir(mode=0o700, exist_ok=True)
    check(folder)


def check(folder: Path) -> None:
    """Make sure that nobody else can put or exchange anything in a folder below a root.

    The root may also be the administrator's, or one where nobody can rename what is another's, as
    /tmp.

    Raises:
        Refused: another user owns the folder or the root, or can write there, or it is a link.
        OSError: they cannot be opened.
    """
    for level in (folder.parent, folder):
        handle = _open(level, os.O_DIRECTORY)
        try:
            about = os.fstat(handle)
        finally:
            os.close(handle)
        is_root = level != folder
        _check_owner(level, about, {os.getuid(), 0} if is_root else {os.getuid()})
        if not (is_root and about.st_mode & stat.S_ISVTX):
            _check_writers(level, about)


def _check_owner(path: Path, about: os.stat_result, allowed: set[int]) -> None:
    if about.st_uid not in allowed:
        raise Refused(f"{path} belongs to user {about.st_uid}, not to you ({os.getuid()})")


def _check_writers(path: Path, about: os.stat_result) -> None:
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{path} can be written by other users: chmod go-w {path}")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError as error:
        if path.is_symlink():
            raise Refused(f"{path} is a link") from error
        raise


def _read_own(path: Path, most: int | None = None) -> bytes:
    """Read a file of ours; by reading, not mapping, which a shrinking file ends by a signal."""
    with os.fdopen(_open(path, 0), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise Refused(f"{path} is no regular file")
        _check_owner(path, about, {os.getuid()})
        _check_writers(path, about)
        return file.read(about.st_size if most is None else min(most, about.st_size))


def record(folder: Path) -> dict | None:
    """Return what is noted of the finished library in a folder: None if none is finished.

    Returns:
        {"size": bytes, "sha256": hexadecimal, "rebuilt": why, or empty}; empty if it is unreadable.

    Raises:
        Refused: the note is not this user's.
        OSError: it cannot be read.
    """
    try:
        noted = json.loads(_read_own(folder / COMPLETE, MOST_RECORDED))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def fault(library: Path) -> str | None:
    """Say what is wrong with a finished library; empty if nothing, None if none is finished."""
    try:
        noted = record(library.parent)
        if noted is None:
            return None
        content = _read_own(library)
    except FileNotFoundError:
        return f"{library} was gone"
    except Refused as refusal:
        return str(refusal)
    except OSError as error:
        return f"{library} could not be read: {error.strerror}"
    if not isinstance(noted.get("sha256"), str):
        return f"what {library} should be was not recorded"
    if len(content) != noted.get("size"):
        return f"{library} had {len(content)} bytes, not {noted.get('size')}"
    if hashlib.sha256(content).hexdigest() != noted["sha256"]:
        return f"{library} had other bytes than were written"
    return ""


def finish(built: Path, library: Path, rebuilt: str) -> None:
    """Move a library that was built to its place and record what it is.

    Args:
        built: on the same disk.
        library: its place; processes that use the one before keep it.
        rebuilt: what was wrong with the one before, empty if there was none.
    """
    built.chmod(0o700)
    content = built.read_bytes()
    noted = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    os.replace(built, library)
    write_text(library.parent / COMPLETE, json.dumps({**noted, "rebuilt": rebuilt}))
