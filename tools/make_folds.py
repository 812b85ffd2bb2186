"""Divide labelled images into folds whose classes are alike, as lists that the commands take.

    python -m tools.make_folds data/waste --folds 5 --save data/waste/folds
    python train_seg.py --recipe folder --data-dir data/waste \\
        --data-list data/waste/folds/fold0_train.txt --val-list data/waste/folds/fold0_val.txt ...

Alike are the shares of images that hold a class and of its pixels. `--group` keeps images together
that resemble each other, frames of one film or crops of one photograph: by what a regular
expression finds in their names (its first group, else all of it), or by a CSV of image and group.
The same images and flags give the same folds. folds.json says how the folds differ.
"""

import argparse
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from datasets import DATASETS, open_images
from datasets.base import SegmentationDataset
from datasets.folds import divide
from datasets.statistics import class_counts
from datasets.text import read_text
from datasets.walk import CONTROLS
from engine import data_options, options, parsing, start
from engine.errors import UserError
from engine.files import write_text
from engine.start import printable
from engine.values import Loading
from inference.outputs import whole_folder, writable_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    data_options.add_labelled(parser, DATASETS)
    flag = parser.add_argument
    flag("--save", required=True, metavar="DIR", help="for the lists")
    flag("--folds", type=parsing.at_least(2), default=5, help="default %(default)s")
    flag("--group", metavar="REGEX|FILE.csv", help="what keeps images together; default: nothing")
    flag("--seed", type=parsing.at_least(0), default=0, help="default %(default)s")
    flag("--num-workers", type=parsing.at_least(0), default=0, help="default %(default)s")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Count, divide, write, and say how alike the folds are."""
    dataset, folds = open_images(data_options.labelled(args), resize_label=False), args.folds
    keys = group_keys(dataset, args.group)
    names = sorted(set(keys))
    if len(names) < folds:
        raise UserError(f"{len(names)} groups of images cannot become {folds} folds")
    folder = writable_folder(args.save)
    if there := sorted(path.name for path in folder.glob("fold*")):
        raise UserError(f"{folder / there[0]} exists already: remove it, or give another folder")
    counts = class_counts(dataset, folder, Loading(args.num_workers, 0)).numpy()
    place = {name: number for number, name in enumerate(names)}
    groups = np.array([place[key] for key in keys])
    fold_of = divide(counts, groups, folds, args.seed)
    about = described(dataset, counts, fold_of, folds)
    with whole_folder(folder) as unfinished:
        for fold in range(folds):
            for part, chosen in (("train", fold_of != fold), ("val", fold_of == fold)):
                lines = (list_line(dataset, i) for i in np.flatnonzero(chosen))
                write_text(unfinished / f"fold{fold}_{part}.txt", "".join(lines))
        settings = {"folds": folds, "seed": args.seed, "group": args.group, "groups": len(names)}
        write_text(unfinished / "folds.json", json.dumps(settings | about, indent=1) + "\n")
    show(about)
    print(f"wrote {folder}: {folds} folds of {len(dataset)} images in {len(names)} groups")


def group_keys(dataset: SegmentationDataset, group: str | None) -> list[str]:
    """Return the group of every image.

    Raises:
        UserError: no regular expression, one that finds nothing in a name, or a table without it.
    """
    images = [image for image, _ in dataset.pairs]
    if group is None:
        return images
    if Path(group).is_file() or group.lower().endswith(".csv"):
        table = read_groups(Path(group))
        found = [table.get(image, table.get(image.rpartition("/")[2])) for image in images]
        where = "no row of it"
    else:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise UserError(f"--group {group}: no regular expression: {error}") from error
        matches = (pattern.search(image) for image in images)
        found = [match and (match[1] if pattern.groups else match[0]) for match in matches]
        where = "it finds nothing in the name of it"
    for image, key in zip(images, found, strict=True):
        if key is None:
            raise UserError(f"--group {group}: {where}: {image}")
    return found


def read_groups(path: Path) -> dict[str, str]:
    """Return the group of every image that a CSV names, in its first two columns.

    Raises:
        UserError: unreadable, or a row of other columns, or an image in two groups.
    """
    table: dict[str, str] = {}
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, "table")), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: no CSV: {error}") from error
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        if len(row) < 2:
            raise UserError(f"{path}, line {number}: image and group expected, got {row[0]!r}")
        if table.setdefault(row[0].strip(), row[1].strip()) != row[1].strip():
            raise UserError(f"{path}, line {number}: {row[0].strip()!r} has two groups")
    return table


def list_line(dataset: SegmentationDataset, index: int) -> str:
    """Return a line of a list, image and label.

    Raises:
        UserError: the labels have a root of their own, or a name that no list can hold.
    """
    image, label = dataset.pairs[index]
    if CONTROLS.search(image + label):
        raise UserError(f"{dataset.root / image}: no list can hold this name")
    return f"{image}\t{label}\n"


def described(
    dataset: SegmentationDataset, counts: np.ndarray, fold_of: np.ndarray, folds: int
) -> dict[str, Any]:
    """Return the shares of every class in all images and in each fold, and how they differ.

    Args:
        dataset: for the names.
        counts: int64 [N,C].
        fold_of: int64 [N].
        folds: K.
    """
    chosen = [np.ones(len(counts), bool), *(fold_of == fold for fold in range(folds))]
    held = np.array([(counts[c] > 0).mean(0) for c in chosen])
    pixels = np.array([counts[c].sum(0) / max(1, counts[c].sum()) for c in chosen])
    about: dict[str, Any] = {"images": [int(c.sum()) for c in chosen[1:]], "classes": []}
    for number, name in enumerate(dataset.class_names):
        about["classes"].append(
            {
                "name": name,
                "images": int((counts[:, number] > 0).sum()),
                "image_share": held[0, number].round(6).tolist(),
                "image_share_of_folds": held[1:, number].round(6).tolist(),
                "pixel_share": pixels[0, number].round(6).tolist(),
                "pixel_share_of_folds": pixels[1:, number].round(6).tolist(),
            }
        )
    for what, shares in (("images", held), ("pixels", pixels)):
        differences = np.abs(shares[1:] - shares[0])
        about[f"largest_{what}"] = {
            "difference": float(differences.max().round(6)),
            "class": dataset.class_names[int(differences.max(0).argmax())],
            "fold": int(differences.max(1).argmax()),
        }
    return about


def show(about: dict[str, Any]) -> None:
    """Print the shares in percent, and the largest differences."""
    folds = range(len(about["images"]))
    print(f"{'% of images':>20} {'all':>7}" + "".join(f"{f'fold{f}':>7}" for f in folds))
    for row in about["classes"]:
        shares = [row["image_share"], *row["image_share_of_folds"]]
        shown = "".join(f"{100 * share:7.2f}" for share in shares)
        print(f"{printable(row['name']):>20} {shown}")
        if row["images"] < len(folds):
            print(f"warning: {printable(row['name'])} is in {row['images']} images alone")
    print(f"{'images':>20} {sum(about['images']):>7}" + "".join(f"{n:>7}" for n in about["images"]))
    for what in ("images", "pixels"):
        one = about[f"largest_{what}"]
        print(f"largest difference of a share of {what}: {100 * one['difference']:.2f} points "
              f"({printable(one['class'])}, fold{one['fold']})")  # fmt: skip


if __name__ == "__main__":
    start.run(main, parse_args)
