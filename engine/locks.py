"""One process at a time in a folder: a lock that ends with the process that holds it."""

import contextlib
import errno
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.errors import UserError
from engine.files import open_own

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
# What file systems of clusters (Lustre, NFS) answer that have no locks.
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_held: weakref.WeakSet = weakref.WeakSet()


def _close_all() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):
    # loader workers outlive a killed run by seconds, and would hold the lock of its folder
    os.register_at_fork(after_in_child=_close_all)


class FolderLock:
    """Hold a folder until `release`, or until the process ends in whatever way.

    The lock is an aid: where the system or the file system has none, a warning is printed and the
    folder counts as taken.

    Args:
        folder: which is there.

    Raises:
        UserError: another process holds it (says which), or its lock is no file of its own.
        OSError: the lock cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME
        self._hold(folder)

    def renew(self) -> None:
        """Hold the folder again if somebody has removed the lock's file since.

        Raises:
            UserError: another process has taken the folder meanwhile; says which.
        """
        if not self._is_named():
            self._file.close()
            self._hold(self.path.parent)

    def _hold(self, folder: str | Path) -> None:
        while True:
            self._file = os.fdopen(_open(self.path), "r+")
            try:
                taken = self._take(folder)
            except BaseException:
                self._file.close()
                raise
            if taken:
                break
            self._file.close()
        _held.add(self._file)
        job = os.environ.get("SLURM_JOB_ID")
        holder = f"host {socket.gethostname()}, pid {os.getpid()}" + (f", job {job}" if job else "")
        self._file.truncate(0)
        self._file.write(holder)
        self._file.flush()

    def _take(self, folder: str | Path) -> bool:
        """Lock the open file; return whether it was not removed before."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._file.read().strip()
            raise UserError(f"{folder} is in use by another run: {holder}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            print(
                f"warning: {folder}: no locks here ({error.strerror}): start no second run in it",
                file=sys.stderr,
            )
        return self._is_named()

    def _is_named(self) -> bool:
        """Return whether the open file still is the one under its name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self, remove: bool = False) -> None:
        """Let others have the folder.

        Args:
            remove: leave no lock file behind.
        """
        if remove and not self._file.closed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self._file.close()


@contextlib.contextmanager
def waited_for(file: IO) -> Iterator[bool]:
    """Run the block while no other process runs one with the same file, after waiting for it.

    An aid, too: where the system or the file system has no locks, the block runs at once.

    Yields:
        whether there are locks.
    """
    locked = False
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
    try:
        yield locked
    finally:
        if locked and not file.closed:
            fcntl.flock(file, fcntl.LOCK_UN)


def _open(path: Path) -> int:
    """Open a lock file for reading and writing."""
    handle = open_own(path, os.O_RDWR)
    if handle is None:
        raise UserError(f"{path}: not a lock, but a link or no regular file: remove it")
    return handle
