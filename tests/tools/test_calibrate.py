"""A temperature from fitting to pseudo labels: tools/calibrate.py and --temperature."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import pseudo_label
from engine.errors import UserError
from models.checkpoint import load_checkpoint
from tools import calibrate
from worlds import FRAMES, on_camvid, open_camvid, write_checkpoint


@pytest.fixture
def checkpoint(camvid, tmp_path):
    return write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)


def call(command, *words) -> None:
    command.main(command.parse_args([str(word) for word in words]))


def scores(path, *words) -> dict:
    call(evaluate, "--calibration", "--json", path, *words)
    return json.loads(path.read_text())[0]


def test_a_temperature_is_fitted_stored_and_used(checkpoint, camvid, tmp_path, capsys):
    fitted, words = tmp_path / "fitted.pth", on_camvid(camvid)
    call(calibrate, checkpoint, "--output", fitted, *words)
    assert "ECE of them" in capsys.readouterr().out
    ours, before = load_checkpoint(fitted), load_checkpoint(checkpoint)
    assert 0.05 < ours["temperature"] < 20
    assert abs(ours["temperature"] - 1) > 0.01
    for key, value in before["model"].items():
        assert torch.equal(ours["model"][key], value)

    json_file = tmp_path / "scores.json"
    plain = scores(json_file, "--restore-from", fitted, *words)
    cooled = scores(json_file, "--restore-from", fitted, "--temperature", *words)
    assert plain["ece"] == scores(json_file, "--restore-from", checkpoint, *words)["ece"]
    assert cooled["ece"] < plain["ece"]
    assert cooled["iou"] == plain["iou"]
    assert "expected calibration error" in capsys.readouterr().out

    for name, more in (("plain", []), ("cooled", ["--temperature"])):
        call(
            pseudo_label, "--restore-from", fitted, "--save", tmp_path / name, "--confidence",
            "--set", "val", *more, *words,
        )  # fmt: skip
    maps = [
        np.asarray(Image.open(tmp_path / name / "confidence" / f"{FRAMES[0]}.png"), np.int64)
        for name in ("plain", "cooled")
    ]
    change = (maps[1] - maps[0]).mean()
    assert change < -1 if ours["temperature"] > 1 else change > 1


def test_what_has_no_temperature_is_refused(checkpoint, camvid, tmp_path):
    words = on_camvid(camvid)
    with pytest.raises(UserError, match=r"net\.pth has no temperature: python -m tools\.calibrate"):
        call(evaluate, "--restore-from", checkpoint, "--temperature", *words)
    with pytest.raises(UserError, match="would be written over"):
        call(calibrate, checkpoint, "--output", checkpoint, *words)
    with pytest.raises(UserError, match=r"must end in \.pth"):
        call(calibrate, checkpoint, "--output", tmp_path / "a.txt", *words)
    bad = torch.load(checkpoint, weights_only=True) | {"temperature": 0.0}
    torch.save(bad, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="temperature is 0"):
        call(evaluate, "--restore-from", tmp_path / "bad.pth", "--temperature", *words)
