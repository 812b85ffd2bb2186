"""People's own data: targets without labels, tables or splits, and what is held out instead."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import fakedata
import pseudo_label
import train_da
import train_seg
from datasets import build_dataset
from datasets.base import NoLabels
from datasets.facts import dataset_facts
from datasets.folder import table_of
from engine.errors import UserError
from models import pretrained
from training.augment import Augment

SMALL = """--model compact width=8 norm=batch --input-size 64,48 --num-steps 2 --num-workers 0
    --save-pred-every 1 --batch-size 2 --method entropy adabn --precision fp32""".split()


def photographs(root: Path, names=("0.jpg", "b c/1.PNG", "b c/d/2.jpg", "images/3.jpg")) -> Path:
    """Write images alone, of two shapes, in folders of any names."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        shape = (50, 70, 3) if i % 2 else (70, 50, 3)
        fakedata.save(root / name, rng.integers(0, 256, shape, dtype=np.uint8))
    return root


def adapt(tmp_path: Path, target: Path, *more: str) -> dict:
    """Adapt from generated labelled images to `target`; return result.json."""
    source = tmp_path / "source"
    if not source.exists():
        fakedata.make_folder(source, n=12)
    words = ["--source", "folder", "--data-dir", str(source), "--target", "folder"]
    words += ["--data-dir-target", str(target), "--snapshot-dir", str(tmp_path / "run")]
    train_da.main(train_da.parse_args([*words, *SMALL, *more]))
    return json.loads((tmp_path / "run" / "result.json").read_text())["adapted"]


@pytest.mark.parametrize("layout", ["flat", "nested", "images", "images/train", "two rooms"])
def test_a_target_is_a_folder_of_photographs(layout: str, tmp_path: Path, capsys):
    names = {
        "nested": ("0.jpg", "b c/1.PNG", "b c/d/2.jpg", "images/3.jpg"),
        "two rooms": ("cats/0.jpg", "dogs/0.jpg"),
    }.get(layout, [f"{'' if layout == 'flat' else layout + '/'}{i}.jpg" for i in range(3)])
    result = adapt(tmp_path, photographs(tmp_path / "photos", names))
    said = capsys.readouterr().out
    assert said.count("warning: ") == 1
    assert "no such folder: nothing is scored, no checkpoint is the best; --val-on source" in said
    assert f"target images: folder train: {len(names)} images" in said
    assert said.rstrip().endswith(f"the last one: {tmp_path}/run/folder_finished.pth")
    assert result["best"] is None
    assert result["last"] == {"step": 2}
    published = {path.name for path in (tmp_path / "run").glob("folder_*.pth")}
    assert published == {"folder_1.pth", "folder_2.pth", "folder_finished.pth"}


def test_what_was_not_scored_goes_on_and_labels_its_target(tmp_path: Path, capsys):
    target = photographs(tmp_path / "photos")
    adapt(tmp_path, target, "--num-steps-stop", "1")
    adapt(tmp_path, target)
    assert "resuming" in capsys.readouterr().out
    last, out = str(tmp_path / "run" / "folder_2.pth"), str(tmp_path / "pseudo")
    words = ["--restore-from", last, "--set", "train", "--threshold", "0", "--num-workers", "0"]
    pseudo_label.main(pseudo_label.parse_args([*words, "--save", out]))
    assert len((tmp_path / "pseudo" / "list.txt").read_text().splitlines()) == 4
    adapt(tmp_path, target, "--method", "pseudo", "--pseudo-labels", out, "--num-steps", "3",
          "--snapshot-dir", str(tmp_path / "student"))  # fmt: skip
    assert (tmp_path / "student" / "folder_3.pth").exists()


def test_a_target_without_a_table_is_scored_by_the_sources(tmp_path: Path, capsys):
    target = fakedata.make_folder(tmp_path / "target", n=3)
    (target / "classes.json").unlink()
    result = adapt(tmp_path, target)
    assert result["last"]["classes_scored"] == 3
    words = ["--restore-from", str(tmp_path / "run" / "folder_2.pth"), "--num-workers", "0"]
    evaluate.main(evaluate.parse_args(words))  # the checkpoint knows the table
    assert f"===> mIoU: {round(result['last']['miou'], 2)}" in capsys.readouterr().out


def test_validation_on_the_source_or_on_nothing(tmp_path: Path, capsys):
    target = photographs(tmp_path / "photos")
    result = adapt(tmp_path, target, "--val-on", "source")
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "validation images: folder val: 12 images" in said
    assert "IoU on the source" in said
    assert result["best"]["miou"] > 0
    labelled = fakedata.make_folder(tmp_path / "labelled")
    more = ["--val-on", "none", "--snapshot-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="made with other options"):
        adapt(tmp_path, labelled, *more)
    with pytest.raises(UserError, match=r"photos/labels: no such folder; folder is: ROOT/images"):
        adapt(tmp_path, target, "--val-on", "target", "--snapshot-dir", str(tmp_path / "other"))


def test_some_missing_labels_are_a_mistake_and_none_is_no_label(tmp_path: Path):
    make = {"gta5": fakedata.make_gta5, "folder": fakedata.make_folder}
    for name, function in make.items():
        root = function(tmp_path / name)
        labels = sorted((root / "labels").rglob("*.png"))
        labels[0].unlink()
        with pytest.raises(UserError, match="no such label") as met:
            build_dataset(name, root, split="train")
        assert not isinstance(met.value, NoLabels)
        for label in labels[1:]:
            label.unlink()
        with pytest.raises(NoLabels):
            build_dataset(name, root, split="train")


def test_classes_that_differ_are_named(tmp_path: Path):
    target = fakedata.make_folder(tmp_path / "target")
    table = json.loads((target / "classes.json").read_text())
    table["classes"][1]["name"] = "tree"
    (target / "classes.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"class 1 is plant in the one, tree in the other"):
        adapt(tmp_path, target)


def test_every_table_can_be_taken_by_a_folder(tmp_path: Path):
    made = fakedata.make_cityscapes(tmp_path / "cityscapes")
    cityscapes = build_dataset("cityscapes", made, split="val")
    folder = fakedata.make_folder(tmp_path / "mine")
    taken = build_dataset("folder", folder, split="val", labelled=False,
                          classes=table_of(cityscapes))  # fmt: skip
    assert taken.class_names == cityscapes.class_names
    assert taken.palette == [tuple(colour) for colour in cityscapes.palette]
    assert (taken.lookup == cityscapes.lookup)[:34].all()


@pytest.mark.parametrize("name", ["cityscapes", "camvid", "loveda", "a list"])
def test_every_dataset_may_be_a_target_without_labels(name: str, tmp_path: Path, capsys):
    """Its labels were never fetched; or the photographs stand in a list."""
    if name == "a list":
        target = photographs(tmp_path / "photos", ("0.jpg", "b/1.PNG", "b/d/2.jpg", "3.jpg"))
        (tmp_path / "list.txt").write_text("0.jpg\nb/1.PNG\nb/d/2.jpg\n")
        adapt(tmp_path, target, "--data-list-target", str(tmp_path / "list.txt"))
        assert "target images: folder train: 3 images" in capsys.readouterr().out
        return
    make = {"cityscapes": "gtFine", "camvid": "*annot", "loveda": "masks_png"}
    target = getattr(fakedata, f"make_{name}")(tmp_path / "target")
    source = getattr(fakedata, f"make_{name}")(tmp_path / "same classes")
    for folder in list(target.rglob(make[name])):
        shutil.rmtree(folder)
    words = ["--source", name, "--target", name, "--data-dir", str(source), *SMALL]
    words += ["--data-dir-target", str(target), "--snapshot-dir", str(tmp_path / "r")]
    words += ["--source-set", "val"] if name == "cityscapes" else []
    train_da.main(train_da.parse_args(words))
    said = capsys.readouterr().out
    assert "warning: " in said
    assert "nothing was scored" in said


# ------------------------------------------------------------------ the recipe


def of_two_shapes(root: Path, n: int = 6) -> Path:
    """Write labelled images, 64x48 and 40x80 in turn, without splits."""
    for i in range(n):
        rng = np.random.default_rng(i)
        ids = fakedata.blocks(rng, ((64, 48), (40, 80))[i % 2], (0, 1, 2))
        fakedata.save(root / "images" / f"{i}.jpg", fakedata.picture(rng, ids))
        fakedata.save(root / "labels" / f"{i}.png", ids)
    table = [{"id": i, "name": f"class {i}", "color": [80 * i, 0, 9]} for i in range(3)]
    (root / "classes.json").write_text(json.dumps(table))
    return root


def test_the_longer_side_keeps_the_ratio(tmp_path: Path):
    root = of_two_shapes(tmp_path / "mine")
    own = [build_dataset("folder", root, split="train", size=None)[i] for i in range(2)]
    for labelled in (True, False):
        filled = build_dataset("folder", root, split="train", size=32, labelled=labelled)
        for i, extent in enumerate(([32, 24], [16, 32])):
            sample, (w, h) = filled[i], extent
            assert sample["image"].shape == (3, 32, 32)
            assert sample["extent"].tolist() == extent
            assert not sample["image"][:, h:].any()
            assert not sample["image"][:, :, w:].any()
            assert sample["image"][:, :h, :w].float().std() > 10
            if labelled:
                assert (sample["label"][:h, :w] < 3).all()
                assert (sample["label"][h:] == 255).all()
                assert (sample["label"][:, w:] == 255).all()
    # what is scored is not filled up, and has its label's own size
    scored = build_dataset("folder", root, split="train", size=32, resize_label=False)
    assert scored[1]["image"].shape == (3, 32, 16)
    assert (scored[1]["label"] == own[1]["label"]).all()


@pytest.mark.parametrize("resize_label", [True, False])
def test_a_cache_keeps_what_the_longer_side_made(resize_label: bool, tmp_path: Path):
    root = of_two_shapes(tmp_path / "mine")
    how = {"split": "train", "size": 32, "resize_label": resize_label}
    plain = build_dataset("folder", root, **how)
    for _ in range(2):
        cached = build_dataset("folder", root, **how, cache_dir=tmp_path / "cache")
        for i in range(2):
            assert cached[i].keys() == plain[i].keys()
            for key, value in plain[i].items():
                assert value == cached[i][key] if key == "name" else value.equal(cached[i][key])


def test_crops_lie_in_what_an_image_fills():
    """A white picture in a black square: a crop that fits shows no black."""
    image = torch.zeros(8, 3, 40, 40, dtype=torch.uint8)
    image[:, :, :30, :20] = 255
    label = torch.full((8, 40, 40), 255, dtype=torch.uint8)
    label[:, :30, :20] = 1
    batch = {"image": image, "label": label, "extent": torch.tensor([[20, 30]] * 8)}
    torch.manual_seed(0)
    out = Augment(["crop=16,16", "hflip"])(batch, "source")
    assert (out.image > 254).all()
    assert (out.label == 1).all()
    larger = Augment(["crop=24,24"])(batch, "source")
    assert ((larger.label == 1).sum((1, 2)) == 20 * 24).all()


def test_the_recipe_trains_what_people_have(tmp_path: Path, capsys, monkeypatch):
    root = of_two_shapes(tmp_path / "mine", n=11)
    small = ["--input-size", "64", "--crop-size", "32,32", "--num-workers", "0"]
    words = ["--recipe", "folder", "--data-dir", str(root), "--epochs", "2", *small]
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    train_seg.main(train_seg.parse_args([*words, "--snapshot-dir", str(tmp_path / "r")]))
    said = capsys.readouterr().out
    assert "2 epochs of 9 images, 4 a step: --num-steps 5 --save-pred-every 1" in said
    assert said.count("weights: none, training starts from random ones (ImageNet weights of") == 1
    assert " to longer side 64; left out: 2 held out" in said
    assert "squashed" not in said
    best = ["--restore-from", str(tmp_path / "r" / "folder_best.pth"), "--num-workers", "0"]
    evaluate.main(evaluate.parse_args(best))
    assert "mIoU is the mean of all 3 classes" in capsys.readouterr().out
    words += ["--data-dir-target", str(photographs(tmp_path / "photos"))]
    train_da.main(train_da.parse_args([*words, "--snapshot-dir", str(tmp_path / "a")]))
    assert "folder_finished.pth" in capsys.readouterr().out


def test_squashing_is_said(tmp_path: Path):
    root = of_two_shapes(tmp_path / "mine")
    for size, said in (((64, 48), True), ((32, 24), True), (64, False), (None, False)):
        (found,) = dataset_facts(build_dataset("folder", root, split="train", size=size))
        assert ("squashed" in found.line()) == said
    gta5 = build_dataset("gta5", fakedata.make_gta5(tmp_path / "g"), split="train", size=(32, 24))
    assert "squashed" not in dataset_facts(gta5)[0].line()


def test_epochs_and_steps_exclude_each_other_and_the_recipes(tmp_path: Path, capsys):
    words = ["--recipe", "folder", "--snapshot-dir", str(tmp_path)]
    assert train_seg.parse_args([*words, "--num-steps", "7"]).epochs is None
    with pytest.raises(SystemExit):
        train_seg.parse_args([*words, "--num-steps", "7", "--epochs", "7"])
    assert "not allowed with" in capsys.readouterr().err


# ------------------------------------------------------------------ held out


def test_every_tenth_image_is_held_out_where_there_is_no_val(tmp_path: Path, capsys):
    root = fakedata.make_folder(tmp_path / "mine", n=21, splits=("train",))
    how = {"split": "train", "seed": 3}
    whole = build_dataset("folder", root, **how).pairs
    held_out = build_dataset("folder", root, **how, holdout="only").pairs
    rest = build_dataset("folder", root, **how, holdout="leave").pairs
    assert len(held_out) == 3
    assert sorted(held_out + rest) == sorted(whole)
    assert build_dataset("folder", root, split="train", seed=4, holdout="only").pairs == held_out
    words = ["--dataset", "folder", "--data-dir", str(root), "--snapshot-dir", str(tmp_path / "r")]
    small = [word for word in SMALL if word not in ("--method", "entropy", "adabn")]
    train_seg.main(train_seg.parse_args([*words, *small]))
    said = capsys.readouterr().out
    assert "training images: folder train: 18 images; 64x48; left out: 3 held out for val" in said
    assert "validation images: folder train: 3 images; 64x48; left out: 18 to train on" in said
    best = ["--restore-from", str(tmp_path / "r" / "folder_best.pth"), "--num-workers", "0"]
    evaluate.main(evaluate.parse_args(best))
    assert "images train, count 3," in capsys.readouterr().out
    evaluate.main(evaluate.parse_args([*best, "--set", "train"]))
    assert "images train, count 21," in capsys.readouterr().out


def test_datasets_without_a_split_for_validation_hold_out_too(tmp_path: Path, capsys):
    root = fakedata.make_gta5(tmp_path / "gta5", n=11)
    words = ["--dataset", "gta5", "--data-dir", str(root), "--snapshot-dir", str(tmp_path / "r")]
    small = [word for word in SMALL if word not in ("--method", "entropy", "adabn")]
    train_seg.main(train_seg.parse_args([*words, *small]))
    assert "validation images: gta5 train: 2 images" in capsys.readouterr().out


def test_one_image_cannot_be_divided(tmp_path: Path):
    root = fakedata.make_folder(tmp_path / "mine", n=1, splits=("train",))
    with pytest.raises(UserError, match="one image cannot be divided"):
        build_dataset("folder", root, split="train", holdout="leave")
