"""Read images and labels as they are meant, and write label pictures; every error names the file.

One gate: a file's header decides. What it says is applied (orientation, palettes, greys, CMYK) or
refused by name (bits, bands, pages, transparency); nothing is dropped without a word.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets import png16
from datasets.headers import Header
from datasets.labels import MARK, NO_TABLE, LabelTable, ids_of, is_opaque, refuse_label
from datasets.opening import Source, check_pixels, decoding, opened
from datasets.reading import PLAIN, PLAIN_LABEL, LabelReading, Reading
from engine.errors import UserError
from engine.files import read_regular, whole

# Of EXIF orientations: what turns the stored pixels into those that are looked at.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BLOCK_BYTES = 2**26  # of samples that are turned into 8 bits at once
TRANSPARENT = (
    "an image with transparent pixels, whose colours nobody sees; lay it on a background, or take "
    "the colours that are stored with the dataset option alpha=drop"
)
# of pixels without a class: the first that no class is like
VOID_COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 255), (128, 128, 128))
Box = tuple[int, int, int, int]  # left, upper, right, lower in pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Return an image's (width, height) as it is looked at, from its header.

    Raises:
        UserError: as `opening.opened`.
    """
    with opened(path) as source:
        return source.header.upright_size


def read_image(path: str | Path, reading: Reading = PLAIN) -> Image.Image:
    """Read an image as RGB of 8 bits, turned as it is looked at (EXIF orientation).

    Grey, palette and CMYK images are converted; of a phone's several pictures (MPO) the first is
    the photograph.

    Args:
        path: an image file.
        reading: what the header cannot decide.
    Returns:
        PIL image, mode RGB.
    Raises:
        UserError: as `opening.opened`, or what would not be read as it is stored: more than 8 bits
            a sample, other than 1 or 3 bands, several pages or frames, transparent pixels.
    """
    with opened(path) as source:
        refuse_image(path, source.header, reading)
        # OpenJPEG needs 12 bytes a pixel and more, others 4
        share = 0.5 if source.header.format == "JPEG2000" else 1
        check_pixels(path, *source.header.size, share * reading.max_megapixels)
        with decoding(path):
            if _needs_samples(source.header, reading):
                image = _from_samples(source, (0, 0, *source.header.size), reading)
            else:
                image = source.pillow()
                image.load()  # which turns a TIFF
                image = _as_rgb(path, image, reading)
                if source.tiff and image.size == source.header.upright_size:
                    return image
            return _upright(image, source.header)


def read_window(path: str | Path, box: Box, reading: Reading = PLAIN) -> Image.Image:
    """Read a part of an image as `read_image` does, decoding no more than the format asks for.

    Of a TIFF the strips or tiles that the window touches are decoded, of a PNG the rows down to its
    lower end. Other formats, turned pictures and chosen bands of a PNG are decoded whole.

    Args:
        path: an image file, which may have more than `max_megapixels` where not all is decoded.
        box: left, upper, right, lower in pixels of the picture as it is looked at.
        reading: as for `read_image`.
    Returns:
        PIL image, mode RGB.
    Raises:
        UserError: as `read_image`.
        ValueError: a box that is empty or leaves the picture.
    """
    with opened(path) as source:
        header = source.header
        refuse_image(path, header, reading)
        width, height = header.upright_size
        if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            raise ValueError(f"{path}: a window {box} of {width}x{height} pixels")
        rows_alone = header.format == "PNG" and not source.image.info.get("interlace")
        rows_alone &= not _needs_samples(header, reading)
        if header.orientation != 1 or not (source.tiff or rows_alone):
            return read_image(path, reading).crop(box)
        inside = (box[2] - box[0], box[3] - box[1]) if source.tiff else (width, box[3])
        check_pixels(path, *inside, reading.max_megapixels)
        with decoding(path):
            if source.tiff and _needs_samples(header, reading):
                return _from_samples(source, box, reading)
            part = source.tiff.part(box) if source.tiff else png16.upper_rows(source, box[3])
            return _as_rgb(path, part if source.tiff else part.crop(box), reading)


def refuse_image(path: str | Path, header: Header, reading: Reading) -> None:
    """Refuse a file whose header says that it would be read as something else.

    Raises:
        UserError: says what the file holds, and the option or the change that helps.
    """
    wide, coloured = is_wide(header), header.kind not in ("grey", "RGB")
    most = max(reading.bands or (0,))
    reasons = {
        "several pages or frames; save the one that is meant as a file of its own": header.several,
        f"{header.fault}; save it as 8-bit RGB": header.fault,
        "save it as 8-bit RGB": header.kind == "LAB" or (wide and coloured),
        "say what becomes black and what white with the dataset option value_range=LOW,HIGH, or "
        "save it with 8 bits": wide and reading.value_range is None,
        "say which bands are red, green and blue with the dataset option bands=1,2,3, or save it "
        "as 8-bit RGB": _has_unnamed_bands(header) and (coloured or not reading.bands),
        f"there is no band {most}": most > (3 if coloured else header.bands),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{path}: an image of {header}: {reason}")


def is_wide(header: Header) -> bool:
    """Return whether samples are others than unsigned ones of up to 8 bits."""
    return header.bits > 8 or header.number != "unsigned"


def _has_unnamed_bands(header: Header) -> bool:
    """Return whether there are others than a colour's, and one of alpha."""
    colours = {"RGB": 3, "CMYK": 4, "YCbCr": 3}.get(header.kind, 1)
    return header.bands not in (colours, colours + header.alpha)


def _needs_samples(header: Header, reading: Reading) -> bool:
    """Return whether bands or types are to be read that Pillow knows nothing of."""
    return is_wide(header) or (reading.bands is not None and header.kind in ("grey", "RGB"))


def _from_samples(source: Source, box: Box, reading: Reading) -> Image.Image:
    """Return chosen bands, scaled to 8 bits where they have more, not yet upright."""
    header, wide = source.header, is_wide(source.header)
    if header.scaled and (source.tiff or wide):
        raise UserError(f"{source.path}: an image of {header}, whose white is 0 or is no full one")
    first = range(1, 2 if header.kind == "grey" else 4)
    bands = [band - 1 for band in reading.bands or first]
    check_alpha = header.alpha and not reading.bands and not reading.drop_alpha
    left, upper, right, lower = box
    row_bytes = (right - left) * header.bands * -(-header.bits // 8)
    if (lower - upper) * row_bytes > 4e6 * reading.max_megapixels:  # 4: of RGB in Pillow
        raise UserError(
            f"{source.path}: an image of {header} with {right - left}x{lower - upper} pixels is "
            f"refused: more bytes than {reading.max_megapixels:g} megapixels of 8 bits (dataset "
            "option max_megapixels)"
        )
    pixels = np.empty((lower - upper, right - left, len(bands)), np.uint8)
    read = [*bands, header.bands - 1] if check_alpha else bands
    values = None if source.tiff else _pillow_samples(source, read)
    together = source.tiff.grid.length if source.tiff else 1  # rows that are packed as one
    step = together * max(1, BLOCK_BYTES // (row_bytes * together))
    for start in range(upper // step * step, lower, step):
        row, end = max(start, upper), min(start + step, lower)
        if values is None:
            part = source.tiff.samples((left, row, right, end), read)
        else:
            part = values[row:end, left:right]
        if check_alpha:
            whole = np.iinfo(part.dtype).max if part.dtype.kind in "ui" else 1
            if header.bands == len(bands) or (part[..., -1] != whole).any():
                raise UserError(f"{source.path}: {TRANSPARENT}")
            part = part[..., :-1]
        part = to_8_bits(part, reading.value_range) if wide else part
        pixels[row - upper : end - upper] = part
    return Image.fromarray(np.repeat(pixels, 3, -1) if len(bands) == 1 else pixels)


def _pillow_samples(source: Source, bands: Sequence[int]) -> np.ndarray:
    """Return bands of a whole file that is no TIFF, [H,W,len(bands)]."""
    header = source.header
    if header.format == "PNG" and header.bits == 16:
        return png16.samples(source, bands)
    if header.bits > 8 and (header.bands > 1 or header.scaled):
        raise ValueError(f"{header} cannot be read without loss; save it as PNG or TIFF")
    values = np.asarray(source.pillow())
    return values[..., None] if values.ndim == 2 else values[..., list(bands)]


def to_8_bits(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Return uint8 of the same shape: LOW and below is 0, HIGH and above 255; no number is 0."""
    low, high = value_range
    kind = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled = (values.astype(kind) - kind(low)) * kind(255 / (high - low))
    return np.nan_to_num(scaled, nan=0).clip(0, 255).round().astype(np.uint8)


def _as_rgb(path: str | Path, image: Image.Image, reading: Reading) -> Image.Image:
    """Return a decoded image in RGB, its transparent pixels refused."""
    if not reading.drop_alpha and not is_opaque(image):
        raise UserError(f"{path}: {TRANSPARENT}")
    if image.mode == "La":  # premultiplied by its alpha
        image = image.convert("LA")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return _choose(np.asarray(rgb), reading.bands) if reading.bands else rgb


def _choose(pixels: np.ndarray, bands: Sequence[int]) -> Image.Image:
    """Return an RGB image of these bands (from 1) of uint8 [H,W,3]."""
    chosen = pixels[..., [band - 1 for band in bands]]
    return Image.fromarray(np.repeat(chosen, 3, -1) if len(bands) == 1 else chosen)


def _upright(image: Image.Image, header: Header) -> Image.Image:
    """Return an image as it is looked at."""
    return image if header.orientation == 1 else image.transpose(UPRIGHT[header.orientation])


def read_label(
    path: str | Path,
    table: LabelTable = NO_TABLE,
    reading: LabelReading = PLAIN_LABEL,
) -> np.ndarray:
    """Read the ids of a label image, a PNG's checksums verified.

    The ids are the values of 1 or 8 bits of grey, the indices of a palette, or stand in the table
    beside the colours of an RGB image.

    Args:
        path: a file in a lossless format.
        table: of the classes; without one, colours are refused.
        reading: how.
    Returns:
        uint8 [H,W]; uint16 where `reading` allows 16 bits and the file has them.
    Raises:
        UserError: as `opening.opened`, or pixels that are no ids (see `labels`).
    """
    content = read_regular(path)
    if content.startswith(png16.SIGNATURE):
        png16.check_chunks(path, content)
    with opened(path, content) as source:
        refuse_label(path, source.header)
        check_pixels(path, *source.header.size, reading.max_megapixels)
        with decoding(path):
            image = source.pillow()
            image.load()
            return ids_of(path, image, source.header, table, reading)


def colourise(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint train ids in their classes' colours; ids without a colour (ignored) are black
    where no class is.

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

    The file appears under its name only when it is complete. It says that we wrote it, so that a
    palette of greys is known to be there to be looked at.

    Args:
        path: the PNG to write; its folder is made where missing.
        label: uint8 [H,W].
        palette: (r, g, b) in 0..255 for each id; None writes plain greyscale.
    Raises:
        UserError: the folder or the file cannot be written.
    """
    if label.dtype != np.uint8 or label.ndim != 2:
        raise TypeError(f"label must be uint8 [H,W], got {label.dtype} {list(label.shape)}")
    image, about = Image.fromarray(label), PngInfo()
    about.add_text(*MARK)
    if palette is not None:
        image.putpalette(full_palette(palette).tobytes())
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, sync=False) as file:
            # of runs of equal ids: twice as fast as the default, and smaller
            image.save(file, format="PNG", pnginfo=about, compress_type=zlib.Z_RLE)
    except OSError as error:
        raise UserError(f"{path}: cannot write this label: {error.strerror or error}") from error


def full_palette(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return uint8 [256,3]: the palette, then black, or another colour where a class is black."""
    classes = np.reshape(palette, (-1, 3)).astype(np.int64)
    distance = [abs(classes - colour).sum(1).min(initial=999) for colour in VOID_COLOURS]
    table = np.empty((256, 3), np.uint8)
    table[:] = next((c for c, d in zip(VOID_COLOURS, distance, strict=True) if d >= 48), (0, 0, 0))
    table[: len(palette)] = palette
    return table


def why_turned(path: str | Path) -> str:
    """Return what to add to a message about an image's size, where the image is a turned one."""
    with opened(path) as source:
        turned = source.header.orientation
    return "" if turned == 1 else f" (turned by its EXIF orientation {turned})"
