"""Cityscapes, and the class table that GTA5 and SYNTHIA are mapped to."""

from pathlib import PurePosixPath

from datasets.base import IGNORE, Row, SegmentationDataset

ENDS = "_leftImg8bit"  # of the images' names
ROWS = (
    Row(0, IGNORE, "unlabeled", (0, 0, 0), "void", 0, False, True),
    Row(1, IGNORE, "ego vehicle", (0, 0, 0), "void", 0, False, True),
    Row(2, IGNORE, "rectification border", (0, 0, 0), "void", 0, False, True),
    Row(3, IGNORE, "out of roi", (0, 0, 0), "void", 0, False, True),
    Row(4, IGNORE, "static", (0, 0, 0), "void", 0, False, True),
    Row(5, IGNORE, "dynamic", (111, 74, 0), "void", 0, False, True),
    Row(6, IGNORE, "ground", (81, 0, 81), "void", 0, False, True),
    Row(7, 0, "road", (128, 64, 128), "flat", 1, False, False),
    Row(8, 1, "sidewalk", (244, 35, 232), "flat", 1, False, False),
    Row(9, IGNORE, "parking", (250, 170, 160), "flat", 1, False, True),
    Row(10, IGNORE, "rail track", (230, 150, 140), "flat", 1, False, True),
    Row(11, 2, "building", (70, 70, 70), "construction", 2, False, False),
    Row(12, 3, "wall", (102, 102, 156), "construction", 2, False, False),
    Row(13, 4, "fence", (190, 153, 153), "construction", 2, False, False),
    Row(14, IGNORE, "guard rail", (180, 165, 180), "construction", 2, False, True),
    Row(15, IGNORE, "bridge", (150, 100, 100), "construction", 2, False, True),
    Row(16, IGNORE, "tunnel", (150, 120, 90), "construction", 2, False, True),
    Row(17, 5, "pole", (153, 153, 153), "object", 3, False, False),
    Row(18, IGNORE, "polegroup", (153, 153, 153), "object", 3, False, True),
    Row(19, 6, "traffic light", (250, 170, 30), "object", 3, False, False),
    Row(20, 7, "traffic sign", (220, 220, 0), "object", 3, False, False),
    Row(21, 8, "vegetation", (107, 142, 35), "nature", 4, False, False),
    Row(22, 9, "terrain", (152, 251, 152), "nature", 4, False, False),
    Row(23, 10, "sky", (70, 130, 180), "sky", 5, False, False),
    Row(24, 11, "person", (220, 20, 60), "human", 6, True, False),
    Row(25, 12, "rider", (255, 0, 0), "human", 6, True, False),
    Row(26, 13, "car", (0, 0, 142), "vehicle", 7, True, False),
    Row(27, 14, "truck", (0, 0, 70), "vehicle", 7, True, False),
    Row(28, 15, "bus", (0, 60, 100), "vehicle", 7, True, False),
    Row(29, IGNORE, "caravan", (0, 0, 90), "vehicle", 7, True, True),
    Row(30, IGNORE, "trailer", (0, 0, 110), "vehicle", 7, True, True),
    Row(31, 16, "train", (0, 80, 100), "vehicle", 7, True, False),
    Row(32, 17, "motorcycle", (0, 0, 230), "vehicle", 7, True, False),
    Row(33, 18, "bicycle", (119, 11, 32), "vehicle", 7, True, False),
    Row(-1, IGNORE, "license plate", (0, 0, 142), "vehicle", 7, False, True),
)
# The train ids that SYNTHIA-trained models are scored on: SYNTHIA has no terrain, truck or train,
# and the set of 13 leaves out wall, fence and pole as well.
SUBSETS = {
    "16": [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18],
    "13": [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18],
}
SHORT_NAMES = {"traffic light": "light", "traffic sign": "sign", "motorcycle": "motocycle"}


class CityscapesClasses(SegmentationDataset):
    """The 19 classes of Cityscapes, under the names that AdaptSegNet's evaluation prints."""

    rows = ROWS
    subsets = SUBSETS
    short_names = SHORT_NAMES


class TrainIdClasses(CityscapesClasses):
    """The same classes in files that hold the train ids."""

    rows = tuple(row._replace(id=row.train_id) for row in ROWS if row.train_id != IGNORE)


class Cityscapes(CityscapesClasses):
    """Cityscapes in the folders of its download.

    Option `label_kind`: `labelIds` (the download's files) or `trainIds` (made by the data set's
    createTrainIdLabelImgs). `train_extra` has coarse labels only and is for unlabelled use.

    Source: Cordts et al. 2016; class table of cityscapesScripts, helpers/labels.py.
    """

    name = "cityscapes"
    # mean pixels of an instance, by id: cityscapesScripts evalPixelLevelSemanticLabeling.py
    instance_sizes = {  # noqa: RUF012
        **{24: 3462.4756337644, 25: 3930.4788056518, 26: 12794.0202738185, 27: 27855.1264367816},
        **{28: 35732.1511111111, 31: 67583.7075812274, 32: 6298.7200839748, 33: 4672.3249222261},
    }
    splits = ("train", "val", "test", "train_extra")
    layout = (
        "ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png with labels in "
        "ROOT/gtFine/SPLIT/CITY/*_gtFine_labelIds.png (or _labelTrainIds.png)"
    )

    def find(self) -> list[tuple[str, str | None]]:
        folder = f"leftImg8bit/{self.split}"
        return self.pair_up(self.walk_images(folder, deep=True, stem_ends=ENDS))

    def image_folders(self) -> list[str]:
        return [f"leftImg8bit/{split}" for split in (self.split, *self.splits)]

    def label_of(self, image: str) -> str:
        kind = {"labelIds": "labelIds", "trainIds": "labelTrainIds"}[self.option["label_kind"]]
        path = PurePosixPath(image)
        folder = str(path.parent).replace("leftImg8bit", "gtFine", 1)
        return f"{folder}/{path.stem.removesuffix(ENDS)}_gtFine_{kind}.png"
