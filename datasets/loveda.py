"""LoveDA: land cover from the air, with an urban and a rural domain."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from datasets.base import IGNORE, Row, SegmentationDataset


class LoveDA(SegmentationDataset):
    """LoveDA in the folders of its download.

    Option `domain`: `urban`, `rural` or `both`. The test split has no public labels: its server
    takes a flat folder of NUMBER.png with the ids 0 to 6.

    Source: Wang et al. 2021; label ids 1 to 7, 0 = no data, which is ignored.
    """

    name = "loveda"
    splits = ("train", "val", "test")
    layout = (
        "ROOT/{Train,Val,Test}/{Urban,Rural}/images_png/*.png with labels of the same name in "
        "masks_png/"
    )
    options: ClassVar[dict[str, Any]] = SegmentationDataset.options | {
        "domain": ("both", "urban", "rural")
    }
    rows = (
        Row(0, IGNORE, "no data", (0, 0, 0)),
        Row(1, 0, "background", (255, 255, 255)),
        Row(2, 1, "building", (255, 0, 0)),
        Row(3, 2, "road", (255, 255, 0)),
        Row(4, 3, "water", (0, 0, 255)),
        Row(5, 4, "barren", (159, 129, 183)),
        Row(6, 5, "forest", (0, 255, 0)),
        Row(7, 6, "agriculture", (255, 195, 128)),
    )

    def find(self) -> list[tuple[str, str | None]]:
        domain = self.option["domain"]
        images = []
        for folder in ("Rural", "Urban") if domain == "both" else (domain.capitalize(),):
            images += self.walk_images(f"{self.split.capitalize()}/{folder}/images_png")
        return self.pair_up(images)

    def label_of(self, image: str) -> str:
        path = PurePosixPath(image)
        return f"{path.parent.parent}/masks_png/{path.stem}.png"

    def submitted_as(self, image: str) -> str:
        return PurePosixPath(image).stem
