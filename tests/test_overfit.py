"""Every network learns four frames of CamVid by heart: `pytest -m slow tests/test_overfit.py`.

An hour on one core. The frames are looked for in `../shared/data/camvid` beside the checkout, or
where CAMVID_FRAMES says: `day_train.txt`, a list of `image label` lines, and what it names.
docs/models.md has what was measured.
"""

import json
import os
from pathlib import Path

import pytest

import train_seg
from engine.words import keywords
from models import MODELS
from worlds import ROOT

FRAMES = Path(os.environ.get("CAMVID_FRAMES", ROOT.parent / "shared/data/camvid"))
# From random weights, those of the recipe `camvid` otherwise
RECIPE = """--dataset camvid --input-size 240,180 --optimizer adamw --learning-rate 1e-3
    --weight-decay 1e-2 --warmup-steps 20 --batch-size 4 --num-steps 200 --save-pred-every 50
    --num-workers 0 --precision fp32 --print-every 50 --weights none""".split()
ENOUGH = 90.0  # per cent of the pixels
# Whose encoders are their own
OWN = {"dpt": "", "hrnet": "", "linear": "", "ocrnet": "", "segformer": ""}
# Where a step would take more than three seconds: a smaller encoder, or fewer channels
WORDS = {
    "acfnet": "encoder=resnet18 width=128",
    "attention_unet": "width=16",
    "deeplabv1": "width=16",
    "deeplabv2": "encoder=resnet50",
    "fcn8s": "width=16",
    "fcn16s": "width=16",
    "fcn32s": "width=32",
    "mask2former": "encoder=resnet18 width=64 queries=20 pixel_layers=2 layers=4",
    "segnet": "width=32",
    "vfm": "encoder=dinov2_vits14",
}


def words_of(name: str) -> list[str]:
    keyword = keywords(MODELS[name]).get("encoder")
    small = "encoder=resnet18" if keyword and not keyword.choices else ""
    return [name, *WORDS.get(name, OWN.get(name, small)).split()]


@pytest.mark.slow
@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"no frames of CamVid at {FRAMES}")
@pytest.mark.parametrize("name", MODELS)
def test_four_frames_are_learnt_by_heart(name: str, tmp_path: Path):
    pairs = [line.split() for line in (FRAMES / "day_train.txt").read_text().splitlines()[::76][:4]]
    names = tmp_path / "four.txt"
    names.write_text("".join(f"{FRAMES / image} {FRAMES / label}\n" for image, label in pairs))
    data = ["--data-dir", str(FRAMES), "--data-list", str(names), "--val-list", str(names)]
    words = [*RECIPE, "--model", *words_of(name), *data, "--snapshot-dir", str(tmp_path / "run")]
    for stop in ("50", "100", "150", "200"):
        train_seg.main(train_seg.parse_args([*words, "--num-steps-stop", stop]))
        best = json.loads((tmp_path / "run/result.json").read_text())["best"]
        if best["pixel_accuracy"] >= ENOUGH:
            break
    print(f"{' '.join(words_of(name))}: {best['pixel_accuracy']:.1f} % at step {best['step']}")
    assert best["pixel_accuracy"] >= ENOUGH
