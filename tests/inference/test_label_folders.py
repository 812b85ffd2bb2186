"""Which prediction is of which image: one walk, look-ups, and what is left out."""

import json
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datasets import write_label_png
from datasets.walk import walk_files
from engine.errors import UserError
from inference import submissions
from inference.label_folders import find_labels, match, palette_of, same_images, stems
from inference.pseudo_folder import list_text


def dataset(*images: str) -> SimpleNamespace:
    return SimpleNamespace(pairs=[(image, None) for image in images])


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        write_label_png(folder / name, np.zeros((2, 3), np.uint8))
    return folder


def names(found) -> set[str]:
    return {path.name for path in (found.values() if isinstance(found, dict) else found)}


# ------------------------------------------------------------------ matching


def test_endings_of_any_case_and_accents_of_either_form(tmp_path):
    """macOS writes an accent as a character of its own."""
    composed = unicodedata.normalize("NFC", "caf\u00e9")
    apart = unicodedata.normalize("NFD", composed)
    assert composed != apart
    fill(tmp_path, "one.PNG", f"sub/{apart}.png")
    found = match(dataset("one.JPG", f"sub/{composed}.jpeg"), tmp_path)
    assert [path.name for path in found] == ["one.PNG", f"{apart}.png"]


def test_images_called_as_pictures_are(tmp_path):
    """x_color.png is a picture of x.png only where there is one, and not in our own shape."""
    flat = fill(tmp_path / "flat", "x.png", "x_color.png", "y_color.png")
    assert names(find_labels(flat)) == {"x.png", "y_color.png"}
    both = match(dataset("x.jpg", "x_color.jpg", "y_color.jpg"), flat)
    assert names(both) == {"x.png", "x_color.png", "y_color.png"}
    ours = fill(
        tmp_path / "ours", "train_ids/x.png", "train_ids/x_color.png", "color/x_color.png",
        "color/x_color_color.png", "confidence/x.png", "overlay/x.png",
    )  # fmt: skip
    assert names(find_labels(ours)) == {"x.png", "x_color.png"}
    assert find_labels(ours) == find_labels(ours / "train_ids")


def test_other_ids_of_our_shape(tmp_path):
    ours = fill(tmp_path, "train_ids/x.png")
    with pytest.raises(UserError, match="no label_ids in it: the dataset's own ids are the train"):
        find_labels(ours, "label")
    fill(tmp_path, "label_ids/x.png")
    assert find_labels(ours, "label")["x"].parent.name == "label_ids"


def test_earlier_folders_of_pseudo_labels(tmp_path):
    fill(tmp_path, "val/x.png", "confidence/val/x.png", "variance/val/x.png")
    (tmp_path / "pseudo.json").write_text(json.dumps({}))
    assert list(find_labels(tmp_path)) == ["val/x"]


def test_hidden_files_and_two_of_one_stem(tmp_path):
    fill(tmp_path, "x.png", ".ipynb_checkpoints/x.png", "._x.png")
    assert list(find_labels(tmp_path)) == ["x"]
    fill(tmp_path, "x.tif")
    with pytest.raises(UserError, match=r"x\.png and x\.tif have one stem: remove one"):
        find_labels(tmp_path)


def test_the_servers_rule_takes_the_longest_name(tmp_path):
    fill(tmp_path, "a_1_mine.png", "a_1_2_mine.png", "a.png")
    found = match(dataset("in/a_1.png", "in/a_1_2.png", "in/a_leftImg8bit.png"), tmp_path)
    assert [path.name for path in found] == ["a_1_mine.png", "a_1_2_mine.png", "a.png"]
    fill(tmp_path, "b_mine.png")
    with pytest.raises(UserError, match="predictions of no image of the dataset: b_mine"):
        match(dataset("in/a_1.png", "in/a_1_2.png", "in/a.png"), tmp_path)


def test_images_of_one_stem_keep_their_endings():
    assert stems(dataset("a.jpg", "a.png", "b.png", "c/a.jpg")) == {
        "a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b", "c/a.jpg": "c/a",
    }  # fmt: skip
    with pytest.raises(UserError, match="would be predicted into the same file"):
        stems(dataset("a.jpg", "a.png", "a.png.jpg"))


def test_colours_are_the_first_folders_that_has_any(tmp_path):
    grey = fill(tmp_path / "grey", "x.png")
    write_label_png(tmp_path / "flat" / "x.png", np.zeros((2, 2), np.uint8), [(1, 2, 3)])
    write_label_png(
        tmp_path / "ours" / "color" / "x_color.png", np.zeros((2, 2), np.uint8), [[7] * 3]
    )
    fill(tmp_path / "ours", "train_ids/x.png")
    assert palette_of([str(grey)]) is None
    assert palette_of([str(grey), str(tmp_path / "flat")])[0] == [1, 2, 3]
    for ours in (tmp_path / "ours", tmp_path / "ours" / "train_ids"):
        assert palette_of([str(grey), str(ours)])[0] == [7, 7, 7]


# ------------------------------------------------------------------ lists and lines


def test_names_in_lists():
    assert list_text({"a b.png": "x"}) == "a b.png\tx\n"
    assert list_text({"a\u00a0b.png": "x", "c": "y"}) == "a\u00a0b.png x\nc y\n"
    for name in ("a\tb.png", "a\nb.png", " a.png", "\udcff.png"):
        with pytest.raises(UserError, match="no list can hold this name; rename it"):
            list_text({name: "x"})


def test_a_row_that_never_ends_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(submissions, "MAX_LINE", 1000)
    (tmp_path / "s.csv").write_bytes(b"image_id,PredictionString\na,0 1\nb," + b"1 " * 600)
    with pytest.raises(UserError, match=r"s\.csv, line 3: longer than 1000 bytes"):
        submissions.Submission(tmp_path / "s.csv", 7)
    (tmp_path / "s.csv").write_bytes(b"image_id," * 200)
    with pytest.raises(UserError, match=r"s\.csv, line 1: longer than 1000 bytes"):
        submissions.Submission(tmp_path / "s.csv", 7)


# ------------------------------------------------------------------ time


def test_ten_thousand_predictions_are_matched_in_no_time(tmp_path):
    """Processor time, not the wall's: prefixes compared with every name took 16 s."""
    images = [f"val/city_{i:06d}_000019_leftImg8bit.png" for i in range(10_000)]
    content = fill(tmp_path, "one.png").joinpath("one.png").read_bytes()
    for kind in ("flat", "a/train_ids/val", "b/train_ids/val"):
        (tmp_path / kind).mkdir(parents=True)
        for image in images:
            name = image[4:] if kind != "flat" else f"{image[4:22]}_mine.png"
            (tmp_path / kind / name).write_bytes(content)
    begun = time.process_time()
    match(dataset(*images), tmp_path / "flat")
    match(dataset(*images), tmp_path / "a")
    same_images([str(tmp_path / "a"), str(tmp_path / "b")])
    assert time.process_time() - begun < 20  # 1 s; quadratic ones take minutes


def test_a_hundred_thousand_images_are_listed_in_no_time(tmp_path):
    for folder in range(20):
        (tmp_path / str(folder)).mkdir()
        for i in range(5000):
            (tmp_path / str(folder) / f"{i}.jpg").touch()
    begun = time.process_time()
    found = walk_files(tmp_path, {".jpg"})
    assert len(stems(dataset(*found.files))) == 100_000
    assert time.process_time() - begun < 20  # half a second
