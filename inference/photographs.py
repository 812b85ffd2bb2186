"""Predict photographs: the classes' colours from the checkpoint, errors a line each, overlays."""

import colorsys
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets import DATASETS
from datasets.base import IGNORE
from datasets.files import full_palette
from datasets.photographs import Photographs
from engine import processes
from engine.errors import UserError
from engine.files import whole
from engine.start import printable
from engine.values import Images
from inference.label_folders import stems
from inference.outputs import Look, Writers, at_once, file_of
from inference.predictor import Predictor
from inference.votes import read_ahead

NEAR = 12  # of two colours: the sum of the channels' differences that nobody sees
QUALITY = 90  # of JPEG


def open_photographs(
    path: str, save: str, images: Images, checkpoint: dict[str, Any]
) -> Photographs:
    """Find the photographs that a network is to predict.

    Args:
        path: a folder, or one file.
        save: where predictions go, and no photographs are.
        images: the size, and the options of reading; the dataset and folder that have the classes
            of weights that do not say theirs.
        checkpoint: of ours, or empty.

    Raises:
        UserError: no photographs, or no classes.
    """
    if checkpoint:
        table = table_of_checkpoint(checkpoint)
    elif images.dataset is None:
        raise UserError("give --dataset, whose classes these weights have")
    elif images.dataset not in DATASETS:
        there = ", ".join(sorted(DATASETS))
        raise UserError(f"unknown dataset {images.dataset!r}; there are: {there}")
    elif not DATASETS[images.dataset].own_table:
        names = [name for name, *_ in _rows(images.dataset)]
        table = table_of_checkpoint({"classes": names, "dataset": images.dataset})
    elif images.root is None:
        raise UserError(f"give --data-dir, whose classes.json dataset {images.dataset} has")
    else:
        table = Path(images.root, "classes.json")
    options = {"classes": table, "without": str(save), **images.options}
    size = images.size or checkpoint.get("input_size")
    if isinstance(size, (tuple, list)):  # each photograph keeps its ratio
        size = max(size)
    return Photographs(path, split="all", labelled=False, size=size, **options)


def _rows(dataset: str) -> list[tuple[str, int, tuple[int, int, int]]]:
    """Return name, id and colour of the trained classes of a dataset with a table of its own."""
    known = DATASETS[dataset]
    rows = [] if known.own_table else [row for row in known.rows if row.train_id != IGNORE]
    rows.sort(key=lambda row: row.train_id)
    return [(known.short_names.get(row.name, row.name), row.id, row.colour) for row in rows]


def table_of_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the classes of a checkpoint as a class table: names, colours and the dataset's ids.

    What an older checkpoint does not say is that of its dataset, where the classes are the same.
    Colours that are missing or too like another's are made up.
    """
    names, dataset = checkpoint["classes"], checkpoint.get("dataset")
    rows = _rows(dataset) if dataset in DATASETS else []
    known = dict(enumerate(rows)) if [name for name, *_ in rows] == names else {}
    ids = checkpoint.get("ids") or [known[i][1] if known else i for i in range(len(names))]
    palette = checkpoint.get("palette") or [row[2] for row in known.values()]
    colours = visible(palette, len(names))
    classes = zip(ids, names, colours, strict=True)
    return {"classes": [{"id": i, "name": n, "color": list(c)} for i, n, c in classes]}


def visible(palette: Sequence[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """Return a colour for each class: the palette's, made up where one is missing or not distinct.

    Args:
        palette: (r, g, b) of the first classes.
        count: of classes.
    """
    colours: list[tuple[int, ...]] = []

    def is_free(colour: Sequence[int]) -> bool:
        return all(sum(abs(a - b) for a, b in zip(colour, c, strict=True)) >= NEAR for c in colours)

    for index in range(count):
        wanted = [tuple(palette[index])] if index < len(palette) else []
        colours.append(next(filter(is_free, itertools.chain(wanted, map(_colour, range(10**6))))))
    return colours


@functools.cache
def _colour(turn: int) -> tuple[int, ...]:
    """Return one of many colours; those of any numbers in a row differ well."""
    # hues by the golden ratio, in three lightnesses, then in three strengths
    hue, value = turn * 0.618034 % 1, (0.95, 0.65, 0.8)[turn % 3]
    strength = (0.8, 0.5, 0.95)[turn // 24 % 3]
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, strength, value))


def overlay(
    photograph: Image.Image, ids: np.ndarray, palette: Sequence[Sequence[int]], opacity: float
) -> Image.Image:
    """Return the classes' colours over a photograph.

    Args:
        photograph: RGB.
        ids: uint8 [H,W], of its size.
        palette: (r, g, b) of each id.
        opacity: 0 shows the photograph alone, 1 the colours alone.
    """
    colours = Image.fromarray(ids)
    colours.putpalette(full_palette(palette).tobytes())
    return Image.blend(photograph, colours.convert("RGB"), opacity)


def write_overlay(path: Path, *how) -> None:
    """Write what `overlay` returns as a JPEG.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, sync=False) as file:
            overlay(*how).save(file, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(f"{path}: cannot write this picture: {error.strerror or error}") from error


class Done(NamedTuple):
    """What came of a folder of photographs.

    Attributes:
        count: of photographs, over all processes.
        unreadable: lines that say which could not be read, and why.
        seconds: of this process.
    """

    count: int
    unreadable: list[str]
    seconds: float


def predict_photographs(
    predictor: Predictor,
    photographs: Photographs,
    folder: Path,
    opacity: float,
    num_threads: int,
    also: Callable | None = None,
) -> Done:
    """Predict and write every photograph; one that cannot be read is named and left out.

    Args:
        predictor: see `Predictor`.
        photographs: what to predict.
        folder: to write into, which this process has (`outputs.held`).
        opacity: of the colours over the photograph, 0 to 1.
        num_threads: that decode ahead; 0 reads in the main one.
        also: is given each photograph's name, a function that returns it, its ids uint8 [H,W],
            None and its confidences float32 [H,W].

    Raises:
        UserError: a file cannot be written.
    """
    look, names = Look.of(photographs), stems(photographs)
    images = [image for image, _ in photographs.pairs]
    unreadable, began = [], time.perf_counter()

    def read(index: int) -> tuple:
        try:
            return images[index], *photographs.photograph(index)
        except UserError as error:
            return images[index], None, str(error)

    def save(stem: str, photograph: Image.Image, ids: np.ndarray) -> None:
        path = file_of(folder, "overlay", stem)
        write_overlay(path, photograph, ids, photographs.palette, opacity)
        look.write(at_once, folder, stem, ids)

    own = processes.share(len(images))
    # one that waits: each holds a photograph in its full size
    with Writers(num_threads=1, max_waiting=1) as write:
        for name, photograph, small in read_ahead(read, own, max(1, num_threads)):
            if photograph is None:
                unreadable.append(small)
                print(f"left out: {printable(small)}", file=sys.stderr, flush=True)
                continue
            size = photograph.height, photograph.width
            seen = predictor(small[None], size, also is not None)
            pred, confidence = seen if also else (seen, None)
            write(save, names[name], photograph, pred[0].cpu().numpy())
            if also:
                also(name, lambda one=photograph: one, pred[0], None, confidence[0])
    unreadable = [line for lines in processes.gather(unreadable) for line in lines]
    return Done(len(images), unreadable, time.perf_counter() - began)
