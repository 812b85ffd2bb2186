"""COCO's instance files: read piece by piece, so that memory does not grow with the polygons.

A file is one JSON object with the lists `images`, `categories` and `annotations`. It is passed over
once; of each annotation its place in the file is remembered, and it is read again when its image's
turn comes.
"""

import array
import codecs
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets import outlines
from datasets.making import check_size, safe_name
from datasets.walk import split_ending
from engine.errors import UserError
from engine.files import open_regular
from engine.shapes import DECODER, Either, OneOf, Within, misfit, shorten

BLOCK_BYTES = 2**20
MAX_PIECE_BYTES = 2**27  # of one annotation, or of what is no list
ID = Either(int, str)
SHAPES = {
    "images": {
        "id": ID, "file_name": str, "width": Within(1), "height": Within(1), ...: object
    },
    "categories": {"id": ID, "name": str, ...: object},
    "annotations": {
        "image_id": ID, "category_id": ID, "id?": object, "segmentation?": object,
        "iscrowd?": OneOf(0, 1, False, True, None), ...: object,
    },
}  # fmt: skip


class Piece(NamedTuple):
    """An element of a list at the top of a JSON file.

    Attributes:
        list: its key.
        number: in the list, from 0.
        start: byte of the file that it begins at.
        length: in bytes.
        value: what it holds.
    """

    list: str
    number: int
    start: int
    length: int
    value: Any


class Pieces:
    """The elements of all lists in the object that a JSON file holds, one after another.

    Args:
        path: a regular file, UTF-8 with or without a mark.

    Iterating raises UserError: no JSON, no object, a list that stands twice, not UTF-8; names the
    byte.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Piece]:
        with open_regular(self.path) as self._file:
            # Latin-1 has a letter for every byte, so that places in the text are those in the file
            self._text, self._at, self._ended = "", 0, False
            if self._file.read(3) != codecs.BOM_UTF8:
                self._file.seek(0)
            self._before = self._file.tell()
            self._expect("{")
            keys: set[str] = set()
            closed = self._next() == "}"
            while not closed:
                key, _, _ = self._value()
                if not isinstance(key, str) or key in keys:
                    raise self._fault(f"{shorten(key)} is no key, or stands twice")
                keys.add(key)
                self._expect(":")
                if self._next() == "[":
                    self._at += 1
                    yield from self._elements(key)
                else:
                    self._value()
                closed = self._comma_or("}")
            self._expect("}")
            if self._next():
                raise self._fault("more than one object")

    def _elements(self, key: str) -> Iterator[Piece]:
        number, closed = 0, self._next() == "]"
        while not closed:
            value, start, length = self._value()
            yield Piece(key, number, start, length, value)
            number += 1
            closed = self._comma_or("]")
        self._expect("]")

    def _next(self) -> str:
        """Return the next letter that is no blank, empty at the file's end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on, and forget what is done; return whether there was more."""
        rest = self._text[self._at :]
        block = self._file.read(max(BLOCK_BYTES, len(rest)))
        self._before += self._at
        self._text, self._at = rest + block.decode("latin-1"), 0
        self._ended = not block
        return bool(block)

    def _expect(self, sign: str) -> None:
        found = self._next()
        if found != sign:
            raise self._fault(f"{found!r} where {sign!r} is expected" if found else "it ends early")
        self._at += 1

    def _comma_or(self, end: str) -> bool:
        """Pass a comma; return True where there is the end instead."""
        if self._next() == end:
            return True
        self._expect(",")
        if self._next() == end:
            raise self._fault(f"a comma before {end!r}")
        return False

    def _value(self) -> tuple[Any, int, int]:
        """Return the next value, where it begins and how many bytes it has."""
        self._next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    break
            except RecursionError:
                raise self._fault("nested too deeply") from None
            except ValueError as error:
                if self._ended:
                    raise self._fault(str(getattr(error, "msg", error))) from None
            if len(self._text) - self._at > MAX_PIECE_BYTES:
                raise self._fault(f"no end within {MAX_PIECE_BYTES} bytes")
            self._more()
        start, length = self._before + self._at, end - self._at
        piece, self._at = self._text[self._at : end], end
        if not piece.isascii():
            value = decoded(self.path, piece.encode("latin-1"), start)
        return value, start, length

    def _fault(self, reason: str) -> UserError:
        return UserError(f"{self.path}: no JSON at byte {self._before + self._at}: {reason}")


def decoded(path: str | Path, content: bytes, start: int) -> Any:
    """Return what a part of a JSON file holds.

    Raises:
        UserError: not UTF-8; names the byte of the file.
    """
    try:
        return DECODER.decode(content.decode())
    except UnicodeDecodeError as error:
        at = start + error.start
        raise UserError(
            f"{path}: byte {content[error.start]:#04x} at {at} is not UTF-8; save it as UTF-8"
        ) from None


class Entry(NamedTuple):
    """An image: its name as a safe path, width and height, and its annotations' places."""

    name: str
    width: int
    height: int
    annotations: np.ndarray  # int64 [N]: numbers in the file's list


class Object(NamedTuple):
    """An annotation with pixels: its category's id, whether it is a crowd, where it is."""

    category: int | str
    crowd: bool
    region: outlines.Region


class CocoFile:
    """What an instance file says; see the file's docstring.

    Attributes:
        entries: of the images, in the file's order.
        categories: id -> the category's object, in the file's order.
        counts: of what was passed by, by reason.

    Args:
        path: of the file.

    Raises:
        UserError: no JSON of this kind; an image or category twice; a name that leaves the folder;
            an unknown category; names the entry.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.counts = Path(path), Counter()
        self.categories: dict[int | str, dict[str, Any]] = {}
        images: dict[int | str, tuple[str, int, int]] = {}
        self._starts, self._lengths = array.array("q"), array.array("q")
        owners: list[int | str] = []
        wanted: dict[int | str, str] = {}  # category -> the first annotation that names it
        numbers: set[Any] = set()
        lists = set()
        for piece in Pieces(path):
            lists.add(piece.list)
            if piece.list not in SHAPES:
                continue
            where, value = f"{path}: {piece.list}[{piece.number}]", piece.value
            if fault := misfit(value, SHAPES[piece.list], where):
                raise UserError(fault)
            if piece.list == "images":
                self._add_image(where, value, images)
            elif piece.list == "categories":
                if value["id"] in self.categories:
                    raise UserError(f"{where}: the category id {value['id']!r} stands twice")
                self.categories[value["id"]] = value
            else:
                number = value.get("id")
                if isinstance(number, (int, str)):
                    self.counts["annotations have the id of one before (all are painted)"] += (
                        number in numbers
                    )
                    numbers.add(number)
                wanted.setdefault(value["category_id"], named(where, value))
                owners.append(value["image_id"])
                self._starts.append(piece.start)
                self._lengths.append(piece.length)
        if not images or not self.categories:
            lacking = "images" if not images else "categories"
            raise UserError(
                f"{path}: no {lacking} (its lists: {', '.join(sorted(lists)) or 'none'})"
            )
        for category, where in wanted.items():
            if category not in self.categories:
                raise UserError(f"{where}: there is no category {category!r}")
        self.entries = self._grouped(images, owners)

    def _add_image(self, where: str, value: dict, images: dict) -> None:
        number = value["id"]
        if number in images:
            raise UserError(f"{where}: the image id {number!r} stands twice")
        name = safe_name(value["file_name"], where)
        check_size(f"{where} ({name})", value["width"], value["height"])
        images[number] = (name, value["width"], value["height"])

    def _grouped(self, images: dict, owners: list) -> list[Entry]:
        """Return the images with the numbers of their annotations, in the file's order."""
        place = {number: i for i, number in enumerate(images)}
        owner = np.array([place.get(number, -1) for number in owners], np.int64)
        self.counts["annotations are of images that the file lacks (left out)"] += int(
            (owner < 0).sum()
        )
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(len(images) + 1))
        stems: dict[str, str] = {}
        entries = []
        for i, (name, width, height) in enumerate(images.values()):
            stem = split_ending(name)[0]
            if stem in stems:
                both = f"{stems[stem]!r} and {name!r}"
                raise UserError(f"{self.path}: images {both} would have the same label")
            stems[stem] = name
            entries.append(Entry(name, width, height, order[bounds[i] : bounds[i + 1]]))
        return entries

    def objects(self, entry: Entry) -> Iterator[Object]:
        """Yield the annotations of an image that have pixels, in the file's order.

        Raises:
            UserError: a segmentation that is none, or of another size; names the annotation.
        """
        with open_regular(self.path) as file:
            for number in entry.annotations.tolist():
                start = self._starts[number]
                file.seek(start)
                value = decoded(self.path, file.read(self._lengths[number]), start)
                where = named(f"{self.path}: annotations[{number}]", value)
                try:
                    region, why = region_of(value.get("segmentation"), entry.height, entry.width)
                except ValueError as error:
                    raise UserError(f"{where}: {error}") from None
                if region is None:
                    self.counts[f"annotations {why} (left out)"] += 1
                else:
                    yield Object(value["category_id"], bool(value.get("iscrowd")), region)


def named(where: str, value: dict) -> str:
    """Return where an annotation stands, with its id."""
    return f"{where} (id {shorten(value['id'])})" if "id" in value else where


def region_of(
    segmentation: Any, height: int, width: int
) -> tuple[outlines.Region | None, str | None]:
    """Return the pixels of a segmentation; of several polygons, those of any of them.

    Args:
        segmentation: lists of x, y, x, y ...; or {"size": [h, w], "counts": text or list}.
        height: of the image.
        width: of the image.
    Returns:
        None, and why there is no pixel, where there is none.
    Raises:
        ValueError: it is none of these, or of another size.
    """
    if segmentation is None or segmentation == []:
        return None, "have no segmentation"
    if isinstance(segmentation, dict):
        shape = {"size": (int, int), "counts": Either(str, [Within(0)]), ...: object}
        if fault := misfit(segmentation, shape, "segmentation"):
            raise ValueError(fault)
        if list(segmentation["size"]) != [height, width]:
            size = "x".join(map(str, segmentation["size"][::-1]))
            raise ValueError(f"run lengths of {size} pixels, its image has {width}x{height}")
        counts = segmentation["counts"]
        given = outlines.expanded(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        region = outlines.run_lengths(given, height, width)
        return region, None if region else "have run lengths without a pixel"
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation of {shorten(segmentation)}; polygons or run lengths are")
    parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
    polygons = [corners(part) for part in parts]
    region = outlines.united(outlines.polygon(points, height, width) for points in polygons)
    if region is not None:
        return region, None
    every = np.concatenate(polygons)
    outside = len(every) and ((every <= 0).all(0) | (every >= [width, height]).all(0)).any()
    return None, "lie outside their image" if outside else "have no area"


def corners(part: Any) -> np.ndarray:
    """Return a polygon's corners, float64 [K,2].

    Raises:
        ValueError: no list of finite numbers, or an odd number of them.
    """
    try:
        values = np.array(part)
    except (ValueError, OverflowError):
        values = np.array("")
    if values.shape == (0,):
        return np.empty((0, 2))
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not isinstance(part, list):
        raise ValueError(f"a polygon of {shorten(part)}; x, y, x, y ... are expected")
    if len(values) % 2:
        raise ValueError(f"a polygon of {len(values)} numbers; x, y, x, y ... are expected")
    if not (np.abs(values) < outlines.FAR).all():
        raise ValueError(f"a polygon with a corner beyond {outlines.FAR:g} pixels")
    return values.astype(np.float64).reshape(-1, 2)
