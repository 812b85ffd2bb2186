"""Count what the labels of a data set hold: pixels and images of each class, together, how large.

    python -m tools.class_stats data/mine --json data/mine/classes_held.json
    python -m tools.class_stats data/Cityscapes --dataset cityscapes

Prints, for each class, its pixels and their share of those that are not ignored, the images that
hold it, its share in these, and the weight that `--class-balance` gives it; with `--objects` also
how many connected parts there are, and how large. Then which classes are seen together. The JSON
has all of it.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from datasets import DATASETS, open_images
from datasets.base import IGNORE, SegmentationDataset
from datasets.outlines import components
from datasets.statistics import class_weights
from engine import data_options, options, start
from engine.errors import UserError
from engine.files import refuse_replacing, write_text
from engine.start import printable
from inference.outputs import writable_folder

QUANTILES = (5, 25, 50, 75, 95)


class Held(NamedTuple):
    """What labels hold.

    Attributes:
        counts: int64 [N,C], pixels of each class in each label.
        ignored: int64 [N].
        sizes: (width, height) -> how many labels.
        objects: of each class, pixels of each connected part; None where they were not looked for.
    """

    counts: np.ndarray
    ignored: np.ndarray
    sizes: Counter[tuple[int, int]]
    objects: list[list[int]] | None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    data_options.add_labelled(parser, DATASETS)
    flag = parser.add_argument
    flag("--json", metavar="FILE", help="write everything there too")
    flag("--objects", action="store_true", help="count and measure connected parts (takes longer)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Count, print, write."""
    dataset = open_images(data_options.labelled(args), resize_label=False)
    if args.json:
        writable_folder(Path(args.json).parent)
        inputs = [path for index in range(len(dataset)) for path in dataset.paths(index)]
        refuse_replacing([args.json], inputs)
    held = count(dataset, args.objects)
    about = described(dataset, held)
    show(about)
    if args.json:
        write_text(args.json, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {args.json}")


def count(dataset: SegmentationDataset, objects: bool) -> Held:
    """Read every label in its own size.

    Raises:
        UserError: one cannot be read; no label holds a class.
    """
    classes = dataset.num_classes
    counts, sizes = np.zeros((len(dataset), 256), np.int64), Counter()
    parts: list[list[int]] = [[] for _ in range(classes)]
    for index in tqdm(range(len(dataset)), disable=None, leave=False):
        label = dataset.read_label(index)
        counts[index] = np.bincount(label.ravel(), minlength=256)
        sizes[label.shape[::-1]] += 1
        for number, region in components(label) if objects else ():
            if number != IGNORE:
                parts[number].append(int(np.count_nonzero(region.mask)))
    if not counts[:, :classes].any():
        raise UserError(f"{dataset.root}: the labels hold no class, every pixel is ignored")
    return Held(counts[:, :classes], counts[:, IGNORE], sizes, parts if objects else None)


def described(dataset: SegmentationDataset, held: Held) -> dict[str, Any]:
    """Return everything that is known, as plain values."""
    counts, present = held.counts, held.counts > 0
    total, labelled = counts.sum(0), (counts.sum(1) + held.ignored)[:, None]
    weights = {
        kind: class_weights(torch.from_numpy(counts), kind).tolist()
        for kind in ("root-median", "median", "inverse", "effective")
    }
    rows = []
    for c, name in enumerate(dataset.class_names):
        own = present[:, c]
        within = counts[own, c] / labelled[own, 0]
        row = {
            "name": name,
            "id": int(dataset.train_to_raw[c]),
            "pixels": int(total[c]),
            "share": float(total[c] / total.sum()),
            "images": int(own.sum()),
            "share_of_image": _quantiles(within),
            "weights": {kind: round(values[c], 6) for kind, values in weights.items()},
        }
        if held.objects is not None:
            row["objects"] = len(held.objects[c])
            row["pixels_of_object"] = _quantiles(held.objects[c])
        rows.append(row)
    together = present.T.astype(np.int64) @ present.astype(np.int64)
    return {
        "dataset": dataset.name,
        "images": len(counts),
        "pixels": int(labelled.sum()),
        "ignored": int(held.ignored.sum()),
        "sizes": [[*size, number] for size, number in held.sizes.most_common()],
        "classes": rows,
        "images_with_both": together.tolist(),
    }


def _quantiles(values: Any) -> dict[str, float] | None:
    """Return the mean and some quantiles; None of nothing."""
    if not len(values):
        return None
    found = np.percentile(values, QUANTILES).tolist()
    named = {f"{q}%": value for q, value in zip(QUANTILES, found, strict=True)}
    return {"mean": float(np.mean(values)), **named}


def show(about: dict[str, Any]) -> None:
    """Print the classes, the sizes, and which classes are seen together."""
    rows = about["classes"]
    width = max(5, *(len(printable(row["name"])) for row in rows))
    heads = ("pixels", "% of all", "images", "% of these", "weight")
    with_objects = "objects" in rows[0]
    heads += ("objects", "median px") if with_objects else ()
    titles = [f"{'class':>{width}}", f"{heads[0]:>15}", *(f"{head:>10}" for head in heads[1:])]
    print(" ".join(titles))
    for row in rows:
        within = row["share_of_image"]
        cells = [
            f"{100 * row['share']:10.3f}",
            f"{row['images']:10d}",
            f"{100 * within['mean']:10.3f}" if within else f"{'':>10}",
            f"{row['weights']['root-median']:10.3f}",
        ]
        if with_objects:
            size = row["pixels_of_object"]
            cells += [f"{row['objects']:10d}", f"{size['50%']:10.0f}" if size else f"{'':>10}"]
        print(" ".join([f"{printable(row['name']):>{width}}", f"{row['pixels']:15d}", *cells]))
    share = 100 * about["ignored"] / max(1, about["pixels"])
    shown = ", ".join(f"{w}x{h} ({number})" for w, h, number in about["sizes"][:5])
    more = f" and {len(about['sizes']) - 5} more" if len(about["sizes"]) > 5 else ""
    print(f"{about['images']} images, {share:.3f} % of the pixels ignored; sizes: {shown}{more}")
    print("\n% of the images with the class of a row that also hold that of a column:")
    print(" " * width + "".join(f"{row['id']:>5}" for row in rows))
    for row, both in zip(rows, about["images_with_both"], strict=True):
        shares = (100 * other / row["images"] if row["images"] else 0 for other in both)
        cells = (f"{share:5.0f}" for share in shares)
        print(f"{printable(row['name']):>{width}}" + "".join(cells))


if __name__ == "__main__":
    start.run(main, parse_args)
