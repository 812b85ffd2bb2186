"""The files of one image on a page: photograph, thumbnails, and maps that the script recolours.

    photographs/N.jpg      at most `LONGEST` pixels long
    thumbs/N.jpg           the photograph, small
    thumbs/N_R.jpg         where network R is wrong, in orange over the grey photograph; without
                           labels where it is unsure
    maps/N.js              truth: PNG of train ids, base64
    maps/N_R.js            pred: the same of network R; confidence: JPEG of 0..255 at half the size

N is the image's number and R the network's, so that no name of a file has to be a name of a file.
"""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from engine.errors import UserError
from engine.files import read_regular, whole

LONGEST = 1024  # pixels
THUMB = (176, 132)
PHOTOGRAPH_BYTES = 64_000  # what a photograph may take; its quality falls until it does
QUALITIES = (82, 70, 55, 40)
ORANGE = (255, 150, 0)
BEFORE = "document.currentScript.maps="  # each script hands its maps over on its own element


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the width and height in which an image is shown."""
    share = min(1.0, LONGEST / max(height, width))
    return max(1, round(width * share)), max(1, round(height * share))


def write_photograph(
    folder: Path, number: int, photograph: Image.Image, size: tuple
) -> Image.Image:
    """Write an image and its thumbnail, and return the thumbnail.

    Args:
        folder: of the page.
        number: of the image.
        photograph: RGB.
        size: width, height; see `shown_size`.
    """
    photograph = photograph.resize(size, Image.Resampling.BILINEAR)
    for quality in QUALITIES:
        encoded = _encoded(photograph, "JPEG", quality=quality)
        if len(encoded) <= PHOTOGRAPH_BYTES:
            break
    _write(folder / "photographs" / f"{number}.jpg", encoded)
    photograph.thumbnail(THUMB)
    _write(folder / "thumbs" / f"{number}.jpg", _encoded(photograph, "JPEG", quality=70))
    return photograph


def write_truth(folder: Path, number: int, truth: np.ndarray, size: tuple) -> None:
    """Write the labels of an image, uint8 [H,W]."""
    _write_maps(folder / "maps" / f"{number}.js", {"truth": _png(truth, size)})


def write_seen(
    folder: Path,
    place: str,
    pred: np.ndarray,
    confidence: np.ndarray | None,
    size: tuple,
) -> None:
    """Write what a network sees.

    Args:
        folder: of the page.
        place: N_R.
        pred: uint8 [H,W], train ids.
        confidence: float32 [H,W], 0 to 1.
        size: width, height of the page's pictures.
    """
    maps = {"pred": _png(pred, size)}
    if confidence is not None:
        half = tuple(-(-side // 2) for side in size)
        grey = Image.fromarray(np.rint(255 * confidence).astype(np.uint8))
        grey = grey.resize(half, Image.Resampling.BOX)
        maps["confidence"] = _base64(_encoded(grey, "JPEG", quality=75))
    _write_maps(folder / "maps" / f"{place}.js", maps)


def write_mistakes(folder: Path, place: str, small: Image.Image, weight: np.ndarray) -> None:
    """Write the thumbnail that shows where to look.

    Args:
        folder, place: see `write_seen`.
        small: the photograph's thumbnail.
        weight: [H,W], 0 where all is well, 1 where the colour is to be full.
    """
    pixels = np.asarray(small.convert("L"), np.float32)[..., None] * 0.6
    share = Image.fromarray(np.asarray(weight, np.float32)).resize(small.size, Image.Resampling.BOX)
    share = np.asarray(share)[..., None]
    drawn = (1 - share) * pixels + share * np.float32(ORANGE)
    image = Image.fromarray(np.rint(drawn).astype(np.uint8))
    _write(folder / "thumbs" / f"{place}.jpg", _encoded(image, "JPEG", quality=70))


def read_ids(path: Path, name: str) -> np.ndarray:
    """Return the map `name` of a script of `write_truth` or `write_seen`, uint8 [H,W].

    Raises:
        UserError: it is missing or damaged.
    """
    content = read_regular(path).decode(errors="replace")
    try:
        if not content.startswith(BEFORE):
            raise ValueError("another beginning")
        maps = json.loads(content.removeprefix(BEFORE).rstrip(";\n"))
        with Image.open(io.BytesIO(base64.b64decode(maps[name]))) as image:
            return np.asarray(image.convert("L"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a map of a page of ours: {error}") from error


def _png(ids: np.ndarray, size: tuple) -> str:
    image = Image.fromarray(ids)
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    # of runs of equal ids, as `datasets.write_label_png`
    return _base64(_encoded(image, "PNG", compress_type=zlib.Z_RLE))


def _encoded(image: Image.Image, kind: str, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _write_maps(path: Path, maps: dict[str, str]) -> None:
    _write(path, f"{BEFORE}{json.dumps(maps)};\n".encode())


def _write(path: Path, content: bytes) -> None:
    try:
        with whole(path, sync=False) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
