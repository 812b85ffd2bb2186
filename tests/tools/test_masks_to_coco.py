"""Label maps become COCO annotations, and the same label maps again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets.outlines import components
from engine.errors import UserError
from tools import coco_to_masks, masks_to_coco

NAMES = ("background", "bag", "tin")


def make(root: Path, *labels: np.ndarray) -> Path:
    for i, label in enumerate(labels):
        fakedata.save(root / f"images/{i}.png", np.zeros((*label.shape, 3), np.uint8))
        fakedata.save(root / f"labels/{i}.png", label.astype(np.uint8))
    classes = [{"id": i, "name": name, "color": [i, 0, 0]} for i, name in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": [255]}))
    return root


def convert(root: Path, *words: str) -> dict:
    path = root / "coco.json"
    arguments = [str(root), "--save", str(path), *words]
    masks_to_coco.main(masks_to_coco.parse_args(arguments))
    return json.loads(path.read_text())


def drawn(rows: str) -> np.ndarray:
    return np.array([[255 if one == "." else int(one) for one in row] for row in rows.split()])


def test_every_part_is_an_object(tmp_path: Path, capsys):
    root = make(tmp_path, drawn("1100 0010 2.01"))
    value = convert(root, "--uncompressed")
    assert [one["category_id"] for one in value["annotations"]] == [1, 2]
    assert value["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "area": 4, "bbox": [0, 0, 4, 3], "iscrowd": 0,
        "segmentation": {"size": [3, 4], "counts": [0, 1, 2, 1, 3, 1, 3, 1]},
    }  # fmt: skip
    assert value["annotations"][1]["bbox"] == [0, 2, 1, 1]
    assert value["categories"][1] == {"id": 2, "name": "tin", "supercategory": ""}
    assert value["images"] == [{"id": 1, "file_name": "0.png", "width": 4, "height": 3}]
    assert f"relative to {root}/images" in capsys.readouterr().out
    value = convert(root, "--min-pixels", "2")
    assert [one["segmentation"]["counts"] for one in value["annotations"]] == ["01201000"]
    assert "left out 1 of fewer than 2" in capsys.readouterr().out


def test_there_and_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = [rng.choice([0, 1, 2, 2, 255], (9, 7)), np.full((5, 8), 1), fakedata.blocks(
        rng, (50, 40), (0, 1, 2))]  # fmt: skip
    root = make(tmp_path / "in", *labels)
    for by in ("component", "class"):
        convert(root, "--by", by)
        words = [str(root / "coco.json"), "--save", str(tmp_path / by)]
        coco_to_masks.main(coco_to_masks.parse_args(words))
        for i, label in enumerate(labels):
            again = np.array(Image.open(tmp_path / by / f"labels/{i}.png"))
            assert np.array_equal(again, np.where(label == 255, 0, label))


def test_parts_touch_at_corners():
    """Beside a flood of each part, pixel by pixel."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        label = rng.integers(0, 3, rng.integers(1, 14, 2), np.uint8)
        seen = np.zeros(label.shape, int)
        found = components(label)
        for number, (value, region) in enumerate(found, 1):
            assert (region.within(label)[region.mask] == value).all()
            region.within(seen)[region.mask] += number
        assert sum(region.mask.sum() for _, region in found) == label.size
        expected = np.zeros(label.shape, int)
        for number, start in enumerate(zip(*np.nonzero(label < 9), strict=True), 1):
            waiting = [] if expected[start] else [start]
            while waiting:
                r, c = waiting.pop()
                expected[r, c] = number
                waiting += [
                    (y, x)
                    for y in range(max(0, r - 1), min(label.shape[0], r + 2))
                    for x in range(max(0, c - 1), min(label.shape[1], c + 2))
                    if label[y, x] == label[r, c] and not expected[y, x]
                ]
        pairs = set(zip(seen.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == len(found) == len(np.unique(expected))


def test_what_is_refused(tmp_path: Path):
    root = make(tmp_path, drawn("1100"))
    with pytest.raises(UserError, match="--without box: no such class; there are: background, bag"):
        convert(root, "--without", "box")
    with pytest.raises(UserError, match="--without leaves no class"):
        convert(root, "--without", *NAMES)
    with pytest.raises(UserError, match="would be written over"):
        masks_to_coco.main(
            masks_to_coco.parse_args([str(root), "--save", str(root / "labels/0.png")])
        )
    fakedata.save(root / "labels/0.png", np.full((1, 4), 9, np.uint8))
    with pytest.raises(UserError, match=r"0.png: label values outside the class table"):
        convert(root)
    assert not (root / "coco.json").exists()
