"""The networks of segmentation_models_pytorch: its files give its outputs."""

from pathlib import Path

import pytest
import torch

from golden import Golden, check
from models import deeplabv3, deeplabv3plus
from models.deeplabv3 import renamed


def efficientnet(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """The authors' underscores, and the layers before their classifier."""
    theirs = {}
    for name, shape in shapes.items():
        if name.startswith("encoder."):
            start, *middle, leaf = name.split(".")
            middle = [part if part.isdigit() else f"_{part}" for part in middle]
            name = ".".join([start, *middle, leaf])
        theirs[name] = shape
    theirs["encoder._conv_head.weight"] = torch.Size((1280, 320, 1, 1))
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        theirs[f"encoder._bn1.{leaf}"] = torch.Size((1280,))
    return theirs | {"encoder._bn1.num_batches_tracked": torch.Size(())}


# segmentation_models_pytorch 0.6.0, 19 classes, ResNet-34 where no other is named
SMP = {
    "unet": Golden(
        ("unet", {}),
        24_438_979,
        "efead9cd39a5098f",
        (-5.06951, 74.4456, 8.92692, -4.78598, 10.3929),
    ),
    "unet scse": Golden(
        ("unet", {"attention": "scse"}),
        24_552_970,
        "7bfcb60595215cde",
        (-6.16305, 232.708, 21.1076, -44.9293, 7.43695),
    ),
    "unet mit_b0": Golden(
        ("unet", {"encoder": "mit_b0"}),
        5_552_099,
        "7370bc68cc0b2684",
        (-0.0846866, 0.549496, 0.0497728, 0.0138211, -0.019485),
    ),
    "unet efficientnet_b0": Golden(
        ("unet", {"encoder": "efficientnet_b0"}),
        6_254_079 - 1280 * (320 + 2),  # less what is in the file and unused
        "04c45cd497b14587",
        (-0.0362029, 0.370526, -0.0380111, 0.0474495, 0.0390239),
        rename=efficientnet,
    ),
    "unetplusplus": Golden(
        ("unetplusplus", {}),
        26_081_219,
        "a46b23ffda4b3fc4",
        (0.797143, 52.0833, 3.39287, 25.2395, 1.81362),
    ),
    "linknet": Golden(
        ("linknet", {}),
        21_772_531,
        "9dff9d97f645b856",
        (-1.01207, 7.03782, -0.170035, -1.32048, 0.145027),
    ),
    "fpn": Golden(
        ("fpn", {}),
        23_157_715,
        "626439682f1092ea",
        (-0.119971, 2.56794, 3.54681, 3.10373, 3.5943),
        resized=True,
    ),
    "pspnet": Golden(
        ("pspnet", {}),
        21_520_947,
        "a9788429ace3dda7",
        (9.26277, 21.5281, 17.5188, 29.0728, 3.99318),
        resized=True,
    ),
    "upernet": Golden(
        ("upernet", {}),
        29_604_307,
        "3fe3a87b0538a669",
        (-0.00785195, 1.76907, -0.608534, 0.226109, 1.66828),
        resized=True,
    ),
    "deeplabv3": Golden(
        ("deeplabv3", {"encoder": "resnet34", "style": "smp"}),
        26_011_731,
        "ba81ff8adbb74b13",
        (66.2384, 300.002, -155.564, 557.192, -67.4831),
        size=(96, 96),
        resized=True,
        rename=lambda shapes: renamed(shapes, {v: k for k, v in deeplabv3.SMP.items()}),
    ),
    "deeplabv3plus": Golden(
        ("deeplabv3plus", {"encoder": "resnet34", "head": "separable"}),
        22_442_083,
        "28ec92e9a2733947",
        (49.9588, 217.045, -159.475, 63.2445, 142.866),
        resized=True,
        rename=lambda shapes: renamed(
            shapes, {v: k for k, v in reversed(deeplabv3plus.SMP.items())}
        ),
    ),
}


@pytest.mark.parametrize("which", SMP)
def test_smps_file_gives_smps_output(which: str, tmp_path: Path):
    check(SMP[which], tmp_path)
