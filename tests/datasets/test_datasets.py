import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import fakedata
import fakesets
from datasets import DATASETS, build_dataset, cityscapes, colourise, files, write_label_png
from datasets.camvid import select
from datasets.png16 import read_channel
from datasets.streets.scene import draw
from engine.errors import UserError

# A change here changes everybody's numbers: say so in the CHANGELOG.
GOLDEN_SHUFFLE = ["09", "07", "08", "03", "04", "10", "05"]
GOLDEN_SOURCE = "b516fe18cbab41bf0850bef3fc783fffdb18c86c7421a9aec55c9c99bc2f1100"
GOLDEN_TARGET = "d4719d943c132af914dffc0e4b550b625c6b3d10cf5660a539b0edde802875d4"

FILE_DATASETS = {
    "gta5": (fakedata.make_gta5, "train", 3),
    "cyclegta": (fakedata.make_cyclegta, "train", 2),
    "synthia": (fakedata.make_synthia, "train", 3),
    "cityscapes": (fakedata.make_cityscapes, "val", 3),
    "loveda": (fakedata.make_loveda, "train", 4),
    "camvid": (fakedata.make_camvid, "day_train", 6),
    "folder": (fakedata.make_folder, "train", 3),
    **fakesets.SETS,
}


def lookup_of(name, dataset):
    """The raw -> train map as the tests know it, apart from the class tables."""
    if name in fakesets.TABLES:
        table = fakesets.TABLES[name]
    elif name == "synthia":
        table = {3: 0, 4: 1, 2: 2, 6: 8, 7: 5, 1: 10, 10: 11, 8: 13, 11: 18}
    elif name in ("gta5", "cyclegta", "cityscapes"):
        table = {7: 0, 8: 1, 11: 2, 12: 3, 17: 5, 21: 8, 23: 10, 24: 11, 26: 13, 33: 18}
    else:
        first = {"loveda": 1, "camvid": 0, "folder": 10}[name]
        step = 10 if name == "folder" else 1
        table = {first + step * i: i for i in range(dataset.num_classes)}
    lookup = np.full(256, 255, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup


# Layouts


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_layout_gives_train_ids(name, tmp_path):
    make, split, count = FILE_DATASETS[name]
    dataset = build_dataset(name, make(tmp_path), split=split)
    assert len(dataset) == count == len(dataset.pairs)
    assert dataset.name == name
    assert dataset.ignore_index == 255
    assert dataset.num_classes == len(dataset.class_names) == len(dataset.palette)
    for i, (image_name, label_name) in enumerate(dataset.pairs):
        sample = dataset[i]
        assert sample["name"] == image_name
        image = np.asarray(Image.open(tmp_path / image_name))
        assert sample["image"].dtype == sample["label"].dtype == torch.uint8
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        # SYNTHIA's red channel is below 256, so Pillow cannot stand in for it: read it here.
        path = tmp_path / label_name
        ids = read_channel(path) if name == "synthia" else np.asarray(Image.open(path))
        if ids.ndim == 3:  # of ISPRS
            ids = (ids[..., None, :] == fakesets.ISPRS_COLOURS).all(-1).argmax(-1)
        expected = lookup_of(name, dataset)[ids]
        assert np.array_equal(sample["label"].numpy(), expected)
        assert (expected != 255).any()


@pytest.mark.parametrize("name", [*FILE_DATASETS, "streets"])
def test_samples_collate_and_travel_to_workers(name, tmp_path):
    make, split, _ = FILE_DATASETS.get(name, (lambda root: None, "val", 0))
    dataset = build_dataset(name, make(tmp_path), split=split, num_images=2, size=(40, 24))
    dataset = pickle.loads(pickle.dumps(dataset))  # what spawned workers receive
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 3, 24, 40)
    assert batch["label"].shape == (2, 24, 40)
    assert len(batch["name"]) == 2


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_unlabelled_needs_no_labels(name, tmp_path):
    make, split, count = FILE_DATASETS[name]
    for _, label in build_dataset(name, make(tmp_path), split=split).pairs:
        (tmp_path / label).unlink()
    dataset = build_dataset(name, tmp_path, split=split, labelled=False)
    assert len(dataset) == count
    assert set(dataset[0]) == {"image", "name"}
    with pytest.raises(UserError, match="no such label"):
        build_dataset(name, tmp_path, split=split)


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_missing_folder_shows_the_layout(name, tmp_path):
    split = FILE_DATASETS[name][1]
    with pytest.raises(UserError, match=r"nowhere: no such data folder; .*ROOT/"):
        build_dataset(name, tmp_path / "nowhere", split=split)
    with pytest.raises(UserError, match="needs its data folder"):
        build_dataset(name, None, split=split)
    if name == "folder":
        classes = [{"id": i, "name": str(i), "color": [0, 0, i]} for i in range(2)]
        (tmp_path / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(UserError, match=rf"{tmp_path}.*nothing here matches.*ROOT/"):
        build_dataset(name, tmp_path, split=split)


def test_unknown_names_list_what_exists(tmp_path):
    with pytest.raises(UserError, match=r"unknown dataset 'kitti'; there are: acdc, ade20k"):
        build_dataset("kitti", tmp_path, split="train")
    with pytest.raises(UserError, match=r"no split 'dawn'; it has: day_train, day_val"):
        build_dataset("camvid", tmp_path, split="dawn")
    with pytest.raises(UserError, match=r"no option 'styl'; it has: style, gap"):
        build_dataset("streets", None, split="val", styl="target")
    with pytest.raises(UserError, match=r"domain must be one of both, urban, rural; got 'sea'"):
        build_dataset("loveda", tmp_path, split="train", domain="sea")


def test_every_dataset_is_registered_under_its_name():
    assert {name: cls.name for name, cls in DATASETS.items()} == {name: name for name in DATASETS}
    assert set(DATASETS) == {*FILE_DATASETS, "streets"}


def test_loveda_domains(tmp_path):
    fakedata.make_loveda(tmp_path)
    names = {}
    for domain in ("urban", "rural", "both"):
        dataset = build_dataset("loveda", tmp_path, split="val", domain=domain)
        names[domain] = {image for image, _ in dataset.pairs}
    assert names["urban"] == {f"Val/Urban/images_png/{i}.png" for i in (4, 5)}
    assert names["rural"] == {f"Val/Rural/images_png/{i}.png" for i in (6, 7)}
    assert names["both"] == names["urban"] | names["rural"]


def test_cyclegta_takes_another_folder(tmp_path):
    fakedata.make_cyclegta(tmp_path)
    (tmp_path / "images_translated").rename(tmp_path / "as_cityscapes")
    dataset = build_dataset("cyclegta", tmp_path, split="train", image_dir="as_cityscapes")
    assert dataset.pairs[0] == ("as_cityscapes/00001.jpg", "labels/00001.png")


def test_folder_without_splits_is_all_for_training(tmp_path):
    fakedata.make_folder(tmp_path, splits=(".",))
    assert len(build_dataset("folder", tmp_path, split="train")) == 3
    with pytest.raises(UserError, match=r"images/val: nothing here"):
        build_dataset("folder", tmp_path, split="val")


def test_folder_with_splits_never_trains_on_all(tmp_path):
    fakedata.make_folder(tmp_path, splits=("val",))
    with pytest.raises(UserError, match=r"images/train: nothing here"):
        build_dataset("folder", tmp_path, split="train")


def test_folder_refuses_two_images_of_one_label(tmp_path):
    fakedata.make_folder(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "images/train/0.png")
    with pytest.raises(UserError, match=r"train/0.png: has the same label as .*train/0.jpg"):
        build_dataset("folder", tmp_path, split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read this class table"),
        ("{", "cannot read this class table"),
        ("[]", "a list of classes expected"),
        ('{"names": ["road"]}', "a list of classes expected"),
        ('{"classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}], "igonre": []}', "igonre"),
        ('[{"id": 255, "name": "a", "color": [0, 0, 0]}]', "class 0 is"),
        ('[{"id": 0, "name": "a", "color": [0, 0]}]', "class 0 is"),
        ('[{"id": "0", "name": "a", "color": [0, 0, 0]}]', "class 0 is"),
        ('[{"id": 0, "name": "a", "color": [0, 0, 256]}]', "class 0 is"),
    ],
)
def test_folder_rejects_bad_class_tables(content, message, tmp_path):
    fakedata.make_folder(tmp_path)
    (tmp_path / "classes.json").unlink()
    if content is not None:
        (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=f"classes.json: .*{message}"):
        build_dataset("folder", tmp_path, split="train")


@pytest.mark.parametrize(("key", "value"), [("id", 10), ("name", "ground")])
def test_folder_rejects_doubled_classes(key, value, tmp_path):
    fakedata.make_folder(tmp_path)
    table = json.loads((tmp_path / "classes.json").read_text())
    table["classes"][2][key] = value
    (tmp_path / "classes.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"classes.json: {key} {value!r} occurs twice"):
        build_dataset("folder", tmp_path, split="train")


# Class tables


def test_cityscapes_table_is_the_official_one():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    assert len(cityscapes.ROWS) == len(official) == 35
    for row, label in zip(cityscapes.ROWS, official, strict=True):
        train_id = 255 if label.trainId == -1 else label.trainId
        ours = (row.name, row.id, row.train_id, row.category, row.category_id)
        assert ours == (label.name, label.id, train_id, label.category, label.categoryId)
        ours = (row.has_instances, row.ignore_in_eval, row.colour)
        assert ours == (label.hasInstances, label.ignoreInEval, label.color)


def test_cityscapes_classes(tmp_path):
    dataset = build_dataset("cityscapes", fakedata.make_cityscapes(tmp_path), split="val")
    assert " ".join(dataset.class_names) == (
        "road sidewalk building wall fence pole light sign vegetation terrain sky person rider "
        "car truck bus train motocycle bicycle"
    )
    assert dataset.categories == {
        "flat": [0, 1],
        "construction": [2, 3, 4],
        "object": [5, 6, 7],
        "nature": [8, 9],
        "sky": [10],
        "human": [11, 12],
        "vehicle": [13, 14, 15, 16, 17, 18],
    }
    names16 = [dataset.class_names[i] for i in dataset.subsets["16"]]
    assert set(dataset.class_names) - set(names16) == {"terrain", "truck", "train"}
    names13 = [dataset.class_names[i] for i in dataset.subsets["13"]]
    assert set(names16) - set(names13) == {"wall", "fence", "pole"}


def test_train_to_raw_undoes_the_lookup(tmp_path):
    dataset = build_dataset("cityscapes", fakedata.make_cityscapes(tmp_path), split="val")
    ids = np.asarray(Image.open(tmp_path / dataset.pairs[0][1]))
    label = dataset[0]["label"].numpy()
    scored = label != 255
    assert np.array_equal(dataset.train_to_raw[label][scored], ids[scored])


def test_cityscapes_train_id_files_hold_the_same_labels(tmp_path):
    fakedata.make_cityscapes(tmp_path)
    raw = build_dataset("cityscapes", tmp_path, split="val")
    train = build_dataset("cityscapes", tmp_path, split="val", label_kind="trainIds")
    assert train.pairs[0][1].endswith("_gtFine_labelTrainIds.png")
    for a, b in zip(raw, train, strict=True):
        assert torch.equal(a["label"], b["label"])


def test_license_plate_is_ignored(tmp_path):
    dataset = build_dataset("cityscapes", fakedata.make_cityscapes(tmp_path), split="val")
    # -1 in the table, stored as 255 in a PNG of bytes
    fakedata.save(tmp_path / dataset.pairs[0][1], np.full((32, 64), 255, np.uint8))
    assert (dataset[0]["label"] == 255).all()


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_pseudo_labels_of_train_ids(name, tmp_path):
    make, split, _ = FILE_DATASETS[name]
    make(tmp_path)
    truth = build_dataset(name, tmp_path, split=split)
    pairs = []
    for i, (image, _) in enumerate(truth.pairs):
        label = Path(image).with_suffix(".png").as_posix()
        write_label_png(tmp_path / "pseudo" / label, truth[i]["label"].numpy(), truth.palette)
        pairs.append((image, label))
    pseudo = build_dataset(
        name,
        tmp_path,
        split=split,
        list_file=fakedata.write_list(tmp_path / "list.txt", pairs),
        label_root=tmp_path / "pseudo",
        label_kind="trainIds",
    )
    for a, b in zip(truth, pseudo, strict=True):
        assert torch.equal(a["label"], b["label"])


# CamVid's days and dusks


def test_camvid_splits(tmp_path):
    fakedata.make_camvid(tmp_path, n=7)
    sizes = {
        split: len(build_dataset("camvid", tmp_path, split=split))
        for split in ("day_train", "day_val", "dusk_train", "dusk_val", "train", "val", "test")
    }
    assert sizes == {
        "day_train": 7,
        "day_val": 7,
        "dusk_train": 5,
        "dusk_val": 2,
        "train": 14,
        "val": 7,
        "test": 7,
    }
    val = build_dataset("camvid", tmp_path, split="dusk_val")
    assert [image for image, _ in val.pairs] == [
        "train/0001TP_006840.png",
        "train/0001TP_006870.png",
    ]


def camvid_root():
    if "SEGSHIFT_CAMVID" not in os.environ:
        pytest.skip("SEGSHIFT_CAMVID does not name a folder of CamVid lists")
    return Path(os.environ["SEGSHIFT_CAMVID"])


def test_camvid_rule_reproduces_the_published_lists():
    root = camvid_root()
    stems = {
        split: [Path(line.split()[0]).stem for line in (root / f"{split}.txt").open()]
        for split in ("day_train", "day_val", "dusk_train", "dusk_val")
    }
    train = sorted(stems["day_train"] + stems["dusk_train"] + stems["dusk_val"])
    assert len(train) == 367  # all of the tutorial's train folder
    assert select("day_train", train) == stems["day_train"]
    assert select("dusk_train", train) == stems["dusk_train"]
    assert select("dusk_val", train) == stems["dusk_val"]
    assert select("day_val", stems["day_val"]) == stems["day_val"]


def test_camvid_lists_read():
    root = camvid_root()
    dataset = build_dataset(
        "camvid", root, split="dusk_val", list_file=root / "dusk_val.txt", size=(240, 180)
    )
    assert len(dataset) == 20
    sample = dataset[0]
    assert sample["label"].shape == (180, 240)
    assert set(sample["label"].unique().tolist()) <= {*range(11), 255}


# Lists and numbers of images


def gta5_list(tmp_path, text):
    fakedata.make_gta5(tmp_path)
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    return path


def test_list_with_crlf_blanks_and_spaces(tmp_path):
    text = (
        "\ufeffimages/00002.png   labels/00002.png\r\n\r\n  images/00001.png\tlabels/00001.png \r\n"
    )
    dataset = build_dataset("gta5", tmp_path, split="any", list_file=gta5_list(tmp_path, text))
    assert dataset.pairs == [
        ("images/00002.png", "labels/00002.png"),
        ("images/00001.png", "labels/00001.png"),
    ]


def test_list_with_spaces_in_names(tmp_path):
    path = gta5_list(tmp_path, "images/a b.png\tlabels/a b.png\n")
    for kind in ("images", "labels"):
        (tmp_path / kind / "00001.png").rename(tmp_path / kind / "a b.png")
    dataset = build_dataset("gta5", tmp_path, split="train", list_file=path)
    assert dataset.pairs == [("images/a b.png", "labels/a b.png")]
    path.write_text("images/a b.png\t\n")
    dataset = build_dataset("gta5", tmp_path, split="train", list_file=path, labelled=False)
    assert dataset.pairs == [("images/a b.png", None)]


def test_list_drops_labels_when_unlabelled(tmp_path):
    path = gta5_list(tmp_path, "images/00001.png labels/never_made.png\nimages/00002.png\n")
    dataset = build_dataset("gta5", tmp_path, split="train", list_file=path, labelled=False)
    assert dataset.pairs == [("images/00001.png", None), ("images/00002.png", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list is empty"),
        ("\r\n \n", "list is empty"),
        ("images/00001.png labels/00001.png\nimages/00002.png\n", "line 2: no label beside"),
        ("images/00001.png labels/00001.png 3\n", "line 1: 3 fields"),
        ("\nimages/9.png labels/00001.png\n", r"line 2: no such file: .*images/9\.png"),
        ("images/00001.png labels/9.png\n", r"line 1: no such file: .*labels/9\.png"),
        ("../images/00001.png labels/00001.png\n", "line 1: '../images/00001.png' leaves"),
        ("images/00001.png labels/../../x.png\n", "line 1: 'labels/../../x.png' leaves"),
        ("/etc/passwd labels/00001.png\n", "line 1: '/etc/passwd' leaves"),
        (
            "images/00001.png labels/00001.png\n./images/00001.png labels/00001.png\n",
            "line 2: 'images/00001.png' stands already in line 1",
        ),
        ("images labels/00001.png\n", "line 1: no such file"),
    ],
)
def test_bad_lists_name_file_and_line(text, message, tmp_path):
    path = gta5_list(tmp_path, text)
    with pytest.raises(UserError, match=rf"list\.txt.*{message}"):
        build_dataset("gta5", tmp_path, split="train", list_file=path)


def test_missing_and_binary_lists(tmp_path):
    path = gta5_list(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    for list_file in (path, tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"{list_file}: cannot read this list"):
            build_dataset("gta5", tmp_path, split="train", list_file=list_file)


def test_num_images_is_the_same_everywhere(tmp_path):
    fakedata.make_gta5(tmp_path, n=10, size=(8, 8))
    seven = build_dataset("gta5", tmp_path, split="train", num_images=7, seed=1)
    assert [image[-6:-4] for image, _ in seven.pairs] == GOLDEN_SHUFFLE
    four = build_dataset("gta5", tmp_path, split="train", num_images=4, seed=1)
    assert four.pairs == seven.pairs[:4]
    reversed_list = fakedata.write_list(tmp_path / "list.txt", sorted(seven.pairs, reverse=True))
    again = build_dataset(
        "gta5", tmp_path, split="train", list_file=reversed_list, num_images=7, seed=1
    )
    assert again.pairs == seven.pairs
    other = build_dataset("gta5", tmp_path, split="train", num_images=7, seed=2)
    assert other.pairs != seven.pairs


def test_too_many_or_too_few_images(tmp_path):
    fakedata.make_gta5(tmp_path)
    with pytest.raises(UserError, match="4 images asked for, 3 available"):
        build_dataset("gta5", tmp_path, split="train", num_images=4)
    with pytest.raises(UserError, match="at least 1, got 0"):
        build_dataset("gta5", tmp_path, split="train", num_images=0)
    with pytest.raises(UserError, match="size must be"):
        build_dataset("gta5", tmp_path, split="train", size=(0, 5))


# Reading and resizing


def test_resizing(tmp_path):
    fakedata.make_gta5(tmp_path)
    native = build_dataset("gta5", tmp_path, split="train")[0]
    small = build_dataset("gta5", tmp_path, split="train", size=(31, 17))[0]
    scoring = build_dataset("gta5", tmp_path, split="train", size=(31, 17), resize_label=False)[0]
    image = Image.open(tmp_path / "images/00001.png").resize((31, 17), Image.Resampling.BICUBIC)
    assert np.array_equal(small["image"].permute(1, 2, 0).numpy(), np.asarray(image))
    assert small["label"].shape == (17, 31)
    assert set(small["label"].unique().tolist()) <= set(native["label"].unique().tolist())
    assert torch.equal(scoring["label"], native["label"])
    assert torch.equal(scoring["image"], small["image"])


def test_full_size_is_the_files(tmp_path):
    fakedata.make_gta5(tmp_path)
    dataset = build_dataset("gta5", tmp_path, split="train", labelled=False, size=(8, 8))
    assert dataset.full_size(1) == (48, 64)
    (tmp_path / "images/00001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"images/00001.png: not a readable image"):
        dataset.full_size(0)
    drawn = build_dataset("streets", None, split="val", labelled=False, size=(8, 8), num_images=1)
    assert drawn.full_size(0) == (96, 160)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode, tmp_path):
    fakedata.make_folder(tmp_path)
    path = tmp_path / "images/train/0.tif"
    (tmp_path / "images/train/0.jpg").unlink()
    expected = Image.new("RGB", (64, 48), (255, 255, 255)).convert(mode)
    expected.save(path)
    sample = build_dataset("folder", tmp_path, split="train")[0]
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "held"), [("I;16", "16 bits"), ("I", "32 signed bits"), ("F", "32 float bits")]
)
def test_images_of_more_bits_are_refused(mode, held, tmp_path):
    fakedata.make_folder(tmp_path)
    (tmp_path / "images/train/0.jpg").unlink()
    Image.new(mode, (64, 48)).save(tmp_path / "images/train/0.tif")
    with pytest.raises(
        UserError, match=rf"train/0.tif: an image of .*1 band of {held}: .*value_range"
    ):
        build_dataset("folder", tmp_path, split="train")[0]


def test_exif_orientation_is_applied_to_images(tmp_path):
    fakedata.make_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = Image.open(tmp_path / "images/train/0.jpg")
    image.save(tmp_path / "images/train/0.jpg", exif=exif, quality=95)
    dataset = build_dataset("folder", tmp_path, split="train", labelled=False)
    assert dataset.full_size(0) == (64, 48)
    turned = np.rot90(np.asarray(Image.open(tmp_path / "images/train/0.jpg")), -1)
    assert np.array_equal(dataset[0]["image"].permute(1, 2, 0).numpy(), turned)
    with pytest.raises(UserError, match=r"label is 64x48 .* 48x64 .turned by its EXIF orientation"):
        build_dataset("folder", tmp_path, split="train")[0]
    label = np.asarray(Image.open(tmp_path / "labels/train/0.png"))
    fakedata.save(tmp_path / "labels/train/0.png", np.rot90(label, -1))
    assert build_dataset("folder", tmp_path, split="train")[0]["label"].shape == (64, 48)


def broken_sample(tmp_path, name, path, content):
    """Build a dataset, damage one of its files, and return a function that reads the sample."""
    make, split, _ = FILE_DATASETS[name]
    make(tmp_path)
    dataset = build_dataset(name, tmp_path, split=split)
    (tmp_path / path).unlink()
    if content is not None:
        (tmp_path / path).write_bytes(content)
    return lambda: dataset[0]


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "html"])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gta5", "images/00001.png"),
        ("gta5", "labels/00001.png"),
        ("folder", "images/train/0.jpg"),
        ("synthia", "GT/LABELS/0000001.png"),
    ],
)
def test_unreadable_files_are_named(name, path, kind, tmp_path):
    FILE_DATASETS[name][0](tmp_path / "whole")
    whole = (tmp_path / "whole" / path).read_bytes()
    content = {
        "truncated": whole[: len(whole) * 2 // 3],
        "empty": b"",
        "missing": None,
        "html": b"<!DOCTYPE html><html>404</html>",
    }[kind]
    read = broken_sample(tmp_path, name, path, content)
    with pytest.raises(UserError, match=f"{tmp_path / path}: ") as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "LA"])  # the first and last transparent
def test_labels_of_other_modes_are_refused(mode, tmp_path):
    dataset = build_dataset("gta5", fakedata.make_gta5(tmp_path), split="train")
    Image.new(mode, (64, 48)).save(tmp_path / "labels/00001.png")
    with pytest.raises(UserError, match=rf"labels/00001.png: a label of mode {mode}"):
        dataset[0]


def test_lossy_labels_are_refused(tmp_path):
    dataset = build_dataset("gta5", fakedata.make_gta5(tmp_path), split="train")
    Image.new("L", (64, 48), 7).save(tmp_path / "labels/00001.png", format="JPEG")
    with pytest.raises(UserError, match=r"labels/00001.png: a label in JPEG"):
        dataset[0]


def test_sixteen_bit_synthia_needs_sixteen_bits(tmp_path):
    dataset = build_dataset("synthia", fakedata.make_synthia(tmp_path), split="train")
    path = tmp_path / "GT/LABELS/0000001.png"
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(UserError, match=rf"{path}: a 16-bit RGB PNG .* expected, got 8 bits"):
        dataset[0]
    fakedata.write_png16(path, np.full((48, 64, 3), 300))
    with pytest.raises(UserError, match=rf"{path}: label values outside the class table: 300"):
        dataset[0]


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_values_outside_the_table_are_named(name, tmp_path):
    make, split, _ = FILE_DATASETS[name]
    dataset = build_dataset(name, make(tmp_path), split=split)
    path = tmp_path / dataset.pairs[0][1]
    sample = dataset[0]
    ids = np.full(sample["label"].shape, 177, np.uint8)
    ids[0, 0] = 199
    if name == "synthia":
        fakedata.write_png16(path, np.stack([ids] * 3, -1))
    else:
        fakedata.save(path, ids)
    with pytest.raises(UserError, match=rf"{path}: label values outside .* {name}: 177, 199"):
        dataset[0]


def test_raw_ids_are_no_train_ids(tmp_path):
    fakedata.make_cityscapes(tmp_path)
    dataset = build_dataset("cityscapes", tmp_path, split="val", label_kind="trainIds")
    path = tmp_path / dataset.pairs[0][1]
    fakedata.save(path, np.full((32, 64), 33, np.uint8))
    with pytest.raises(
        UserError, match=rf"{path}: label values outside .*: 33 \(label_kind trainIds"
    ):
        dataset[0]


def test_sizes_that_differ_are_named(tmp_path):
    dataset = build_dataset("gta5", fakedata.make_gta5(tmp_path), split="train", size=(20, 20))
    fakedata.save(tmp_path / "labels/00001.png", np.full((48, 63), 7, np.uint8))
    with pytest.raises(UserError, match=r"labels/00001.png: the label is 63x48 .*00001.png 64x48"):
        dataset[0]


@pytest.mark.parametrize("path", ["RGB/0000001.png", "GT/LABELS/0000001.png"])
@pytest.mark.parametrize("side", [65_000, 10_000])
def test_decompression_bombs_are_refused_by_their_header(path, side, tmp_path):
    dataset = build_dataset("synthia", fakedata.make_synthia(tmp_path), split="train")
    bits = 16 if path.startswith("GT") else 8
    bomb = fakedata.png((side, side, bits, 2, 0, 0, 0), zlib.compress(b"\0" * 1000))
    assert len(bomb) < 1100
    (tmp_path / path).write_bytes(bomb)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(UserError, match=f"{tmp_path / path}: .*refused"):
        dataset[0]
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_an_error_in_a_worker_names_the_file(tmp_path):
    dataset = build_dataset("gta5", fakedata.make_gta5(tmp_path), split="train")
    (tmp_path / "images/00001.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(dataset, num_workers=1)))
    assert (
        str(caught.value)
        .strip()
        .splitlines()[-1]
        .startswith(f"engine.errors.UserError: {tmp_path / 'images/00001.png'}: ")
    )


# 16-bit PNGs


# One folder for all examples is fine: each writes its file anew.
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 20), st.integers(1, 20), st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_png16_reads_every_filter(tmp_path, width, height, filters, seed):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(seed).integers(0, 65536, (height, width, 3), np.uint16)
    fakedata.write_png16(path, pixels, filters)
    # Pillow decodes the high bytes by its own code, so reader and writer share no mistake.
    assert np.array_equal(np.asarray(Image.open(path)), pixels >> 8)
    for channel in range(3):
        assert np.array_equal(read_channel(path, channel), pixels[..., channel])


def test_png16_survives_damage(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 4, 3), np.uint16)
    fakedata.write_png16(path, pixels)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)):
            read_channel(path)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.raises(UserError, match=str(path)):
            read_channel(path)


def test_png16_stops_at_the_size_its_header_promises(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(fakedata.png((2, 2, 16, 2, 0, 0, 0), zlib.compress(b"\0" * 10**8)))
    assert np.array_equal(read_channel(path), np.zeros((2, 2)))
    path.write_bytes(fakedata.png((2, 2, 16, 2, 0, 0, 0), zlib.compress(b"\5" * 26)))
    with pytest.raises(UserError, match="unrecognized data stream"):
        read_channel(path)


# Pictures of labels


def test_colourise_and_palette_files(tmp_path):
    palette = [(255, 0, 0), (0, 255, 0)]
    label = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    colours = [[[255, 0, 0], [0, 255, 0], [0, 0, 0]], [[0, 255, 0], [0, 255, 0], [255, 0, 0]]]
    assert colourise(label, palette).tolist() == colours
    path = tmp_path / "deep" / "er" / "label.png"
    write_label_png(path, label, palette)
    image = Image.open(path)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image.convert("RGB")), colours)
    assert np.array_equal(files.read_label(path), label)
    write_label_png(path, label)
    assert Image.open(path).mode == "L"
    assert np.array_equal(files.read_label(path), label)
    assert [p.name for p in path.parent.iterdir()] == ["label.png"]  # no temporary file is left


def test_label_writer_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "label.png"
    write_label_png(path, np.zeros((2, 2), np.uint8))
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match=r"label.png: cannot write .* No space left"):
        write_label_png(path, np.ones((2, 2), np.uint8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["label.png"]


def test_label_writer_names_an_impossible_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/label.png: cannot write"):
        write_label_png(tmp_path / "file" / "label.png", np.zeros((2, 2), np.uint8))


# Streets


def digest(dataset):
    total = hashlib.sha256()
    for sample in dataset:
        total.update(sample["image"].numpy().tobytes() + sample["label"].numpy().tobytes())
    return total.hexdigest()


def test_streets_are_the_same_bytes_everywhere():
    source = build_dataset("streets", None, split="train", num_images=8, seed=3)
    target = build_dataset("streets", None, split="val", num_images=8, style="target", gap=1.0)
    assert digest(source) == GOLDEN_SOURCE
    assert digest(target) == GOLDEN_TARGET


def test_streets_share_no_scene():
    digests = set()
    for split in ("train", "val"):
        for style in ("source", "target"):
            for seed in (0, 1):
                dataset = build_dataset(
                    "streets", None, split=split, style=style, seed=seed, num_images=4
                )
                digests |= {sample["label"].numpy().tobytes() for sample in dataset}
    assert len(digests) == 2 * 2 * 2 * 4


def test_streets_show_every_class():
    dataset = build_dataset("streets", None, split="val")
    assert len(dataset) == 64
    assert dataset[0]["image"].shape == (3, 96, 160)
    share = np.bincount(np.concatenate([s["label"].numpy().ravel() for s in dataset]), minlength=9)
    assert len(share) == dataset.num_classes == 9  # nothing is left unlabelled
    assert (share / share.sum() > 0.005).all()
    shown = [len(s["label"].unique()) for s in dataset]
    assert np.mean(shown) > 7.5


def test_gap_leaves_the_scene_and_moves_the_colours():
    images, labels = zip(*(draw((5,), gap) for gap in (0, 32, 64, 128)), strict=True)
    for label in labels[1:]:
        assert np.array_equal(label, labels[0])
    shift = [np.abs(image.astype(int) - images[0]).mean() for image in images]
    assert shift[0] == 0
    assert shift == sorted(shift)
    assert shift[1] > 3
    source = build_dataset("streets", None, split="val", num_images=2, gap=0.9)
    plain = build_dataset("streets", None, split="val", num_images=2, gap=0.1)
    assert digest(source) == digest(plain)  # the gap is the target's


def test_streets_unlabelled_and_wrong_options(tmp_path):
    dataset = build_dataset("streets", None, split="val", num_images=1, labelled=False)
    assert set(dataset[0]) == {"image", "name"}
    with pytest.raises(UserError, match="takes no data folder"):
        build_dataset("streets", tmp_path, split="val")
    with pytest.raises(UserError, match="takes no list"):
        build_dataset("streets", None, split="val", list_file=tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"gap must lie in \[0, 1\], got 1.5"):
        build_dataset("streets", None, split="val", gap=1.5)
    with pytest.raises(UserError, match="seed must not be negative"):
        build_dataset("streets", None, split="val", seed=-1)


def test_datasets_never_load_the_kernels():
    command = "import sys, datasets; sys.exit('kernels' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", command], cwd=root, check=False).returncode == 0


def test_a_pipe_in_place_of_an_image_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a regular file"):
        files.read_image(tmp_path / "pipe.png")
