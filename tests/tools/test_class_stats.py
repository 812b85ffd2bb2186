"""What labels hold, counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

import fakedata
from engine.errors import UserError
from tools import class_stats

NAMES = ("ground", "plant", "water")


def make(root: Path, *labels: list) -> Path:
    for i, rows in enumerate(labels):
        label = np.array(rows, np.uint8)
        fakedata.save(root / f"images/{i}.png", np.zeros((*label.shape, 3), np.uint8))
        fakedata.save(root / f"labels/{i}.png", label)
    rows = [{"id": i, "name": name, "color": [i, 0, 0]} for i, name in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps({"classes": rows, "ignore": [255]}))
    return root


def run(root: Path, *words: str) -> dict:
    path = root / "held.json"
    class_stats.main(class_stats.parse_args([str(root), "--json", str(path), *words]))
    return json.loads(path.read_text())


def test_by_hand(tmp_path: Path, capsys):
    root = make(tmp_path, [[0, 1, 1, 255], [1, 0, 0, 255]], [[0, 0, 0]])
    about = run(root, "--objects")
    ground, plant, water = about["classes"]
    assert (ground["pixels"], ground["images"], ground["share"]) == (6, 2, 6 / 9)
    assert ground["share_of_image"]["mean"] == pytest.approx((3 / 8 + 1) / 2)
    assert (ground["objects"], plant["objects"], water["objects"]) == (2, 1, 0)
    assert ground["pixels_of_object"]["50%"] == 3
    assert (plant["pixels"], plant["images"]) == (3, 1)
    assert (water["pixels"], water["images"], water["share_of_image"]) == (0, 0, None)
    assert about["images_with_both"] == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert (about["images"], about["pixels"], about["ignored"]) == (2, 11, 2)
    assert sorted(about["sizes"]) == [[3, 1, 1], [4, 2, 1]]
    assert plant["weights"]["root-median"] == pytest.approx((4.5 / 3) ** 0.5, abs=1e-5)
    said = capsys.readouterr().out.splitlines()
    assert said[2].split() == ["plant", "3", "33.333", "1", "37.500", "1.225", "1", "3"]
    assert said[4] == "2 images, 18.182 % of the pixels ignored; sizes: 4x2 (1), 3x1 (1)"
    assert said[-3].split() == ["plant", "100", "100", "0"]


def test_any_dataset(tmp_path: Path):
    root = fakedata.make_camvid(tmp_path / "camvid", n=2)
    class_stats.main(class_stats.parse_args([str(root), "--dataset", "camvid"]))


def test_what_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="every pixel is ignored"):
        run(make(tmp_path / "a", [[255, 255]]))
    root = make(tmp_path / "b", [[0, 1]])
    words = [str(root), "--json", str(root / "labels/0.png")]
    with pytest.raises(UserError, match="would be written over"):
        class_stats.main(class_stats.parse_args(words))
