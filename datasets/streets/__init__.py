"""Streets: the embedded dataset, drawn from a seed, with a source and a target style."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets.base import Row, SegmentationDataset
from datasets.streets.palettes import COLOURS
from datasets.streets.scene import draw
from engine.errors import UserError

DISPLAY = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "vegetation": (107, 142, 35),
    "sky": (70, 130, 180),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
    "pole": (153, 153, 153),
    "sign": (220, 220, 0),
}
COUNT = {"train": 256, "val": 64}


class Streets(SegmentationDataset):
    """Drawn street scenes of 160x96 pixels in 9 classes; nothing is read from disk.

    Style `source` is a clear day; `target` moves colours, fog, light, blur and noise together
    towards a foggy dusk, by `gap` (0 to 1). Seed, split and style choose the scenes, and no two of
    them share any. All are drawn at once (about 3 ms each) and kept in memory.
    """

    name = "streets"
    splits = ("train", "val")
    layout = "drawn, no files"
    rows = tuple(Row(i, i, name, DISPLAY[name]) for i, name in enumerate(COLOURS))
    options: ClassVar[dict[str, Any]] = {"style": ("source", "target"), "gap": 0.6}

    def open_root(self, root: str | Path | None) -> None:
        """Note that there are no files; a data folder would be a mistake."""
        if root is not None:
            raise UserError(f"{root}: dataset streets is drawn and takes no data folder")
        self.root = Path("streets")

    def from_list(self, list_file: str | Path) -> list[tuple[str, str | None]]:
        """Reject a list."""
        raise UserError(f"{list_file}: dataset streets is drawn and takes no list")

    def find(self) -> list[tuple[str, str | None]]:
        """Draw the scenes."""
        style, gap = self.option["style"], self.option["gap"]
        if not 0 <= gap <= 1:
            raise UserError(f"dataset streets: gap must lie in [0, 1], got {gap}")
        if self.seed < 0:
            raise UserError(f"dataset streets: the seed must not be negative, got {self.seed}")
        strength = round(128 * gap) if style == "target" else 0
        key = (self.seed, self.splits.index(self.split), self.options["style"].index(style))
        count = self.num_images or COUNT[self.split]
        self.scenes = [draw((*key, i), strength) for i in range(count)]
        names = [f"{style}/{self.split}/{i:05d}.png" for i in range(count)]
        return [(name, name if self.labelled else None) for name in names]

    def first_of_shuffle(self, count: int, where: str | Path) -> list[tuple[str, str | None]]:
        """Return all scenes: just so many were drawn."""
        return self.pairs

    def read(self, index: int) -> tuple[Image.Image, np.ndarray | None]:
        """Return the drawn image and train ids."""
        return Image.fromarray(self.scenes[index][0]), self.read_label(index)

    def read_label(self, index: int) -> np.ndarray | None:
        """Return the drawn train ids."""
        return self.scenes[index][1] if self.labelled else None

    def paths(self, index: int) -> list[Path]:
        """Return nothing: there are no files."""
        return []

    def full_size(self, index: int) -> tuple[int, int]:
        """Return the height and width of the drawing."""
        return self.scenes[index][1].shape
