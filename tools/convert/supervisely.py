"""Supervisely: meta.json, and DATASET/ann/IMAGE.json beside DATASET/img/IMAGE.

Polygons with their holes, rectangles and bitmaps, later over earlier; Pillow draws the outlines of
polygons too, as Supervisely does. Lines and points have no area.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from datasets.making import check_size
from datasets.text import read_json
from datasets.walk import walk_files
from engine.errors import UserError
from engine.shapes import Either, Within
from tools.convert.entries import Entry, Export, Region, Shape, cut, drawer, outlined
from tools.convert.labelme import picture

META = {"classes": [{"title": str, "color?": Either(str, None), ...: object}], ...: object}
POINTS = {"exterior": [(float, float)], "interior?": [[(float, float)]], ...: object}
FILE = {
    "size": {"height": Within(1), "width": Within(1), ...: object},
    "objects": [{
        "classTitle": str, "geometryType?": str, "points?": Either(POINTS, None),
        "bitmap?": Either({"data": str, "origin": (int, int), ...: object}, None), ...: object,
    }],
    ...: object,
}  # fmt: skip


def read(folder: Path, images: Path | None) -> Export:
    """Read a project, or one dataset of it beside a meta.json.

    Raises:
        UserError: no meta.json or annotation, one of another kind, or a class that meta.json lacks.
    """
    meta = read_json(folder / "meta.json", META, "meta.json of Supervisely")
    colours = {row["title"]: hex_colour(row.get("color")) for row in meta["classes"]}
    found = [name for name in walk_files(folder, {".json"}).files if "ann" in name.split("/")[:-1]]
    if not found:
        raise UserError(f"{folder}: no annotation in DATASET/ann here")
    counts, entries = Counter(), []
    for name in found:
        path, parts = folder / name, name.split("/")
        value = read_json(path, FILE, "annotation of Supervisely")
        size = value["size"]["width"], value["size"]["height"]
        check_size(str(path), *size)
        at = len(parts) - 2 - parts[-2::-1].index("ann")
        image = "/".join([*parts[:at], "img", *parts[at + 1 :]]).removesuffix(".json")
        shapes = []
        for one in value["objects"]:
            if one["classTitle"] not in colours:
                raise UserError(f"{path}: meta.json has no class {one['classTitle']!r}")
            form = one.get("geometryType") or ("bitmap" if one.get("bitmap") else "polygon")
            if form not in ("polygon", "rectangle", "bitmap"):
                counts[f"objects are a {form}, without an area (left out)"] += 1
                continue
            shapes.append(Shape(one["classTitle"], _region(one, form, size, path)))
        labels = {shape.label for shape in shapes}
        own = "/".join([*parts[:at], *parts[at + 1 :]]).removesuffix(".json")
        draw = drawer(shapes, size, counts, str(path))
        entries.append(Entry(str(path), own, labels, draw, (images or folder) / image, size))
    return Export(entries, colours, set(), counts)


def hex_colour(text: str | None) -> tuple[int, int, int] | None:
    """Return red, green and blue of `#RRGGBB`; None of anything else."""
    try:
        return tuple(bytes.fromhex((text or "").removeprefix("#")[:6].ljust(6, "-")))
    except ValueError:
        return None


def _region(one: dict[str, Any], form: str, size: tuple[int, int], path: Path):
    def region() -> Region | None:
        if form == "bitmap":
            if not one.get("bitmap"):
                raise ValueError("a bitmap without its data")
            left, top = one["bitmap"]["origin"]
            return cut(picture(path, one["bitmap"]["data"], packed=True), top, left, size)
        if not one.get("points"):
            raise ValueError(f"a {form} without points")
        points = one["points"]
        return outlined(points["exterior"], size, points.get("interior", ()), form)

    return region
