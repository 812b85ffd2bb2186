"""Submission CSVs: a row per image, its class ids in one field; read and written row by row.

The columns are `image_id` and `PredictionString`, the ids of a flattened label map separated by
spaces (65 536 of them for 256x256). Other columns are kept. Memory does not grow with the pixels:
only where each row begins is remembered.
"""

import contextlib
import csv
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import UserError
from engine.files import whole

IMAGE, IDS = b"image_id", b"PredictionString"
MAX_LINE = 2**28  # bytes: the ids of 67 megapixels

csv.field_size_limit(sys.maxsize)  # a map of 256x256 is longer than the module's own limit


class Submission:
    """Find the rows of a submission file by image; their ids stay in the file.

    `header` holds the names of the columns, `images` the ids of the images in the file's order.

    Args:
        path: a regular file. A byte-order mark, CRLF, quoted fields and empty lines are fine.
        num_classes: C, at most 256; the class ids are 0..C-1.

    Raises:
        UserError: names the file and, where it is one, the line: a column is missing or there
            twice, a row has other columns than the header, an image has several rows or none.
    """

    def __init__(self, path: str | Path, num_classes: int) -> None:
        self.path, self.num_classes = Path(path), num_classes
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        self._file = self.path.open("rb", buffering=1 << 20)
        start = self._line(1)
        self.header = self._fields(start.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"), 1)
        for name in (IMAGE, IDS):
            if self.header.count(name) != 1:
                columns = ", ".join(map(_text, self.header[:5]))
                raise UserError(f"{path}: one column {_text(name)} is needed, its own: {columns}")
        self._image_column, self._ids_column = map(self.header.index, (IMAGE, IDS))

        self._places: dict[bytes, tuple[int, int, int]] = {}  # image -> line, offset, bytes
        offset = len(start)
        for number in itertools.count(2):
            line = self._line(number)
            if not line:
                break
            row = line.rstrip(b"\r\n")
            if row:
                fields = self._fields(row, number)
                image = fields[self._image_column].strip()
                if not image:
                    raise UserError(f"{path}, line {number}: no image_id")
                if image in self._places:
                    there = self._places[image][0]
                    raise UserError(
                        f"{path}, line {number}: {_text(image)} has a row already, line {there}"
                    )
                self._places[image] = number, offset, len(row)
            offset += len(line)
        if not self._places:
            raise UserError(f"{path}: no row below the header")

    @functools.cached_property
    def length(self) -> int:
        """P, the number of class ids in the first row."""
        return len(self.read(self.images[0]))

    @property
    def images(self) -> list[bytes]:
        """Return the ids of the images in the file's order."""
        return list(self._places)

    def read(self, image: bytes) -> np.ndarray:
        """Return the class ids of one image, uint8 [P]; several threads may call this.

        Raises:
            UserError: no id, or one that is no number of 0..C-1; names file and line.
        """
        try:
            return parse_ids(self._row(image)[self._ids_column], self.num_classes)
        except ValueError as error:
            raise UserError(f"{self.where(image)}: {error}") from None

    def where(self, image: bytes) -> str:
        """Return file, line and image, for a message."""
        return f"{self.path}, line {self._places[image][0]} ({_text(image)})"

    def rewritten(self, image: bytes, ids: np.ndarray) -> bytes:
        """Return the row of an image with other class ids, as a line.

        Args:
            image: in this file.
            ids: uint8 [P].
        """
        fields = self._row(image)
        fields[self._ids_column] = format_ids(ids)
        return join_fields(fields)

    def _line(self, number: int) -> bytes:
        """Return the next line of the file, empty at its end; one that never ends is refused."""
        line = self._file.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise UserError(f"{self.path}, line {number}: longer than {MAX_LINE} bytes")
        return line

    def _row(self, image: bytes) -> list[bytes]:
        number, offset, length = self._places[image]
        return self._fields(os.pread(self._file.fileno(), length, offset), number)

    def _fields(self, line: bytes, number: int) -> list[bytes]:
        if b'"' not in line:
            fields = line.split(b",")
        else:
            try:  # latin-1 gives every byte back as it was
                (row,) = csv.reader([line.decode("latin-1")], strict=True)
            except csv.Error as error:
                raise UserError(
                    f"{self.path}, line {number}: {error} (a quoted field must end in its line)"
                ) from None
            fields = [field.encode("latin-1") for field in row]
        if number > 1 and len(fields) != len(self.header):
            raise UserError(
                f"{self.path}, line {number}: {len(fields)} fields below a header of "
                f"{len(self.header)}"
            )
        return fields if number > 1 else [name.strip() for name in fields]


def check_same_images(members: list[Submission]) -> None:
    """Check that submissions are of the same images, in any order.

    Raises:
        UserError: a file lacks an image that another one has.
    """
    everything = dict.fromkeys(image for member in members for image in member.images)
    lacking = []
    for member in members:
        own = set(member.images)
        missing = [_text(image) for image in everything if image not in own]
        if missing:
            more = f", ... ({len(missing)})" if len(missing) > 3 else ""
            lacking.append(f"{member.path} lacks {', '.join(missing[:3])}{more}")
    if lacking:
        raise UserError(f"the files are of different images: {'; '.join(lacking)}")


def read_together(members: list[Submission], image: bytes) -> Tensor:
    """Return the class ids of one image from every submission, uint8 [M,P].

    Raises:
        UserError: see `Submission.read`; or a row has not as many ids as the first file's first.
    """
    length = members[0].length
    rows = [member.read(image) for member in members]
    for member, row in zip(members, rows, strict=True):
        if len(row) != length:
            raise UserError(
                f"{member.where(image)}: {len(row)} class ids, {length} in the first row "
                f"of {members[0].path}"
            )
    return torch.from_numpy(np.stack(rows))


def parse_ids(text: bytes, num_classes: int) -> np.ndarray:
    """Read class ids separated by spaces, uint8 [P].

    Args:
        text: digits and spaces.
        num_classes: C, at most 256; the ids are 0..C-1.

    Raises:
        ValueError: says which id is none, or that there is none.
    """
    padded = np.frombuffer(b"   %b " % text, np.uint8)
    digits = padded - np.uint8(ord("0"))  # what is no digit wraps to 10 or more
    is_digit = digits < 10
    if np.count_nonzero(is_digit) + np.count_nonzero(padded == ord(" ")) != len(padded):
        raise ValueError(_odd_word(text, num_classes))
    value = digits & -is_digit.view(np.uint8)  # 0 where no digit is

    def before(array: np.ndarray, places: int) -> np.ndarray:
        """Return what stands so many places before each byte of the text."""
        return array[3 - places : len(array) - 1 - places]

    # the number that would end at each byte, of which those are taken that do
    ids = before(value, 0) + np.uint8(10) * before(value, 1)
    hundreds = before(is_digit, 0) & before(is_digit, 1) & before(is_digit, 2)
    if hundreds.any():
        if (hundreds & before(is_digit, 3)).any():
            raise ValueError(_odd_word(text, num_classes))
        ids = ids + np.uint16(100) * (before(value, 2) * before(is_digit, 1))
    ids = ids.take(np.flatnonzero(before(is_digit, 0) > is_digit[4:]))
    if not len(ids):
        raise ValueError("no class ids")
    if ids.max() >= num_classes:
        raise ValueError(f"the id {ids.max()} is outside 0..{num_classes - 1}")
    return ids.astype(np.uint8)


def _odd_word(text: bytes, num_classes: int) -> str:
    """Say which word is no id: the first that is not one to three digits."""
    words = filter(None, text.split(b" "))
    position, word = next(
        (i, word) for i, word in enumerate(words, start=1) if not word.isdigit() or len(word) > 3
    )
    expected = f"a number of 0..{num_classes - 1} expected"
    return f"the {position}. id is {_text(word)!r}, {expected}"


_WORDS = np.array([b"%d " % i for i in range(256)], "S4").view(np.uint32)


def format_ids(ids: np.ndarray) -> bytes:
    """Return class ids, uint8 [P], separated by spaces."""
    return _WORDS.take(ids).tobytes().translate(None, b"\0")[:-1]


def join_fields(fields: list[bytes]) -> bytes:
    """Return a line of a CSV file, fields quoted where they must be."""
    return b",".join(map(_quoted, fields)) + b"\n"


def _quoted(field: bytes) -> bytes:
    if any(sign in field for sign in (b",", b'"', b"\r")):
        return b'"%b"' % field.replace(b'"', b'""')
    return field


def _text(field: bytes) -> str:
    """Return a field as it is shown in a message."""
    text = field.decode("utf-8", "replace")
    return text if len(text) <= 60 else f"{text[:60]}..."


@contextlib.contextmanager
def writing(path: str | Path, header: list[bytes]) -> Iterator:
    """Yield a function that adds a line; the file appears when the block ends without an error.

    Args:
        path: in a folder that is there; a file of this name is replaced.
        header: names of the columns.
    """
    with whole(path) as file:
        file.write(join_fields(header))
        yield file.write
