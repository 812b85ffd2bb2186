"""Write a data set in `folder`'s layout: beside its place first, renamed when it is whole."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.base import IGNORE
from datasets.files import image_size, write_label_png
from datasets.folder import Folder, check_class_table, read_class_table
from datasets.opening import MAX_MEGAPIXELS
from datasets.walk import CONTROLS, DRIVE, split_ending
from engine.errors import UserError
from engine.files import UNFINISHED, write_text


class Made(NamedTuple):
    """A data set that is being written.

    Attributes:
        images: the folder that its images are put into.
        labels: that of the label maps.
        palette: (r, g, b) of every id up to the highest.
        in_place: whether the images lie where they belong already.
    """

    images: Path
    labels: Path
    palette: list[tuple[int, int, int]]
    in_place: bool

    def write_label(self, name: str, ids: np.ndarray) -> None:
        """Write the label map of an image, uint8 [H,W]; `name` is the image's path."""
        write_label_png(self.labels / f"{split_ending(name)[0]}.png", ids, self.palette)

    def place(self, source: Path, name: str) -> None:
        """Put an image in its place: a second name of the same file, or a copy.

        Raises:
            UserError: it cannot be.
        """
        target = self.images / name
        if self.in_place:
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(os.path.realpath(source), target)
            except OSError:  # another disk, or one that has no second names
                shutil.copyfile(source, target)
        except OSError as error:
            raise UserError(f"{source}: cannot copy it to {target}: {error.strerror}") from error


@contextlib.contextmanager
def making(
    root: str | Path,
    table: dict[str, Any],
    split: str | None = None,
    images: str | Path | None = None,
) -> Iterator[Made]:
    """Yield folders to fill; they get their names when the block ends without an error.

    Args:
        root: of the data set, made if absent. Images may be there already, or are put into `Made`.
        table: what classes.json is to hold; one that is there must hold the same.
        split: of the layout, or None where there is none.
        images: the folder that images are going to be placed from, if they are; it may be the one
            that they belong into.
    Raises:
        UserError: labels of another conversion are there, or images that would be replaced; a
            table that differs; nothing can be written.
    """
    root, path = Path(root), Path(root) / "classes.json"
    rows = check_class_table(path, table)
    places = {kind: root / kind / (split or "") for kind in ("labels", "images")}
    refuse_another(root, places["labels"], split)
    there = places["images"].exists()
    in_place = bool(images and there and places["images"].samefile(images))
    if images and there and not in_place:
        raise UserError(f"{places['images']} exists already: give another folder")
    if path.exists() and read_class_table(path) != rows:
        raise UserError(f"{path} has other classes: remove it, or give another folder")
    palette = [(0, 0, 0)] * (1 + max((row.id for row in rows if row.colour), default=0))
    for row in rows:
        if row.colour is not None:
            palette[row.id] = row.colour
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=UNFINISHED) as unfinished:
            made = Made(Path(unfinished, "images"), Path(unfinished, "labels"), palette, in_place)
            made.labels.mkdir()
            yield made
            if made.images.exists():
                if places["images"].exists():
                    raise UserError(f"{places['images']} exists already: give another folder")
                _move(made.images, places["images"])
            _move(made.labels, places["labels"])  # without which there is no data set
            if not path.exists():
                write_text(path, show_table(table))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or root}: {error.strerror}") from error


def refuse_another(root: Path, labels: Path, split: str | None) -> None:
    """Refuse a folder that holds labels already, or is divided in another way.

    Raises:
        UserError: says what is there.
    """
    if labels.exists():
        raise UserError(f"{labels} exists already, of another conversion: give another folder")
    for kind in ("labels", "images"):
        there = [one for one in Folder.splits if (root / kind / one).is_dir()]
        if there and split is None:
            raise UserError(f"{root / kind / there[0]} exists: give --split, or another folder")
    if split is not None and (root / "labels").is_dir():
        loose = [name for name in os.listdir(root / "labels") if name not in Folder.splits]
        if loose:
            raise UserError(f"{root / 'labels'} holds labels without splits: give another folder")


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def show_table(table: dict[str, Any]) -> str:
    """Return a classes.json's text, a line a class."""
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in table["classes"])
    return f'{{\n  "classes": [\n{rows}\n  ],\n  "ignore": {json.dumps(table["ignore"])}\n}}\n'


def colours(count: int) -> list[tuple[int, int, int]]:
    """Return colours that are told from each other, black first (the palette of Pascal VOC)."""
    ids = np.arange(count)
    shifted = [
        sum((ids >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)
    ]
    return list(map(tuple, np.stack(shifted, -1).tolist()))


def table_of_names(names: Sequence[str], palette: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """Return a class table of ids 0, 1 ... with these names, and 255 ignored."""
    palette = palette or colours(len(names))
    rows = [
        {"id": number, "name": name, "color": list(colour)}
        for number, (name, colour) in enumerate(zip(names, palette, strict=True))
    ]
    return {"classes": rows, "ignore": [IGNORE]}


def safe_name(name: str, where: str) -> str:
    """Return an image's name as a path below a folder, with slashes.

    Args:
        name: as a file states it, which somebody else has written.
        where: it stands, for messages.
    Raises:
        UserError: it leaves the folder, is empty, or is none that a list can hold.
    """
    path = name.replace("\\", "/")
    parts = path.split("/")
    if path.startswith("/") or DRIVE.match(path) or ".." in parts:
        raise UserError(f"{where}: the name {name!r} leaves the folder")
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or CONTROLS.search(name) or parts[-1].startswith("."):
        raise UserError(f"{where}: {name!r} is no name of an image")
    if any(len(part.encode(errors="surrogatepass")) > 250 for part in parts) or re.search(
        "[\ud800-\udfff]", name
    ):
        raise UserError(f"{where}: no file can have the name {name[:60]!r}")
    return "/".join(parts)


def check_size(where: str, width: int, height: int) -> None:
    """Refuse a size that no label is read of.

    Raises:
        UserError: names the entry.
    """
    if min(width, height) < 1 or width * height > MAX_MEGAPIXELS * 1e6:
        raise UserError(
            f"{where}: {width}x{height} pixels; 1 to {MAX_MEGAPIXELS:g} megapixels are allowed"
        )


def check_own_size(path: Path, where: str, width: int, height: int) -> None:
    """Check that an image is as large as what is told of it.

    Raises:
        UserError: it is not, or cannot be read; names both.
    """
    own = image_size(path)
    if own != (width, height):
        turned = " (turned: is its EXIF orientation meant?)" if own == (height, width) else ""
        raise UserError(f"{path}: {own[0]}x{own[1]} pixels, {where} says {width}x{height}{turned}")


def tell(counts: Mapping[str, int]) -> None:
    """Print what was counted, a warning a line, where there is any."""
    for what, count in counts.items():
        if count:
            print(f"warning: {count} {what}")
