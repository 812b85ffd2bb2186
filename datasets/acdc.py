"""ACDC: streets in fog, at night, in rain and in snow, with the classes of Cityscapes."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from datasets.cityscapes import CityscapesClasses

CONDITIONS = ("fog", "night", "rain", "snow")
ENDS, REFERENCE_ENDS = "_rgb_anon", "_rgb_ref_anon"  # of the images' names


class ACDC(CityscapesClasses):
    """ACDC in the folders of its download.

    Option `condition`: `fog`, `night`, `rain`, `snow` or `all`. The splits `*_ref` are the same
    places by day and in fine weather; the first release has no labels of them, nor of `test`.

    Source: Sakaridis et al. 2021. Layout: open-mmlab/mmsegmentation, tools/dataset_converters/
        acdc.py, and lhoyer/MIC, seg/README.md.
    """

    name = "acdc"
    splits = ("train", "val", "test", "train_ref", "val_ref", "test_ref")
    layout = (
        "ROOT/rgb_anon/CONDITION/SPLIT/SEQUENCE/*_rgb_anon.png (*_rgb_ref_anon.png) with labels in "
        "ROOT/gt/CONDITION/SPLIT/SEQUENCE/*_gt_labelIds.png (or _labelTrainIds.png)"
    )
    options: ClassVar[dict[str, Any]] = CityscapesClasses.options | {
        "condition": ("all", *CONDITIONS)
    }

    def find(self) -> list[tuple[str, str | None]]:
        ends = REFERENCE_ENDS if self.split.endswith("_ref") else ENDS
        images = []
        for folder in self.image_folders():
            images += self.walk_images(folder, deep=True, stem_ends=ends)
        return self.pair_up(images)

    def image_folders(self) -> list[str]:
        chosen = self.option["condition"]
        conditions = CONDITIONS if chosen == "all" else (chosen,)
        return [f"rgb_anon/{condition}/{self.split}" for condition in conditions]

    def label_of(self, image: str) -> str:
        return anonymous_label(image, self.option["label_kind"])


def anonymous_label(image: str, label_kind: str) -> str:
    """Return the label's path of an image of ACDC or of Dark Zurich, which share their names.

    Args:
        image: such as rgb_anon/night/val/GOPR0356/GOPR0356_frame_000001_rgb_anon.png.
        label_kind: labelIds or trainIds.
    """
    path = PurePosixPath(image)
    folder = str(path.parent).replace("rgb_anon", "gt", 1)
    kind = {"labelIds": "labelIds", "trainIds": "labelTrainIds"}[label_kind]
    if path.stem.endswith(REFERENCE_ENDS):
        return f"{folder}/{path.stem.removesuffix(REFERENCE_ENDS)}_gt_ref_{kind}.png"
    return f"{folder}/{path.stem.removesuffix(ENDS)}_gt_{kind}.png"
