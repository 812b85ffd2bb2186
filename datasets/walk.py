"""Which files there are, and which belong together: one walk and one matching for all names."""

import os
import posixpath
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from engine import zips
from engine.errors import UserError

CONTROLS = re.compile(r"[\x00-\x1f\x7f]")  # a tab or line feed would cut a list's line in two
DRIVE = re.compile(r"[A-Za-z]:/")  # of a path of Windows


class Walk(NamedTuple):
    """What lies below a folder.

    Attributes:
        files: paths relative to it, with slashes, in the order of their parts; the bytes of names
            are kept (those that are no UTF-8 as surrogates).
        links: how many of them are links, or lie in a linked folder.
        left_out: how many files and folders were left out, by reason.
    """

    files: list[str]
    links: int
    left_out: Counter[str]


def walk_files(folder: str | Path, endings: Collection[str], deep: bool = True) -> Walk:
    """List the files below a folder whose names have certain endings, in any case.

    Names that begin with a dot are no data (.ipynb_checkpoints, ._x of macOS). Links to folders are
    followed, but no folder is listed twice, so that a circle ends.

    Args:
        folder: may be missing: then it holds nothing.
        endings: in lower case, with their dot.
        deep: look into subfolders too.
    Raises:
        UserError: a folder that cannot be read; a name that no list can hold.
    """
    files: list[str] = []
    links, left_out, seen = 0, Counter(), set()
    own, linked = [("", False)], deque()  # linked ones wait, so that files keep their own names
    while own or linked:
        prefix, in_link = own.pop() if own else linked.popleft()
        try:
            identity = zips.identity(os.path.join(folder, prefix))
            if identity in seen:
                left_out["folder listed already (a link)"] += 1
                continue
            seen.add(identity)
            # in order, so that of two links to one folder the same one counts everywhere
            entries = zips.scan(os.path.join(folder, prefix))
        except FileNotFoundError:
            continue
        except OSError as error:
            where = os.path.join(folder, prefix)
            raise UserError(f"{where}: cannot read this folder: {error.strerror}") from error
        for entry in entries:
            reason = _why_left_out(entry, endings, deep)
            if reason:
                left_out[reason] += 1
                continue
            is_link = entry.is_symlink()
            if entry.is_dir():
                (linked if is_link else own).append((f"{prefix}{entry.name}/", in_link or is_link))
                continue
            path = prefix + entry.name
            if CONTROLS.search(path):
                raise UserError(f"{folder}: {path!r}: no list can hold this name; rename it")
            files.append(path)
            links += in_link or is_link
    files.sort(key=lambda path: path.split("/"))
    return Walk(files, links, left_out)


def _why_left_out(entry: os.DirEntry, endings: Collection[str], deep: bool) -> str | None:
    """Return why a file or folder is no data; None where it is."""
    name = entry.name
    if name[0] == ".":
        return "name with a dot before it"
    if entry.is_dir():
        return None if deep else "subfolder"
    dot = name.rfind(".")
    if dot < 0:
        return "name without an ending"
    if name[dot:].lower() not in endings:
        return f"ending {ascii(name[dot:].lower())[1:-1]}"  # whatever bytes it has, in one line
    if not entry.is_file():
        return "link to nothing" if entry.is_symlink() else "no regular file"
    return None


def summary(left_out: Counter[str], most: int = 4) -> str:
    """Return the commonest reasons of what was left out, in words."""
    reasons = sorted((+left_out).items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {reason}" for reason, count in reasons[:most]]
    rest = sum(count for _, count in reasons[most:])
    return ", ".join(shown + ([f"{rest} for other reasons"] if rest else []))


def split_ending(path: str) -> tuple[str, str]:
    """Return a path without its ending, and the ending with its dot ("" where there is none)."""
    dot = path.rfind(".")
    return (path, "") if dot <= path.rfind("/") + 1 else (path[:dot], path[dot:])


def composed(name: str) -> str:
    """Return a name in NFC: macOS writes accents as characters of their own (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Partners:
    """The files of a tree by folder and stem, for those who know these and no more.

    Endings may have any case and be any of a set; accents may be composed or not. A folder is read
    when it is first asked for.

    Args:
        root: of the tree.
        endings: of partners, in lower case.
    """

    def __init__(self, root: str | Path, endings: Collection[str]) -> None:
        self.root, self.endings = os.fspath(root), endings
        self._folders: dict[str, tuple[str, dict[str, list[str]], dict[str, str]]] = {}
        self._found: set[str] = set()

    def find(self, path: str) -> str | None:
        """Return the file with the folder and stem of `path`, relative to the root.

        Raises:
            UserError: there are several.
        """
        folder, _, name = path.rpartition("/")
        stem = split_ending(name)[0]
        actual, files, _ = self._list(folder)
        names = files.get(composed(stem), [])
        names = [one for one in names if split_ending(one)[0] == stem] or names
        if len(names) > 1:
            where = os.path.join(self.root, folder)
            raise UserError(f"{where}: {' and '.join(sorted(names))} have one stem: remove one")
        self._found.update(actual + name for name in names)
        return actual + names[0] if names else None

    def alone(self) -> list[str]:
        """Return the files that `find` passed by, in folders where it found others."""
        return [
            actual + name
            for actual, files, _ in self._folders.values()
            if any(actual + names[0] in self._found for names in files.values())
            for names in files.values()
            for name in names
            if actual + name not in self._found
        ]

    def same(self, path: str) -> str | None:
        """Return the file of this path, its accents composed or not, relative to the root."""
        folder, _, name = path.rpartition("/")
        actual, files, _ = self._list(folder)
        names = files.get(composed(split_ending(name)[0]), [])
        return next((actual + one for one in names if composed(one) == composed(name)), None)

    def _list(self, folder: str) -> tuple[str, dict[str, list[str]], dict[str, str]]:
        """Return a folder's own spelling with a slash, its files by stem, its subfolders."""
        if folder in self._folders:
            return self._folders[folder]
        actual, files, folders = folder, {}, {}
        if folder and not zips.is_dir(os.path.join(self.root, folder)):
            parent, _, name = folder.rpartition("/")
            parent, _, beside = self._list(parent)
            actual = parent + beside.get(composed(name), name)
        try:
            for entry in zips.scan(os.path.join(self.root, actual)):
                stem, ending = split_ending(entry.name)
                if ending.lower() in self.endings and entry.is_file():
                    files.setdefault(composed(stem), []).append(entry.name)
                elif entry.is_dir():
                    folders[composed(entry.name)] = entry.name
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            where = os.path.join(self.root, actual)
            raise UserError(f"{where}: cannot read this folder: {error.strerror}") from error
        found = (f"{actual}/" if actual else "", files, folders)
        self._folders[folder] = found
        return found


class Listed:
    """The paths that a list writes, found in the data folder.

    Backslashes may stand for slashes. A path may be absolute where it lies in the data folder, or
    where the folder before it exists no more: lists with the paths of another machine, or with a
    slash before the data folder's own (VOC), are taken so, all with the same part cut off.

    Args:
        root: the data folder.
        folders: where names may lie that are not in the root itself.
        endings: of files, in lower case.
    """

    def __init__(self, root: str | Path, folders: Sequence[str], endings: Collection[str]) -> None:
        self.root, self.folders = os.path.abspath(root), ["", *(f"{one}/" for one in folders)]
        self._real, self._cut = os.path.realpath(root), None
        self._partners = Partners(self.root, endings)

    def find(self, field: str) -> str | None:
        """Return a path relative to the root; None where there is no such file.

        Raises:
            ValueError: it leaves the data folder.
        """
        for path in (field, field.replace("\\", "/")):
            if ".." in path.split("/"):
                raise ValueError(f"{field!r} leaves the data folder")
            if "//" in path or "./" in path:
                path = posixpath.normpath(path)
            if path.startswith("/") or DRIVE.match(path):
                found = self._in_root(field, path)
            else:
                found = self._here(path)
            if found is not None or "\\" not in field:
                return found
        return None

    def _here(self, path: str) -> str | None:
        for folder in self.folders:
            if zips.is_file(f"{self.root}/{folder}{path}"):
                return folder + path
        same = (self._partners.same(folder + path) for folder in self.folders)
        return None if path.isascii() else next(filter(None, same), None)

    def _in_root(self, field: str, path: str) -> str | None:
        """Return what an absolute path means in the root."""
        for root in (self.root, self._real):
            if path.startswith(f"{root}/"):
                return self._here(path[len(root) + 1 :])
        if os.path.exists(path) or zips.is_file(path):
            real = os.path.realpath(path)
            if real.startswith(f"{self._real}/"):
                return self._here(real[len(self._real) + 1 :])
            raise ValueError(f"{field!r} leaves the data folder")
        parts = path.lstrip("/").split("/")
        for cut in range(len(parts)) if self._cut is None else (len(self._cut),):
            if self._cut in (None, parts[:cut]) and parts[cut:]:
                found = self._here("/".join(parts[cut:]))
                if found is not None:
                    self._cut = parts[:cut]
                    return found
        if self._cut is None:
            raise ValueError(f"{field!r} leaves the data folder")
        return None
