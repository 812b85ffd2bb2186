"""Mutated files: each ends in pixels or in one line, in bounded time and memory."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import files
from datasets.folder import read_class_table
from datasets.labels import LabelTable
from datasets.png16 import read_channel
from datasets.reading import LabelReading, Reading
from datasets.text import read_list
from fakeimages import chunk, encoded, exif, png_of, tiff_of
from fuzzing import mutated, survive

SOURCE = np.random.default_rng(0)
RGB = SOURCE.integers(0, 256, (40, 50, 3), np.uint8)
WIDE = SOURCE.integers(0, 65536, (40, 50, 3), np.uint16)
BANDS = SOURCE.integers(0, 256, (40, 50, 5), np.uint8)
IMAGE = Image.fromarray(RGB)
INDEXED = IMAGE.quantize(16)
TABLE = LabelTable(tuple(((i, i, i), i) for i in range(9)))
CHOSEN = Reading(bands=(3, 2, 1), value_range=(0, 4095))


def window(path: Path) -> object:
    """Read a part of an image."""
    width, height = files.image_size(path)
    return files.read_window(path, (width // 2, height // 2, width // 2 + 1, height // 2 + 1))


def by_colour(path: Path) -> np.ndarray:
    return files.read_label(path, TABLE, LabelReading(16, "colours"))


def own_table(path: Path) -> object:
    return read_class_table(path)


def chosen(path: Path) -> object:
    return files.read_image(path, CHOSEN)


def palette_tiff() -> bytes:
    return tiff_of(RGB[..., :1], 3, t320=tuple(range(768)), compression=8)


TEXT = b"images/a.png labels/a.png\nimages/b c.png\tlabels/b c.png\r\n\n./images\\d.png /d.png\n"
CLASSES = [{"id": i, "name": f"class {i}", "color": [i, 0, 0]} for i in range(3)]
TABLES = [json.dumps(CLASSES).encode(), json.dumps({"classes": CLASSES, "ignore": [7]}).encode()]

# reader -> (function, whole files that are mutated)
READERS: dict[str, tuple[Callable, list[bytes]]] = {
    "png": (
        files.read_image,
        [
            encoded(IMAGE, "PNG", exif=exif(6)),
            encoded(INDEXED, "PNG"),
            png_of(WIDE, 16, 2),
            encoded(IMAGE, "PNG", save_all=True, append_images=[IMAGE]),
            encoded(IMAGE.convert("LA"), "PNG"),
        ],
    ),
    "jpeg": (
        files.read_image,
        [
            encoded(IMAGE, "JPEG", exif=exif(3)),
            encoded(IMAGE, "JPEG", progressive=True),
            encoded(IMAGE.convert("CMYK"), "JPEG"),
            encoded(IMAGE, "MPO", save_all=True, append_images=[IMAGE]),
        ],
    ),
    "tiff": (
        files.read_image,
        [
            tiff_of(RGB, t274=5),
            tiff_of(RGB, compression=8, predictor=2, tile=(16, 16), order=">"),
            tiff_of(RGB, big=True),
            palette_tiff(),
            encoded(IMAGE, "TIFF", compression="jpeg"),
            encoded(IMAGE, "TIFF", compression="tiff_lzw"),
            tiff_of(RGB, pages=[{"t254": 1}, {}]),
        ],
    ),
    "tiff bands": (
        chosen,
        [
            tiff_of(BANDS, t338=(0, 0)),
            tiff_of(WIDE, compression=8, predictor=2, rows=7, order=">"),
            tiff_of(WIDE.astype(np.float32), compression=8, predictor=3, tile=(16, 32), planar=2),
            tiff_of(BANDS, t338=(0, 0), big=True, planar=2),
            encoded(IMAGE, "TIFF", compression="tiff_lzw"),
            png_of(WIDE, 16, 2),
        ],
    ),
    "others": (
        files.read_image,
        [encoded(IMAGE, kind) for kind in ("WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")]
        + [
            encoded(INDEXED, "BMP"),
            encoded(IMAGE, "GIF", save_all=True, append_images=[INDEXED]),
            b"P3 2 2 255 " + b"1 2 3 " * 4,
            encoded(IMAGE.convert("LA"), "JPEG2000"),
        ],
    ),
    "window": (
        window,
        [
            tiff_of(RGB, rows=3),
            tiff_of(RGB, tile=(16, 16), compression=8),
            encoded(IMAGE, "PNG"),
            encoded(IMAGE, "TIFF", compression="jpeg"),
            encoded(IMAGE, "JPEG", exif=exif(8)),
        ],
    ),
    "label": (
        files.read_label,
        [
            encoded(INDEXED, "PNG"),
            encoded(IMAGE.convert("L"), "PNG"),
            tiff_of(RGB[..., :1], 1),
            encoded(IMAGE.convert("1"), "PNG"),
            palette_tiff(),
            encoded(INDEXED, "BMP"),
        ],
    ),
    "label colours": (
        by_colour,
        [
            encoded(Image.new("RGB", (50, 40), (3, 3, 3)), "PNG"),
            encoded(INDEXED, "GIF"),
            encoded(Image.new("RGB", (50, 40), (3, 3, 3)), "WEBP", lossless=True),
            png_of(WIDE[..., :1], 16, 0),
        ],
    ),
    "label 16 bits": (
        read_channel,
        [png_of(WIDE, 16, 2), png_of(np.dstack([WIDE, WIDE[..., 0]]), 16, 6)],
    ),
    "list": (read_list, [TEXT, b"\xef\xbb\xbf" + TEXT, TEXT.decode().encode("utf-16")]),
    "class table": (own_table, TABLES),
}


def with_sums(content: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what they hold, so that more is read."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    parts, at = [content[:8]], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 8 : at + 8 + length]
        parts.append(chunk(content[at + 4 : at + 8], body))
        at += 12 + len(body)
    return b"".join(parts)


def mutated_image(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated file, mostly with the checksums of what it holds."""
    content = mutated(content, rng)
    return with_sums(content) if rng.random() < 0.8 else content


@pytest.mark.parametrize("name", READERS)
def test_some_mutated_files(name: str, tmp_path: Path):
    survive(name, (*READERS[name], mutated_image), tmp_path, range(120))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_2500_mutated_files(name: str, tmp_path: Path):
    survive(name, (*READERS[name], mutated_image), tmp_path, range(1000, 3500))
