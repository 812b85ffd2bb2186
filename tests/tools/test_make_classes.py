"""The class table that is made of what labels hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakedata
from datasets import build_dataset
from engine.errors import UserError
from tools import make_classes


def make(root: Path, *words: str) -> dict:
    make_classes.main(make_classes.parse_args([str(root), *words]))
    return json.loads((root / "classes.json").read_text())


def labels(root: Path, *arrays: np.ndarray, palette: list | None = None) -> Path:
    """Write labels, and images of their size."""
    for i, array in enumerate(arrays):
        fakedata.save(root / "images" / f"{i}.jpg", np.zeros((*array.shape[:2], 3), np.uint8))
        image = Image.fromarray(array)
        if palette is not None:
            image.putpalette([part for colour in palette for part in colour])
        (root / "labels").mkdir(exist_ok=True)
        image.save(root / "labels" / f"{i}.png")
    return root


def checker(*values) -> np.ndarray:
    """Return uint8 [len,len] or [len,len,3] in which every value has a row."""
    return np.repeat(np.array(values, np.uint8)[:, None], len(values), 1)


@pytest.mark.parametrize(
    ("values", "ids", "ignored"),
    [
        ((0, 1, 2), [0, 1, 2], []),
        ((10, 20, 255), [10, 20], [255]),
        ((0, 255), [0, 255], []),  # a mask of one object
        ((3, 7), [3, 7], []),
    ],
)
def test_ids(values, ids, ignored, tmp_path: Path, capsys):
    root = labels(tmp_path, checker(*values), checker(*values))
    table = make(root)
    assert [row["id"] for row in table["classes"]] == ids
    assert table["ignore"] == ignored
    assert len({tuple(row["color"]) for row in table["classes"]}) == len(ids)
    dataset = build_dataset("folder", root, split="train")
    expected = [ids.index(value) if value in ids else 255 for value in values]
    assert dataset[0]["label"][:, 0].tolist() == expected
    said = capsys.readouterr().out
    assert f"wrote {root}/classes.json: {len(ids)} classes" in said
    assert said.count(f"{100 / len(values):.2f} %  2") == len(values)


def test_colours(tmp_path: Path):
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    root = labels(tmp_path, checker(red, blue), checker(black, blue))
    table = make(root)
    assert [tuple(row["color"]) for row in table["classes"]] == [black, blue, red]
    dataset = build_dataset("folder", root, split="train")
    assert [dataset[i]["label"][:, 0].tolist() for i in range(2)] == [[2, 1], [0, 1]]


def test_a_palettes_colours_are_kept(tmp_path: Path):
    palette = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]
    root = labels(tmp_path, checker(1, 2), palette=palette)
    assert [tuple(row["color"]) for row in make(root)["classes"]] == palette[1:]


def test_palettes_that_differ_hold_no_ids(tmp_path: Path):
    root = labels(tmp_path, checker(0, 1), palette=[(9, 9, 0), (200, 0, 0)])
    image = Image.fromarray(checker(0, 1))
    image.putpalette([200, 0, 0, 9, 9, 0])
    image.save(root / "labels" / "1.png")
    with pytest.raises(UserError, match="the indices are no ids; give --label-values colours"):
        make(root)
    table = make(root, "--label-values", "colours")
    assert [row["color"] for row in table["classes"]] == [[9, 9, 0], [200, 0, 0]]


def test_what_is_refused(tmp_path: Path):
    root = labels(tmp_path / "one", checker(4, 4))
    with pytest.raises(UserError, match="all labels hold 4 and nothing else"):
        make(root)
    assert not (root / "classes.json").exists()
    (root / "classes.json").write_text("mine")
    with pytest.raises(UserError, match=r"classes\.json exists already: remove it"):
        make(root)
    assert (root / "classes.json").read_text() == "mine"
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    for name, arrays, message in (
        ("photograph", [noise], r"0.png: \d+ colours: a photograph, or blurred"),
        ("blurred", [noise[:20, :20]], "more than 254 ids or colours"),
        ("mixed", [checker(1, 2), checker((1, 2, 3), (3, 2, 1))], "holds ids, .*colours"),
    ):
        with pytest.raises(UserError, match=message):
            make(labels(tmp_path / name, *arrays))
    with pytest.raises(UserError, match="no such folder"):
        make(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no label here"):
        make(tmp_path / "empty")
