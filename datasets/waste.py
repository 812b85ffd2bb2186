"""Waste in ten kinds and the background, from COCO annotations."""

from pathlib import Path
from typing import Any, ClassVar

from datasets.base import Row, SegmentationDataset
from datasets.folder import Folder, read_class_table
from datasets.making import colours
from engine import zips
from engine.errors import UserError

NAMES = (
    "Background",
    *("General trash", "Paper", "Paper pack", "Metal", "Glass", "Plastic"),
    *("Styrofoam", "Plastic bag", "Battery", "Clothing"),
)


class Waste(Folder):
    """The waste set in the folders that `python -m tools.coco_to_masks` writes, ids 0 to 10.

    It is `folder` with a class table of its own, so that no classes.json is needed; one that is
    there must have these names in this order.

    Source: the order of the categories in public code for these files (General trash 1 ... Clothing
        10); the annotations themselves were not at hand.
    """

    name = "waste"
    own_table = False
    options: ClassVar[dict[str, Any]] = SegmentationDataset.options
    rows = tuple(Row(i, i, *row) for i, row in enumerate(zip(NAMES, colours(11), strict=True)))

    def open_root(self, root: str | Path | None) -> None:
        """Check the folders, and a class table where there is one."""
        SegmentationDataset.open_root(self, root)
        path = self.root / "classes.json"
        if not zips.is_file(path):
            return
        names = [row.name.lower() for row in read_class_table(path) if row.train_id != 255]
        if names != [name.lower() for name in NAMES]:
            raise UserError(
                f"{path}: these are other classes than those of waste ({', '.join(NAMES)}); "
                "--dataset folder takes any"
            )
