"""Read one channel of a 16-bit RGB PNG, which Pillow cannot: it drops the low byte."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.files import check_pixels
from engine.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 6: 4}  # colour type -> samples per pixel, of RGB and RGBA


def read_channel(path: str | Path, channel: int = 0) -> np.ndarray:
    """Read one channel of a 16-bit RGB or RGBA PNG without interlacing.

    Args:
        path: the PNG file.
        channel: 0 red, 1 green, 2 blue.
    Returns:
        uint16 [H,W].
    Raises:
        UserError: missing, damaged or cut short, no PNG, another kind of PNG, or a decompression
            bomb.
    Source: PNG specification (W3C, second edition), sections 5 (chunks) and 9 (filters).
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error}") from error
    try:
        return decode(path, content, channel)
    except (zlib.error, struct.error) as error:
        raise UserError(f"{path}: a damaged PNG: {error}") from error


def decode(path: str | Path, content: bytes, channel: int) -> np.ndarray:
    """Decode the file's content; see `read_channel`."""
    header, packed = b"", []
    for kind, data in chunks(path, content):
        if kind == b"IHDR":
            header = data
        elif kind == b"IDAT":
            packed.append(data)
    width, height, bits, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if bits != 16 or colour_type not in CHANNELS or interlaced:
        raise UserError(
            f"{path}: a 16-bit RGB PNG without interlacing expected, got {bits} bits, "
            f"colour type {colour_type}, interlacing {interlaced}"
        )
    check_pixels(path, width, height)
    bytes_per_pixel = 2 * CHANNELS[colour_type]
    row_bytes = 1 + width * bytes_per_pixel
    # Never more than the header promises, whatever the stream would inflate to.
    data = zlib.decompressobj().decompress(b"".join(packed), height * row_bytes)
    if len(data) < height * row_bytes:
        raise UserError(f"{path}: a PNG cut short: {len(data)} of {height * row_bytes} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(height, row_bytes)
    filters, pixels = rows[:, 0], rows[:, 1:].reshape(height, width, bytes_per_pixel)
    if filters.max() > 4:
        raise UserError(f"{path}: a damaged PNG: row filter {filters.max()}")
    # Filters work on each byte of a pixel alone, so the other channels need no decoding.
    high, low = np.moveaxis(unfilter(filters, pixels[..., 2 * channel : 2 * channel + 2]), -1, 0)
    return high.astype(np.uint16) << 8 | low


def chunks(path: str | Path, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, data) of a PNG's chunks up to its end, with their checksums verified."""
    if not content.startswith(SIGNATURE):
        raise UserError(f"{path}: not a PNG file")
    start = len(SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", content, start)
        data = content[start + 8 : start + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, start + 8 + length)
        if zlib.crc32(kind + data) != checksum:
            raise UserError(f"{path}: a damaged PNG: wrong checksum of chunk {kind!r}")
        if kind == b"IEND":
            return
        yield kind, data
        start += 12 + length


def unfilter(filters: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """Undo the row filters, along diagonals.

    A pixel depends on its neighbours to the left, above, and above left, so all pixels of one
    diagonal (row + column = constant) can be computed together, whatever their rows' filters.

    Args:
        filters: uint8 [H], 0 none, 1 sub, 2 up, 3 average, 4 Paeth.
        filtered: uint8 [H,W,B].
    Returns:
        uint8 [H,W,B].
    """
    height, width, depth = filtered.shape
    row, column = np.mgrid[:height, :width]
    # [diagonal + 2, row + 1]: two diagonals and one row of zeros stand for what lies outside.
    skewed = np.zeros((height + width + 1, height + 1, depth), np.int16)
    skewed[row + column + 2, row + 1] = filtered
    is_sub, is_up, is_average, is_paeth = (filters[:, None] == kind for kind in (1, 2, 3, 4))
    for diagonal in range(2, height + width + 1):
        left, above = skewed[diagonal - 1, 1:], skewed[diagonal - 1, :-1]
        corner = skewed[diagonal - 2, :-1]
        to_left, to_above = np.abs(above - corner), np.abs(left - corner)
        to_corner = np.abs(left + above - 2 * corner)
        nearest = np.where(to_above <= to_corner, above, corner)
        paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
        now = skewed[diagonal, 1:]
        now += is_sub * left + is_up * above + is_average * (left + above >> 1) + is_paeth * paeth
        now &= 255
    return skewed[row + column + 2, row + 1].astype(np.uint8)
