"""Zip archives as folders: a regular file whose name ends in .zip holds what its entries say.

`DIR/FILE.zip/images/a.jpg` is then a path like any other for what reads data; nothing is unpacked.
Entries are read by their place, without a shared position, so that threads and loader workers read
one open file at once. What could harm is refused by name when the archive is opened.
"""

import functools
import os
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from engine.errors import UserError

ENDING = re.compile(r"\.zip(?=[/\\]|$)", re.IGNORECASE)
MAX_BYTES = 2**30  # of an entry
BOMB_BYTES, BOMB_RATIO = 2**26, 200  # an entry that is larger and shrank more is no image's
ENCRYPTED, STORED, DEFLATED = 1, 0, 8
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of what follows it


class Entry(NamedTuple):
    """What lies in a folder of an archive; has what is asked of an `os.DirEntry`."""

    name: str
    info: zipfile.ZipInfo | None  # None for a folder

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.info is None

    def is_file(self) -> bool:
        """Return whether it is a file, no link or device."""
        kind = stat.S_IFMT((self.info.external_attr >> 16) & 0xFFFF) if self.info else 0
        return self.info is not None and kind in (0, stat.S_IFREG)

    def is_symlink(self) -> bool:
        """Return that no link is followed."""
        return False


class Archive:
    """An open archive.

    Args:
        path: of a regular file.

    Attributes:
        folders: path of each folder, "" for the archive's own -> name -> entry.

    Raises:
        UserError: it is no archive; an entry is encrypted, a bomb, or of a name that leaves the
            archive or stands twice.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.folders: dict[str, dict[str, Entry]] = {"": {}}
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path}: cannot read this archive: {error}") from error
        for info in infos:
            self._add(info)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def _add(self, info: zipfile.ZipInfo) -> None:
        name = info.orig_filename.replace("\\", "/")
        where, parts = f"{self.path}: the entry {name!r}", name.split("/")
        if name.startswith("/") or ".." in parts or name[1:3] == ":/" or "\0" in name:
            raise UserError(f"{where} leaves the archive: pack it anew")
        parts = [part for part in parts if part not in ("", ".")]
        is_folder = name.endswith("/")
        if not is_folder and info.flag_bits & ENCRYPTED:
            raise UserError(f"{where} is encrypted: pack it anew without a password")
        if info.file_size > MAX_BYTES or (
            info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size
        ):
            raise UserError(
                f"{where} is refused: {info.file_size} bytes packed into {info.compress_size}"
            )
        for depth in range(len(parts) - (not is_folder)):
            parent, own = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
            before = self.folders[parent].setdefault(parts[depth], Entry(parts[depth], None))
            if not before.is_dir():
                raise UserError(f"{where} lies in a file of the archive")
            self.folders.setdefault(own, {})
        if not is_folder and parts:
            there = self.folders["/".join(parts[:-1])]
            if parts[-1] in there:
                raise UserError(f"{where} stands twice")
            there[parts[-1]] = Entry(parts[-1], info)

    def find(self, inner: str) -> Entry | None:
        """Return what a path in the archive names; None where there is nothing."""
        if not inner:
            return Entry("", None)
        folder, _, name = inner.rpartition("/")
        return self.folders.get(folder, {}).get(name)

    def read(self, inner: str, limit: int = MAX_BYTES) -> bytes:
        """Return an entry's bytes, their checksum verified.

        Raises:
            UserError: there is none, or it is damaged, of another method, or larger than `limit`.
        """
        where, entry = f"{self.path}/{inner}", self.find(inner)
        if entry is None:
            raise UserError(f"{where}: no such file")
        if not entry.is_file():
            raise UserError(f"{where}: not a regular file")
        info = entry.info
        if info.file_size > limit:
            raise UserError(f"{where}: {info.file_size} bytes are too many: {limit} at most")
        if info.compress_type not in (STORED, DEFLATED):
            raise UserError(f"{where}: packed by method {info.compress_type}: deflate or store it")
        try:
            head = os.pread(self._handle, LOCAL_HEADER.size, info.header_offset)
            signature, *lengths = LOCAL_HEADER.unpack(head)
            start = info.header_offset + LOCAL_HEADER.size + sum(lengths)
            content = os.pread(self._handle, info.compress_size, start)
            if info.compress_type == DEFLATED:
                content = zlib.decompressobj(-15).decompress(content, info.file_size + 1)
        except (OSError, struct.error, zlib.error) as error:
            raise UserError(f"{where}: cannot unpack this entry: {error}") from error
        whole = signature == b"PK\3\4" and len(content) == info.file_size
        if not whole or zlib.crc32(content) != info.CRC:
            raise UserError(f"{where}: cannot unpack this entry: damaged")
        return content


def inside(path: str | Path) -> tuple[Archive, str] | None:
    """Return the archive that a path leads into, and the path in it; None where there is none.

    Raises:
        UserError: as `Archive`.
    """
    text = os.fspath(path)
    for match in ENDING.finditer(text):
        name, inner = text[: match.end()], text[match.end() :].replace(os.sep, "/")
        try:
            about = os.stat(name)
        except (OSError, ValueError):
            return None
        if stat.S_ISREG(about.st_mode):
            parts = [part for part in inner.split("/") if part not in ("", ".")]
            return _opened(name, about.st_mtime_ns, about.st_size), "/".join(parts)
    return None


@functools.lru_cache(maxsize=16)
def _opened(path: str, _mtime: int, _size: int) -> Archive:
    """Return an archive, opened once as long as it is not changed."""
    return Archive(path)


def is_dir(path: str | Path) -> bool:
    """Return whether a path is a folder, an archive or a folder in one."""
    found = inside(path)
    if found is None:
        return os.path.isdir(path)
    entry = found[0].find(found[1])
    return entry is not None and entry.is_dir()


def is_file(path: str | Path) -> bool:
    """Return whether a path is a file, no archive, or one in an archive."""
    found = inside(path)
    if found is None:
        return os.path.isfile(path)
    entry = found[0].find(found[1])
    return entry is not None and entry.is_file()


def only_folder(path: str | Path) -> Path:
    """Return the one folder that an archive holds; the path itself where there is more, or none.

    Programs that pack a folder put it into the archive, and macOS another one beside it.
    """
    found = inside(path)
    if found is None or found[1]:
        return Path(path)
    own = found[0].folders[""]
    entries = [own[name] for name in own if name[0] != "." and name != "__MACOSX"]
    alone = len(entries) == 1 and entries[0].is_dir()
    return Path(path, entries[0].name) if alone else Path(path)


def scan(folder: str | Path) -> list[os.DirEntry] | list[Entry]:
    """Return what lies in a folder, by name.

    Raises:
        OSError: as `os.scandir`.
    """
    found = inside(folder)
    if found is None:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    archive, inner = found
    if inner not in archive.folders:
        raise FileNotFoundError(folder)
    return sorted(archive.folders[inner].values(), key=lambda entry: entry.name)


def identity(path: str | Path) -> tuple:
    """Return what two names of one file or folder have in common.

    Raises:
        OSError: there is none.
    """
    found = inside(path)
    if found is None:
        about = os.stat(path)
        return about.st_dev, about.st_ino
    if found[0].find(found[1]) is None:
        raise FileNotFoundError(path)
    return found[0].path, found[1]


def state(path: str | Path) -> list[int]:
    """Return numbers that change with a file: its size, and when it was changed or its checksum.

    Raises:
        OSError: there is none.
    """
    found = inside(path)
    if found is None:
        about = os.stat(path)
        return [about.st_size, about.st_mtime_ns]
    entry = found[0].find(found[1])
    if entry is None or entry.info is None:
        raise FileNotFoundError(path)
    return [entry.info.file_size, entry.info.CRC]
