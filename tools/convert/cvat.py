"""CVAT for images 1.1: one XML with an `image` for each.

Polygons, boxes and masks, by their z_order and then later over earlier; polygons and boxes cover
what COCO's tools say, as in CVAT's own export of masks. Lines, points and ellipses are left out.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np

from datasets.making import check_size, safe_name
from engine.errors import UserError
from engine.files import open_regular
from tools.convert.entries import Entry, Export, Images, Region, Shape, cut, drawer, scanned
from tools.convert.supervisely import hex_colour

AREAS = ("polygon", "box", "mask")
OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton")


def read(path: Path, images: Path | None) -> Export:
    """Read annotations.xml, or the one in a folder.

    Raises:
        UserError: no XML of this kind; an image whose name leaves the folder.
    """
    path = path / "annotations.xml" if path.is_dir() else path
    beside = path.parent / "images"
    tree = Images(images or (beside if beside.is_dir() else path.parent))
    entries, counts, colours = [], Counter(), {}
    for number, element in enumerate(elements(path)):
        if element.tag == "label":
            name = element.findtext("name")
            if name:
                colours.setdefault(name, hex_colour(element.findtext("color")))
            continue
        where = f"{path}: image {element.get('name') or number}"
        name = safe_name(element.get("name") or "", where)
        size = (whole(element, "width", where), whole(element, "height", where))
        check_size(where, *size)
        shapes = []
        for one in element:
            if one.tag in AREAS:
                order = whole(one, "z_order", where, 0)
                label = one.get("label")
                if not label:
                    raise UserError(f"{where}: a {one.tag} without a label")
                shapes.append((order, Shape(label, _region(one, size))))
            elif one.tag in OTHERS:
                counts[f"objects are a {one.tag} (left out)"] += 1
        shapes = [shape for _, shape in sorted(shapes, key=lambda pair: pair[0])]
        labels = {shape.label for shape in shapes}
        draw = drawer(shapes, size, counts, where)
        entries.append(Entry(where, name, labels, draw, tree.find(name), size))
    if not entries:
        raise UserError(f"{path}: no image in it (CVAT for images 1.1 is read, not for video)")
    return Export(entries, colours, set(), counts)


def elements(path: Path):
    """Yield the labels and images of an XML, one after another.

    Raises:
        UserError: no XML, or one that defines entities.
    """
    try:
        with open_regular(path) as file:
            head = file.read(4096)
            if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
                raise UserError(f"{path}: an XML that defines a document type is not read")
            file.seek(0)
            for _, element in ElementTree.iterparse(file):
                if element.tag in ("label", "image"):
                    yield element
                    if element.tag == "image":
                        element.clear()
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: no XML: {error}") from error


def whole(element: ElementTree.Element, key: str, where: str, default: int | None = None) -> int:
    """Return a whole number of an element."""
    text = element.get(key)
    if text is None and default is not None:
        return default
    if not re.fullmatch(r"-?\d{1,9}", text or ""):
        raise UserError(f"{where}: {key} is {text!r}, a whole number expected")
    return int(text)


def numbers(text: str | None, kind: type, separators: str) -> list:
    """Return the numbers of a text.

    Raises:
        ValueError: something else is in it.
    """
    return [kind(part) for part in re.split(separators, (text or "").strip()) if part.strip()]


def _region(one: ElementTree.Element, size: tuple[int, int]):
    given = dict(one.attrib)  # the element is emptied before it is drawn

    def region() -> Region | None:
        if one.tag == "polygon":
            values = numbers(given.get("points"), float, "[,;]")
            if len(values) % 2:
                raise ValueError(f"a polygon of {len(values)} numbers")
            return scanned(np.reshape(values, (-1, 2)), size)
        if one.tag == "box":
            if float(given.get("rotation") or 0):
                raise ValueError("a box that is rotated; draw it as a polygon")
            left, top, right, bottom = (float(given[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
            return scanned([(left, top), (right, top), (right, bottom), (left, bottom)], size)
        left, top, width, height = (int(given[key]) for key in ("left", "top", "width", "height"))
        if width < 1 or height < 1 or width * height > size[0] * size[1]:
            raise ValueError(f"a mask of {width}x{height} pixels")
        runs = np.array(numbers(given.get("rle"), int, ","), np.int64)
        if (runs < 0).any() or runs.sum() != width * height:
            raise ValueError(f"run lengths of {runs.sum()} pixels, the mask has {width * height}")
        values = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return cut(values, top, left, size)

    def named() -> Region | None:
        try:
            return region()
        except KeyError as error:
            raise ValueError(f"a {one.tag} without {error}") from error

    return named
