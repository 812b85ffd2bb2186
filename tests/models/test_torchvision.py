"""The segmentation networks of torchvision: its files give its outputs."""

from pathlib import Path

import pytest
import torch

from golden import Golden, check
from models.deeplabv3 import renamed


def theirs(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    return renamed(shapes, {"encoder.": "backbone."})


# torchvision 0.28.0, 19 classes, ResNet-50, with auxiliary heads; logits resized
TORCHVISION = {
    "fcn": Golden(
        ("fcn", {"multi_level": True}),
        35_320_678,
        "67d8db67c89f9523",
        (17.3878, 399.543, 309.09, 297.184, -383.221),
        resized=True,
        rename=theirs,
    ),
    "deeplabv3": Golden(
        ("deeplabv3", {"multi_level": True}),
        42_003_046,
        "86a2d861993436cc",
        (113.672, 239.535, 44.2556, 332.371, 151.625),
        resized=True,
        rename=theirs,
    ),
}


@pytest.mark.parametrize("which", TORCHVISION)
def test_torchvisions_file_gives_torchvisions_output(which: str, tmp_path: Path):
    check(TORCHVISION[which], tmp_path)
