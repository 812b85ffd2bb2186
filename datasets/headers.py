"""What an image file's header says it holds, beside what Pillow would make of it."""

import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image

# Parsers that a file may choose by its first bytes: fewer are safer. MPO comes in as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")  # and TIFF
SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .tif .tiff .webp .bmp .gif .ppm .pgm .pbm .pnm .jp2 .j2k .j2c .jpx "
    ".jpf .avif".split()
)
LOSSLESS_SUFFIXES = frozenset(".png .tif .tiff .bmp .gif .webp .ppm .pgm .pnm".split())
HEAD_BYTES = 4096  # where every header ends that is read here; TIFF's has its own reader
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
PILLOW_BANDS = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
PNG_KINDS = {0: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 1), 4: ("grey", 2), 6: ("RGB", 4)}
XMP_KEY, EXIF_KEY = "XML:com.adobe.xmp", "Raw profile type exif"


class Header(NamedTuple):
    """What a file holds, as its header states it.

    Attributes:
        format: Pillow's name of it.
        size: width and height in pixels as the file stores them, before `orientation`.
        kind: grey, RGB, palette, CMYK, YCbCr or LAB.
        bands: samples a pixel, alpha and unnamed ones included.
        bits: of one sample; the most where they differ.
        number: unsigned, signed or float.
        alpha: whether the last band, or an entry or colour marked so, says how opaque pixels are.
        several: whether there is more than one picture: pages, frames.
        orientation: 1 to 8 as in EXIF: how the picture is turned before it is looked at.
        lossy: whether the format may have changed values, so that they are no ids.
        scaled: whether Pillow stretches or inverts the samples, so that they are no ids.
        fault: why Pillow would read other pixels than the file holds; None where it does not.
    """

    format: str
    size: tuple[int, int]
    kind: str
    bands: int
    bits: int
    number: str = "unsigned"
    alpha: bool = False
    several: bool = False
    orientation: int = 1
    lossy: bool = False
    scaled: bool = False
    fault: str | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels as the picture is looked at."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def __str__(self) -> str:
        bands = f"{self.bands} band{'s' * (self.bands > 1)}"
        number = "" if self.number == "unsigned" else f"{self.number} "
        return f"{self.format}, {self.kind}, {bands} of {self.bits} {number}bits"


def read_header(image: Image.Image, file: BinaryIO) -> Header:
    """Return what a file holds that is no TIFF.

    Args:
        image: opened by Pillow from `file`, not yet decoded.
        file: at any position, which is kept.
    Raises:
        Exception: whatever a damaged header leads to.
    """
    position = file.tell()
    file.seek(0)
    header = _READERS.get(image.format, _eight_bits)(image, file.read(HEAD_BYTES), file)
    file.seek(position)
    return header


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation that EXIF or XMP state, 1 to 8; damaged ones turn nothing."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a parser makes of garbage: the pixels are still whole
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1


def _eight_bits(image: Image.Image, _head: bytes, _file: BinaryIO) -> Header:
    """Return what Pillow says of a format of 8 bits: JPEG, WebP, AVIF (which it rounds), GIF."""
    kinds = {"P": "palette", "PA": "palette", "CMYK": "CMYK", "RGB": "RGB", "RGBA": "RGB"}
    return Header(
        image.format,
        image.size,
        kinds.get(image.mode, "grey"),
        PILLOW_BANDS.get(image.mode, 1),
        1 if image.mode == "1" else 8,
        alpha=image.has_transparency_data,
        # a phone's second picture (MPO) is a preview or a map of depths
        several=image.format != "MPO" and getattr(image, "is_animated", False),
        orientation=exif_orientation(image),
        lossy=image.format in ("JPEG", "MPO", "AVIF"),
        fault=None if image.mode in PILLOW_BANDS else f"mode {image.mode}",
    )


def _jpeg(image: Image.Image, head: bytes, file: BinaryIO) -> Header:
    """Count a progressive file's scans: each costs the time of a whole picture, and few bytes."""
    scans = 0
    if image.info.get("progressive"):
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
    fault = f"{scans} scans ({MAX_SCANS} at most)" if scans > MAX_SCANS else None
    return _eight_bits(image, head, file)._replace(fault=fault)


def _png(image: Image.Image, head: bytes, file: BinaryIO) -> Header:
    """Read IHDR: Pillow drops low bytes of 16 bits, and stretches grey of 2 and 4 bits."""
    bits, colour_type = head[24:26]
    kind, bands = PNG_KINDS[colour_type]
    before = any(key in image.info for key in ("exif", EXIF_KEY, XMP_KEY))
    if before:
        image.info.setdefault("exif", None)  # or Pillow decodes the image to look for more
    return Header(
        "PNG",
        image.size,
        kind,
        bands,
        bits,
        alpha=bands in (2, 4) or "transparency" in image.info,
        several=getattr(image, "is_animated", False),
        orientation=exif_orientation(image) if before or _exif_follows(file) else 1,
        scaled=kind == "grey" and bits in (2, 4),
    )


def _exif_follows(file: BinaryIO) -> bool:
    """Return whether a PNG's EXIF or XMP data stand behind its pixels."""
    position, in_pixels = 8, False
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return False
        length, name = struct.unpack(">I4s", head)
        in_pixels |= name == b"IDAT"
        if in_pixels and name == b"eXIf":
            return True
        if in_pixels and name in (b"tEXt", b"zTXt", b"iTXt"):
            key = file.read(40).partition(b"\0")[0].decode("latin-1")
            if key in (EXIF_KEY, XMP_KEY):
                return True
        position += 12 + length


def _bmp(image: Image.Image, head: bytes, file: BinaryIO) -> Header:
    """Read the bits a pixel: Pillow takes short grey palettes for samples of 1 or 8 bits."""
    (bits,) = struct.unpack_from("<H", head, 24 if head[14] == 12 else 28)
    unpacked = {"1": 1, "L": 8}.get(image.mode, bits)
    return _eight_bits(image, head, file)._replace(
        bits=min(bits, 8), fault=None if unpacked == bits else f"a grey palette of {bits} bits"
    )


def _ppm(image: Image.Image, head: bytes, _file: BinaryIO) -> Header:
    """Read the largest value: Pillow scales what is not 255, and colours of 16 bits to 8."""
    magic = head[:2]
    if magic == b"Pf":
        return Header("PPM", image.size, "grey", 1, 32, number="float")
    if magic in (b"P1", b"P4"):
        return Header("PPM", image.size, "grey", 1, 1, scaled=True)  # its 1 is black
    if magic not in (b"P2", b"P3", b"P5", b"P6"):
        raise ValueError(f"type {magic!r}")
    lines = (line.partition(b"#")[0] for line in head[2:].replace(b"\r", b"\n").split(b"\n"))
    largest = int(b" ".join(lines).split()[2])
    kind, bands = ("RGB", 3) if magic in (b"P3", b"P6") else ("grey", 1)
    full = 255 if largest < 256 else 65535
    bits = 8 if largest < 256 else 16
    return Header("PPM", image.size, kind, bands, bits, scaled=largest != full)


def _webp(image: Image.Image, head: bytes, file: BinaryIO) -> Header:
    """Look for the chunk of lossless data."""
    position, lossy = 12, True
    for _ in range(64):  # chunks
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name in (b"VP8L", b"VP8 ", b"ANMF"):
            lossy = name != b"VP8L"
            break
        position += 8 + length + length % 2
    return _eight_bits(image, head, file)._replace(lossy=lossy)


def _jpeg2000(image: Image.Image, head: bytes, _file: BinaryIO) -> Header:
    """Read the components' depths from the codestream: Pillow shifts those of colours to 8 bits."""
    start = head.index(b"\xff\x4f\xff\x51")
    (bands,) = struct.unpack_from(">H", head, start + 40)
    depths = [head[start + 42 + 3 * band] for band in range(bands)]
    palette = image.mode == "P" or b"pclr" in head[:start]
    return Header(
        "JPEG2000",
        image.size,
        "CMYK" if image.mode == "CMYK" else "grey" if bands < 3 else "RGB",
        bands,
        max((depth & 127) + 1 for depth in depths),
        number="signed" if any(depth & 128 for depth in depths) else "unsigned",
        alpha=image.has_transparency_data,
        orientation=exif_orientation(image),
        lossy=True,
        fault="a palette in JPEG2000" if palette else None,
    )


_READERS: dict[str, Callable[[Image.Image, bytes, BinaryIO], Header]] = {
    "JPEG": _jpeg,
    "MPO": _jpeg,
    "PNG": _png,
    "BMP": _bmp,
    "PPM": _ppm,
    "WEBP": _webp,
    "JPEG2000": _jpeg2000,
}
