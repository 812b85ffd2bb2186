"""Turn annotations of other programs into label maps and classes.json, for `--recipe folder`.

    python -m tools.convert labelme work/json --save data/mine
    python -m tools.convert cvat annotations.xml --images work/images --save data/mine
    python -m tools.convert supervisely work/project --save data/mine
    python -m tools.convert voc SegmentationClass --images JPEGImages --save data/voc
    python -m tools.convert colours work/masks --table colours.txt --images work/img --save data/x
    python -m tools.convert binary work/masks --images work/images --save data/mine

Id 0 is the background where nothing is drawn, 1, 2 ... are the classes in the order of the export's
own table, else by name. A table of colours is a classes.json, or lines of a name and three numbers.
Binary masks of several classes lie in a folder each, the later ones over the earlier.
(COCO: `python -m tools.coco_to_masks`.)
"""

import argparse
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.base import IGNORE
from datasets.making import Made, check_own_size, colours, making, safe_name, table_of_names, tell
from datasets.walk import split_ending
from engine import options, parsing, start
from engine.errors import UserError
from inference.outputs import Writers
from tools.convert import cvat, labelme, painted, supervisely
from tools.convert.entries import Entry, Export

FORMATS = ("labelme", "cvat", "supervisely", "voc", "colours", "binary")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("format", choices=FORMATS)
    flag("input", metavar="PATH", help="of the annotations: a folder, or CVAT's XML")
    flag("--save", required=True, metavar="DIR", help="the data set's folder")
    flag("--images", metavar="DIR", help="the photographs; default: where the format has them")
    flag("--split", choices=["train", "val", "test"], help="the subfolder of images/ and labels/")
    flag("--table", metavar="FILE", help="colours: the classes' colours")
    flag("--threshold", type=parsing.at_least(1), metavar="N", help="binary: values from N on")
    flag("--name", default="object", help="binary: the class; default %(default)s")
    flag("--classes", nargs="+", metavar="NAME", help="the classes in this order, and no other")
    flag(
        "--background",
        choices=["class", "ignore"],
        default="class",
        help="what is not drawn on: id 0, or 255; default %(default)s",
    )
    flag("--skip-missing", action="store_true", help="leave out what has no image")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, draw, write."""
    if (args.table is None) != (args.format != "colours"):
        raise UserError("--table belongs to colours, which need it")
    if args.threshold and args.format != "binary":
        raise UserError("--threshold belongs to binary")
    export = read(args)
    names = class_names(export, args.classes, args.background == "class")
    id_of = {name: number for number, name in enumerate(names)}
    id_of |= dict.fromkeys(export.ignored, IGNORE)
    rest = 0 if export.background and args.background == "class" else IGNORE
    entries = present(export, args.skip_missing)
    given = [export.colours.get(name) for name in names]
    whole_table = None not in given and len(set(given)) == len(given)
    palette = given if whole_table else colours(len(names))
    table = table_of_names(names, palette)
    with (
        making(args.save, table, args.split, args.images) as made,
        Writers(os.cpu_count() or 1) as write,
    ):
        for entry in tqdm(entries, disable=None, leave=False):
            label = entry.draw(id_of, rest)
            if entry.image is not None:
                check_own_size(entry.image, entry.where, *label.shape[::-1])
            write(save_one, made, entry, label)
    tell(export.counts)
    print(f"wrote {args.save}: {len(entries)} labels of {len(names)} classes ({', '.join(names)})")


def read(args: argparse.Namespace) -> Export:
    """Return what the annotations hold.

    Raises:
        UserError: a folder that is not there, or as the formats' readers.
    """
    path, images = Path(args.input), Path(args.images) if args.images else None
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such folder")
    if not (path.is_dir() or (args.format == "cvat" and path.is_file())):
        raise UserError(f"{path}: no such folder")
    if args.format == "binary":
        return painted.read_masks(path, images, args.threshold, args.name)
    if args.format in ("voc", "colours"):
        return painted.read_colours(path, images, args.table or "voc")
    return {"labelme": labelme, "cvat": cvat, "supervisely": supervisely}[args.format].read(
        path, images
    )


def class_names(export: Export, given: list[str] | None, background: bool) -> list[str]:
    """Return the classes in the order of their ids.

    Raises:
        UserError: an annotation names a class that was not given; one class, or too many.
    """
    named = {name for entry in export.entries for name in entry.classes}
    names = [*export.colours, *sorted(named - export.colours.keys())]
    first = ["background"] if export.background and background else []
    if given is not None:
        for entry in export.entries:
            if unknown := sorted(entry.classes - {*given, *first, *export.ignored}):
                raise UserError(f"{entry.where}: the class {unknown[0]!r} is not in --classes")
        names = given
    names = first + [name for name in names if name not in {*export.ignored, *first}]
    if len(set(names)) < len(names) or not 2 <= len(names) <= 254:
        raise UserError(
            f"{len(names)} classes ({', '.join(names[:9])}); 2 to 254 unlike each other"
        )
    return names


def present(export: Export, skip_missing: bool) -> list[Entry]:
    """Return the entries whose images are there, if images are to be.

    Raises:
        UserError: one is missing, or two would have the same label.
    """
    kept: list[Entry] = []
    stems: dict[str, str] = {}
    for entry in export.entries:
        if entry.image is not None and not entry.image.is_file():
            if not skip_missing:
                image = f"its image {entry.image} is missing"
                raise UserError(f"{entry.where}: {image}; --skip-missing leaves it out")
            export.counts["images are missing (left out)"] += 1
            continue
        stem = split_ending(safe_name(entry.name, entry.where))[0]
        if stem in stems:
            raise UserError(f"{entry.where} and {stems[stem]} would have the same label")
        stems[stem] = entry.where
        kept.append(entry)
    if not kept:
        raise UserError("none of the images is there")
    return kept


def save_one(made: Made, entry: Entry, label: np.ndarray) -> None:
    """Write a label, and put its image beside it."""
    name = entry.name
    if entry.image is not None:
        name = split_ending(entry.name)[0] + split_ending(entry.image.name)[1]
        made.place(entry.image, name)
    made.write_label(name, label)


if __name__ == "__main__":
    start.run(main, parse_args)
