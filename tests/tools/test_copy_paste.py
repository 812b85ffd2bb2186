"""Objects that are pasted: whose pixels, where, and that labels go with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset
from engine.errors import UserError
from tools import copy_paste

GREEN, RED, BLUE = (0, 200, 0), (200, 0, 0), (0, 0, 200)


def make(root: Path) -> Path:
    """Write three images: a red can, a blue bag at the edge and within, and nothing."""
    label = np.zeros((3, 40, 60), np.uint8)
    label[0, 10:22, 10:26] = 1
    label[1, 0:12, 0:12] = 2
    label[1, 20:32, 30:44] = 2
    for i, ids in enumerate(label):
        fakedata.save(root / f"images/{i}.png", np.array([GREEN, RED, BLUE], np.uint8)[ids])
        fakedata.save(root / f"labels/{i}.png", ids)
    rows = [
        {"id": i, "name": n, "color": [i, 0, 0]} for i, n in enumerate(("background", "can", "bag"))
    ]
    (root / "classes.json").write_text(json.dumps({"classes": rows, "ignore": [255]}))
    return root


def run(root: Path, save: Path, *words: str) -> Path:
    copy_paste.main(copy_paste.parse_args([str(root), "--save", str(save), *words]))
    return save


def test_pixels_and_labels_go_together(tmp_path: Path, capsys):
    words = ("--images", "6", "--classes", "can", "--blend", "0", "--with-originals")
    out = run(make(tmp_path / "in"), tmp_path / "out", *words)
    dataset = build_dataset("folder", out, split="train")
    assert len(dataset) == 9
    grown, sizes = 0, set()
    for index, (name, _) in enumerate(dataset.pairs):
        image, label = dataset[index]["image"].numpy(), dataset[index]["label"].numpy()
        if "pasted" not in name:
            original = Image.open(tmp_path / "in" / name)
            assert np.array_equal(image, np.asarray(original).transpose(2, 0, 1))
            continue
        assert set(np.unique(label).tolist()) <= {0, 1, 2}
        reddest = image[0].astype(int) - image[1]
        inner = (label == 1) & (np.roll(label, 2, 0) == 1) & (np.roll(label, -2, 0) == 1)
        inner &= (np.roll(label, 2, 1) == 1) & (np.roll(label, -2, 1) == 1)
        assert (reddest[inner] > 60).mean() > 0.98
        assert (reddest[(label == 0)] > 60).mean() < 0.02  # JPEG's and the resized edge's
        grown += (label == 1).any()
        sizes.add(int((label == 1).sum()))
    assert grown >= 5
    assert len(sizes) > 3
    assert "can" in capsys.readouterr().out.splitlines()[-1]


def test_the_same_seed_gives_the_same_images(tmp_path: Path):
    root = make(tmp_path / "in")
    first = run(root, tmp_path / "a", "--images", "4")
    more = run(root, tmp_path / "b", "--images", "6")
    other = run(root, tmp_path / "c", "--images", "4", "--seed", "1")
    names = sorted(path.relative_to(first) for path in first.rglob("*_pasted*"))
    assert len(names) == 8
    assert all((first / name).read_bytes() == (more / name).read_bytes() for name in names)
    assert any(
        not (other / name).exists() or (first / name).read_bytes() != (other / name).read_bytes()
        for name in names
    )


def test_only_background_is_covered(tmp_path: Path, capsys):
    """An image that is full has no place."""
    root = make(tmp_path / "in")
    fakedata.save(root / "labels/2.png", np.full((40, 60), 255, np.uint8))
    out = run(root, tmp_path / "out", "--images", "5", "--objects", "9,9", "--min-pixels", "20")
    assert "objects found no place on the background (left out)" in capsys.readouterr().out
    for path in (out / "labels").glob("*.png"):
        index = int(path.name[0])
        before = np.array(Image.open(root / f"labels/{index}.png"))
        after = np.array(Image.open(path))
        assert np.array_equal(after[before != 0], before[before != 0])


def test_objects_at_the_edge_are_cut_off_and_stay(tmp_path: Path):
    dataset = build_dataset("folder", make(tmp_path), split="train")
    cuts, counts = copy_paste.find_objects(dataset, 100, 0)
    assert [(cut.index, cut.number, cut.top, cut.left) for cut in cuts] == [
        (0, 1, 10, 10),
        (1, 2, 20, 30),
    ]
    assert counts.tolist() == [[2208, 192, 0], [2088, 0, 312], [2400, 0, 0]]
    assert copy_paste.chosen_classes(dataset, counts, None, 0) == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--classes box", "--classes box: no such class to paste; there are: background, can, bag"),
        ("--classes background", "no such class to paste"),
        ("--background sky", "--background sky: no such class; there are"),
        ("--objects 3,2", "--objects: LOW,HIGH"),
        ("--classes bag --min-pixels 200", "no object of 200 pixels or more of the class bag"),
    ],
)
def test_what_is_refused(words, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        run(make(tmp_path / "in"), tmp_path / "out", "--images", "1", *words.split())
    assert not (tmp_path / "out").exists()
