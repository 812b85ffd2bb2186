"""Synscapes: rendered streets with the classes of Cityscapes."""

from pathlib import PurePosixPath

from datasets.cityscapes import CityscapesClasses


class Synscapes(CityscapesClasses):
    """Synscapes in the folders of its download, 25000 images with ids of Cityscapes.

    Source: Wrenninge and Unger 2018. Layout and ids: xiaoachen98/DDB, tools/convert_datasets/
        synscapes.py.
    """

    name = "synscapes"
    splits = ("train",)
    layout = "ROOT/img/rgb/*.png with labels (Cityscapes ids) of the same name in ROOT/img/class/"

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images("img/rgb"))

    def image_folders(self) -> list[str]:
        return ["img/rgb"]

    def label_of(self, image: str) -> str:
        return f"img/class/{PurePosixPath(image).stem}.png"
