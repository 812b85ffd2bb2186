"""Mutated files: each ends in pixels or in one line, in bounded time and memory."""

import json
import multiprocessing
import random
import resource
import time
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
from engine.errors import UserError
from fakeimages import chunk, encoded, exif, png_of, tiff_of

MAX_SECONDS = 60  # of one file; a tenth of it is looked for by hand
MAX_BYTES = 2**30
EXTREMES = [
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x01\0\0\0",
    b"\0\x01",
]
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


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes flipped, replaced, moved, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # headers are short: half of the changes fall into the first bytes
        place = (
            rng.randrange(min(len(data), 96) if rng.random() < 0.5 else len(data)) if data else 0
        )
        kind = rng.randrange(7)
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            extreme = rng.choice(EXTREMES)
            data[place : place + len(extreme)] = extreme
        elif kind == 3:
            del data[place : place + rng.choice((1, 2, 9, len(data)))]
        elif kind == 4:
            data[place:place] = rng.randbytes(rng.choice((1, 4, 30)))
        elif kind == 5:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.choice((4, 40, 400))]
        else:
            data[place : place + 4] = rng.randrange(2**32).to_bytes(
                4, rng.choice(("big", "little"))
            )
    return bytes(data)


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


def attack(name: str, folder: Path, seeds: range, found) -> None:
    """Read mutated files and report what ends neither rightly nor in one line."""
    read, wholes = READERS[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, faults, right = folder / "file", [], 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        content = mutated(rng.choice(wholes), rng)
        path.write_bytes(with_sums(content) if rng.random() < 0.8 else content)
        found.put(("at", seed))
        start = time.perf_counter()
        try:
            read(path)
            right += 1
        except UserError as error:
            if not str(error).startswith(str(path)) or "\n" in str(error):
                faults.append((seed, f"message {str(error)!r}"))
        except Exception as error:
            faults.append((seed, repr(error)))
        if (took := time.perf_counter() - start) > MAX_SECONDS:
            faults.append((seed, f"{took:.0f} s"))
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (now - before) * 1024 > MAX_BYTES:
            faults.append((seed, f"{(now - before) // 1024} MB"))
            before = now
    found.put(("end", (right, faults)))


def survive(name: str, folder: Path, seeds: range) -> None:
    """Attack a reader in a process of its own, which a signal may end."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=attack, args=(name, folder, seeds, found))
    process.start()
    last, end = None, None
    while end is None:
        try:
            kind, value = found.get(timeout=2 * MAX_SECONDS)
        except Exception:
            process.kill()
            pytest.fail(f"{name}: seed {last} ended by signal, or never")
        last, end = (value, None) if kind == "at" else (last, value)
    process.join()
    right, faults = end
    assert not faults, f"{name}: {len(faults)} of {len(seeds)}: {faults[:5]}"
    assert right < len(seeds)  # some were harmed


@pytest.mark.parametrize("name", READERS)
def test_some_mutated_files(name: str, tmp_path: Path):
    survive(name, tmp_path, range(120))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_2500_mutated_files(name: str, tmp_path: Path):
    survive(name, tmp_path, range(1000, 3500))
