"""PNG files as their bytes say: checksums, and samples of 16 bits, whose low byte Pillow drops."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.opening import Source, check_pixels, decoding, opened
from engine.errors import UserError
from engine.files import read_regular

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_chunks(path: str | Path, content: bytes) -> None:
    """Check the checksum of every chunk of a PNG up to its last.

    Pillow looks at none of the pixels' chunks: of a damaged one it may read other values.

    Raises:
        UserError: a wrong checksum, a file that is cut short, or no PNG.
    """
    if not content.startswith(SIGNATURE):
        raise UserError(f"{path}: not a PNG file")
    view, start, name = memoryview(content), len(SIGNATURE), b""
    while name != b"IEND":
        try:
            length, name = struct.unpack_from(">I4s", content, start)
            (checksum,) = struct.unpack_from(">I", content, start + 8 + length)
        except struct.error as error:
            raise UserError(f"{path}: a PNG cut short, or a damaged one") from error
        if zlib.crc32(view[start + 4 : start + 8 + length]) != checksum:
            raise UserError(f"{path}: a damaged PNG: wrong checksum of chunk {name!r}")
        start += 12 + length


def read_channel(path: str | Path, channel: int = 0, **limit: float) -> np.ndarray:
    """Read one channel of a 16-bit RGB or RGBA PNG, its checksums verified.

    Args:
        path: the PNG file.
        channel: 0 red, 1 green, 2 blue.
        **limit: `max_megapixels`, see `check_pixels`.
    Returns:
        uint16 [H,W].
    Raises:
        UserError: missing, damaged or cut short, another kind of file, or too large.
    """
    content = read_regular(path)
    check_chunks(path, content)
    with opened(path, content) as source:
        header = source.header
        if header.format != "PNG" or header.bits != 16 or header.bands < 3:
            raise UserError(
                f"{path}: a 16-bit RGB PNG of class ids expected, got {header.bits} bits ({header})"
            )
        check_pixels(path, *header.size, **limit)
        return samples(source, [channel])[..., 0]


def samples(source: Source, bands: Sequence[int]) -> np.ndarray:
    """Return bands of a PNG of 16 bits a sample, orientation not applied.

    Pillow unpacks 16-bit colours by their first byte, which is the high one. Told that the low byte
    comes first, it yields that one; so the file is decoded twice, and in C.

    Args:
        source: the open file.
        bands: which, from 0.
    Returns:
        uint16 [H,W,len(bands)].
    Raises:
        UserError: damaged or cut short.
    Source: PNG specification (W3C, second edition), section 7.1: the high byte comes first.
    """
    with decoding(source.path):
        if source.header.bands == 1:
            return np.asarray(_decoded(source, "I;16", "I;16B")).astype(np.uint16)[..., None]
        if source.header.bands == 2:  # four bytes a pixel, like RGBA of 8 bits
            pairs = np.asarray(_decoded(source, "RGBA", "RGBA")).astype(np.uint16)
            return (pairs[..., ::2] << 8 | pairs[..., 1::2])[..., list(bands)]
        mode = {3: "RGB", 4: "RGBA"}[source.header.bands]
        values = None
        for order in ("B", "L"):
            image = _decoded(source, mode, f"{mode};16{order}")
            part = np.stack([np.asarray(image.getchannel(band)) for band in bands], -1)
            values = part.astype(np.uint16) << 8 if values is None else values | part
        return values


def _decoded(source: Source, mode: str, raw_mode: str) -> Image.Image:
    """Return the image with its bytes unpacked in a mode of ours."""
    source.file.seek(0)
    image = Image.open(source.file, formats=("PNG",))
    image._mode = mode
    image.tile = [image.tile[0]._replace(args=raw_mode)]
    image.load()
    return image


def upper_rows(source: Source, rows: int) -> Image.Image:
    """Return a PNG's first rows, which are all that is decoded.

    Args:
        source: the open file, not interlaced.
        rows: of pixels.
    """
    source.file.seek(0)
    content = bytearray(source.file.read())
    content[20:24] = struct.pack(">I", rows)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    image = Image.open(io.BytesIO(bytes(content)), formats=("PNG",))
    image.load()
    return image
