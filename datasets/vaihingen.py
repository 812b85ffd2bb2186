"""ISPRS Vaihingen: land cover from the air in infrared, red and green."""

from pathlib import PurePosixPath
from typing import ClassVar

from datasets.potsdam import ISPRS

COMPLETE = "ISPRS_semantic_labeling_Vaihingen_ground_truth"
TRAIN = "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37"
VAL = "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"


class Vaihingen(ISPRS):
    """Vaihingen in the folders of its download, 16 tiles and 17 for validation.

    Source: ISPRS 2D semantic labeling. Tiles of the splits, without area 9: open-mmlab/
        mmsegmentation, tools/dataset_converters/vaihingen.py.
    """

    name = "vaihingen"
    layout = (
        "ROOT/top/top_mosaic_09cm_area*.tif with labels of the same name in "
        f"ROOT/{COMPLETE}_COMPLETE/ (or gts_for_participants/), those without boundaries in "
        f"ROOT/{COMPLETE}_eroded_COMPLETE/*_noBoundary.tif (or gts_eroded_for_participants/)"
    )
    tiles: ClassVar[dict[str, str]] = {"train": TRAIN, "val": VAL}
    label_folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "keep": (f"{COMPLETE}_COMPLETE", "gts_for_participants"),
        "ignore": (f"{COMPLETE}_eroded_COMPLETE", "gts_eroded_for_participants"),
    }

    def image_folders(self) -> list[str]:
        return ["top"]

    def tile_of(self, image: str) -> str:
        return PurePosixPath(image).stem.rpartition("area")[2]

    def label_of(self, image: str) -> str:
        end = "" if self.option["borders"] == "keep" else "_noBoundary"
        return f"{self.label_folder()}/top_mosaic_09cm_area{self.tile_of(image)}{end}.tif"
