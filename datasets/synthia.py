"""SYNTHIA-RAND-CITYSCAPES: rendered streets with 16 of the classes of Cityscapes."""

from pathlib import Path

import numpy as np

from datasets.base import IGNORE
from datasets.cityscapes import CityscapesClasses
from datasets.png16 import read_channel


class Synthia(CityscapesClasses):
    """SYNTHIA-RAND-CITYSCAPES in the folders of its download, in the 19 train ids of Cityscapes.

    Its labels are 16-bit RGB PNGs with the class id in the red channel. Terrain, truck and train
    do not occur; models trained on it are scored on `subsets` of 16 and 13 classes.

    Source: Ros et al. 2016; the id map is the field's (MIC tools/convert_datasets/synthia.py);
        void, parking, road work and lane marking (0, 13, 14, 22) are ignored.
    """

    name = "synthia"
    splits = ("train",)
    layout = "ROOT/RGB/*.png with 16-bit labels of the same name in ROOT/GT/LABELS/"
    raw_to_train = dict.fromkeys((0, 13, 14, 22), IGNORE) | {
        1: 10,  # sky
        2: 2,  # building
        3: 0,  # road
        4: 1,  # sidewalk
        5: 4,  # fence
        6: 8,  # vegetation
        7: 5,  # pole
        8: 13,  # car
        9: 7,  # traffic sign
        10: 11,  # pedestrian
        11: 18,  # bicycle
        12: 17,  # motorcycle
        15: 6,  # traffic light
        16: 9,  # terrain
        17: 12,  # rider
        18: 14,  # truck
        19: 15,  # bus
        20: 16,  # train
        21: 3,  # wall
    }

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images("RGB"))

    def image_folders(self) -> list[str]:
        return ["RGB"]

    def label_of(self, image: str) -> str:
        return f"GT/LABELS/{Path(image).stem}.png"

    def read_ids(self, path: Path) -> np.ndarray:
        """Read the red channel; labels of train ids (pseudo labels) are plain 8-bit files."""
        if self.option["label_kind"] == "trainIds":
            return super().read_ids(path)
        return read_channel(path, max_megapixels=self.label_reading.max_megapixels)
