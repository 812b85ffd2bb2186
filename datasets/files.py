"""Read images, labels and lists, and write label pictures; every error names the file."""

import contextlib
import os
import struct
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from engine.errors import UserError

MAX_PIXELS = 89_478_485  # Pillow's own limit, where it would only warn
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000")
# What Pillow's decoders raise on damaged files; UnidentifiedImageError is an OSError.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)


def check_pixels(path: str | Path, width: int, height: int) -> None:
    """Reject a decompression bomb by the size that the file's header states.

    Args:
        path: the file, for the message.
        width: pixels.
        height: pixels.
    Raises:
        UserError: more than `MAX_PIXELS`, or no pixel at all.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise UserError(
            f"{path}: an image of {width}x{height} pixels is refused (1 to {MAX_PIXELS} allowed)"
        )


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, its header read and its size checked; errors inside name the file.

    Args:
        path: an image in any format that Pillow knows.
    Yields:
        The image, not yet decoded.
    Raises:
        UserError: missing, empty, truncated, not an image, or a decompression bomb.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for, for ever
        raise UserError(f"{path}: not a regular file")
    try:
        with warnings.catch_warnings():
            # Twice the limit is Pillow's error, the limit itself only its warning: both are ours.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            check_pixels(path, *image.size)
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: a decompression bomb is refused: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image (damaged or cut short?): {error}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Return an image's (width, height) from its header.

    Raises:
        UserError: as `opened`.
    """
    with opened(path) as image:
        return image.size


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB; grey, palette and alpha images are converted.

    EXIF orientation is applied neither here nor to labels, so that both stay aligned.

    Args:
        path: an image file of 8 bits a channel.
    Returns:
        PIL image, mode RGB.
    Raises:
        UserError: as `opened`, or a grey image of more than 8 bits, which would be clipped.
    """
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{path}: an image of mode {image.mode}; 8 bits a channel expected")
        return image.convert("RGB")


def read_label(path: str | Path) -> np.ndarray:
    """Read the ids of a label image; a palette is ignored, its indices are the ids.

    Args:
        path: an 8-bit single-channel file (mode P or L) in a lossless format.
    Returns:
        uint8 [H,W], the values stored in the file.
    Raises:
        UserError: as `opened`, or another mode (RGB, RGBA, 16-bit, 1-bit), or a lossy format.
    """
    with opened(path) as image:
        if image.mode not in ("P", "L"):
            raise UserError(
                f"{path}: a label of mode {image.mode} holds no class ids; "
                "8-bit greyscale (L) or palette (P) expected"
            )
        if image.format in LOSSY:
            raise UserError(f"{path}: a label in {image.format} has blurred class ids; use PNG")
        return np.array(image)


def read_list(path: str | Path, with_labels: bool) -> list[tuple[int, str, str | None]]:
    """Read a list of `image` or `image label` lines.

    Fields are separated by tabs where the line holds a tab, else by spaces: a file name with
    spaces needs a tab after it. Blank lines and CRLF ends are fine.

    Args:
        path: text file in UTF-8.
        with_labels: whether every line must name a label.
    Returns:
        (line number, image, label or None) per entry, paths as written, relative to the data root.
    Raises:
        UserError: unreadable or empty list; a line with a missing or surplus field, with a path
            that leaves the root, or with an image that was listed before.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this list: {error}") from error
    entries, first_line = [], {}
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        fields = [field for field in fields if field]
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) > 2:
            raise UserError(
                f"{where}: {len(fields)} fields, `image` or `image label` expected "
                "(names with spaces are separated by a tab)"
            )
        if with_labels and len(fields) == 1:
            raise UserError(f"{where}: no label beside {fields[0]!r}; `image label` expected")
        for field in fields:
            if PurePosixPath(field).is_absolute() or ".." in PurePosixPath(field).parts:
                raise UserError(f"{where}: {field!r} leaves the data folder; relative paths only")
        image = str(PurePosixPath(fields[0]))
        if image in first_line:
            raise UserError(f"{where}: {image!r} stands already in line {first_line[image]}")
        first_line[image] = number
        entries.append((number, image, str(PurePosixPath(fields[1])) if with_labels else None))
    if not entries:
        raise UserError(f"{path}: this list is empty")
    return entries


def colourise(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint train ids in their classes' colours; ids without a colour (ignored) are black.

    Args:
        label: uint8 [H,W], train ids.
        palette: (r, g, b) in 0..255 for each train id.
    Returns:
        uint8 [H,W,3].
    """
    return full_palette(palette)[label]


def write_label_png(
    path: str | Path, label: np.ndarray, palette: Sequence[Sequence[int]] | None = None
) -> None:
    """Write ids as an 8-bit PNG, with colours to look at where a palette is given.

    The file appears under its name only when it is complete.

    Args:
        path: the PNG to write; its folder is made where missing.
        label: uint8 [H,W].
        palette: (r, g, b) in 0..255 for each id; None writes plain greyscale.
    Raises:
        UserError: the folder or the file cannot be written.
    """
    if label.dtype != np.uint8 or label.ndim != 2:
        raise TypeError(f"label must be uint8 [H,W], got {label.dtype} {list(label.shape)}")
    image = Image.fromarray(label)
    if palette is not None:
        image.putpalette(full_palette(palette).tobytes())
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                image.save(file, format="PNG")
            os.chmod(temporary, 0o644)  # mkstemp's files are private; pictures are to be shared
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot write this label: {error}") from error


def full_palette(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return uint8 [256,3]: the palette, then black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table
