"""One process at a time in a folder: what is refused, what is waited for, what goes on."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from engine import locks
from engine.errors import UserError
from engine.files import write_text
from engine.locks import FolderLock

PROCESSES = multiprocessing.get_context("spawn")


def hold(folder: Path, held, done) -> None:
    lock = FolderLock(folder)
    held.set()
    done.wait(60)
    lock.release()


def test_the_second_names_the_first(tmp_path: Path):
    held, done = PROCESSES.Event(), PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(tmp_path, held, done))
    child.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"in use by another run: host .*, pid {child.pid}"):
        FolderLock(tmp_path)
    child.kill()  # a killed one leaves its file, and no lock
    child.join()
    lock = FolderLock(tmp_path)
    assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()
    lock.release(remove=True)
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_removed_by_its_holder_is_not_taken_for_the_new_one(tmp_path: Path, monkeypatch):
    """Between opening and locking, the holder ends: the file that was opened has no name."""
    first, plain = FolderLock(tmp_path), locks._open
    opened = []

    def open_then_release(path: Path) -> int:
        handle = plain(path)
        if not opened:
            first.release(remove=True)
        opened.append(handle)
        return handle

    monkeypatch.setattr(locks, "_open", open_then_release)
    lock = FolderLock(tmp_path)
    assert len(opened) == 2
    with pytest.raises(UserError, match="in use by another run"):
        FolderLock(tmp_path)
    lock.release(remove=True)


def test_who_deletes_the_file_of_a_lock_is_noticed(tmp_path: Path):
    lock = FolderLock(tmp_path)
    (tmp_path / ".lock").unlink()
    lock.renew()  # nobody came: it is held again
    with pytest.raises(UserError, match="in use by another run"):
        FolderLock(tmp_path)
    (tmp_path / ".lock").unlink()
    other = FolderLock(tmp_path)
    with pytest.raises(UserError, match="in use by another run"):
        lock.renew()
    other.release()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_no_lock(link, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    link(tmp_path / "notes.txt", tmp_path / "run" / ".lock")
    with pytest.raises(UserError, match=r"\.lock: not a lock"):
        FolderLock(tmp_path / "run")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_it_goes_on_with_a_warning(number: int, tmp_path: Path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    FolderLock(tmp_path).release(remove=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}: no locks here ({os.strerror(number)})")


def test_without_fcntl_it_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    one, other = FolderLock(tmp_path), FolderLock(tmp_path)
    one.release()
    other.release(remove=True)


@pytest.mark.parametrize("without", ["no module", errno.ENOSYS, errno.ENOLCK])
def test_waiting_goes_on_without_locks(without: object, tmp_path: Path, monkeypatch):
    with (tmp_path / "file").open("w") as one, (tmp_path / "file").open("w") as other:
        with locks.waited_for(one) as alone:
            assert alone
            with pytest.raises(BlockingIOError):
                locks.fcntl.flock(other, locks.fcntl.LOCK_EX | locks.fcntl.LOCK_NB)
        if without == "no module":
            monkeypatch.setattr(locks, "fcntl", None)
        else:
            monkeypatch.setattr(locks.fcntl, "flock", lambda *_: no_locks(without))
        with locks.waited_for(one) as alone, locks.waited_for(other):
            assert not alone


def no_locks(number: int):
    raise OSError(number, os.strerror(number))


def test_a_full_disk_is_named_with_its_file(tmp_path: Path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", lambda *_: full(_))
    with pytest.raises(UserError, match=r"cannot write .*scores\.json: No space left on device"):
        write_text(tmp_path / "scores.json", "{}")
    assert not list(tmp_path.iterdir())
