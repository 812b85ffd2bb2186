"""What every format gives: an entry for each image, whose label can be drawn."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets import outlines
from datasets.headers import SUFFIXES
from datasets.outlines import Region
from datasets.walk import Partners
from engine.errors import UserError

Draw = Callable[[Mapping[str, int], int], np.ndarray]
FAR = 1e6  # pixels; Pillow draws no corner that is further away


class Entry(NamedTuple):
    """An image that was annotated.

    Attributes:
        where: the annotation stands, for messages.
        name: of the image, as a safe path; its ending does not matter.
        classes: that its annotation names.
        draw: returns the label map, uint8 [H,W], from the classes' ids and the id of the rest.
        image: the file, where it is known.
        size: width and height that the annotation states; None where it states none.
    """

    where: str
    name: str
    classes: set[str]
    draw: Draw
    image: Path | None = None
    size: tuple[int, int] | None = None


class Export(NamedTuple):
    """What was read of a format.

    Attributes:
        entries: of the images.
        colours: of the classes, where the format has some; their order is that of the ids.
        ignored: names that mean: neither trained nor scored.
        counts: of what is passed by while drawing.
        background: whether what nobody has annotated is a class of its own.
    """

    entries: list[Entry]
    colours: dict[str, tuple[int, int, int] | None]
    ignored: set[str]
    counts: Counter
    background: bool = True


class Shape(NamedTuple):
    """What is painted: the name of its class, and a function that finds its pixels."""

    label: str
    region: Callable[[], Region | None]


def drawer(shapes: Sequence[Shape], size: tuple[int, int], counts: Counter, where: str) -> Draw:
    """Return a function that paints shapes, each over those before it."""

    def draw(id_of: Mapping[str, int], rest: int) -> np.ndarray:
        label = np.full(size[::-1], rest, np.uint8)
        for number, shape in enumerate(shapes):
            try:
                region = shape.region()
            except ValueError as error:
                raise UserError(f"{where}: object {number} ({shape.label}): {error}") from error
            if region is None:
                counts["objects have no pixel in their image (left out)"] += 1
            else:
                region.paint(label, id_of[shape.label])
        return label

    return draw


def scanned(points: Sequence[Sequence[float]], size: tuple[int, int]) -> Region | None:
    """Return a polygon's pixels as COCO's tools find them (CVAT's own export)."""
    return outlines.polygon(checked(points), size[1], size[0])


def checked(points: Any, most: float = FAR) -> np.ndarray:
    """Return points as float64 [K,2].

    Raises:
        ValueError: they are none, or far from any image.
    """
    try:
        array = np.array(points)
    except ValueError:
        array = np.array("")
    if array.shape == (0,):
        return np.empty((0, 2))
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise ValueError("points are no list of [x, y]")
    if not (np.abs(array) < most).all():
        raise ValueError(f"a point lies beyond {most:g} pixels")
    return array.astype(np.float64)


def outlined(
    points: Sequence[Sequence[float]],
    size: tuple[int, int],
    holes: Iterable[Sequence[Sequence[float]]] = (),
    form: str = "polygon",
) -> Region | None:
    """Return pixels as Pillow draws them, the outline included (Labelme's and Supervisely's own).

    Args:
        points: x, y of a polygon's corners; of two corners of a rectangle; of a circle's middle and
            a point on it.
        size: width and height of the image.
        holes: polygons that are cut out again, with their outlines.
        form: polygon, rectangle or circle.
    """
    corners = checked(points)
    if len(corners) < (3 if form == "polygon" else 2):
        return None
    if form != "polygon" and len(corners) != 2:
        raise ValueError(f"a {form} of {len(corners)} points; 2 are expected")
    spread = math.dist(*corners) if form == "circle" else 0
    middle = corners[:1] if form == "circle" else corners
    low = np.maximum(np.floor(middle.min(0) - spread) - 1, 0).astype(int)
    high = np.minimum(np.ceil(middle.max(0) + spread) + 2, size).astype(int)
    if (high <= low).any():
        return None
    image = Image.new("L", size)  # whole: Pillow rounds by the distance from its edges
    pen = ImageDraw.Draw(image)
    if form == "circle":
        x, y = corners[0].tolist()
        pen.ellipse((x - spread, y - spread, x + spread, y + spread), outline=1, fill=1)
    elif form == "rectangle":
        pen.rectangle([tuple(corners.min(0)), tuple(corners.max(0))], outline=1, fill=1)
    else:
        pen.polygon(list(map(tuple, corners.tolist())), outline=1, fill=1)
    for hole in holes:
        if len(hole) > 2:
            pen.polygon(list(map(tuple, checked(hole).tolist())), outline=0, fill=0)
    box = (*low.tolist(), *high.tolist())
    return cut(np.asarray(image.crop(box)) > 0, box[1], box[0], size)


def cut(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> Region | None:
    """Return a mask, bool [h,w], at its place, what lies outside the image cut off."""
    width, height = size
    mask = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    top, left = max(0, top), max(0, left)
    return Region(top, left, mask) if mask.any() else None


class Images:
    """The photographs, found by the names of what was annotated.

    Args:
        folder: of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.partners = folder, Partners(folder, SUFFIXES)

    def find(self, name: str) -> Path:
        """Return the photograph of this name, whatever its ending; it need not be there."""
        return self.folder / (self.partners.same(name) or self.partners.find(name) or name)
