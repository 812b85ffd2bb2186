"""GTA5 with its images translated to the look of another domain, by CycleGAN for instance."""

from typing import Any, ClassVar

from datasets.gta5 import GTA5


class CycleGTA(GTA5):
    """GTA5's labels beside another folder of images, which need not cover all labels.

    The translated images carry the names of the originals (any image format) and their size.
    Option `image_dir`: their folder in the root.
    """

    name = "cyclegta"
    layout = (
        "ROOT/IMAGE_DIR/* (images_translated) with GTA5 labels of the same stem in ROOT/labels/"
    )
    options: ClassVar[dict[str, Any]] = GTA5.options | {"image_dir": "images_translated"}

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images(self.option["image_dir"], deep=True))

    def image_folders(self) -> list[str]:
        return [self.option["image_dir"]]
