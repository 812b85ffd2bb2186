"""BDD100K: the 10000 frames with labels of every pixel, in the train ids of Cityscapes."""

from pathlib import PurePosixPath

from datasets.cityscapes import TrainIdClasses
from engine import zips

# Folders of images and of labels, and what labels' names end with: the release of 2020, the one of
# 2018, and this from within its folder.
LAYOUTS = (
    ("images/10k", "labels/sem_seg/masks", ""),
    ("seg/images", "seg/labels", "_train_id"),
    ("images", "labels", "_train_id"),
)


class BDD100K(TrainIdClasses):
    """BDD100K's semantic segmentation, in the folders of either of its downloads.

    Source: Yu et al. 2020. Layouts: open-mmlab/mmsegmentation, configs/_base_/datasets/bdd100k.py
        (2020), and shachoi/RobustNet, datasets/bdd100k.py (2018).
    """

    name = "bdd100k"
    splits = ("train", "val", "test")
    layout = (
        "ROOT/images/10k/SPLIT/*.jpg with labels of the same name in "
        "ROOT/labels/sem_seg/masks/SPLIT/*.png; or ROOT/seg/images/SPLIT/*.jpg with "
        "ROOT/seg/labels/SPLIT/*_train_id.png"
    )

    def find(self) -> list[tuple[str, str | None]]:
        folders = self.image_folders()
        there = (one for one in folders if zips.is_dir(self.root / one))
        return self.pair_up(self.walk_images(next(there, folders[0])))

    def image_folders(self) -> list[str]:
        return [f"{images}/{self.split}" for images, _, _ in LAYOUTS]

    def label_of(self, image: str) -> str:
        path = PurePosixPath(image)
        for images, labels, end in LAYOUTS:
            if image.startswith(f"{images}/"):
                folder = str(path.parent).replace(images, labels, 1)
                return f"{folder}/{path.stem}{end}.png"
        return f"{path.parent}/{path.stem}.png"
