"""GTA5: rendered streets with the classes of Cityscapes."""

from pathlib import PurePosixPath

from datasets.base import IGNORE
from datasets.cityscapes import ROWS, CityscapesClasses


class GTA5(CityscapesClasses):
    """GTA5 in the folders of its download; the official splits can be given as lists.

    Deviation: 34, which the labels hold for license plates (-1 in Cityscapes), is ignored.

    Source: Richter et al. 2016, Playing for Data.
    """

    name = "gta5"
    splits = ("train",)
    layout = "ROOT/images/*.png with labels (Cityscapes ids) of the same name in ROOT/labels/"
    raw_to_train = {row.id: row.train_id for row in ROWS} | {34: IGNORE}

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images("images"))

    def image_folders(self) -> list[str]:
        return ["images"]

    def label_of(self, image: str) -> str:
        return f"labels/{PurePosixPath(image).stem}.png"
