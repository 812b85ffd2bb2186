"""TIFF files as their tags describe them: any number of bands, of any type, in any window."""

import io
import re
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from datasets.headers import Header

MAGICS = (b"II*\0", b"MM\0*", b"II+\0")  # the last: BigTIFF
KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "LAB"}
COLOURS = {"RGB": 3, "CMYK": 4, "YCbCr": 3, "LAB": 3}  # bands that are no extra ones; else 1
NUMBERS = {1: ("unsigned", "u"), 2: ("signed", "i"), 3: ("float", "f")}
# none, CCITT, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard: values as they were written
LOSSLESS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 50000)
IN_BYTES = (1, 5, 8, 32946, 32773, 34925, 50000)  # those that pack bytes, whatever these mean
MAX_PAGES = 64  # looked at to tell overviews from pages
MAX_SEGMENTS = 1_000_000
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
OFFSETS, BANDS, ROWS, COUNTS, PLANAR, PREDICTOR, COLOUR_MAP = 273, 277, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, EXTRA, NUMBER = 322, 323, 324, 325, 338, 339
SUBFILE, ORIENTATION, INK_SET, JPEG_TABLES, SUBSAMPLING = 254, 274, 332, 347, 530
XMP, XMP_ORIENTATION = 700, re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# What the pixels of a part depend on, beside its size and place.
KEPT = (BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, BANDS, PLANAR, PREDICTOR, COLOUR_MAP, INK_SET)
KEPT += (EXTRA, NUMBER, JPEG_TABLES, SUBSAMPLING)


class Tiff:
    """The first page of a TIFF or BigTIFF file.

    Args:
        file: open for reading; it stays open.

    Raises:
        Exception: whatever damaged tags lead to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)
        start = file.read(16)
        self.big = start[2] == 43
        self.tags = TiffImagePlugin.ImageFileDirectory_v2(start if self.big else start[:8])
        file.seek(self.tags.next)
        self.tags.load(file)
        self.order = {b"II": "<", b"MM": ">"}[self.tags.prefix]
        self.size = self.number(WIDTH), self.number(LENGTH)
        self.bands = self.number(BANDS, 1)
        self.bits = self.numbers(BITS, (1,))
        self.header = self._header()

    def numbers(self, tag: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """Return a tag's whole numbers."""
        value = self.tags.get(tag, default)
        values = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(one, int) for one in values):
            raise ValueError(f"tag {tag} holds no whole numbers")
        return values

    def number(self, tag: int, default: int | None = None) -> int:
        """Return a tag's one number."""
        return self.numbers(tag, None if default is None else (default,))[0]

    def _header(self) -> Header:
        """Say what Pillow would drop: bands, low bytes, signs, further pages."""
        compression, photometric = self.number(COMPRESSION, 1), self.number(PHOTOMETRIC, 0)
        numbers, kind = set(self.numbers(NUMBER, (1,))), KINDS.get(photometric)
        faults = {
            f"photometric interpretation {photometric}": kind is None,
            "samples of several types": len(numbers) > 1 or len(set(self.bits)) > 1,
            "bits in reverse order": self.number(FILL_ORDER, 1) != 1,
            # who reads the raw samples would have to undo the subsampling
            "YCbCr without JPEG": kind == "YCbCr" and compression != 7,
            "JPEG of the old kind": compression == 6,
            "other inks than CMYK": kind == "CMYK" and self.number(INK_SET, 1) != 1,
            "a preview, no picture": bool(self.number(SUBFILE, 0) & 1),
            "a colour map of 8-bit values": kind == "palette"
            and 0 < max(self.numbers(COLOUR_MAP)) < 256,
        }
        return Header(
            "TIFF",
            self.size,
            kind or "unknown kind",
            self.bands,
            max(self.bits),
            number=NUMBERS.get(max(numbers), ("other",))[0],
            alpha=self.bands == COLOURS.get(kind, 1) + 1
            and self.numbers(EXTRA, ()) in ((1,), (2,)),
            several=self._has_pages(),
            orientation=self._orientation(),
            lossy=compression not in LOSSLESS,
            scaled=photometric == 0 or (kind == "grey" and 1 < max(self.bits) < 8),
            fault=next((name for name, is_there in faults.items() if is_there), None),
        )

    def _orientation(self) -> int:
        """Return EXIF's, else XMP's; both as Pillow does, which turns a TIFF when it decodes it."""
        value, xmp = self.tags.get(ORIENTATION), self.tags.get(XMP, b"")
        xmp = xmp[0] if isinstance(xmp, tuple) and xmp else xmp
        if value is None and isinstance(xmp, bytes) and (found := XMP_ORIENTATION.search(xmp)):
            value = int(found[1])
        return value if type(value) is int and 1 <= value <= 8 else 1

    def _has_pages(self) -> bool:
        """Return whether a further page is more than a smaller copy of the first (an overview)."""
        count_code, next_code, entry_bytes, value_at = ("H", "L", 12, 8)
        if self.big:
            count_code, next_code, entry_bytes, value_at = ("Q", "Q", 20, 12)
        start, seen = self.tags.next, set()
        while start and start not in seen:
            seen.add(start)
            self.file.seek(start)
            smaller = False
            for _ in range(self._unpack(count_code)):
                entry = self.file.read(entry_bytes)
                tag, kind = struct.unpack_from(f"{self.order}HH", entry)
                if tag == SUBFILE:
                    code = "H" if kind == 3 else "L"
                    (value,) = struct.unpack_from(self.order + code, entry, value_at)
                    smaller = bool(value & 1)
            start = self._unpack(next_code)
            if not smaller or len(seen) == MAX_PAGES:
                return True
        return False

    def _unpack(self, code: str) -> int:
        (value,) = struct.unpack(
            self.order + code, self.file.read(struct.calcsize(self.order + code))
        )
        return value

    # ---- parts

    @cached_property
    def grid(self) -> "_Grid":
        """Where the strips or tiles lie."""
        return _Grid(self)

    def part(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return a window in Pillow's mode of this file, from the strips or tiles that it touches.

        Args:
            box: left, upper, right, lower in pixels as the file stores them.
        """
        grid = self.grid
        columns, rows = grid.touched(box)
        planes = range(self.bands if grid.planes > 1 else 1)
        segments = [s for plane in planes for s in grid.segments(plane, columns, rows)]
        kept = {tag: self.tags[tag] for tag in KEPT if tag in self.tags}
        width, height = grid.part_size(columns, rows)
        image = self._open(grid, segments, {**kept, WIDTH: width, LENGTH: height})
        left, upper = columns.start * grid.width, rows.start * grid.length
        return image.crop((box[0] - left, box[1] - upper, box[2] - left, box[3] - upper))

    def samples(self, box: tuple[int, int, int, int], bands: Sequence[int]) -> np.ndarray:
        """Return samples as they are stored, of whatever type.

        libtiff unpacks them as the bytes of a grey image, so that neither it nor Pillow has to
        know what they mean; predictors are undone here.

        Args:
            box: left, upper, right, lower in pixels as the file stores them.
            bands: which, from 0.
        Returns:
            [H,W,len(bands)], of uint8 to uint64, int8 to int64 or float16 to float64.
        Raises:
            ValueError: a compression of pixels (JPEG), or samples that are no whole bytes.
        """
        if self.number(COMPRESSION, 1) not in IN_BYTES or self.header.fault:
            raise ValueError(self.header.fault or "its compression blends the bands")
        size = max(self.bits) // 8
        if max(self.bits) not in (8, 16, 32, 64) or self.header.number == "other":
            raise ValueError(f"samples of {max(self.bits)} {self.header.number} bits")
        kind = np.dtype(f"{self.order}{NUMBERS[self.number(NUMBER, 1)][1]}{size}")
        grid = self.grid
        columns, rows = grid.touched(box)
        interleaved = self.bands if grid.planes == 1 else 1
        width, height = grid.part_size(columns, rows)
        parts = []
        for plane in [0] if grid.planes == 1 else bands:
            tags = {BITS: 8, COMPRESSION: self.number(COMPRESSION, 1), PHOTOMETRIC: 1, BANDS: 1}
            tags |= {WIDTH: width * interleaved * size, LENGTH: height}
            segments = grid.segments(plane, columns, rows)
            packed = np.asarray(self._open(grid, segments, tags, interleaved * size))
            packed = packed.reshape(height, len(columns), -1)
            values = unpredict(packed, self.number(PREDICTOR, 1), kind, interleaved)
            parts.append(values.reshape(height, width, interleaved))
        left, upper = columns.start * grid.width, rows.start * grid.length
        inside = np.s_[box[1] - upper : box[3] - upper, box[0] - left : box[2] - left]
        if grid.planes == 1:
            return parts[0][inside][..., list(bands)]
        return np.concatenate([part[inside] for part in parts], axis=-1)

    def _open(
        self, grid: "_Grid", segments: list[bytes], tags: dict[int, Any], bytes_a_pixel: int = 1
    ) -> Image.Image:
        """Return these strips or tiles as an image, through a small TIFF in memory."""
        lengths = [len(segment) for segment in segments]
        starts = (8 + np.cumsum([0, *lengths[:-1]])).tolist()
        if grid.tiled:
            tags |= {TILE_WIDTH: grid.width * bytes_a_pixel, TILE_LENGTH: grid.length}
            tags |= {TILE_OFFSETS: starts, TILE_COUNTS: lengths}
        else:
            tags |= {ROWS: grid.length, OFFSETS: starts, COUNTS: lengths}
        content = write_tiff(self.order, tags, b"".join(segments))
        image = Image.open(io.BytesIO(content), formats=("TIFF",))
        image.load()
        return image


class _Grid:
    """How the pixels of a page are divided into strips or tiles, and where these lie."""

    def __init__(self, tiff: Tiff) -> None:
        self.tiff = tiff
        width, height = tiff.size
        self.tiled = TILE_OFFSETS in tiff.tags
        if self.tiled:
            self.width, self.length = tiff.number(TILE_WIDTH), tiff.number(TILE_LENGTH)
            offsets, counts = TILE_OFFSETS, TILE_COUNTS
            offsets, counts = (offsets, counts) if TILE_OFFSETS in tiff.tags else (OFFSETS, COUNTS)
        else:
            self.width, self.length = width, min(tiff.number(ROWS, height), height)
            offsets, counts = OFFSETS, COUNTS
        if min(self.width, self.length) < 1:
            raise ValueError("strips or tiles without pixels")
        self.planes = tiff.bands if tiff.number(PLANAR, 1) == 2 else 1
        self.across, self.down = -(-width // self.width), -(-height // self.length)
        needed = self.across * self.down * self.planes
        self.offsets = tiff.numbers(offsets)
        if needed > MAX_SEGMENTS or len(self.offsets) < needed:
            raise ValueError(f"{len(self.offsets)} of {needed} strips or tiles")
        if counts in tiff.tags:
            self.counts = tiff.numbers(counts)
        elif tiff.number(COMPRESSION, 1) == 1:
            self.counts = tuple(map(self._raw_bytes, range(needed)))
        if len(self.counts) < needed:
            raise ValueError("strips or tiles without a length")

    def _raw_bytes(self, index: int) -> int:
        """Return the bytes of an unpacked strip or tile."""
        rows = self.length
        if not self.tiled:
            rows = min(rows, self.tiff.size[1] - index % self.down * self.length)
        samples = self.tiff.bands if self.planes == 1 else 1
        return rows * -(-self.width * samples * max(self.tiff.bits) // 8)

    def touched(self, box: tuple[int, int, int, int]) -> tuple[range, range]:
        """Return the columns and rows of tiles (strips: one column) that a box touches."""
        left, upper, right, lower = box
        columns = range(left // self.width, -(-right // self.width))
        return columns, range(upper // self.length, -(-lower // self.length))

    def part_size(self, columns: range, rows: range) -> tuple[int, int]:
        """Return the width and height in pixels of the touched part, whole tiles included."""
        height = len(rows) * self.length
        if not self.tiled:  # the last strip may be a short one
            height = min(height, self.tiff.size[1] - rows.start * self.length)
        return len(columns) * self.width, height

    def segments(self, plane: int, columns: range, rows: range) -> list[bytes]:
        """Return the packed bytes of a plane's strips or tiles, row by row.

        Raises:
            ValueError: they leave the file, or are more than the unpacked pixels by far.
        """
        found, total = [], 0
        enough = 4096 + 4 * self._raw_bytes(0)
        for row in rows:
            for column in columns:
                index = (plane * self.down + row) * self.across + column
                self.tiff.file.seek(self.offsets[index])
                count = self.counts[index]
                if not 0 < count <= enough:
                    raise ValueError(f"a strip or tile of {count} bytes")
                content = self.tiff.file.read(count)
                if len(content) < count:
                    raise ValueError(f"cut short: {len(content)} of {count} bytes of a strip")
                found.append(content)
                total += count
        return found


def write_tiff(order: str, tags: dict[int, Any], content: bytes) -> bytes:
    """Return a TIFF file of one page.

    Args:
        order: `<` or `>`, of the bytes of all numbers.
        tags: whole numbers or bytes by tag.
        content: what stands from byte 8 on; offsets among the tags refer to it.
    """
    content += b"\0" * (len(content) % 2)
    outside = 8 + len(content) + 2 + 12 * len(tags) + 4  # where values stand that fill no entry
    entries, values_outside = [struct.pack(f"{order}H", len(tags))], b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, count, packed = 7, len(value), value
        else:
            numbers = list(value) if isinstance(value, (list, tuple)) else [value]
            kind, code = (3, "H") if max(numbers) < 65536 else (4, "L")
            count, packed = len(numbers), struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            here = struct.pack(f"{order}L", outside + len(values_outside))
            values_outside += packed + b"\0" * (len(packed) % 2)
            packed = here
        entries.append(struct.pack(f"{order}HHL", tag, kind, count) + packed.ljust(4, b"\0"))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8 + len(content))
    return head + content + b"".join(entries) + bytes(4) + values_outside


def unpredict(packed: np.ndarray, predictor: int, kind: np.dtype, bands: int) -> np.ndarray:
    """Undo a predictor, which starts anew in every row of every tile.

    Args:
        packed: uint8 [H,tiles,bytes of a row of a tile].
        predictor: 1 none, 2 differences of neighbours, 3 the same of a float's bytes.
        kind: of the samples.
        bands: samples a pixel.
    Returns:
        [H, tiles, samples] of `kind`, native byte order.
    Source: TIFF 6.0, section 14; Adobe Photoshop TIFF Technical Note 3 (floating point predictor).
    """
    height, tiles = packed.shape[:2]
    native = kind.newbyteorder("=")
    if predictor == 1:
        return packed.view(kind).astype(native)
    if predictor == 2:
        whole = np.dtype(f"{kind.byteorder}u{kind.itemsize}").newbyteorder(kind.byteorder)
        steps = packed.view(whole).reshape(height, tiles, -1, bands)
        values = steps.cumsum(axis=2, dtype=whole.newbyteorder("="))
        return values.reshape(height, tiles, -1).view(native)
    if predictor == 3:
        steps = packed.reshape(height, tiles, -1, bands).cumsum(axis=2, dtype=np.uint8)
        # the row's most significant bytes first, then the next, whatever the file's byte order
        planes = steps.reshape(height, tiles, kind.itemsize, -1)
        ordered = np.ascontiguousarray(planes.transpose(0, 1, 3, 2))
        return ordered.view(np.dtype(f">f{kind.itemsize}")).astype(native)[..., 0]
    raise ValueError(f"predictor {predictor}")
