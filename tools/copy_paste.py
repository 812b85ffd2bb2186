"""Paste objects of rare classes onto images that are mostly background, as a new data set.

    python -m tools.copy_paste data/waste --data-list data/waste/folds/fold0_train.txt \\
        --images 500 --classes battery clothing --save data/pasted0 --with-originals

An object is a connected part of a class. For each new image one is drawn of those with the most
background, and some objects of classes drawn evenly; each is scaled, turned, mirrored and laid
where it covers nothing but background, its edge blended. Labels are pasted with hard edges. The
same seed gives the same images, however many there are.

Source: Ghiasi et al. 2021, "Simple Copy-Paste", and the waste reports, that paste files beforehand.
"""

import argparse
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from datasets import DATASETS, open_images
from datasets.base import SegmentationDataset
from datasets.folder import table_of
from datasets.making import Made, making, tell
from datasets.outlines import components
from datasets.walk import split_ending
from engine import data_options, options, parsing, start
from engine.errors import UserError
from inference.outputs import Writers

TRIES = 12  # places that are tried for an object
RICHEST = 0.5  # of the images, those with the most background are pasted onto
BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
MOST = 0.5  # of an image's longer side, an object's after scaling


class Change(NamedTuple):
    """Within which bounds an object is changed: factors, degrees, and pixels of the soft edge."""

    scale: tuple[float, float]
    rotate: float
    blend: float


class Cut(NamedTuple):
    """An object that may be pasted: the image it is of, its class, and where it lies there."""

    index: int
    number: int
    top: int
    left: int
    mask: np.ndarray


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    data_options.add_labelled(parser, DATASETS)
    flag = parser.add_argument
    flag("--save", required=True, metavar="DIR", help="the new data set, of folder's layout")
    flag("--images", type=parsing.at_least(1), required=True, metavar="N", help="to be made")
    flag("--classes", nargs="+", metavar="NAME", help="to paste; default: the rarer half by pixels")
    flag("--background", default="background", metavar="CLASS", help="that is pasted onto; default "
         "%(default)s")  # fmt: skip
    flag("--objects", type=parsing.numbers(int), default=(1, 4), metavar="LOW,HIGH",
         help="in an image; default 1,4")  # fmt: skip
    flag("--scale", type=parsing.scale_range, default=(0.5, 1.5), metavar="LOW,HIGH",
         help="of an object; default 0.5,1.5")  # fmt: skip
    flag("--rotate", type=parsing.between(0, 180), default=30.0, metavar="DEGREES",
         help="at most, either way; default %(default)s")  # fmt: skip
    flag("--blend", type=parsing.between(0, 50), default=1.0, metavar="PIXELS",
         help="the edge's softness, a Gaussian's sigma; default %(default)s")  # fmt: skip
    flag("--min-pixels", type=parsing.at_least(1), default=100, metavar="N",
         help="smaller objects are not pasted; default %(default)s")  # fmt: skip
    flag("--seed", type=parsing.at_least(0), default=0, help="default %(default)s")
    flag("--with-originals", action="store_true", help="put the images themselves there too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Find the objects, paste, write."""
    if len(args.objects) != 2 or not 1 <= args.objects[0] <= args.objects[1]:
        raise UserError(f"--objects: LOW,HIGH with 1 <= LOW <= HIGH expected, got {args.objects}")
    dataset = open_images(data_options.labelled(args), resize_label=False)
    if args.background not in dataset.class_names:
        known = ", ".join(dataset.class_names)
        raise UserError(f"--background {args.background}: no such class; there are: {known}")
    ground = dataset.class_names.index(args.background)
    cuts, counts = find_objects(dataset, args.min_pixels, ground)
    chosen = chosen_classes(dataset, counts, args.classes, ground)
    by_class = {n: [cut for cut in cuts if cut.number == n] for n in chosen}
    if lacking := [dataset.class_names[n] for n, found in by_class.items() if not found]:
        pixels = f"of {args.min_pixels} pixels or more"
        raise UserError(f"{dataset.root}: no object {pixels} of the class {', '.join(lacking)}")
    share = counts[:, ground] / np.maximum(counts.sum(1), 1)
    richest = np.argsort(-share, kind="stable")[: math.ceil(RICHEST * len(dataset))]
    how = Change(args.scale, args.rotate, args.blend)
    pasted, passed = Counter(), Counter()
    with making(args.save, table_of(dataset)) as made, Writers(os.cpu_count() or 1) as write:
        for number in tqdm(range(args.images), disable=None, leave=False):
            rng = np.random.default_rng((args.seed, number))
            index = int(rng.choice(richest))
            image, label = dataset.read(index)
            image = image.copy()
            for _ in range(rng.integers(args.objects[0], args.objects[1] + 1)):
                cut = cuts_of(by_class, rng)
                if paste(image, label, changed(dataset, cut, how, rng), cut.number, ground, rng):
                    pasted[dataset.class_names[cut.number]] += 1
                else:
                    passed["objects found no place on the background (left out)"] += 1
            stem = split_ending(dataset.pairs[index][0])[0].removeprefix("images/")
            write(save, made, f"{stem}_pasted{number:05d}.jpg", image, dataset.train_to_raw[label])
        for index in range(len(dataset)) if args.with_originals else ():
            save_original(made, dataset, index)
    tell(passed)
    shown = ", ".join(f"{count} {name}" for name, count in pasted.most_common())
    print(f"wrote {args.save}: {args.images} images with {shown or 'nothing pasted'}")


def find_objects(
    dataset: SegmentationDataset, min_pixels: int, ground: int
) -> tuple[list[Cut], np.ndarray]:
    """Return the objects that do not touch their image's edge, and the pixels of each class.

    Args:
        dataset: labelled.
        min_pixels: smaller ones are left out.
        ground: the class that is no object.
    Returns:
        the objects, and int64 [N,C].
    """
    cuts, counts = [], np.zeros((len(dataset), dataset.num_classes), np.int64)
    for index in tqdm(range(len(dataset)), disable=None, leave=False):
        label = dataset.read_label(index)
        counts[index] = np.bincount(label.ravel(), minlength=256)[: dataset.num_classes]
        for number, (top, left, mask) in components(label):
            bottom, right = top + mask.shape[0], left + mask.shape[1]
            whole = top > 0 and left > 0 and bottom < label.shape[0] and right < label.shape[1]
            useful = number < dataset.num_classes and number != ground and whole
            if useful and np.count_nonzero(mask) >= min_pixels:
                cuts.append(Cut(index, number, top, left, mask))
    return cuts, counts


def chosen_classes(
    dataset: SegmentationDataset, counts: np.ndarray, names: list[str] | None, ground: int
) -> list[int]:
    """Return the classes that are pasted.

    Raises:
        UserError: there is no such class, or it is the background.
    """
    if names is None:
        seen = [n for n in np.argsort(counts.sum(0), kind="stable").tolist() if n != ground]
        seen = [n for n in seen if counts[:, n].any()]
        return sorted(seen[: math.ceil(len(seen) / 2)])
    for name in names:
        if name not in dataset.class_names or name == dataset.class_names[ground]:
            known = ", ".join(dataset.class_names)
            raise UserError(f"--classes {name}: no such class to paste; there are: {known}")
    return [dataset.class_names.index(name) for name in dict.fromkeys(names)]


def cuts_of(by_class: dict[int, list[Cut]], rng: np.random.Generator) -> Cut:
    """Draw a class, then an object of it."""
    found = by_class[int(rng.choice(list(by_class)))]
    return found[int(rng.integers(len(found)))]


def changed(
    dataset: SegmentationDataset, cut: Cut, how: Change, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, Image.Image]:
    """Return an object scaled, turned and mirrored.

    Args:
        dataset: whose image it is cut from.
        cut: the object.
        how: within which bounds.
        rng: of the choices.
    Returns:
        RGB pixels with some of their surroundings, bool [h,w] which are the object's, and how much
        each counts, a grey image.
    """
    rows, columns = cut.mask.shape
    margin = math.ceil(3 * how.blend) + 1
    image = dataset.read(cut.index)[0]
    box = (
        cut.left - margin,
        cut.top - margin,
        cut.left + columns + margin,
        cut.top + rows + margin,
    )
    pixels, mask = image.crop(box), Image.fromarray(np.pad(cut.mask, margin).view(np.uint8) * 255)
    factor = rng.uniform(*how.scale)
    factor = min(factor, MOST * max(image.size) / max(rows, columns))
    size = tuple(max(1, round(factor * side)) for side in pixels.size)
    pixels, mask = pixels.resize(size, BICUBIC), mask.resize(size, NEAREST)
    angle = rng.uniform(-how.rotate, how.rotate)
    pixels = pixels.rotate(angle, BICUBIC, expand=True)
    mask = mask.rotate(angle, NEAREST, expand=True)
    if rng.random() < 0.5:
        pixels, mask = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (pixels, mask))
    return pixels, np.asarray(mask) > 0, mask.filter(ImageFilter.GaussianBlur(how.blend))


def paste(
    image: Image.Image,
    label: np.ndarray,
    thing: tuple[Image.Image, np.ndarray, Image.Image],
    number: int,
    ground: int,
    rng: np.random.Generator,
) -> bool:
    """Lay an object where it covers background alone; return whether there was a place.

    Args:
        image: changed in place.
        label: uint8 [H,W], changed in place.
        thing: of `changed`.
        number: its class.
        ground: the class that may be covered.
        rng: of the places that are tried.
    """
    pixels, mask, share = thing
    room = [label.shape[i] - mask.shape[i] for i in range(2)]
    if min(room) < 0 or not mask.any():
        return False
    for _ in range(TRIES):
        top, left = (int(rng.integers(0, space + 1)) for space in room)
        inside = label[top : top + mask.shape[0], left : left + mask.shape[1]]
        if (inside[mask] == ground).all():
            image.paste(pixels, (left, top), share)
            inside[mask] = number
            return True
    return False


def save_original(made: Made, dataset: SegmentationDataset, index: int) -> None:
    """Put an image and its label into the new data set."""
    image = dataset.pairs[index][0]
    name = image.removeprefix("images/")
    made.write_label(name, dataset.train_to_raw[dataset.read_label(index)])
    made.place(Path(dataset.root, image), name)


def save(made: Made, name: str, image: Image.Image, ids: np.ndarray) -> None:
    """Write an image and its label."""
    path = made.images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)
    made.write_label(name, ids)


if __name__ == "__main__":
    start.run(main, parse_args)
