"""Label pictures of other tables: colours, or black and white masks."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.base import IGNORE
from datasets.files import read_image, read_label
from datasets.folder import read_class_table
from datasets.headers import LOSSLESS_SUFFIXES, SUFFIXES
from datasets.labels import LabelTable
from datasets.making import colours as distinct_colours
from datasets.reading import LabelReading
from datasets.text import read_text
from datasets.walk import split_ending, summary, walk_files
from engine.errors import UserError
from tools.convert.entries import Entry, Export, Images

Colour = tuple[int, int, int]
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
VOC_TABLE = {
    **dict(zip(VOC, distinct_colours(len(VOC)), strict=True)), "void": (224, 224, 192)
}  # fmt: skip
VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "__ignore__"}
COLOUR_FIRST = re.compile(r"\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\S.*?)\s*")
NAME_FIRST = re.compile(r"\s*(\S.*?)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?:[\s,;:].*)?")


def read_colours(folder: Path, images: Path | None, table: str) -> Export:
    """Read label pictures that hold colours.

    Args:
        folder: of the pictures.
        images: of the photographs, if they are to be put into the data set.
        table: voc, or a file: classes.json, or lines of a name and three numbers in either order.
    Raises:
        UserError: no picture there, or a table that is none.
    """
    colours = dict(VOC_TABLE) if table == "voc" else read_table(Path(table))
    tree = Images(images) if images else None

    def drawn(path: Path):
        def draw(id_of: Mapping[str, int], _rest: int) -> np.ndarray:
            pairs = tuple((colour, id_of[name]) for name, colour in colours.items())
            same = LabelTable(pairs, tuple(range(256)))
            return read_label(path, same, LabelReading(values="colours"))

        return draw

    entries = []
    for name in pictures(folder, LOSSLESS_SUFFIXES):
        image = tree and tree.find(name)
        entries.append(Entry(str(folder / name), name, set(colours), drawn(folder / name), image))
    ignored = {name for name in colours if name.lower() in VOID}
    return Export(entries, colours, ignored, Counter(), background=False)


def read_table(path: Path) -> dict[str, Colour]:
    """Return the colour of every class that a file names.

    Raises:
        UserError: unreadable, a line of something else, a name or a colour twice.
    """
    if path.suffix.lower() == ".json":
        rows = [row for row in read_class_table(path) if row.colour is not None]
        named = [("void" if row.train_id == IGNORE else row.name, row.colour) for row in rows]
    else:
        named = []
        for number, line in enumerate(read_text(path, "table of colours").splitlines(), 1):
            first, after = COLOUR_FIRST.fullmatch(line), NAME_FIRST.fullmatch(line)
            if first or after:
                parts = first.groups() if first else (*after.groups()[1:], after[1])
                named.append((parts[3], tuple(map(int, parts[:3]))))
            elif line.strip() and not line.lstrip().startswith("#") and number > 1:
                raise UserError(f"{path}, line {number}: a name and three numbers expected")
    colours: dict[str, Colour] = {}
    for name, colour in named:
        if max(colour) > 255:
            raise UserError(f"{path}: {name!r} has the colour {colour}; 0 to 255 are allowed")
        if name in colours or colour in colours.values():
            raise UserError(f"{path}: {name!r} or its colour {colour} stands twice")
        colours[name] = colour
    if len(colours) < 2:
        raise UserError(f"{path}: no table of colours: lines of a name and three numbers expected")
    return colours


def read_masks(folder: Path, images: Path | None, threshold: int | None, name: str) -> Export:
    """Read masks of two values; a subfolder for each class, or one class alone.

    Args:
        folder: of the masks, or of the classes' folders.
        images: of the photographs, if they are to be put into the data set.
        threshold: values from it on are the object; None: two values, of which 0 is none.
        name: of the class, where there are no subfolders.
    Raises:
        UserError: no mask there.
    """
    tree = Images(images) if images else None
    holders: dict[str, dict[str, Path]] = {}
    for path in pictures(folder, SUFFIXES):
        label, slash, own = path.partition("/")
        label, own = (label, own) if slash else (name, path)
        holders.setdefault(split_ending(own)[0], {})[label] = folder / path

    def drawn(masks: dict[str, Path]):
        def draw(id_of: Mapping[str, int], rest: int) -> np.ndarray:
            label = None
            for one, path in masks.items():
                mask = read_mask(path, threshold)
                label = np.full(mask.shape, rest, np.uint8) if label is None else label
                if label.shape != mask.shape:
                    raise UserError(f"{path}: of another size than the masks before it")
                label[mask] = id_of[one]
            return label

        return draw

    entries = []
    for own, masks in holders.items():
        image = tree and tree.find(own + ".jpg")
        where = str(next(iter(masks.values())))
        entries.append(Entry(where, own, set(masks), drawn(masks), image))
    return Export(entries, {}, set(), Counter())


def read_mask(path: Path, threshold: int | None) -> np.ndarray:
    """Return where a picture is not black, bool [H,W].

    Raises:
        UserError: it holds more than two values, and there is no threshold.
    """
    values = np.asarray(read_image(path)).max(-1)
    if threshold is not None:
        return values >= threshold
    held = np.unique(values)
    if len(held[held > 0]) > 1:
        shown = ", ".join(map(str, held[:6].tolist()))
        raise UserError(f"{path}: a mask of {len(held)} values ({shown} ...): give --threshold 128")
    return values > 0


def pictures(folder: Path, endings: frozenset[str]) -> list[str]:
    """Return the pictures below a folder.

    Raises:
        UserError: there is none.
    """
    found = walk_files(folder, endings)
    if not found.files:
        left_out = summary(found.left_out) or "nothing"
        raise UserError(f"{folder}: no label picture here (left out: {left_out})")
    return found.files
