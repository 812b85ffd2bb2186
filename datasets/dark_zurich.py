"""Dark Zurich: streets by day, at twilight and at night, with the classes of Cityscapes."""

from typing import Any, ClassVar

from datasets.acdc import ENDS, anonymous_label
from datasets.cityscapes import CityscapesClasses

TIMES = ("night", "twilight", "day")


class DarkZurich(CityscapesClasses):
    """Dark Zurich in the folders of its download.

    Option `time` of the train split: `night`, `twilight`, `day` or `all`; none of them is labelled.
    Val (50 images, labelled) and test are at night. The masks of what nobody can see, which the
    uncertainty-aware IoU needs, are not read.

    Source: Sakaridis et al. 2019. Layout: open-mmlab/mmsegmentation, configs/_base_/datasets/
        dark_zurich.py, and lhoyer/MIC, seg/configs/_base_/datasets/uda_cityscapes_to_darkzurich*.
    """

    name = "dark_zurich"
    splits = ("train", "val", "test")
    layout = (
        "ROOT/rgb_anon/SPLIT/TIME/SEQUENCE/*_rgb_anon.png with labels in "
        "ROOT/gt/val/night/SEQUENCE/*_gt_labelIds.png (or _labelTrainIds.png)"
    )
    options: ClassVar[dict[str, Any]] = CityscapesClasses.options | {"time": (*TIMES, "all")}

    def find(self) -> list[tuple[str, str | None]]:
        images = []
        for folder in self.image_folders():
            images += self.walk_images(folder, deep=True, stem_ends=ENDS)
        return self.pair_up(images)

    def image_folders(self) -> list[str]:
        chosen = self.option["time"] if self.split == "train" else "night"
        return [f"rgb_anon/{self.split}/{t}" for t in (TIMES if chosen == "all" else (chosen,))]

    def label_of(self, image: str) -> str:
        return anonymous_label(image, self.option["label_kind"])
