"""Labelme: a JSON beside each image.

Polygons, rectangles, circles and masks are drawn as Labelme's own export does (Pillow, outline
included), later over earlier; lines and points have no area. `__ignore__` is ignored.
"""

import base64
import binascii
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import image_size
from datasets.making import check_size
from datasets.opening import opened
from datasets.text import read_json
from datasets.walk import split_ending, walk_files
from engine.errors import UserError
from engine.shapes import Either, Within
from tools.convert.entries import Entry, Export, Images, Region, Shape, cut, drawer, outlined

MAX_PICTURE = 2**26  # bytes
AREAS = ("polygon", "rectangle", "circle", "mask")
FILE = {
    "shapes": [{
        "label": str, "points": [(float, float)], "shape_type?": Either(str, None),
        "mask?": Either(str, None), ...: object,
    }],
    "imageWidth?": Within(1), "imageHeight?": Within(1), ...: object,  # not in old ones
}  # fmt: skip


def read(folder: Path, images: Path | None) -> Export:
    """Read every JSON below a folder; the images lie beside them, or below `images`.

    Raises:
        UserError: no JSON there, or one that is not Labelme's.
    """
    found = walk_files(folder, {".json"}).files
    names = [name for name in found if name != "classes.json"]
    if not names:
        raise UserError(f"{folder}: no JSON here")
    tree, counts, entries = Images(images or folder), Counter(), []
    for name in names:
        path = folder / name
        value = read_json(path, FILE, "annotation of Labelme")
        image = tree.find(split_ending(name)[0] + ".jpg")
        size = value.get("imageWidth"), value.get("imageHeight")
        size = image_size(image) if None in size else size
        check_size(str(path), *size)
        shapes = []
        for one in value["shapes"]:
            form = one.get("shape_type") or "polygon"
            if form not in AREAS:
                counts[f"objects are a {form}, without an area (left out)"] += 1
                continue
            shapes.append(Shape(one["label"], _region(one, form, size, path)))
        labels = {shape.label for shape in shapes}
        draw = drawer(shapes, size, counts, str(path))
        entries.append(Entry(str(path), split_ending(name)[0], labels, draw, image, size))
    return Export(entries, {}, {"__ignore__"}, counts)


def _region(one: dict[str, Any], form: str, size: tuple[int, int], path: Path):
    def region() -> Region | None:
        if form != "mask":
            return outlined(one["points"], size, form=form)
        mask = picture(path, one.get("mask") or "")
        if not one["points"]:
            raise ValueError("a mask without its place")
        left, top = (round(value) for value in one["points"][0])
        return cut(mask, top, left, size)

    return region


def picture(path: Path, text: str, packed: bool = False) -> np.ndarray:
    """Return the mask of a PNG in base64, bool [h,w]: what is neither 0 nor transparent.

    Args:
        path: for messages.
        text: the base64.
        packed: whether zlib has packed it before (Supervisely).
    Raises:
        ValueError: it is no such picture.
    """
    try:
        content = base64.b64decode(text, validate=True)
        if packed:
            content = zlib.decompressobj().decompress(content, MAX_PICTURE)
        with opened(path, content) as source:
            check_size(str(path), *source.header.size)
            image = source.pillow()
            if "A" in image.getbands():
                return np.asarray(image.getchannel("A")) > 0
            return np.asarray(image).reshape(*image.size[::-1], -1).any(-1)
    except (UserError, OSError, binascii.Error, zlib.error) as error:
        raise ValueError(f"no picture in its mask: {error}") from error
