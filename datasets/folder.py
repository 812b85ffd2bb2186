"""People's own data: images, labels and a small table of classes."""

import json
from pathlib import Path
from typing import Any

from datasets.base import IGNORE, Row, SegmentationDataset
from engine.errors import UserError


class Folder(SegmentationDataset):
    """A folder of images and labels, matched by stem, with the class table ROOT/classes.json.

    The table is a list of {"id": 0, "name": "road", "color": [128, 64, 128]}, where id is the
    value in the label files and train ids follow the order of the list; or an object
    {"classes": [that list], "ignore": [ids that are not trained or scored]}. 255 is always ignored.

    A split is the subfolder of that name in images/ and labels/. Without any such subfolder,
    `train` stands for everything.
    """

    name = "folder"
    splits = ("train", "val", "test")
    layout = (
        "ROOT/images/SPLIT/* with labels of the same stem in ROOT/labels/SPLIT/*.png (or, for "
        "split train, no SPLIT folders), and ROOT/classes.json"
    )

    def open_root(self, root: str | Path | None) -> None:
        """Check the folders and read the class table."""
        super().open_root(root)
        self.rows = read_class_table(self.root / "classes.json")

    def find(self) -> list[tuple[str, str | None]]:
        divided = any((self.root / "images" / split).is_dir() for split in self.splits)
        folder = "images" if self.split == "train" and not divided else f"images/{self.split}"
        pairs, image_of = [], {}
        for path in self.walk_images(folder):
            label = "labels" / path.relative_to("images").with_suffix(".png")
            if label in image_of:
                raise UserError(
                    f"{self.root / path}: has the same label as {self.root / image_of[label]}"
                )
            image_of[label] = path
            pairs.append((path.as_posix(), label.as_posix()))
        return self.pair_up(pairs)


def read_class_table(path: Path) -> tuple[Row, ...]:
    """Read a class table.

    Args:
        path: JSON file as described in `Folder`.
    Returns:
        One row per class in the order of the file, then one per ignored id.
    Raises:
        UserError: unreadable file, a row with a missing or wrong field, an id that occurs twice.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this class table: {error}") from error
    if isinstance(table, list):
        table = {"classes": table}
    if not isinstance(table, dict) or not table.get("classes"):
        raise UserError(f"{path}: a list of classes expected")
    if surplus := table.keys() - {"classes", "ignore"}:
        raise UserError(f"{path}: unknown {sorted(surplus)}; classes and ignore are allowed")
    rows = [class_row(path, i, entry) for i, entry in enumerate(table["classes"])]
    ignored = [i for i in table.get("ignore", []) if i != IGNORE]
    if not all(is_octet(i) for i in ignored):
        raise UserError(f"{path}: ignore must list ids in 0..255, got {ignored}")
    rows += [Row(i, IGNORE, "ignored", (0, 0, 0)) for i in ignored]
    ids, names = [row.id for row in rows], [row.name for row in rows[: len(table["classes"])]]
    for values, what in ((ids, "id"), (names, "name")):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"{path}: {what} {twice[0]!r} occurs twice")
    return tuple(rows)


def class_row(path: Path, train_id: int, entry: Any) -> Row:
    """Check one entry of the table."""
    fits = (
        isinstance(entry, dict)
        and is_octet(entry.get("id"))
        and entry["id"] != IGNORE
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("color"), list)
        and len(entry["color"]) == 3
        and all(is_octet(value) for value in entry["color"])
    )
    if not fits:
        raise UserError(
            f"{path}: class {train_id} is {json.dumps(entry)}; expected "
            '{"id": 0..254, "name": "...", "color": [r, g, b]}'
        )
    return Row(entry["id"], train_id, entry["name"], tuple(entry["color"]))


def is_octet(value: Any) -> bool:
    """Return whether this is an integer in 0..255."""
    return type(value) is int and 0 <= value <= 255
