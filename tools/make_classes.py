"""Write classes.json for a folder of label maps, from the ids or the colours that they hold.

    python -m tools.make_classes data/mine

Reads every label below DIR/labels (below DIR where there is no such folder), counts what they hold,
and writes DIR/classes.json with a row a class, to be given names by hand. An id of 255 beside two
others and more is ignored. A table that is there already is left as it is.
"""

import argparse
import colorsys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets import files
from datasets.base import IGNORE, MAX_CLASSES
from datasets.headers import LOSSLESS_SUFFIXES
from datasets.labels import NO_TABLE, refuse_label
from datasets.making import show_table
from datasets.opening import opened
from datasets.reading import LabelReading
from datasets.walk import summary, walk_files
from engine import options, start
from engine.errors import UserError
from engine.files import write_text

Colour = tuple[int, int, int]


class Found(NamedTuple):
    """What a label holds.

    Attributes:
        values: ids, or colours -> pixels.
        palette: colours of the ids, where the file has some.
    """

    values: dict[int | Colour, int]
    palette: dict[int, Colour]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("folder", metavar="DIR", help="with labels/, or the labels' own folder")
    parser.add_argument(
        "--label-values",
        choices=["auto", "ids", "colours"],
        default="auto",
        help="what a palette stands for; colours takes its colours and not its indices; "
        "default %(default)s",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, count, write."""
    root = Path(args.folder)
    path = root / "classes.json"
    if path.exists():
        raise UserError(f"{path} exists already: remove it to have a new one")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    pixels, labels, palette = read_all(root, args.label_values)
    table = make_table(root, pixels, palette)
    print_counts(pixels, labels)
    write_text(path, show_table(table))
    ignored = f", {len(table['ignore'])} id ignored" if table["ignore"] else ""
    print(f"wrote {path}: {len(table['classes'])} classes{ignored}; give them names there")
    if args.label_values != "auto":
        print(f"train with the dataset option label_values={args.label_values}")


def read_all(root: Path, values: str) -> tuple[Counter, Counter, dict[int, Colour]]:
    """Return the pixels and the labels that hold each id or colour, and the ids' colours.

    Raises:
        UserError: no label, one that cannot be read, more classes than there may be, ids in one
            label and colours in another, or palettes that differ.
    """
    folder = root / "labels" if (root / "labels").is_dir() else root
    walk = walk_files(folder, LOSSLESS_SUFFIXES)
    if not walk.files:
        left_out = summary(walk.left_out) or "nothing"
        raise UserError(f"{folder}: no label here (left out: {left_out}); PNG or TIFF is expected")
    pixels, labels, palette, first = Counter(), Counter(), {}, {}
    for name in tqdm(walk.files, disable=None, leave=False):
        path = folder / name
        found = read_one(path, values)
        for kind in {type(value) for value in found.values}:
            first.setdefault(kind, path)
        if len(first) > 1:
            raise UserError(f"{first[int]} holds ids, {first[tuple]} colours: save all alike")
        for number, colour in found.palette.items():
            if palette.setdefault(number, colour) != colour:
                raise UserError(
                    f"{path}: entry {number} of its palette is {colour}, in labels before "
                    f"{palette[number]}: the indices are no ids; give --label-values colours"
                )
        pixels.update(found.values)
        labels.update(found.values.keys())
        if len(pixels) > MAX_CLASSES + 1:  # and 255
            raise UserError(
                f"{path}: with this label there are more than {MAX_CLASSES} ids or colours: a "
                "photograph, or a label whose edges are blurred"
            )
    return pixels, labels, palette


def read_one(path: Path, values: str) -> Found:
    """Return what a label holds.

    Raises:
        UserError: it cannot be read as ids or colours.
    """
    with opened(path) as source:
        refuse_label(path, source.header)
        kind = source.header.kind
        colours = source.pillow().getpalette() if kind == "palette" else None
    if kind == "RGB" or values == "colours":
        rgb = np.asarray(files.read_image(path)).reshape(-1, 3).astype(np.uint32)
        codes, counts = np.unique(rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2], return_counts=True)
        if len(codes) > 2**12:  # before a photograph's are made a dict of
            raise UserError(f"{path}: {len(codes)} colours: a photograph, or blurred")
        tuples = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
        return Found(dict(zip(tuples, counts.tolist(), strict=True)), {})
    ids = files.read_label(path, NO_TABLE, LabelReading(values=values))
    counts = np.bincount(ids.ravel(), minlength=256)
    held = {number: int(counts[number]) for number in counts.nonzero()[0].tolist()}
    if colours is None:
        return Found(held, {})
    return Found(held, {n: tuple(colours[3 * n : 3 * n + 3]) for n in held if n != IGNORE})


def make_table(root: Path, pixels: Counter, palette: dict[int, Colour]) -> dict:
    """Return what classes.json will hold.

    Args:
        root: for messages.
        pixels: ids or colours -> how many.
        palette: of the ids, where files have colours.
    Raises:
        UserError: fewer than two classes.
    """
    values = sorted(pixels)
    ignored = [IGNORE] if IGNORE in values and len(values) > 2 else []
    chosen = [value for value in values if value not in ignored]
    if len(chosen) < 2:
        raise UserError(f"{root}: all labels hold {chosen[0]} and nothing else: two are needed")
    classes = []
    for i, value in enumerate(chosen):
        number, colour = (value, palette.get(value)) if isinstance(value, int) else (i, value)
        colour = colour or distinct_colour(i)
        classes.append({"id": number, "name": f"class {number}", "color": list(colour)})
    return {"classes": classes, "ignore": ignored}


def distinct_colour(number: int) -> Colour:
    """Return a colour that is told from those of the numbers near by."""
    hue, value = number * 0.618034 % 1, (1.0, 0.75, 0.5)[number % 3]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, value))


def print_counts(pixels: Counter, labels: Counter) -> None:
    """Print how much of all pixels each id or colour has, and how many labels hold it."""
    total = pixels.total()
    print(f"{'id or colour':>16}  {'pixels':>8}  labels")
    for value in sorted(pixels):
        share = 100 * pixels[value] / total
        print(f"{str(value).replace(' ', ''):>16}  {share:6.2f} %  {labels[value]}")


if __name__ == "__main__":
    start.run(main, parse_args)
