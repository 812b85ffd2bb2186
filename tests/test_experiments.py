"""Every command of docs/experiments.md's second part runs, in the order of the page."""

import re
import shlex
from pathlib import Path

import pytest

import fakedata
import train_da
from models.encoders import ENCODERS, resnet
from test_docs import SCRIPTS

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"
SMALL = "--num-steps 2 --num-steps-stop 2 --batch-size 2 --num-workers 0 --precision fp32".split()
NARROW = ["--discriminator-width", "4"]


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
    if "pidnet" in flags:
        flags += ["--width", "8"]
    return [script, *flags]


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Yield a folder with GTA5, its translation, Cityscapes and LoveDA; networks are narrow."""
    folder = tmp_path_factory.mktemp("experiments")
    fakedata.make_cyclegta(folder / "data" / "GTA5", n=3, size=(64, 32))
    fakedata.make_cityscapes(folder / "data" / "Cityscapes", n=3, size=(64, 32))
    fakedata.make_loveda(folder / "data" / "LoveDA", n=2, size=(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(resnet, "WIDTH", 4)
        narrow = ENCODERS["resnet101"]
        narrow = narrow._replace(arguments={**narrow.arguments, "blocks": (1, 1, 1, 1)})
        patch.setitem(ENCODERS, "resnet101", narrow)
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
