"""Turn label maps into COCO annotations: an object for each connected part of a class.

    python -m tools.masks_to_coco data/waste --set val --save val.json

Run lengths, compressed as pycocotools writes them, keep every pixel. File names are relative to the
folder that all images share, which is printed. Pixels that are ignored belong to nothing, and
neither does the background (`--without`).
"""

import argparse
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets import DATASETS, open_images
from datasets.base import IGNORE, SegmentationDataset
from datasets.outlines import Region, components, compressed, region_counts
from engine import data_options, options, parsing, start
from engine.errors import UserError
from engine.files import refuse_replacing, whole
from inference.outputs import writable_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    data_options.add_labelled(parser, DATASETS)
    flag = parser.add_argument
    flag("--save", required=True, metavar="FILE", help="JSON to write")
    flag(
        "--without",
        nargs="*",
        default=["background"],
        metavar="CLASS",
        help="classes that are no objects; default: background, where there is one",
    )
    flag(
        "--by",
        choices=["component", "class"],
        default="component",
        help="an annotation for each connected part, or one for all of a class in an image; "
        "default %(default)s",
    )
    flag(
        "--min-pixels",
        type=parsing.at_least(1),
        default=1,
        metavar="N",
        help="smaller ones are left out and counted; default %(default)s",
    )
    flag("--uncompressed", action="store_true", help="run lengths as numbers")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, find the objects, write."""
    dataset = open_images(data_options.labelled(args), resize_label=False)
    without = excluded(dataset, args.without)
    path = Path(args.save)
    writable_folder(path.parent)
    refuse_replacing([path], (one for i in range(len(dataset)) for one in dataset.paths(i)))
    shared = posixpath.commonpath([posixpath.dirname(image) for image, _ in dataset.pairs])
    counts: Counter[str] = Counter()
    with whole(path) as file:
        images: list[dict[str, Any]] = []
        file.write(b'{"annotations": [')
        for index in tqdm(range(len(dataset)), disable=None, leave=False):
            label = dataset.read_label(index)
            height, width = label.shape
            name = posixpath.relpath(dataset.pairs[index][0], shared or ".")
            images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
            label[np.isin(label, without)] = IGNORE
            for number, region in objects(label, args.by):
                if np.count_nonzero(region.mask) < args.min_pixels:
                    counts["too small"] += 1
                    continue
                counts["written"] += 1
                row = annotation(region, label.shape, args.uncompressed)
                ids = {"id": counts["written"], "image_id": index + 1}
                row = ids | {"category_id": int(dataset.train_to_raw[number])} | row
                comma = b",\n" if counts["written"] > 1 else b"\n"
                file.write(comma + json.dumps(row).encode())
        rest = {"images": images, "categories": categories(dataset, without)}
        file.write(b"\n],\n" + json.dumps(rest, indent=0).encode()[1:] + b"\n")
    if counts["too small"]:
        print(f"left out {counts['too small']} of fewer than {args.min_pixels} pixels")
    print(f"wrote {path}: {counts['written']} annotations of {len(images)} images, whose names are "
          f"relative to {Path(dataset.root, shared)}")  # fmt: skip


def excluded(dataset: SegmentationDataset, names: list[str]) -> list[int]:
    """Return the train ids of classes that are no objects.

    Raises:
        UserError: there is no such class, or no other one.
    """
    for name in names:
        if name not in dataset.class_names and name != "background":
            known = ", ".join(dataset.class_names)
            raise UserError(f"--without {name}: no such class; there are: {known}")
    found = [i for i, name in enumerate(dataset.class_names) if name in names]
    if len(found) == dataset.num_classes:
        raise UserError("--without leaves no class")
    return found


def objects(label: np.ndarray, by: str) -> Iterator[tuple[int, Region]]:
    """Yield the objects of a label map, uint8 [H,W], with their train ids; 255 is none."""
    if by == "component":
        yield from (one for one in components(label) if one[0] != IGNORE)
        return
    for number in np.unique(label).tolist():
        if number != IGNORE:
            yield number, Region(0, 0, label == number)


def annotation(region: Region, shape: tuple[int, int], uncompressed: bool) -> dict[str, Any]:
    """Return what an annotation says of its pixels."""
    counts = region_counts(region, *shape)
    rows, columns = np.flatnonzero(region.mask.any(1)), np.flatnonzero(region.mask.any(0))
    left, top = region.left + int(columns[0]), region.top + int(rows[0])
    return {
        "segmentation": {
            "size": list(shape),
            "counts": counts.tolist() if uncompressed else compressed(counts),
        },
        "area": int(np.count_nonzero(region.mask)),
        "bbox": [left, top, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1],
        "iscrowd": 0,
    }


def categories(dataset: SegmentationDataset, without: list[int]) -> list[dict[str, Any]]:
    """Return the classes that are objects."""
    return [
        {"id": int(dataset.train_to_raw[i]), "name": name, "supercategory": ""}
        for i, name in enumerate(dataset.class_names)
        if i not in without
    ]


if __name__ == "__main__":
    start.run(main, parse_args)
