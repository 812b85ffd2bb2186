"""Turn COCO annotations into label maps and classes.json, as `--recipe folder` trains on.

    python -m tools.coco_to_masks annotations.json --images photographs --save data/waste

Writes DIR/labels/NAME.png (the classes' ids, in colours), DIR/classes.json and, with --images,
DIR/images/NAME (second names of the same files, copies on another disk). Without --images the
photographs are expected, or lie already, in DIR/images. Id 0 is the background, 1, 2 ... are the
categories by their ids. Polygons and run lengths cover the pixels that COCO's own tools give them:
the parts of one annotation are joined, and a hole is another annotation that is painted later.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.base import IGNORE
from datasets.coco import CocoFile, Entry, Object
from datasets.making import Made, check_own_size, colours, making, table_of_names, tell
from engine import options, start
from engine.errors import UserError
from engine.start import printable
from inference.outputs import Writers

BACKGROUND = "background"
MAX_NAMES = 254


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("annotations", metavar="FILE", help="COCO's instances, JSON")
    flag("--save", required=True, metavar="DIR", help="the data set's folder")
    flag("--images", metavar="DIR", help="that the file names are relative to; their sizes are "
         "compared, and they are put into the data set")  # fmt: skip
    flag("--split", choices=["train", "val", "test"], help="the subfolder of images/ and labels/")
    flag("--order", choices=["file", "area"], default="file", help="which of two annotations of "
         "a pixel wins: the later one, or the smaller one; default %(default)s")  # fmt: skip
    flag("--crowds", choices=["paint", "ignore", "skip"], default="paint", help="what annotations "
         "with iscrowd are: their class, 255 (not trained), nothing; default "
         "%(default)s")  # fmt: skip
    flag("--background", choices=["class", "ignore"], default="class", help="what other pixels "
         "are: id 0 (a category of that name, if there is one), or 255; default "
         "%(default)s")  # fmt: skip
    flag("--by", choices=["name", "supercategory"], default="name", help="what makes a class; "
         "default %(default)s")  # fmt: skip
    flag("--skip-missing", action="store_true", help="leave out images that --images lacks")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, paint, write."""
    coco = CocoFile(args.annotations)
    names, id_of = classes_of(coco, args.by, args.background == "class")
    entries = present(coco, args.images, args.skip_missing)
    pixels, holding = np.zeros(256, np.int64), np.zeros(256, np.int64)
    how = (args.background, args.order, args.crowds)
    table = table_of_names(names, colours(len(names)))
    with (
        making(args.save, table, args.split, args.images) as made,
        Writers(os.cpu_count() or 1) as write,
    ):
        for entry in tqdm(entries, disable=None, leave=False):
            if not len(entry.annotations):
                coco.counts["images have no annotation (background alone)"] += 1
            label = painted(entry, coco.objects(entry), id_of, *how)
            counts = np.array(Image.fromarray(label).histogram())
            pixels, holding = pixels + counts, holding + (counts > 0)
            write(save_one, made, entry, label, args.images)
    tell(coco.counts)
    show(names, pixels, holding)
    print(f"wrote {args.save}: {len(entries)} labels of {len(names)} classes")


def classes_of(coco: CocoFile, by: str, background: bool) -> tuple[list[str], dict[int | str, int]]:
    """Return the classes' names, and the id of every category.

    Args:
        coco: the file.
        by: name or supercategory.
        background: whether there is a class for what nobody has annotated.
    Raises:
        UserError: a name that stands twice, or of no text; one class, or too many.
    """
    rows = sorted(coco.categories.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    names: list[str] = [BACKGROUND] if background else []
    id_of = {}
    for number, row in rows:
        name = row.get(by)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{coco.path}: category {number!r} has no {by}")
        if background and name.lower() == BACKGROUND:
            name = names[0]
        elif name in names and by == "name":
            raise UserError(f"{coco.path}: two categories have the name {name!r}")
        if name not in names:
            names.append(name)
        id_of[number] = names.index(name)
    if not 2 <= len(names) <= MAX_NAMES:
        raise UserError(f"{coco.path}: {len(names)} classes; 2 to {MAX_NAMES} are allowed")
    return names, id_of


def present(coco: CocoFile, images: str | None, skip_missing: bool) -> list[Entry]:
    """Return the images of which there are labels to write, their files looked at if need be.

    Raises:
        UserError: an image is missing, unreadable or of another size; there is none.
    """
    if images is None:
        return coco.entries
    if not Path(images).is_dir():
        raise UserError(f"{images}: no such folder")
    there = []
    for entry in coco.entries:
        path = Path(images, entry.name)
        if path.is_file():
            check_own_size(path, str(coco.path), entry.width, entry.height)
            there.append(entry)
        elif not skip_missing:
            raise UserError(f"{path}: no such image, of {coco.path}; --skip-missing leaves it out")
    coco.counts["images are missing (left out)"] += len(coco.entries) - len(there)
    if not there:
        raise UserError(f"{images}: none of the images of {coco.path} lies here")
    return there


def painted(
    entry: Entry,
    objects: Iterable[Object],
    id_of: dict[int | str, int],
    background: str,
    order: str,
    crowds: str,
) -> np.ndarray:
    """Return a label map, uint8 [H,W].

    Args:
        entry: the image.
        objects: its annotations.
        id_of: of every category.
        background: class or ignore.
        order: file or area.
        crowds: paint, ignore or skip.
    """
    empty = 0 if background == "class" else IGNORE
    label = np.full((entry.height, entry.width), empty, np.uint8)
    if order == "area":  # the smaller ones later
        objects = sorted(objects, key=lambda one: -np.count_nonzero(one.region.mask))
    for one in objects:
        if not one.crowd or crowds == "paint":
            one.region.paint(label, id_of[one.category])
        elif crowds == "ignore":
            one.region.paint(label, IGNORE)
    return label


def save_one(made: Made, entry: Entry, label: np.ndarray, images: str | None) -> None:
    """Write a label, and put its image beside it."""
    made.write_label(entry.name, label)
    if images is not None:
        made.place(Path(images, entry.name), entry.name)


def show(names: list[str], pixels: np.ndarray, holding: np.ndarray) -> None:
    """Print how much of all pixels each class has, and how many images hold it."""
    print(f"{'class':>24}  {'pixels':>9}  images")
    for number, name in [*enumerate(names), (IGNORE, "ignored")]:
        if number != IGNORE or pixels[number]:
            share = 100 * pixels[number] / max(1, pixels.sum())
            print(f"{printable(name):>24}  {share:7.3f} %  {holding[number]}")


if __name__ == "__main__":
    start.run(main, parse_args)
