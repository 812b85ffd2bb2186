"""Photographs without labels: the images in a folder, to be predicted at their own size."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import files
from datasets.folder import Folder
from engine import zips
from engine.errors import UserError


class Photographs(Folder):
    """Every image below ROOT, or ROOT itself where that is one; classes come from a network.

    Options: `classes`, the class table; `without`, a folder of no photographs (what is written).
    """

    name = "photographs"
    splits = ("all",)
    layout = "ROOT/**, photographs of any names in any folders"
    options: ClassVar[dict[str, Any]] = Folder.options | {"without": None}

    def open_root(self, root: str | Path | None) -> None:
        """Check the folder, or take a single file."""
        self.alone = Path(root).name if zips.is_file(root) else None
        super().open_root(Path(root).parent if self.alone else root)

    def find(self) -> list[tuple[str, None]]:
        if self.alone:
            return [(self.alone, None)]
        inside = Path(self.option["without"] or "/").resolve()
        root = self.root.resolve()
        prefix = f"{inside.relative_to(root)}/" if inside.is_relative_to(root) else None
        if prefix == "./":
            raise UserError(f"--save {inside} is the folder of the photographs: give another")
        images = self.walk_images("", deep=True)
        kept = [image for image in images if not (prefix and image.startswith(prefix))]
        if not kept:
            raise UserError(f"{self.root}: no photograph outside {inside}")
        return [(image, None) for image in kept]

    def photograph(self, index: int) -> tuple[Image.Image, Tensor]:
        """Return an image in its own size, and uint8 [3,h,w] in the size for the network.

        Raises:
            UserError: it cannot be read.
        """
        image = files.read_image(self.root / self.pairs[index][0], self.reading)
        size = self.fitted(image.size)
        small = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return image, torch.from_numpy(np.array(small).transpose(2, 0, 1))
