"""A report's folder: written beside and renamed, and nobody else's is replaced."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine import processes
from engine.errors import UserError
from engine.files import UMASK, UNFINISHED
from inference.page.gathering import FOLDERS

OURS = {"index.html", "report.json", *FOLDERS}


@contextlib.contextmanager
def placed(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which takes its name when the block ends well.

    All processes yield the same one.

    Raises:
        UserError: `folder` is there, not empty, and no report of ours; or it cannot be written.
    """
    folder, made, problem = Path(folder), "", None
    if processes.rank() == 0:
        try:
            _check_ours(folder)
            folder.absolute().parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(dir=folder.absolute().parent, prefix=UNFINISHED)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write beside {folder}: {error.strerror}"
    made, problem = processes.gather([made, problem])[0]
    if problem is not None:
        raise UserError(problem)
    try:
        yield Path(made)
        processes.barrier()
        if processes.rank() == 0:
            _put(Path(made), folder)
    finally:
        if processes.rank() == 0:
            shutil.rmtree(made, ignore_errors=True)


def _check_ours(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: a file or a link, where the report's folder is to be")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and (names - OURS or not {"index.html", "report.json"} <= names):
        odd = ", ".join(sorted(names - OURS)[:3]) or "no report.json"
        raise UserError(f"{folder} is no report alone ({odd}): give an empty or a new folder")


def _put(made: Path, folder: Path) -> None:
    """Rename the new folder to its name; the old one goes when that is done."""
    try:
        made.chmod(0o777 & ~UMASK)
        old = None
        if folder.is_dir():
            old = Path(tempfile.mkdtemp(dir=made.parent, prefix=UNFINISHED), "old")
            os.rename(folder, old)
        os.rename(made, folder)
    except OSError as error:
        raise UserError(f"cannot put the report to {folder}: {error.strerror}") from error
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)
