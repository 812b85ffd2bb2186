"""ISPRS Potsdam: land cover from the air, and what Vaihingen shares with it."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from datasets.base import IGNORE, Row, SegmentationDataset
from engine import zips

CLUTTER = 6
TRAIN = (
    "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 "
    "7_7 7_8 7_9 7_10 7_11 7_12"
)
VAL = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"


class ISPRS(SegmentationDataset):
    """The six classes of the ISPRS benchmark, as colours in files (or as the ids 1 to 6).

    Option `clutter`: `class` trains and scores it as the sixth; `ignore` leaves five.
    Option `borders`: `keep`, or `ignore` for the labels whose objects' rims are black, and ignored.
    """

    splits = ("train", "val")
    tiles: ClassVar[dict[str, str]]  # of each split
    label_folders: ClassVar[dict[str, tuple[str, ...]]]  # by option borders; the first there is
    options: ClassVar[dict[str, Any]] = SegmentationDataset.options | {
        "clutter": ("class", "ignore"),
        "borders": ("keep", "ignore"),
    }
    rows = (
        Row(0, IGNORE, "boundary", (0, 0, 0)),
        Row(1, 0, "impervious surface", (255, 255, 255)),
        Row(2, 1, "building", (0, 0, 255)),
        Row(3, 2, "low vegetation", (0, 255, 255)),
        Row(4, 3, "tree", (0, 255, 0)),
        Row(5, 4, "car", (255, 255, 0)),
        Row(CLUTTER, 5, "clutter", (255, 0, 0)),
    )

    def open_root(self, root: str | Path | None) -> None:
        """Check the folders, and leave clutter out of the classes where it is ignored."""
        super().open_root(root)
        if self.option["clutter"] == "ignore":
            self.rows = tuple(
                row._replace(train_id=IGNORE) if row.id == CLUTTER else row for row in self.rows
            )

    def find(self) -> list[tuple[str, str | None]]:
        wanted = self.tiles[self.split].split()
        images = self.walk_images(self.image_folders()[0])
        chosen = [image for image in images if self.tile_of(image) in wanted]
        self.left_out["tile of another split"] += len(images) - len(chosen)
        return self.pair_up(chosen)

    def tile_of(self, image: str) -> str:
        """Return the number of an image's tile."""
        raise NotImplementedError

    def label_folder(self) -> str:
        """Return the folder of labels that is there; the first of the layout where none is."""
        folders: Iterable[str] = self.label_folders[self.option["borders"]]
        there = (folder for folder in folders if zips.is_dir(self.label_root / folder))
        return next(there, next(iter(folders)))


class Potsdam(ISPRS):
    """Potsdam in the folders of its download, 24 tiles of 6000x6000 pixels and 14 for validation.

    Option `colours`: `RGB`, or `IRRG` for infrared, red and green.

    Source: ISPRS 2D semantic labeling. Tiles of the splits and colours of the classes: open-mmlab/
        mmsegmentation, tools/dataset_converters/potsdam.py (which scores 6 classes).
    """

    name = "potsdam"
    layout = (
        "ROOT/2_Ortho_RGB/top_potsdam_*_RGB.tif (or 3_Ortho_IRRG/*_IRRG.tif) with labels in "
        "ROOT/5_Labels_all/top_potsdam_*_label.tif (or 5_Labels_all_noBoundary/)"
    )
    tiles: ClassVar[dict[str, str]] = {"train": TRAIN, "val": VAL}
    label_folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "keep": ("5_Labels_all",),
        "ignore": ("5_Labels_all_noBoundary",),
    }
    options: ClassVar[dict[str, Any]] = ISPRS.options | {"colours": ("RGB", "IRRG")}

    def image_folders(self) -> list[str]:
        return [{"RGB": "2_Ortho_RGB", "IRRG": "3_Ortho_IRRG"}[self.option["colours"]]]

    def tile_of(self, image: str) -> str:
        return "_".join(PurePosixPath(image).stem.split("_")[2:4])

    def label_of(self, image: str) -> str:
        end = "_label" if self.option["borders"] == "keep" else "_label_noBoundary"
        return f"{self.label_folder()}/top_potsdam_{self.tile_of(image)}{end}.tif"
