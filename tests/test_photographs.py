"""Predicting what has no labels: photographs of any names (evaluate.py --images), test sets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ensemble
import evaluate
import fakedata
from datasets import DATASETS, write_label_png
from datasets.files import full_palette
from engine.errors import UserError
from engine.files import save_tensors
from inference.outputs import held
from inference.photographs import NEAR, overlay, table_of_checkpoint, visible
from models.checkpoint import load_checkpoint
from worlds import FRAMES, in_camvid, on_camvid, open_camvid, script, write_checkpoint

NAMES = DATASETS["camvid"].rows
PLAIN = ("--num-workers", "0", "--precision", "fp32")


@pytest.fixture
def checkpoint(camvid, tmp_path):
    names, palette = open_camvid(camvid).class_names, open_camvid(camvid).palette
    return write_checkpoint(
        tmp_path / "net.pth", "camvid", names, palette=palette, input_size=(40, 24)
    )


def run(*words) -> None:
    evaluate.main(evaluate.parse_args([str(word) for word in words]))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def photograph(path: Path, size: tuple[int, int] = (120, 72), orientation: int = 1) -> Path:
    """Write colours that differ everywhere, as a photograph that is looked at in this size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    turned = {1: None, 6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[orientation]
    stored = image if turned is None else image.transpose(turned)
    exif = stored.getexif()
    exif[0x0112] = orientation
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    stored.save(path, kind, exif=exif, **({"quality": 98} if kind == "JPEG" else {}))
    return path


# ------------------------------------------------------------------ names, folders, sizes


def test_photographs_of_any_names_and_sizes(checkpoint, tmp_path):
    """Names and folders are kept; sizes are the photograph's own, as it is looked at."""
    sizes = {
        "a.JPG": (120, 72), "a.png": (120, 72), "x_color.png": (61, 33), "sub/b.jpeg": (72, 120),
        "sub/deep er/\u00fc b\u00a0c.jpg": (50, 50), "-dash.jpg": (33, 32),
    }  # fmt: skip
    for name, size in sizes.items():
        photograph(tmp_path / "in" / name, size)
    (tmp_path / "in" / "notes.txt").write_text("no photograph")
    (tmp_path / "in" / ".hidden.jpg").write_text("no photograph")
    done = script(
        "evaluate.py", "--restore-from", checkpoint, "--images", tmp_path / "in",
        "--save", tmp_path / "out", *PLAIN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("photographs predicted: 6 in ")
    assert second == "no photographs by their names: 1 ending .txt, 1 name with a dot before it"
    # a.JPG and a.png have one stem and keep their endings
    stems = {name: name if name.startswith("a.") else name.rpartition(".")[0] for name in sizes}
    for name, stem in stems.items():
        ids = read(tmp_path / "out" / "train_ids" / f"{stem}.png")
        assert ids.shape == sizes[name][::-1]
        assert ids.max() < 11
        assert np.array_equal(read(tmp_path / "out" / "color" / f"{stem}_color.png"), ids)
        assert read(tmp_path / "out" / "overlay" / f"{stem}.jpg").shape == (*ids.shape, 3)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 3 * len(sizes) + 1  # and predictions.json


def test_a_turned_photograph_is_predicted_as_it_is_looked_at(checkpoint, tmp_path):
    for orientation in (1, 3, 6):
        photograph(tmp_path / "in" / f"{orientation}.png", (90, 60), orientation)
    run("--restore-from", checkpoint, "--images", tmp_path / "in", "--save", tmp_path / "o", *PLAIN)
    one, three, six = (read(tmp_path / "o" / "train_ids" / f"{i}.png") for i in (1, 3, 6))
    assert len(np.unique(one)) > 1
    assert np.array_equal(one, three)
    assert np.array_equal(one, six)


def test_the_prediction_is_that_of_scoring(checkpoint, camvid, tmp_path):
    """Of images in the shape of the input size, however they are asked for."""
    words = ("--restore-from", checkpoint, "--save")
    run(*words, tmp_path / "scored", *on_camvid(camvid))
    run(*words, tmp_path / "seen", "--images", camvid / "val", *PLAIN)
    for frame in FRAMES:
        name = f"{Path(frame).name}.png"
        scored = read(tmp_path / "scored" / "train_ids" / "val" / name)
        assert np.array_equal(read(tmp_path / "seen" / "train_ids" / name), scored)
    # and it is scored as a folder of predictions
    run("--predictions", tmp_path / "seen", "--dataset", "camvid", *in_camvid(camvid))


def test_labelled_images_have_an_overlay_where_it_is_asked_for(checkpoint, camvid, tmp_path):
    words = ("--restore-from", checkpoint, *on_camvid(camvid, "--opacity", "0"))
    scores = tmp_path / "scores.json"
    run(*words, "--save", tmp_path / "seen", "--cache", tmp_path / "cache", "--json", scores)
    assert json.loads(scores.read_text())[0]["images"] == "val"
    for frame in FRAMES:  # opacity 0 shows the image
        shown = read(tmp_path / "seen" / "overlay" / f"{frame}.jpg").astype(int)
        assert abs(shown - read(camvid / f"{frame}.png")).mean() < 25  # JPEG of noise
    run("--restore-from", checkpoint, "--save", tmp_path / "plain", *on_camvid(camvid))
    assert not (tmp_path / "plain" / "overlay").exists()
    drawn = write_checkpoint(
        tmp_path / "streets.pth", "streets", DATASETS["streets"](None, split="val").class_names
    )
    run(
        "--restore-from", drawn, "--save", tmp_path / "drawn", "--opacity", "0.4", "--set", "val",
        "--input-size", "64,48", *PLAIN,
    )  # fmt: skip
    assert len(list((tmp_path / "drawn" / "overlay").rglob("*.jpg"))) > 0


def test_the_longer_side_is_that_of_the_input_size(checkpoint, tmp_path, monkeypatch):
    seen = []
    from inference.predictor import Predictor

    plain = Predictor.__call__
    monkeypatch.setattr(
        Predictor, "__call__", lambda *x: (seen.append(tuple(x[1].shape[-2:])), plain(*x))[1]
    )
    for name, size in {"a": (120, 60), "b": (60, 120), "c": (7, 5)}.items():
        photograph(tmp_path / "in" / f"{name}.png", size)
    words = ("--restore-from", checkpoint, "--images", tmp_path / "in", "--save", tmp_path / "out")
    run(*words, *PLAIN)
    assert seen == [(20, 40), (40, 20), (29, 40)]
    seen.clear()
    for size in ("64,48", "64"):
        run(*words, *PLAIN, "--input-size", size)
        assert seen == [(32, 64), (64, 32), (46, 64)]
        seen.clear()


def test_one_file_is_a_folder_of_one(checkpoint, tmp_path):
    path = photograph(tmp_path / "in" / "one.jpg")
    photograph(tmp_path / "in" / "other.jpg")
    run("--restore-from", checkpoint, "--images", path, "--save", tmp_path / "out", *PLAIN)
    assert [p.name for p in (tmp_path / "out" / "train_ids").iterdir()] == ["one.png"]


def test_what_is_written_is_no_photograph(checkpoint, tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    words = ("--restore-from", checkpoint, "--images", tmp_path / "in", *PLAIN)
    for _ in range(2):  # the second finds the pictures of the first, below its own folder
        run(*words, "--save", tmp_path / "in" / "seen")
    written = [p for p in (tmp_path / "in" / "seen").rglob("*") if p.is_file()]
    assert len(written) == 4  # and predictions.json
    with pytest.raises(UserError, match="is the folder of the photographs: give another"):
        run(*words, "--save", tmp_path / "in")
    before = (tmp_path / "in" / "a.jpg").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlay").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match=r"overlay/a\.jpg would be written over"):
        run(*words, "--save", tmp_path / "out")
    assert (tmp_path / "in" / "a.jpg").read_bytes() == before


# ------------------------------------------------------------------ what cannot be read


def test_unreadable_photographs_are_named_and_the_others_predicted(checkpoint, tmp_path):
    good = [photograph(tmp_path / "in" / f"{i}.jpg") for i in range(3)]
    (tmp_path / "in" / "text.jpg").write_text("no image")
    (tmp_path / "in" / "cut.jpg").write_bytes(good[0].read_bytes()[:700])
    (tmp_path / "in" / "empty.png").touch()
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(tmp_path / "in" / "clear.png")
    for workers in ("0", "2"):
        done = script(
            "evaluate.py", "--restore-from", checkpoint, "--images", tmp_path / "in",
            "--save", tmp_path / workers, "--num-workers", workers,
        )  # fmt: skip
        assert done.returncode == 2
        *lines, last = done.stderr.splitlines()
        assert last == "error: 4 of 7 photographs could not be read"
        assert len(lines) == 4
        for name in ("text.jpg", "cut.jpg", "empty.png", "clear.png"):
            assert sum(line.startswith(f"left out: {tmp_path}/in/{name}: ") for line in lines) == 1
        assert len(list((tmp_path / workers / "train_ids").iterdir())) == 3
    # what the header cannot decide may be said
    run(
        "--restore-from", checkpoint, "--images", tmp_path / "in" / "clear.png", "--save",
        tmp_path / "said", "--data-option", "alpha=drop", *PLAIN,
    )  # fmt: skip


def test_a_disk_that_cannot_be_written_ends_it(checkpoint, tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlay").write_text("in the way")
    with pytest.raises(UserError, match=r"overlay/a\.jpg: cannot write this picture"):
        run(
            "--restore-from", checkpoint, "--images", tmp_path / "in", "--save", tmp_path / "out",
            *PLAIN,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "{in}"], "--images needs --save"),
        (
            ["--images", "{in}", "--save", "{out}", "--classes", "16"],
            "--classes goes with labelled",
        ),
        (["--images", "{in}", "--save", "{out}", "--set", "val"], "--set goes with labelled"),
        (["--images", "{in}", "--save", "{out}", "--batch-size", "2"], "--batch-size goes with"),
        (
            ["--images", "{in}", "--save", "{out}", "--dataset", "camvid"],
            "--dataset goes with --mo",
        ),
        (["--images", "{out}", "--save", "{out}"], "no such data folder"),
        (["--images", "{empty}", "--save", "{out}"], "nothing here matches"),
        (["--opacity", "0.5"], "--opacity goes with --save"),
    ],
)
def test_options_that_cannot_be(checkpoint, tmp_path, words, said):
    photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "empty").mkdir()
    folders = {name: tmp_path / name for name in ("in", "out", "empty")}
    with pytest.raises(UserError, match=said):
        run("--restore-from", checkpoint, *(word.format(**folders) for word in words))
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_folder(checkpoint, tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    with held(tmp_path / "out"):
        done = script(
            "evaluate.py", "--restore-from", checkpoint, "--images", tmp_path / "in",
            "--save", tmp_path / "out",
        )  # fmt: skip
    assert done.returncode == 2
    assert "out is in use by another run" in done.stderr


# ------------------------------------------------------------------ classes and colours


def test_classes_and_ids_come_from_the_checkpoint(tmp_path):
    table = table_of_checkpoint({
        "classes": ["cat", "dog"], "ids": [7, 200], "palette": [(0, 0, 0), (9, 200, 9)],
        "dataset": "folder",
    })  # fmt: skip
    assert table["classes"][1] == {"id": 200, "name": "dog", "color": [9, 200, 9]}
    checkpoint = write_checkpoint(
        tmp_path / "net.pth", "folder", ["cat", "dog"], ids=[7, 200], input_size=(40, 24)
    )
    photograph(tmp_path / "in" / "a.jpg")
    run("--restore-from", checkpoint, "--images", tmp_path / "in", "--save", tmp_path / "o", *PLAIN)
    ids, raw = (read(tmp_path / "o" / kind / "a.png") for kind in ("train_ids", "label_ids"))
    assert np.array_equal(raw, np.array([7, 200])[ids])


def test_what_an_older_checkpoint_does_not_say_is_its_datasets():
    rows = [row for row in DATASETS["cityscapes"].rows if row.train_id != 255]
    short = DATASETS["cityscapes"].short_names
    names = [short.get(row.name, row.name) for row in rows]
    table = table_of_checkpoint({"classes": names, "palette": [], "dataset": "cityscapes"})
    assert [entry["id"] for entry in table["classes"]] == [row.id for row in rows]
    assert [tuple(entry["color"]) for entry in table["classes"]] == [row.colour for row in rows]
    # other classes under the dataset's name: their own numbers, colours made up
    table = table_of_checkpoint({"classes": names[:3], "dataset": "cityscapes"})
    assert [entry["id"] for entry in table["classes"]] == [0, 1, 2]


def test_weights_of_others_have_the_classes_of_a_dataset(checkpoint, tmp_path):
    model = load_checkpoint(checkpoint)["model"]
    save_tensors(model, tmp_path / "theirs.pth")
    photograph(tmp_path / "in" / "a.jpg")
    words = ("--images", tmp_path / "in", "--input-size", "40,24", *PLAIN)
    run("--restore-from", checkpoint, *words, "--save", tmp_path / "ours")
    theirs = ("--restore-from", tmp_path / "theirs.pth", "--model", "compact", "width=8")
    with pytest.raises(UserError, match="give --dataset, whose classes these weights have"):
        run(*theirs, *words, "--save", tmp_path / "theirs")
    run(*theirs, *words, "--save", tmp_path / "theirs", "--dataset", "camvid")
    for name in ("train_ids/a.png", "color/a_color.png", "overlay/a.jpg"):
        assert np.array_equal(read(tmp_path / "ours" / name), read(tmp_path / "theirs" / name))


def test_several_checkpoints_have_a_folder_each(checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "two.pth")
    photograph(tmp_path / "in" / "a.jpg")
    run(
        "--restore-from", checkpoint, tmp_path / "two.pth", "--images", tmp_path / "in",
        "--save", tmp_path / "out", *PLAIN,
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"net", "two"}


def test_an_overlay_by_hand():
    image = Image.new("RGB", (2, 1), (100, 200, 40))
    ids = np.array([[0, 255]], np.uint8)
    for opacity, first, void in ((0, (100, 200, 40), (100, 200, 40)), (1, (0, 0, 9), (255,) * 3)):
        shown = np.asarray(overlay(image, ids, [(0, 0, 9)], opacity))
        assert shown.tolist() == [[list(first), list(void)]]
    assert np.asarray(overlay(image, ids, [(0, 0, 9)], 0.5))[0, 0].tolist() == [50, 100, 24]


def test_void_is_no_class_by_its_colour():
    """255 is black where no class is, and never like one."""
    assert full_palette([(9, 200, 0)])[255].tolist() == [0, 0, 0]
    assert full_palette([(0, 0, 0)])[255].tolist() == [255, 255, 255]
    assert full_palette([(8, 8, 8), (250, 250, 250)])[255].tolist() == [255, 0, 255]
    for dataset in DATASETS.values():
        palette = [row.colour for row in getattr(dataset, "rows", ()) if row.train_id != 255]
        assert not palette or full_palette(palette)[255].tolist() not in list(map(list, palette))


@pytest.mark.parametrize(
    "palette",
    [[], [(0, 0, 0)] * 254, [(i, i, i) for i in range(254)], [(255, 0, 0), (0, 255, 0)]],
)
def test_every_class_is_told_apart(palette):
    colours = np.array(visible(palette, 254), int)
    assert colours.shape == (254, 3)
    assert colours.min() >= 0
    assert colours.max() <= 255
    distance = abs(colours[:, None] - colours[None]).sum(-1)
    np.fill_diagonal(distance, 999)
    assert distance.min() >= NEAR
    if palette:
        assert colours[0].tolist() == list(palette[0])


# ------------------------------------------------------------------ test sets


def test_a_test_set_whose_labels_are_ignored_ends_well(tmp_path):
    """Cityscapes': every label id is one that is not scored."""
    root = fakedata.make_cityscapes(tmp_path / "cs", n=1)
    shutil.copytree(root / "leftImg8bit" / "val", root / "leftImg8bit" / "test")
    shutil.copytree(root / "gtFine" / "val", root / "gtFine" / "test")
    for label in (root / "gtFine" / "test").rglob("*labelIds.png"):
        write_label_png(label, np.zeros_like(read(label)))
    names = DATASETS["cityscapes"](root, split="val").class_names
    checkpoint = write_checkpoint(tmp_path / "net.pth", "cityscapes", names, input_size=(64, 32))
    done = script(
        "evaluate.py", "--restore-from", checkpoint, "--data-dir", root, "--set", "test",
        "--save", tmp_path / "out", "--json", tmp_path / "s.json", "--num-workers", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("not scored: every label is ignored")
    (result,) = json.loads((tmp_path / "s.json").read_text())
    assert result["miou"] is None
    count = result["count"]
    for kind in ("train_ids", "label_ids", "color"):
        assert len(list((tmp_path / "out" / kind).rglob("*.png"))) == count
    # so do its predictions, of one or of several
    done = script(
        "evaluate.py", "--predictions", tmp_path / "out", "--dataset", "cityscapes", "--data-dir",
        root, "--set", "test", "--num-workers", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not scored: every label is ignored" in done.stdout


def test_a_test_set_without_labels_is_predicted(tmp_path):
    """LoveDA's, in its server's form: a flat folder of the train ids 0 to 6."""
    root = fakedata.make_loveda(tmp_path / "loveda", n=1)
    for domain in ("Urban", "Rural"):
        shutil.copytree(root / "Val" / domain / "images_png", root / "Test" / domain / "images_png")
    names = DATASETS["loveda"](root, split="val").class_names
    checkpoint = write_checkpoint(tmp_path / "net.pth", "loveda", names)
    words = ("--restore-from", checkpoint, "--data-dir", root, "--num-workers", "0")
    with pytest.raises(UserError, match="has no labels: give --save to predict it"):
        run(*words, "--set", "test")
    done = script("evaluate.py", *words, "--set", "test", "--save", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("not scored: no label is there")
    images = [path.name for path in (root / "Test").rglob("*.png")]
    assert sorted(path.name for path in (tmp_path / "out" / "submission").iterdir()) == sorted(
        images
    )
    for path in (root / "Test").rglob("*.png"):
        inner = path.relative_to(root)
        ids = read(tmp_path / "out" / "train_ids" / inner)
        assert np.array_equal(read(tmp_path / "out" / "submission" / path.name), ids)
        assert np.array_equal(read(tmp_path / "out" / "label_ids" / inner), ids + 1)
        assert ids.max() <= 6
    # labels that are missing where they should be are a mistake
    for folder in root.rglob("Val/*/masks_png"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="no such label"):
        run(*words, "--set", "val", "--save", tmp_path / "val")


# ------------------------------------------------------------------ one shape


def test_every_command_reads_what_the_others_write(checkpoint, camvid, tmp_path):
    import pseudo_label

    on = on_camvid(camvid, "--set", "val")
    folders = [tmp_path / name for name in ("evaluated", "pseudo", "vote", "again")]
    run("--restore-from", checkpoint, "--save", folders[0], *on)
    words = ["--restore-from", checkpoint, "--save", folders[1], "--confidence", *on]
    pseudo_label.main(pseudo_label.parse_args(list(map(str, words))))
    for save, members in ((folders[2], folders[:2]), (folders[3], folders[:3])):
        words = ["--predictions", *members, "--save", save]
        ensemble.main(ensemble.parse_args(list(map(str, words))))
    for folder in folders:
        for given in (folder, folder / "train_ids"):
            run("--predictions", given, "--dataset", "camvid", *in_camvid(camvid, "--set", "val"))
        for frame in FRAMES:
            ids = read(folder / "train_ids" / f"{frame}.png")
            assert np.array_equal(ids, read(folders[0] / "train_ids" / f"{frame}.png"))
            with Image.open(folder / "color" / f"{frame}_color.png") as image:
                assert image.getpalette()[:3] == list(open_camvid(camvid).palette[0])
                assert np.array_equal(np.asarray(image), ids)
    assert torch.is_tensor(load_checkpoint(checkpoint)["model"].popitem()[1])
