"""The gate: a table of generated image files, each of which is read rightly or refused by name."""

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset, files
from datasets.labels import NO_TABLE
from datasets.png16 import read_channel
from datasets.reading import OPTIONS, PLAIN, Reading, from_options
from datasets.tiff import write_tiff
from engine.errors import UserError
from fakeimages import bmp_of, chunk, encoded, exif, png_of, tiff_of, turned

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (11, 14, 3), np.uint8)
GREY = RGB[..., :1]
WIDE = RANDOM.integers(0, 4096, (11, 14, 8), np.uint16)  # 12 bits in 16
BANDS = RANDOM.integers(0, 256, (11, 14, 8), np.uint8)
PALETTE = RANDOM.integers(0, 256, (256, 3), np.uint8)
OPAQUE, GLASS = np.full_like(GREY, 255), np.full_like(GREY, 255)
GLASS[3, 4] = 17
CHOSEN = Reading(bands=(3, 2, 1))
RANGED = Reading(value_range=(0, 4095))


class Row(NamedTuple):
    """A file, and the pixels that must be read; None where it must be refused."""

    content: bytes
    pixels: np.ndarray | None
    reading: Reading = PLAIN


ROWS: dict[str, Row] = {}


def row(name: str, content: bytes, pixels: np.ndarray | None, reading: Reading = PLAIN) -> None:
    """Add a row; grey pixels become RGB of three equal channels."""
    assert name not in ROWS, name
    if pixels is not None and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    ROWS[name] = Row(content, pixels, reading)


def eight(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return samples scaled to 0..255, by the definition."""
    return np.clip(np.round((samples.astype(np.float64) - low) / (high - low) * 255), 0, 255)


def stored(content: bytes) -> np.ndarray:
    """Return what Pillow decodes, neither turned nor converted."""
    return np.asarray(Image.open(io.BytesIO(content)))


# ---- orientation


def add_orientations() -> None:
    image = Image.fromarray(RGB)
    plain = {kind: encoded(image, kind) for kind in ("JPEG", "WEBP", "AVIF")}
    for o in range(1, 9):
        for kind, content in plain.items():
            expected = turned(stored(content), o)
            row(f"{kind} turned {o}", encoded(image, kind, exif=exif(o)), expected)
        mpo = encoded(image, "MPO", save_all=True, append_images=[image], exif=exif(o))
        row(f"MPO turned {o}", mpo, turned(stored(plain["JPEG"]), o))
        block = chunk(b"eXIf", exif(o).removeprefix(b"Exif\0\0"))
        before = png_of(RGB, 8, 2, (b"eXIf", exif(o).removeprefix(b"Exif\0\0")))
        row(f"PNG turned {o}", before, turned(RGB, o))
        whole = png_of(RGB, 8, 2)
        row(f"PNG turned {o} behind its pixels", whole[:-12] + block + whole[-12:], turned(RGB, o))
        row(f"TIFF turned {o}", tiff_of(RGB, t274=o), turned(RGB, o))
        packed = tiff_of(RGB, t274=o, compression=8, order=">")
        row(f"TIFF Deflate turned {o}", packed, turned(RGB, o))
        bands = tiff_of(BANDS[..., :5], t274=o, t338=(0, 0))
        row(f"TIFF 5 bands turned {o}", bands, turned(BANDS[..., 2::-1], o), CHOSEN)
        xmp = f'<x:xmpmeta tiff:Orientation="{o}"/>'.encode()
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        row(f"PNG XMP turned {o}", png_of(RGB, 8, 2, (b"iTXt", text)), turned(RGB, o))
        row(f"TIFF XMP turned {o}", tiff_of(RGB, t700=xmp), turned(RGB, o))
    for o in (0, 9, 77):
        row(f"JPEG orientation {o}", encoded(image, "JPEG", exif=exif(o)), stored(plain["JPEG"]))
        row(f"TIFF orientation {o}", tiff_of(RGB, t274=o), RGB)
    row(
        "JPEG damaged EXIF",
        encoded(image, "JPEG", exif=b"Exif\0\0MM*\0\xff\xff"),
        stored(plain["JPEG"]),
    )


# ---- bits a sample


def add_pngs() -> None:
    for bits in (1, 2, 4, 8):
        samples = GREY >> (8 - bits)
        row(f"PNG grey {bits} bits", png_of(samples, bits, 0), samples * (255 // (2**bits - 1)))
        plte = (b"PLTE", PALETTE[: 2**bits].tobytes())
        row(f"PNG palette {bits} bits", png_of(samples, bits, 3, plte), PALETTE[samples[..., 0]])
    for colour_type, bands in ((0, 1), (2, 3), (4, 2), (6, 4)):
        samples = WIDE[..., :bands].copy()
        if bands in (2, 4):
            samples[..., -1] = 65535
        content, colours = png_of(samples, 16, colour_type), bands - (bands in (2, 4))
        row(f"PNG type {colour_type} 16 bits", content, None)
        expected = eight(samples[..., :colours], 0, 4095)
        row(f"PNG type {colour_type} 16 bits ranged", content, expected, RANGED)
        clear = samples.copy()
        clear[0, 0, -1] = 9
        if bands in (2, 4):
            row(
                f"PNG type {colour_type} 16 bits clear",
                png_of(clear, 16, colour_type),
                None,
                RANGED,
            )
            dropped = RANGED._replace(drop_alpha=True)
            row(
                f"PNG type {colour_type} 16 bits dropped",
                png_of(clear, 16, colour_type),
                expected,
                dropped,
            )
    row("PNG 16 bits blue alone", png_of(WIDE[..., :3], 16, 2), eight(WIDE[..., 2:3], 0, 4095),
        RANGED._replace(bands=(3,)))  # fmt: skip
    row("PNG chosen bands", png_of(RGB, 8, 2), RGB[..., ::-1], CHOSEN)
    row("PNG no such band", png_of(RGB, 8, 2), None, Reading(bands=(1, 2, 4)))
    row("PNG grey, no such band", png_of(GREY, 8, 0), None, CHOSEN)
    for name, samples, colour_type in (("RGBA", RGB, 6), ("LA", GREY, 4)):
        seen, clear = (np.concatenate([samples, a], 2) for a in (OPAQUE, GLASS))
        row(f"PNG {name} opaque", png_of(seen, 8, colour_type), samples)
        row(f"PNG {name} clear", png_of(clear, 8, colour_type), None)
        row(f"PNG {name} dropped", png_of(clear, 8, colour_type), samples, Reading(drop_alpha=True))
    key = struct.pack(">3H", *RGB[2, 2].tolist())
    row("PNG key colour", png_of(RGB, 8, 2, (b"tRNS", key)), None)
    row("PNG key colour unused", png_of(RGB, 8, 2, (b"tRNS", struct.pack(">3H", 300, 0, 0))), RGB)
    plte = (b"PLTE", PALETTE.tobytes())
    clear = png_of(GREY, 8, 3, plte, (b"tRNS", bytes([255] * int(GREY[0, 0, 0])) + b"\7"))
    row("PNG palette clear", clear, None)
    row("PNG palette dropped", clear, PALETTE[GREY[..., 0]], Reading(drop_alpha=True))
    image = Image.fromarray(RGB)
    more = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    row("PNG animated", encoded(image, "PNG", **more), None)
    row("PNG interlaced", interlaced(RGB), RGB)


def interlaced(pixels: np.ndarray) -> bytes:
    """Return a PNG in Adam7's seven passes."""
    height, width, _ = pixels.shape
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # fmt: skip  # noqa: E501
    rows = [
        b"\0" + line.tobytes()
        for x, y, dx, dy in passes
        for line in pixels[y::dy, x::dx]
        if pixels[y::dy, x::dx].size
    ]
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def add_tiffs() -> None:
    for bands in range(1, 9):
        photometric = 1 if bands < 3 else 2
        extra = bands - (1 if bands < 3 else 3)
        more = {"t338": (0,) * extra} if extra else {}
        samples = BANDS[..., :bands]
        for order in "<>":
            for planar in (1, 2):
                name = f"TIFF {bands} bands {order} planar {planar}"
                content = tiff_of(samples, photometric, order=order, planar=planar, rows=4, **more)
                row(name, content, samples if bands in (1, 3) else None)
                chosen = tiff_of(samples, photometric, order=order, planar=planar, compression=8,
                                 predictor=2, tile=(16, 16), **more)  # fmt: skip
                expected = samples[..., 2::-1] if bands >= 3 else None
                row(f"{name} chosen", chosen, expected, CHOSEN)
        if bands > 1:
            row(f"TIFF {bands} bands unnamed", tiff_of(samples, 1, t338=(0,) * (bands - 1)), None)
    kinds = {"u2": (0, 4095), "i2": (-500, 4000), "u4": (0, 70000), "i4": (-9, 70000)}
    kinds |= {"f4": (0.25, 0.75), "f8": (-1.5, 1.5), "i1": (-100, 100), "f2": (0, 1)}
    for kind, limits in kinds.items():
        for bands in (1, 3, 5):
            whole = (RANDOM.random((11, 14, bands)) * 2 - 0.5) * (limits[1] - limits[0]) + limits[0]
            low = np.iinfo(kind).min if kind[0] in "ui" else -np.inf
            high = np.iinfo(kind).max if kind[0] in "ui" else np.inf
            samples = whole.clip(low, high).astype(kind)
            more = {"photometric": 1 if bands == 1 else 2}
            more |= {"t338": (0, 0)} if bands == 5 else {}
            order = "<>"[bands % 4 == 1]
            row(f"TIFF {kind} {bands} bands", tiff_of(samples, order=order, **more), None)
            how = Reading((3, 2, 1) if bands > 1 else None, limits)
            expected = eight(samples[..., 2::-1] if bands > 1 else samples, *limits)
            row(f"TIFF {kind} {bands} bands ranged", tiff_of(samples, order=order, rows=3, **more),
                expected, how)  # fmt: skip
            predictor = 3 if kind in ("f4", "f8") else 2 if kind[0] in "ui" else 1
            packed = tiff_of(samples, order=order, compression=8, predictor=predictor,
                             tile=(16, 16), planar=2 if bands == 5 else 1, **more)  # fmt: skip
            row(f"TIFF {kind} {bands} bands predicted", packed, expected, how)
    wide = WIDE[..., :4].copy()
    wide[..., 3] = 65535
    row("TIFF 16 bits RGBA ranged", tiff_of(wide, t338=2), eight(wide[..., :3], 0, 4095), RANGED)
    wide[0, 0, 3] = 65534
    row("TIFF 16 bits RGBA clear", tiff_of(wide, t338=2), None, RANGED)
    row("TIFF 16 bits CMYK", tiff_of(wide, 5), None, RANGED)


def add_kinds_of_tiff() -> None:
    bit = GREY >> 7
    row("TIFF 1 bit", tiff_of(bit, 1, bits=1), bit * 255)
    row("TIFF 1 bit, white is zero", tiff_of(bit, 0, bits=1), 255 - bit * 255)
    for bits in (2, 4):
        few = GREY >> (8 - bits)
        step = 255 // (2**bits - 1)
        row(f"TIFF {bits} bits", tiff_of(few, 1, bits=bits), few * step)
        row(f"TIFF {bits} bits, white is zero", tiff_of(few, 0, bits=bits), 255 - few * step)
        short = tuple((PALETTE[: 2**bits].T.astype(int) * 257).ravel().tolist())
        row(f"TIFF {bits} bits palette", tiff_of(few, 3, bits=bits, t320=short),
            PALETTE[few[..., 0]])  # fmt: skip
    row("TIFF 12 bits", tiff_of(WIDE[..., :1], 1, t258=12), None, RANGED)
    fax = encoded(Image.fromarray(bit[..., 0] > 0), "TIFF", compression="group4")
    row("TIFF fax", fax, bit * 255)
    row("TIFF white is zero", tiff_of(GREY, 0), 255 - GREY)
    row("TIFF white is zero, Deflate", tiff_of(GREY, 0, compression=8), 255 - GREY)
    row("TIFF white is zero, wide", tiff_of(WIDE[..., :1], 0), None, RANGED)
    row("TIFF reversed bits", tiff_of(GREY, 1, t266=2), None)
    wide_map = tuple((PALETTE.T.astype(int) * 257).ravel().tolist())
    row("TIFF palette", tiff_of(GREY, 3, t320=wide_map), PALETTE[GREY[..., 0]])
    row("TIFF palette of 8 bits", tiff_of(GREY, 3, t320=tuple(PALETTE.T.ravel().tolist())), None)
    cmyk = BANDS[..., :4]
    rgb = np.asarray(Image.fromarray(cmyk, "CMYK").convert("RGB"))
    row("TIFF CMYK", tiff_of(cmyk, 5), rgb)
    row("TIFF CMYK planar", tiff_of(cmyk, 5, planar=2, compression=8), rgb)
    row("TIFF CMYK and more", tiff_of(BANDS[..., :5], 5, t338=0), None)
    row("TIFF other inks", tiff_of(cmyk, 5, t332=2), None)
    row("TIFF LAB", tiff_of(RGB, 8), None)
    row("TIFF YCbCr", tiff_of(RGB, 6), None)
    row("TIFF LogLuv", tiff_of(RGB, 32844), None)
    row("TIFF raw sensor", tiff_of(GREY, 32803), None)
    jpeg = encoded(Image.fromarray(RGB), "TIFF", compression="jpeg")
    row("TIFF of JPEG", jpeg, np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
    row("TIFF mixed bits", tiff_of(RGB, t258=(8, 8, 16)), None)
    row("TIFF mixed bits, chosen", tiff_of(RGB, t258=(8, 8, 16)), None, RANGED._replace(bands=(1,)))
    row("TIFF mixed types, chosen", tiff_of(RGB, t339=(1, 1, 2)), None, CHOSEN)
    row("TIFF mixed types", tiff_of(RGB, t339=(1, 1, 2)), None)
    for name, value in (("associated", 1), ("unassociated", 2)):
        for alpha, pixels in ((OPAQUE, RGB), (GLASS, None)):
            content = tiff_of(np.concatenate([RGB, alpha], 2), t338=value)
            row(f"TIFF {name} alpha {alpha.min()}", content, pixels)
            content = tiff_of(np.concatenate([GREY, alpha], 2), 1, t338=value)
            row(f"TIFF grey {name} alpha {alpha.min()}", content, None if pixels is None else GREY)
    row("TIFF unassociated dropped", tiff_of(np.concatenate([RGB, GLASS], 2), t338=2), RGB,
        Reading(drop_alpha=True))  # fmt: skip
    row("TIFF fourth band without a name", tiff_of(np.concatenate([RGB, OPAQUE], 2)), None)
    row("TIFF pages", tiff_of(RGB, pages=[{}]), None)
    row("TIFF overviews", tiff_of(RGB, pages=[{"t254": 1}, {"t254": 1}]), RGB)
    row("TIFF mask", tiff_of(RGB, pages=[{"t254": 4}]), None)
    row("TIFF overview and page", tiff_of(RGB, pages=[{"t254": 1}, {}]), None)
    row("TIFF preview", tiff_of(RGB, t254=1), None)
    row("BigTIFF", tiff_of(RGB, big=True), RGB)
    row(
        "BigTIFF 5 bands", tiff_of(BANDS[..., :5], big=True, t338=(0, 0)), BANDS[..., 2::-1], CHOSEN
    )
    row("BigTIFF pages", tiff_of(RGB, big=True, pages=[{}]), None)
    row("TIFF tiles", tiff_of(RGB, tile=(16, 16)), RGB)
    row("TIFF CMYK bands", tiff_of(cmyk, 5), rgb[..., ::-1], CHOSEN)


# ---- other formats


def add_others() -> None:
    image = Image.fromarray(RGB)
    for letters, samples in ((b"P5", GREY), (b"P6", RGB)):
        head = letters + b"\n# a comment 7\n14 11\n"
        row(f"{letters.decode()} 255", head + b"255\n" + samples.tobytes(), samples)
        few = samples // 3
        row(f"{letters.decode()} 85", head + b"85\n" + few.tobytes(), few * 3)
        wide = (samples.astype(np.uint16) * 16).astype(">u2")
        row(f"{letters.decode()} 4095", head + b"4095\n" + wide.tobytes(), None)
        row(f"{letters.decode()} 65535", head + b"65535\n" + wide.tobytes(), None)
        ranged = eight(wide, 0, 4095) if letters == b"P5" else None
        row(f"{letters.decode()} 65535 ranged", head + b"65535\n" + wide.tobytes(), ranged, RANGED)
    row("P3", b"P3 14 11 255 " + " ".join(map(str, RGB.ravel())).encode(), RGB)
    row("P2", b"P2 14 11 255 " + " ".join(map(str, GREY.ravel())).encode(), GREY)
    bit = GREY >> 7
    row("P4", b"P4 14 11\n" + np.packbits(bit[..., 0], axis=1).tobytes(), 255 - bit * 255)
    pfm = b"Pf\n14 11\n-1.0\n" + (GREY[::-1].astype("<f4") / 255).tobytes()
    row("PFM", pfm, None)
    row("PFM ranged", pfm, GREY, Reading(value_range=(0, 1)))
    row("colour PFM", b"PF\n14 11\n-1.0\n" + RGB.astype("<f4").tobytes(), None)
    row("PAM of Pillow's", b"PyRGBA\n14 11\n255\n" + bytes(14 * 11 * 4), None)

    up = RGB[::-1]
    row("BMP 24", bmp_of(padded(up[..., ::-1]), (14, 11), 24), RGB)
    row("BMP 32", bmp_of(np.concatenate([up[..., ::-1], GREY], 2).tobytes(), (14, 11), 32), RGB)
    five = up.astype(np.uint16) >> 3
    high = bmp_of((five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).tobytes(), (14, 11), 16)
    row("BMP 555", high, five[::-1] * 255 // 31)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1) * [1, 1, 1, 0]
    index = padded(GREY[::-1])
    row("BMP grey", bmp_of(index, (14, 11), 8, greys.astype(np.uint8).tobytes()), GREY)
    colours = np.concatenate([PALETTE[:, ::-1], PALETTE[:, :1] * 0], 1)
    row("BMP palette", bmp_of(index, (14, 11), 8, colours.tobytes()), PALETTE[GREY[..., 0]])
    two = padded(GREY[::-1] >> 7)
    black_white = b"\0\0\0\0\xff\xff\xff\0"
    row("BMP 8 bits of black and white", bmp_of(two, (14, 11), 8, black_white, colours=2), None)
    nibbles = (GREY >> 4)[::-1, ::2] << 4 | (GREY >> 4)[::-1, 1::2]
    row("BMP 4 bits of 16 greys", bmp_of(padded(nibbles), (14, 11), 4,
        greys[:16].astype(np.uint8).tobytes()), None)  # fmt: skip
    row("BMP 4 bits", bmp_of(padded(nibbles), (14, 11), 4, colours[:16].tobytes()),
        PALETTE[GREY[..., 0] >> 4])  # fmt: skip

    grey = Image.fromarray(GREY[..., 0])
    indexed = grey.copy()
    indexed.putpalette(PALETTE.tobytes())
    row("GIF", encoded(indexed, "GIF"), PALETTE[GREY[..., 0]])
    row("GIF grey", encoded(grey, "GIF"), GREY)
    clear = encoded(indexed, "GIF", transparency=int(GREY[5, 5, 0]))
    row("GIF clear", clear, None)
    others = {"save_all": True, "append_images": [grey]}
    row("GIF animated", encoded(indexed, "GIF", **others), None)
    exact = {"lossless": True, "exact": True}
    row("WebP lossless", encoded(image, "WEBP", **exact), RGB)
    row("WebP animated", encoded(image, "WEBP", **others), None)
    for alpha, pixels in ((OPAQUE, RGB), (GLASS, None)):
        rgba = Image.fromarray(np.concatenate([RGB, alpha], 2))
        row(f"WebP alpha {alpha.min()}", encoded(rgba, "WEBP", **exact), pixels)
        row(f"JPEG2000 alpha {alpha.min()}", encoded(rgba, "JPEG2000"), pixels)
        if pixels is None:
            row(f"AVIF alpha {alpha.min()}", encoded(rgba, "AVIF"), None)
    row("AVIF animated", encoded(image, "AVIF", **others), None)
    for name, kind in (("RGB", image), ("grey", grey)):
        row(f"JPEG2000 {name}", encoded(kind, "JPEG2000"), RGB if name == "RGB" else GREY)
        row(f"J2K codestream {name}", encoded(kind, "JPEG2000", no_jp2=True),
            RGB if name == "RGB" else GREY)  # fmt: skip
    wide = encoded(Image.fromarray(WIDE[..., 0]), "JPEG2000")
    row("JPEG2000 16 bits", wide, None)
    row("JPEG2000 16 bits ranged", wide, eight(WIDE[..., :1], 0, 4095), RANGED)
    for kind in ("L", "CMYK"):
        content = encoded(Image.fromarray(RGB).convert(kind), "JPEG", quality=95)
        row(f"JPEG {kind}", content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    progressive = encoded(image, "JPEG", progressive=True)
    row("JPEG progressive", progressive, stored(progressive))
    for kind in ("ICO", "TGA", "PCX", "SGI", "IM", "PDF", "EPS", "DDS"):
        row(f"{kind}", encoded(image, kind), None)
    for name, content in (("HTML", b"<!DOCTYPE html>"), ("nothing", b""), ("zeros", bytes(999))):
        row(name, content, None)


def padded(rows: np.ndarray) -> bytes:
    """Return rows of bytes, each filled up to four as in BMP."""
    flat = rows.reshape(len(rows), -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))).tobytes()


ADDERS: list[Callable[[], None]] = [
    add_orientations,
    add_pngs,
    add_tiffs,
    add_kinds_of_tiff,
    add_others,
]
for add in ADDERS:
    add()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", ROWS)
def test_an_image_is_read_rightly_or_refused_by_name(name: str, tmp_path: Path):
    content, expected, reading = ROWS[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    if expected is None:
        with pytest.raises(UserError) as caught:
            files.read_image(path, reading)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        return
    pixels = np.asarray(files.read_image(path, reading))
    assert np.array_equal(pixels, expected)
    assert files.image_size(path) == pixels.shape[1::-1]
    height, width = pixels.shape[:2]
    for box in ((0, 0, width, height), (2, 3, 9, 10), (width - 1, 5, width, 6)):
        window = np.asarray(files.read_window(path, box, reading))
        assert np.array_equal(window, pixels[box[1] : box[3], box[0] : box[2]])


def test_the_table_has_rows_enough():
    assert len(ROWS) >= 250
    assert sum(row.pixels is not None for row in ROWS.values()) >= 120


# ---- time and memory are bounded by the file, or by its header


def test_a_narrow_png_of_16_bits_costs_what_its_pixels_cost(tmp_path: Path):
    """2x30 000 pixels in less than 2 kB once took 25 s and 3.6 GB: (H + W) x H of them."""
    path = tmp_path / "narrow.png"
    packed = zlib.compress((b"\4" + bytes(12)) * 30_000)
    path.write_bytes(fakedata.png((2, 30_000, 16, 2, 0, 0, 0), packed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_channel(path).shape == (30_000, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_many_scans_are_refused(tmp_path: Path):
    whole = encoded(Image.new("RGB", (40, 30)), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    path = tmp_path / "scans.jpg"
    path.write_bytes(whole[:-2] + scan * 50 + whole[-2:])
    files.read_image(path)
    path.write_bytes(whole[:-2] + scan * 100 + whole[-2:])
    with pytest.raises(
        UserError, match=r"scans.jpg: an image of JPEG.*1\d\d scans \(100 at most\)"
    ):
        files.read_image(path)


@pytest.mark.parametrize("read", [files.read_image, files.read_label])
def test_a_limit_of_pixels_and_the_option_that_moves_it(read: Callable, tmp_path: Path):
    path = tmp_path / "large.png"
    path.write_bytes(fakedata.png((9000, 10_000, 8, 0, 0, 0, 0), zlib.compress(b"")))
    with pytest.raises(UserError, match=r"9000x10000 pixels is refused: .*89.5.*max_megapixels"):
        read(path)
    options = {**OPTIONS, "max_megapixels": 91}
    how = dict(zip((files.read_image, files.read_label), from_options(options), strict=True))[read]
    with pytest.raises(UserError, match="not a readable image"):  # it was begun
        read(path, how) if read is files.read_image else read(path, NO_TABLE, how)


def test_a_window_of_an_image_that_is_too_large_as_a_whole(tmp_path: Path):
    """90 megapixels, of which only the touched tiles or rows are decoded."""
    path = tmp_path / "large.tif"
    side, shown = 9600, np.zeros((64, 64, 3), np.uint8)
    tile = zlib.compress(shown.tobytes())
    special = zlib.compress(np.full_like(shown, 7).tobytes())
    across = side // 64
    content = bytes(8) + tile + special  # every tile but one is the same bytes
    offsets, lengths = [8] * across**2, [len(tile)] * across**2
    offsets[3 * across + 2], lengths[3 * across + 2] = 8 + len(tile), len(special)
    table = {256: side, 257: side, 258: (8, 8, 8), 259: 8, 262: 2, 277: 3, 322: 64, 323: 64}
    table |= {324: offsets, 325: lengths}
    path.write_bytes(write_tiff("<", table, content[8:]))
    with pytest.raises(UserError, match="9600x9600 pixels is refused"):
        files.read_image(path)
    window = np.asarray(files.read_window(path, (120, 180, 200, 260)))
    expected = np.zeros((80, 80, 3), np.uint8)
    expected[12:76, 8:72] = 7
    assert np.array_equal(window, expected)

    path = tmp_path / "large.png"
    rows = (b"\0" + bytes(9600)) * 9600
    path.write_bytes(fakedata.png((9600, 9600, 8, 0, 0, 0, 0), zlib.compress(rows)))
    assert files.read_window(path, (9000, 4000, 9600, 4100)).size == (600, 100)
    with pytest.raises(UserError, match=r"9600x9600 pixels is refused"):
        files.read_window(path, (0, 9500, 10, 9600))


def test_damage_says_nothing_but_its_one_line(tmp_path: Path, capfd):
    """libtiff would write to stderr beside it."""
    content = tiff_of(RGB, compression=8)
    (tmp_path / "damaged.tif").write_bytes(content[:40] + bytes([content[40] ^ 255]) + content[41:])
    with pytest.raises(UserError, match=r"damaged.tif: not a readable image"):
        files.read_image(tmp_path / "damaged.tif")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bands", "1,2", "bands must be one number or three, from 1 on; got '1,2'"),
        ("bands", "0,1,2", "bands must be one number or three"),
        ("bands", "red", "bands must be one number or three"),
        ("value_range", "5,5", "value_range must be LOW,HIGH with LOW below HIGH; got '5,5'"),
        ("value_range", 7, "value_range must be LOW,HIGH"),
        ("max_megapixels", 0, "max_megapixels must be a number above 0; got 0"),
        ("max_megapixels", "many", "max_megapixels must be a number above 0"),
        ("alpha", "white", "alpha must be one of refuse, drop; got 'white'"),
        ("label_bits", 12, "label_bits must be one of 8, 16; got 12"),
        ("label_values", "names", "label_values must be one of auto, ids, colours"),
    ],
)
def test_options_of_reading_are_checked(name: str, value: object, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        build_dataset("gta5", fakedata.make_gta5(tmp_path), split="train", **{name: value})


def test_options_of_reading_reach_the_files(tmp_path: Path):
    root = fakedata.make_gta5(tmp_path, size=(14, 11))
    (root / "images/00001.png").unlink()
    (root / "images/00001.tif").write_bytes(tiff_of(WIDE[..., :5], t338=(0, 0)))
    with pytest.raises(UserError, match=r"images/00001.tif: an image of TIFF, RGB, 5 bands of 16"):
        build_dataset("gta5", root, split="train")[0]
    how = {"bands": "3,2,1", "value_range": "0,4095"}
    dataset = build_dataset("gta5", root, split="train", **how)
    assert np.array_equal(dataset[0]["image"].permute(1, 2, 0), eight(WIDE[..., 2::-1], 0, 4095))
    assert np.array_equal(
        dataset.read_window(0, (1, 2, 5, 9)), dataset[0]["image"][:, 2:9, 1:5].permute(1, 2, 0)
    )
    assert dataset.arguments["options"]["bands"] == "3,2,1"
    alone = build_dataset("gta5", root, split="train", bands=2, value_range="0,4095")
    assert np.array_equal(alone[0]["image"][0], eight(WIDE[..., 1], 0, 4095))
