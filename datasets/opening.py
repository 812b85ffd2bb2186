"""Open image files: regular ones alone, of formats on a list, their headers read and judged."""

import contextlib
import ctypes
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from datasets import tiff
from datasets.headers import FORMATS, Header, read_header
from engine.errors import UserError
from engine.files import open_regular

MAX_MEGAPIXELS = 89.5  # where Pillow would warn of a decompression bomb
# What decoders raise on damaged files; UnidentifiedImageError is an OSError.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError)
UNREADABLE += (ArithmeticError, AssertionError, MemoryError, RuntimeError, struct.error, zlib.error)

# Pillow's own limit knows no option; `check_pixels` stands in for it before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Of damaged EXIF data and the like: a line of somebody else's source, for what is read rightly.
warnings.filterwarnings("ignore", module=r"PIL\.")
with contextlib.suppress(OSError, AttributeError):  # of a Pillow without libtiff
    # libtiff writes lines of its own to stderr, beside the one that we raise.
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class Source(NamedTuple):
    """An open image file.

    Attributes:
        path: for messages.
        file: its bytes.
        header: what it holds.
        image: opened by Pillow, not decoded; None for a TIFF, which Pillow may not know.
        tiff: its tags, where it is a TIFF.
    """

    path: str | Path
    file: BinaryIO
    header: Header
    image: Image.Image | None
    tiff: tiff.Tiff | None

    def pillow(self) -> Image.Image:
        """Return the image as Pillow opens it."""
        if self.image is not None:
            return self.image
        self.file.seek(0)
        return Image.open(self.file, formats=("TIFF",))


def check_pixels(
    path: str | Path, width: int, height: int, max_megapixels: float = MAX_MEGAPIXELS
) -> None:
    """Reject what would need too much memory by the size that the file's header states.

    Args:
        path: the file, for the message.
        width: pixels.
        height: pixels.
        max_megapixels: millions of pixels that are allowed.
    Raises:
        UserError: more than these, or no pixel at all.
    """
    if not 0 < width * height <= max_megapixels * 1e6 or min(width, height) < 1:
        raise UserError(
            f"{path}: an image of {width}x{height} pixels is refused: 1 to {max_megapixels:g} "
            "megapixels allowed (dataset option max_megapixels)"
        )


@contextlib.contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Say of whatever a decoder raises that the file is not readable."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: not a readable image (damaged, cut short, or none of "
            f"{', '.join(FORMATS)}, TIFF?): {reason}"
        ) from error


@contextlib.contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Source]:
    """Open an image file and read its header; nothing is decoded.

    Args:
        path: an image in one of `FORMATS`, or a TIFF.
        content: its bytes, where they are read already.
    Yields:
        The open file, which is closed afterwards.
    Raises:
        UserError: missing, empty, damaged, of another format, or no regular file.
    """
    with open_regular(path) if content is None else io.BytesIO(content) as file:
        with decoding(path):
            start = file.read(4)
            if start in tiff.MAGICS:
                tags = tiff.Tiff(file)
                source = Source(path, file, tags.header, None, tags)
            else:
                image = Image.open(file, formats=FORMATS)
                source = Source(path, file, read_header(image, file), image, None)
            if min(source.header.size) < 1:
                raise ValueError(f"{source.header.size[0]}x{source.header.size[1]} pixels")
        yield source
