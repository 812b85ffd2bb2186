"""UrbanSyn: rendered streets with the train ids of Cityscapes."""

from pathlib import PurePosixPath

from datasets.base import IGNORE, Row
from datasets.cityscapes import TrainIdClasses


class UrbanSyn(TrainIdClasses):
    """UrbanSyn in the folders of its download: rgb.zip and ss.zip.

    Labels hold the train ids 0 to 18, and 19 for what has no class.

    Source: Gomez et al. 2023. File names: DevDenus/TESTImageSegmentation, src/
        image_preprocessing.py. The ids are those that the authors state; no public code of
        theirs was found to check them against.
    """

    name = "urbansyn"
    splits = ("train",)
    layout = "ROOT/rgb/rgb_*.png with labels (train ids, 19 ignored) in ROOT/ss/ss_*.png"
    rows = (*TrainIdClasses.rows, Row(19, IGNORE, "unlabelled", (0, 0, 0)))

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images("rgb"))

    def image_folders(self) -> list[str]:
        return ["rgb"]

    def label_of(self, image: str) -> str:
        return f"ss/ss_{PurePosixPath(image).stem.removeprefix('rgb_')}.png"
