"""People's own data: images, labels and a small table of classes."""

from pathlib import Path
from typing import Any, ClassVar

from datasets.base import IGNORE, MAX_CLASSES, NoLabels, Row, SegmentationDataset
from datasets.text import read_json
from datasets.walk import split_ending
from engine import zips
from engine.errors import UserError
from engine.shapes import shorten


class Folder(SegmentationDataset):
    """A folder of images and labels, matched by stem, with the class table ROOT/classes.json.

    The table is a list of {"id": 0, "name": "road", "color": [128, 64, 128]}, where id is the
    value in the label files and train ids follow the order of the list; or an object
    {"classes": [that list], "ignore": [ids that are not trained or scored]}. 255 is ignored unless
    a table with "ignore" gives it to a class. Labels may hold the colours instead of the ids; an
    ignored id has one as {"id": 4, "color": [0, 0, 0]}. 2 to 254 classes.

    A split is the subfolder of that name in images/ and labels/. Without any such subfolder,
    `train` stands for everything. Images alone (without labels) may lie anywhere below ROOT, and
    need no table.

    Option `classes`: the table instead of ROOT/classes.json, a file or what one would hold.
    """

    name = "folder"
    own_table = True
    splits = ("train", "val", "test")
    layout = (
        "ROOT/images/SPLIT/* with labels of the same stem in ROOT/labels/SPLIT/*.png (or, for "
        "split train, no SPLIT folders), and ROOT/classes.json"
    )
    options: ClassVar[dict[str, Any]] = SegmentationDataset.options | {"classes": None}

    def open_root(self, root: str | Path | None) -> None:
        """Check the folders and read the class table."""
        super().open_root(root if root is None or self.name != "folder" else own_root(root))
        given, path = self.option["classes"], self.root / "classes.json"
        if given is not None and not isinstance(given, (str, Path)):
            self.rows = check_class_table(Path("option classes"), given)
        elif given is None and not self.labelled and not zips.is_file(path):
            self.rows = ()
        else:
            self.rows = read_class_table(path if given is None else Path(given))

    @classmethod
    def has_split(cls, root: str | Path | None, split: str) -> bool:
        return root is not None and zips.is_dir(own_root(root) / "images" / split)

    def find(self) -> list[tuple[str, str | None]]:
        if self.labelled and not has_labels(self.label_root):
            self.walk_images("", deep=True)  # which says where there are no images either
            raise self._no_labels()
        if not self.labelled and not is_divided(self.root) and not has_labels(self.root):
            return [(image, None) for image in self.walk_images("", deep=True)]
        folder = f"images/{self.split}"
        if self.split == "train" and not is_divided(self.root):
            folder = "images"
        return self.pair_up(self.walk_images(folder, deep=True))

    def image_folders(self) -> list[str]:
        return [f"images/{self.split}", "images"]

    def _no_labels(self) -> NoLabels:
        where = self.label_root / "labels"
        return NoLabels(f"{where}: no such folder; {self.name} is: {self.layout}")

    def label_of(self, image: str) -> str:
        if self.labelled and not has_labels(self.label_root):
            raise self._no_labels()
        if not image.startswith("images/"):
            raise UserError(
                f"{self.root / image}: only images in {self.root / 'images'} have their label in a "
                "place that is known; write `image label` lines"
            )
        return f"labels/{split_ending(image)[0].removeprefix('images/')}.png"


def own_root(root: str | Path) -> Path:
    """Return where images/ lies: in the data folder, or in the one folder of an archive."""
    inner = zips.only_folder(root)
    return inner if zips.is_dir(inner / "images") else Path(root)


def is_divided(root: Path) -> bool:
    """Return whether a folder's images are divided into splits."""
    return any(zips.is_dir(root / "images" / split) for split in Folder.splits)


def has_labels(root: Path) -> bool:
    """Return whether a folder has the layout of labelled images."""
    return zips.is_dir(root / "labels")


def table_of(dataset: SegmentationDataset) -> dict[str, Any]:
    """Return the class table of any dataset as what a classes.json would hold.

    Args:
        dataset: one, or several joined of the same classes.
    """
    dataset = getattr(dataset, "datasets", [dataset])[0]
    ids = dataset.train_to_raw[: dataset.num_classes].tolist()
    classes = [
        {"id": number, "name": name, "color": list(colour)}
        for number, name, colour in zip(ids, dataset.class_names, dataset.palette, strict=True)
    ]
    ignored = {}
    for row in dataset.rows:
        if row.train_id == IGNORE and is_octet(row.id) and row.id not in ids:
            ignored[row.id] = {"id": row.id}
            if row.colour is not None:
                ignored[row.id]["color"] = list(row.colour)
    return {"classes": classes, "ignore": list(ignored.values())}


def read_class_table(path: Path) -> tuple[Row, ...]:
    """Read a class table; see `check_class_table`.

    Args:
        path: JSON file as described in `Folder`.
    Raises:
        UserError: also an unreadable file.
    """
    return check_class_table(path, read_json(path, object, "class table"))


def check_class_table(path: Path, table: Any) -> tuple[Row, ...]:
    """Return the rows of a class table.

    Args:
        path: for messages.
        table: what the file holds.
    Returns:
        One row per class in the order of the file, then one per ignored id.
    Raises:
        UserError: a row with a missing or wrong field, an id that occurs twice, fewer than two
            classes or more than `MAX_CLASSES`.
    """
    if isinstance(table, list):
        table = {"classes": table}
    classes = table.get("classes") if isinstance(table, dict) else None
    if not isinstance(classes, list) or not classes:
        raise UserError(f"{path}: a list of classes expected, got {shorten(table)}")
    if surplus := table.keys() - {"classes", "ignore"}:
        raise UserError(f"{path}: unknown {sorted(surplus)}; classes and ignore are allowed")
    says_ignored = "ignore" in table  # then 255 may be a class
    rows = [class_row(path, i, entry, says_ignored) for i, entry in enumerate(classes)]
    if not 2 <= len(rows) <= MAX_CLASSES:
        few = "list the background as a class too" if len(rows) == 1 else "train ids are bytes"
        raise UserError(f"{path}: 2 to {MAX_CLASSES} classes allowed, got {len(rows)}: {few}")
    ignored = table.get("ignore", [])
    if not isinstance(ignored, list):
        raise UserError(f"{path}: ignore must list ids in 0..255, got {shorten(ignored)}")
    rows += [ignored_row(path, entry) for entry in ignored]
    ids, names = [row.id for row in rows], [row.name for row in rows[: len(classes)]]
    for values, what in ((ids, "id"), (names, "name")):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"{path}: {what} {twice[0]!r} occurs twice")
    return tuple(rows)


def class_row(path: Path, train_id: int, entry: Any, says_ignored: bool) -> Row:
    """Check one entry of the table's classes.

    Args:
        path: for messages.
        train_id: its place in the list.
        entry: as it was read.
        says_ignored: whether the table lists what is ignored, so that 255 may be an id.
    """
    fits = (
        isinstance(entry, dict)
        and is_octet(entry.get("id"))
        and (entry["id"] != IGNORE or says_ignored)
        and isinstance(entry.get("name"), str)
        and is_colour(entry.get("color"))
    )
    if not fits:
        raise UserError(
            f"{path}: class {train_id} is {shorten(entry, 200)}; expected "
            '{"id": 0..254, "name": "...", "color": [r, g, b]} (id 255 only where "ignore" lists '
            "what is ignored)"
        )
    return Row(entry["id"], train_id, entry["name"], tuple(entry["color"]))


def ignored_row(path: Path, entry: Any) -> Row:
    """Check one entry of the ignored ids: an id, or an object of id and colour."""
    given = {"id": entry} if not isinstance(entry, dict) else entry
    if (
        not is_octet(given.get("id"))
        or given.keys() - {"id", "name", "color"}
        or not is_colour(given.get("color", [0, 0, 0]))
    ):
        raise UserError(
            f"{path}: ignore must list ids in 0..255, got {shorten(entry)}; "
            'with a colour: {"id": 0, "color": [r, g, b]}'
        )
    colour = tuple(given["color"]) if "color" in given else None
    return Row(given["id"], IGNORE, "ignored", colour)


def is_colour(value: Any) -> bool:
    """Return whether this is a list of red, green and blue in 0..255."""
    return isinstance(value, list) and len(value) == 3 and all(map(is_octet, value))


def is_octet(value: Any) -> bool:
    """Return whether this is an integer in 0..255."""
    return type(value) is int and 0 <= value <= 255
