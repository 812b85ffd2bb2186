"""Image files written byte by byte, so that what they hold is known without any reader."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

import fakedata


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return [H,W,...] as it is looked at, by the table of EXIF 2.32 (tag 0x0112)."""
    flipped = pixels[:, ::-1]
    return {
        1: pixels,
        2: flipped,
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: np.swapaxes(pixels, 0, 1),
        6: np.rot90(pixels, -1),
        7: np.swapaxes(pixels[::-1, ::-1], 0, 1),
        8: np.rot90(pixels, 1),
    }[orientation]


def encoded(image: Image.Image, kind: str, **how) -> bytes:
    """Return what Pillow writes."""
    file = io.BytesIO()
    image.save(file, format=kind, **how)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    """Return EXIF data that say no more than the orientation."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def png_of(samples: np.ndarray, bits: int, colour_type: int, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of uint16 [H,W,N] samples, unfiltered, with more chunks before its pixels."""
    height, width, _ = samples.shape
    flat = samples.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in flat]
    else:
        rows = [packed_row(row, bits) for row in flat]
    whole = fakedata.png((width, height, bits, colour_type, 0, 0, 0), b"")
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return whole[:33] + b"".join(chunk(*one) for one in more) + pixels + chunk(b"IEND", b"")


def packed_row(row: np.ndarray, bits: int) -> bytes:
    """Return samples of fewer than 8 bits, the first in the highest bits."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((row[:, None] >> shifts & 1).ravel().astype(np.uint8)).tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff_of(
    samples: np.ndarray,
    photometric: int = 2,
    *,
    order: str = "<",
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    bits: int | None = None,
    big: bool = False,
    pages: Sequence[dict] = (),
    **tags,
) -> bytes:
    """Return a TIFF file of [H,W,N] samples of their own type.

    Args:
        samples: of the page; of 1 bit where `bits` says so.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 LAB.
        order: of bytes.
        planar: 2 stores the bands one after the other.
        compression: 1 none, 8 Deflate.
        predictor: 1, 2 or 3.
        rows: of a strip; None: one strip.
        tile: width and height, instead of strips.
        bits: stated bits a sample where they are not the type's.
        big: a BigTIFF.
        pages: keywords of further pages, of the same pixels.
        **tags: as t254=1; a tuple holds several numbers, bytes are kept.
    """
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    height, width, bands = samples.shape
    parts = [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(bands)]
    segments = []
    for part in parts:
        for block in _blocks(part, rows or height, tile):
            content = _predicted(block, predictor, order)
            if bits and bits < 8:
                content = b"".join(packed_row(row, bits) for row in block.reshape(len(block), -1))
            segments.append(zlib.compress(content) if compression == 8 else content)
    table = {
        256: width,
        257: height,
        258: (bits or samples.dtype.itemsize * 8,) * bands,
        259: compression,
        262: photometric,
        277: bands,
        284: planar,
        317: predictor,
        339: (kind,) * bands,
    }
    places = (324, 325) if tile else (273, 279)
    table |= {322: tile[0], 323: tile[1]} if tile else {278: rows or height}
    table |= {int(name[1:]): value for name, value in tags.items()}
    start = 16 if big else 8
    table[places[0]] = tuple(start + sum(map(len, segments[:i])) for i in range(len(segments)))
    table[places[1]] = tuple(map(len, segments))
    content = b"".join(segments)
    content += b"\0" * (len(content) % 2)
    at = start + len(content)
    tables = [table, *({**table, **{int(k[1:]): v for k, v in page.items()}} for page in pages)]
    for i, one in enumerate(tables):
        content += _directory(one, order, big, at, last=i == len(tables) - 1)
        at = start + len(content)
    mark = {"<": b"II", ">": b"MM"}[order]
    first = start + sum(map(len, segments)) + sum(map(len, segments)) % 2
    if big:
        return mark + struct.pack(f"{order}HHHQ", 43, 8, 0, first) + content
    return mark + struct.pack(f"{order}HL", 42, first) + content


def _blocks(part: np.ndarray, rows: int, tile: tuple[int, int] | None) -> list[np.ndarray]:
    """Return strips, or tiles that are filled up at the edges."""
    height, width = part.shape[:2]
    if tile is None:
        return [part[y : y + rows] for y in range(0, height, rows)]
    wide, high = tile
    padded = np.pad(part, ((0, -height % high), (0, -width % wide), (0, 0)), mode="edge")
    return [
        padded[y : y + high, x : x + wide]
        for y in range(0, padded.shape[0], high)
        for x in range(0, padded.shape[1], wide)
    ]


def _predicted(block: np.ndarray, predictor: int, order: str) -> bytes:
    """Return a strip's or tile's bytes; differences are taken between neighbours of one band."""
    if predictor == 1:
        return block.astype(block.dtype.newbyteorder(order)).tobytes()
    if predictor == 2:
        whole = block.view(f"u{block.dtype.itemsize}").copy()
        whole[:, 1:] -= whole[:, :-1].copy()
        return whole.astype(whole.dtype.newbyteorder(order)).tobytes()
    lines = []
    for row in block:  # a float's most significant bytes first, then the next ones
        size = row.dtype.itemsize
        lanes = row.astype(row.dtype.newbyteorder(">")).reshape(-1).view(np.uint8)
        lanes = lanes.reshape(-1, size).T.reshape(-1, row.shape[1]).copy()
        lanes[1:] -= lanes[:-1].copy()
        lines.append(lanes.tobytes())
    return b"".join(lines)


def _directory(table: dict, order: str, big: bool, at: int, last: bool) -> bytes:
    """Return an image file directory that stands at byte `at`, its long values behind it."""
    count, entry, inline, pointer = ("Q", 20, 8, "Q") if big else ("H", 12, 4, "L")
    size = (
        struct.calcsize(f"{order}{count}") + entry * len(table) + struct.calcsize(order + pointer)
    )
    rows, outside = b"", b""
    for tag, value in sorted(table.items()):
        if isinstance(value, bytes):
            numbers, kind, packed = value, 7, value
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            code, kind = ("H", 3) if max(numbers) < 65536 else ("L", 4)
            packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > inline:
            place = struct.pack(order + pointer, at + size + len(outside))
            outside += packed + b"\0" * (len(packed) % 2)
            packed = place
        rows += struct.pack(f"{order}HH{'Q' if big else 'L'}", tag, kind, len(numbers))
        rows += packed.ljust(inline, b"\0")
    after = 0 if last else at + size + len(outside)
    head = struct.pack(f"{order}{count}", len(table))
    return head + rows + struct.pack(order + pointer, after) + outside


def bmp_of(
    rows: bytes, size: tuple[int, int], bits: int, palette: bytes = b"", compression: int = 0,
    masks: bytes = b"", colours: int = 0
) -> bytes:  # fmt: skip
    """Return a BMP file of rows that are packed already, the lowest first."""
    start = 14 + 40 + len(masks) + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    about = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(rows), 2835, 2835, colours, 0
    )
    return head + about + masks + palette + rows
