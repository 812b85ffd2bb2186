"""Every command of docs/experiments.md's second part runs, in the order of the page."""

import re
import shlex
from pathlib import Path

import pytest

import fakedata
import fakesets
import train_da
from models.encoders import ENCODERS, resnet
from test_docs import SCRIPTS

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"
SMALL = "--num-steps 2 --num-steps-stop 2 --batch-size 2 --num-workers 0 --precision fp32".split()
NARROW = ["--discriminator-width", "4"]
# network -> options that make it small; encoders that others stand in for
SMALLER = {
    **{name: ["width=8"] for name in ("attention_unet", "deeplabv1", "fcn8s", "pidnet", "segnet")},
    "mask2former": ["width=32", "queries=5", "pixel_layers=1", "layers=2"],
    "upernet": ["width=16"],
}
STAND_INS = {
    "densenet161": "densenet121",
    "efficientnet_b4": "efficientnet_b0",
    "hrnet_w48": "hrnet_w18",
    **{"resnext50_32x4d": "resnet50", "se_resnext50_32x4d": "resnet50", "xception": "resnet50"},
}
BEIT = {"channels": 48, "depth": 3, "heads": 3, "taps": (0, 1, 2, 2), "layer_scale": 0.1}


def experiments() -> dict[str, list[list[str]]]:
    """Return the commands of every numbered heading of the page."""
    found = {}
    for number, body in re.findall(
        r"^### (\d+)\. .*?\n(.*?)(?=^### |\Z)", PAGE.read_text(), re.M | re.S
    ):
        block = re.search(r"```sh\n(.*?)```", body, re.S)[1].replace("\\\n", " ")
        found[number] = [shlex.split(line)[1:] for line in block.splitlines()]
    return found


def shrunk(words: list[str]) -> list[str]:
    """Return a command for small files: fewer images, small sizes, no downloaded weights."""
    script, *flags = words
    for flag in ("--num-images", "--target-labels"):
        if flag in flags and flags[flags.index(flag) + 1] != "all":
            flags[flags.index(flag) + 1] = "2"
    if "--threshold" in flags:  # two steps make no network sure
        flags[flags.index("--threshold") + 1] = "0.05"
    if script == "ensemble.py":
        return words
    if not script.startswith("train"):
        return [script, *flags, "--num-workers", "0"]
    size = ["--input-size", "64,32"]
    flags += [*SMALL, *size, "--weights", "none"]
    if script == "train_da.py":
        flags += ["--input-size-target", "64,32"]
        if {"adversarial", "advent"} & {*train_da.parse_args(flags).method}:
            flags += NARROW
    if "--crop-size" in flags:
        flags += ["--crop-size", "64,32"]
    flags = [re.sub(r"^crop=.*", "crop=64,32", flag) for flag in flags]
    if "--model" in flags:
        at = flags.index("--model") + 2
        flags[at:at] = SMALLER.get(flags[at - 1], [])
    return [script, *flags]


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Yield a folder with all data sets of the page; networks are narrow."""
    folder = tmp_path_factory.mktemp("experiments")
    fakedata.make_cyclegta(folder / "data" / "GTA5", n=3, size=(64, 32))
    fakedata.make_cityscapes(folder / "data" / "Cityscapes", n=3, size=(64, 32))
    fakedata.make_loveda(folder / "data" / "LoveDA", n=2, size=(64, 64))
    fakesets.make_minicity(folder / "data" / "MiniCity")
    fakesets.make_waste(folder / "data" / "waste")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(resnet, "WIDTH", 4)
        narrow = ENCODERS["resnet101"]
        narrow = narrow._replace(arguments={**narrow.arguments, "blocks": (1, 1, 1, 1)})
        patch.setitem(ENCODERS, "resnet101", narrow)
        for name, other in STAND_INS.items():
            patch.setitem(ENCODERS, name, ENCODERS[other])
        patch.setitem(ENCODERS, "beit_base", ENCODERS["beit_base"]._replace(arguments=BEIT))
        yield folder


def test_the_page_numbers_its_experiments():
    assert list(experiments()) == [str(i) for i in range(1, len(experiments()) + 1)]


@pytest.mark.xdist_group("experiments")
@pytest.mark.parametrize("number", experiments())
def test_every_command_runs_as_written(number: str, small_world: Path):
    """In the page's order: later experiments start from what earlier ones left."""
    for words in experiments()[number]:
        script, *flags = shrunk(words)
        module = SCRIPTS[script]
        module.main(module.parse_args(flags))
        if script.startswith("train"):
            folder = small_world / flags[flags.index("--snapshot-dir") + 1]
            assert (folder / "result.json").exists()
            assert list(folder.glob("*_best.pth"))
