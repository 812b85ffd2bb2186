"""Pascal VOC 2012: 20 kinds of objects and the background."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from datasets.base import IGNORE, Row, SegmentationDataset
from datasets.making import colours
from datasets.text import read_list
from engine import zips
from engine.errors import UserError

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
LISTS = "ImageSets/Segmentation"
AUGMENTED = ("trainaug", "train_aug")  # names that the list of the 10582 images goes by


class VOC(SegmentationDataset):
    """Pascal VOC 2012 in the folders of its download (VOCdevkit/VOC2012); 255 is an object's rim.

    Option `aug`: `yes` trains on the 10582 images with the labels of Hariharan et al. 2011, in
    SegmentationClassAug, that ImageSets/Segmentation/trainaug.txt (or train_aug.txt) lists.

    Source: Everingham et al. 2010. Layout: open-mmlab/mmsegmentation, mmseg/datasets/voc.py and
        tools/dataset_converters/voc_aug.py.
    """

    name = "voc"
    splits = ("train", "val", "trainval", "test")
    layout = (
        "ROOT/JPEGImages/*.jpg with labels of the same name in ROOT/SegmentationClass/*.png (or "
        "SegmentationClassAug/) and lists in ROOT/ImageSets/Segmentation/SPLIT.txt"
    )
    options: ClassVar[dict[str, Any]] = SegmentationDataset.options | {"aug": ("no", "yes")}
    rows = (
        *(Row(i, i, *row) for i, row in enumerate(zip(NAMES, colours(21), strict=True))),
        Row(255, IGNORE, "void", (224, 224, 192)),
    )

    @property
    def augmented(self) -> bool:
        """Whether the images trained on are the augmented set."""
        return self.option["aug"] == "yes" and self.split == "train"

    def find(self) -> list[tuple[str, str | None]]:
        image_of = {PurePosixPath(path).stem: path for path in self.walk_images("JPEGImages")}
        names = AUGMENTED if self.augmented else (self.split,)
        paths = [self.root / LISTS / f"{name}.txt" for name in names]
        path = next((path for path in paths if zips.is_file(path)), paths[0])
        images = []
        for number, fields in read_list(path):
            name = PurePosixPath(fields[0]).stem  # some lists hold paths of image and label
            if name not in image_of:
                raise UserError(f"{path}, line {number}: no image {name!r} in JPEGImages")
            images.append(image_of[name])
        return self.pair_up(sorted(images))

    def image_folders(self) -> list[str]:
        return ["JPEGImages"]

    def label_of(self, image: str) -> str:
        folder = "SegmentationClassAug" if self.augmented else "SegmentationClass"
        return f"{folder}/{PurePosixPath(image).stem}.png"
