"""Every network through every command, as a user would: two steps of each, then what reads them.

`pytest -m slow tests/test_every_network.py` runs those that take more than three seconds.
"""

import json
from pathlib import Path

import pytest

import ensemble
import evaluate
import pseudo_label
import train_da
import train_seg
from datasets import streets
from engine.words import keywords
from models import MODELS

# The smallest encoder, and where that is not small, fewer channels
SMALLEST = {
    "acfnet": "encoder=resnet18 width=16",
    "attention_unet": "width=8",
    "daformer": "encoder=resnet18 width=16",
    "deeplabv1": "width=8",
    "deeplabv2": "encoder=resnet50 multi_level=yes",
    "deeplabv3": "encoder=mobilenet_v2 width=32 multi_level=yes",
    "dpt": "encoder=dinov2_vits14",
    "fcn": "encoder=resnet18 multi_level=yes",
    "fcn8s": "width=8",
    "fcn16s": "width=8",
    "fcn32s": "width=8",
    "hrnet": "encoder=resnet18",
    "linear": "encoder=dinov3_vits16",
    "mask2former": "encoder=resnet18 width=32 queries=12 pixel_layers=2 layers=4",
    "ocrnet": "encoder=resnet18",
    "pidnet": "boundary=yes",
    "segformer": "encoder=mit_b0",
    "segnet": "width=8",
    "unetplusplus": "encoder=resnet18",
    "vfm": "encoder=dinov2_vits14",
}
SLOW = (
    *("acfnet", "daformer", "deeplabv2", "dpt", "fcn", "hrnet", "linear", "mask2former", "ocrnet"),
    *("unetplusplus", "upernet", "vfm"),
)
RUN = """--num-steps 2 --batch-size 2 --warmup-steps 1 --save-pred-every 2 --num-workers 0
    --precision fp32 --input-size 64,48""".split()


def words_of(name: str) -> list[str]:
    """Return what --model is given: each network that takes any encoder gets a small one."""
    keyword = keywords(MODELS[name]).get("encoder")
    small = "encoder=efficientnet_lite0" if keyword and not keyword.choices else ""
    return [name, *SMALLEST.get(name, small).split()]


def command(module, *words: object) -> None:
    module.main(module.parse_args([str(word) for word in words]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in MODELS]
)
def test_every_command_takes_it(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(streets, "COUNT", {"train": 4, "val": 2})
    seg, da = tmp_path / "seg", tmp_path / "da"
    few = ["--set", "val", "--device", "cpu", "--num-workers", 0]
    recipe = ["--recipe", "streets", "--model", *words_of(name), *RUN]
    command(train_seg, *recipe, "--snapshot-dir", seg)
    command(train_da, *recipe, "--adapt-from", 1, "--no-baseline", "--snapshot-dir", da)
    networks = [seg / "streets_2.pth", da / "streets_2.pth"]
    command(evaluate, "--restore-from", networks[1], *few, "--save", tmp_path / "seen")
    command(pseudo_label, "--restore-from", networks[1], *few, "--save", tmp_path / "pseudo")
    command(ensemble, "--restore-from", *networks, *few, "--save", tmp_path / "vote")
    assert 0 <= json.loads((seg / "result.json").read_text())["last"]["miou"] <= 100
    for folder in ("seen", "pseudo", "vote"):
        assert [*(tmp_path / folder).rglob("*.png")], folder
