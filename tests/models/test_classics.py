"""The networks of one author's repository each: their files give their outputs."""

import re
from pathlib import Path

import pytest
import torch

import integers
from engine.errors import UserError
from golden import Golden, check, shapes_of
from models import build_model, load_weights
from models.fcn8s import bilinear


def flat(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """HRNet's files hold the encoder's tensors beside the head's."""
    return {name.removeprefix("encoder."): shape for name, shape in shapes.items()}


def kazuto(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """Names of layers 1 to 5, the stem included, by what a layer does."""
    parts = {"1": "reduce", "2": "conv3x3", "3": "increase"}
    theirs = {}
    for name, shape in shapes.items():
        stage, *_, leaf = name.split(".")
        if block := re.search(r"\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))", name):
            part = parts.get(block[3], "shortcut")
            kind = block[2] or ("conv", "bn")[int(block[4])]
            stage = int(stage.removeprefix("layer")) + 1
            name = f"layer{stage}.block{int(block[1]) + 1}.{part}.{kind}.{leaf}"
        elif ".conv2d_list." in name:
            name = name.replace("layer5.conv2d_list.", "aspp.c")
        else:
            name = f"layer1.conv1.{stage.removesuffix('1')}.{leaf}"
        theirs[name] = shape
    return theirs


# The repositories are named in the networks' docstrings; 19 classes
CLASSICS = {
    "attention_unet": Golden(
        ("attention_unet", {}),
        34_879_743,
        "e8f4af70d02c5e4d",
        (-0.0519138, 0.757211, -0.0511269, 0.120647, 0.0202641),
        size=(32, 32),
    ),
    "segnet": Golden(
        ("segnet", {"clipped": True}),
        29_454_009,
        "2a6ded3bf8dc90c9",
        (0.0816433, 0.116289, 0.141522, 0.185379, 0.244699),
    ),
    "deeplabv1": Golden(
        ("deeplabv1", {}),
        20_503_379,
        "5332a91c9131f595",
        (0.00912546, 0.53479, -0.015326, -0.976875, 0.228929),
        size=(65, 65),
    ),
    "hrnet": Golden(
        ("hrnet", {}),
        9_641_119,
        "2a8a3cb665044765",
        (0.00629762, 0.230026, -0.0506684, 0.156321, -0.288269),
        rename=flat,
        gain=1.0,
    ),
    "ocrnet": Golden(
        ("ocrnet", {}),
        12_080_818,
        "3843f3f383df124c",
        (0.0154764, 0.0846948, -0.0650801, -0.0892063, 0.100202),
        rename=flat,
        gain=1.0,
    ),
    "deeplabv2 kazuto1011": Golden(
        ("deeplabv2", {}),
        43_901_068,
        "86e788aba944b25a",
        (0.0081516, 0.173299, 0.123507, 0.154069, -0.00857695),
        size=(65, 65),
        rename=kazuto,
        gain=1.0,
    ),
    "fcn8s": Golden(
        ("fcn8s", {}),
        134_456_985,
        "2b806b08860e2abb",
        (-0.00330794, 0.365761, 0.237803, 0.0497261, 0.368106),
    ),
}


@pytest.mark.parametrize("which", CLASSICS)
def test_the_authors_file_gives_the_authors_output(which: str, tmp_path: Path):
    check(CLASSICS[which], tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters", "digest"),
    [
        ("deeplabv1", 20_505_429, "991e5572875e6eb6"),
        ("fcn8s", 134_489_759, "36f23bf4972f793d"),
        ("fcn16s", 134_815_994, "71c3a73b0bf737df"),
        ("fcn32s", 136_152_917, "82704da40a7f9390"),
    ],
)
def test_names_and_shapes_with_21_classes(name: str, parameters: int, digest: str):
    with torch.device("meta"):
        network = build_model(name, 21)
    assert integers.digest(sorted(shapes_of(network).items())) == digest
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_what_enlarges_fcns_scores_is_bilinear_and_fixed():
    conv = bilinear(2, 2)
    ones = conv(torch.ones(1, 2, 4, 5))[:, :, 1:-1, 1:-1]
    assert torch.equal(ones[:, :, 1:-1, 1:-1], torch.ones(1, 2, 6, 8))
    assert conv.weight[0, 0, 0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert not conv.weight[0, 1].any()
    assert not conv.weight.requires_grad


def test_segnet_of_ptsemseg_is_told_from_the_paper_s(tmp_path: Path):
    theirs = build_model("segnet", 3, width=8, clipped=True)
    torch.save(theirs.state_dict(), tmp_path / "segnet.pth")
    with pytest.raises(UserError, match="segnet clipped=yes"):
        load_weights(build_model("segnet", 3, width=8), tmp_path / "segnet.pth")
    assert load_weights(theirs, tmp_path / "segnet.pth", strict=True).missing == []
    with torch.no_grad():
        images = torch.randn(1, 3, 33, 49)
        assert theirs.eval()(images)["out"].min() >= 0
        assert build_model("segnet", 3, width=8).eval()(images)["out"].min() < 0


def test_vgg16_s_file_begins_deeplabv1(tmp_path: Path):
    network = build_model("deeplabv1", 2, width=8)
    vgg = {n: t for n, t in network.state_dict().items() if int(n.split(".")[1]) <= 28}
    torch.save(vgg | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    report = load_weights(network, tmp_path / "vgg16.pth")
    assert len(report.loaded) == 26
    assert {name.split(".")[1] for name in report.missing} == {"32", "35", "38"}
    assert report.skipped == {"classifier.0.weight": "of the classifier of images"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention_unet", {"width": 1}, "whole numbers from 1"),
        ("segnet", {"width": 0}, "whole numbers from 1"),
        ("deeplabv1", {"width": 0}, "whole numbers from 1"),
        ("fcn8s", {"width": 0}, "whole numbers from 1"),
        ("fcn8s", {"encoder": "vgg16"}, "has no option 'encoder', it has width"),
    ],
)
def test_wrong_options(name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        build_model(name, 2, **options)
