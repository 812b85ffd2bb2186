"""What the options of the data sets of `fakesets` choose; their layouts are in test_datasets."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fakesets
from datasets import DATASETS, SegmentationDataset, build_dataset
from engine.errors import UserError
from engine.parsing import key_value
from worlds import ROOT


def images(name, root, **how):
    """Return the names of the images, labels not needed."""
    return [image for image, _ in build_dataset(name, root, **{"labelled": False, **how}).pairs]


def test_minicity_has_a_test_set_of_numbers(tmp_path):
    fakesets.make_minicity(tmp_path)
    assert images("minicity", tmp_path, split="test") == [f"leftImg8bit/test/{i}.png" for i in "12"]
    with pytest.raises(UserError, match=r"gtFine/test/1_gtFine_labelIds.png: no such label"):
        build_dataset("minicity", tmp_path, split="test")


def test_acdc_conditions_and_references(tmp_path):
    fakesets.make_acdc(tmp_path)
    night = build_dataset("acdc", tmp_path, split="train", condition="night")
    frame = "night/train/GOPR0001/GOPR0001_frame_000100"
    pair = (f"rgb_anon/{frame}_rgb_anon.png", f"gt/{frame}_gt_labelIds.png")
    assert night.pairs == [pair]
    of_all = images("acdc", tmp_path, split="train")
    assert [path.split("/")[1] for path in of_all] == ["fog", "night", "rain", "snow"]
    reference = images("acdc", tmp_path, split="train_ref", condition="snow")
    assert reference == ["rgb_anon/snow/train_ref/GOPR0003/GOPR0003_frame_000300_rgb_ref_anon.png"]
    train_ids = build_dataset("acdc", tmp_path, split="train", label_kind="trainIds")
    for a, b in zip(build_dataset("acdc", tmp_path, split="train"), train_ids, strict=True):
        assert np.array_equal(a["label"], b["label"])
    with pytest.raises(UserError, match=r"test/.*_gt_labelIds.png: no such label"):
        build_dataset("acdc", tmp_path, split="test")


def test_dark_zurich_times(tmp_path):
    fakesets.make_dark_zurich(tmp_path)
    for time, count in (("day", 1), ("twilight", 1), ("night", 1), ("all", 3)):
        found = images("dark_zurich", tmp_path, split="train", time=time)
        assert len(found) == count
        assert time == "all" or f"train/{time}/" in found[0]
    # a target of twilight is validated on at night
    assert len(build_dataset("dark_zurich", tmp_path, split="val", time="twilight")) == 2


@pytest.mark.parametrize("inner", ["", "seg"])
def test_bdd100k_of_2018_has_the_same_labels(inner, tmp_path):
    new = build_dataset("bdd100k", fakesets.make_bdd100k(tmp_path / "new"), split="val")
    root = fakesets.make_bdd100k(tmp_path / "old", older=True) / inner
    old = build_dataset("bdd100k", root, split="val")
    assert old.pairs[0][1].endswith("labels/val/a0_train_id.png")
    for a, b in zip(new, old, strict=True):
        assert np.array_equal(a["label"], b["label"])
    assert new.train_to_raw[:19].tolist() == list(range(19))


def test_mapillary_of_other_releases_and_classes(tmp_path):
    fakesets.make_mapillary(tmp_path / "new")
    fakesets.make_mapillary(tmp_path / "old", folders=["labels"])
    old = build_dataset("mapillary", tmp_path / "old", split="train")
    assert old.pairs[0] == ("training/images/a.jpg", "training/labels/a.png")
    assert old.num_classes == 19
    own = build_dataset("mapillary", tmp_path / "new", split="train", classes="own")
    assert (own.num_classes, own.class_names[13], own.palette[13]) == (65, "Road", (128, 64, 128))
    ids = np.asarray(Image.open(tmp_path / "new" / own.pairs[0][1]))
    assert np.array_equal(own[0]["label"], np.where(ids == 65, 255, ids))
    newer = {"split": "train", "version": "v2.0"}
    own = build_dataset("mapillary", tmp_path / "new", classes="own", **newer)
    assert (own.num_classes, own.class_names[21], own.class_names[61]) == (123, "Road", "Sky")
    assert own.pairs[0][1] == "training/v2.0/labels/a.png"
    mapped = build_dataset("mapillary", tmp_path / "new", **newer)
    # Road, dashed line, crosswalk, person group, traffic light, sign's front and back
    assert mapped.lookup[[21, 35, 45, 31, 90, 102, 98]].tolist() == [0, 0, 255, 11, 6, 255, 255]
    assert mapped.lookup[[24, 4, 61, 100, 114]].tolist() == [1, 1, 10, 7, 14]


def test_voc_lists_and_the_augmented_set(tmp_path):
    fakesets.make_voc(tmp_path)
    plain = build_dataset("voc", tmp_path, split="train")
    assert plain.pairs[1] == ("JPEGImages/2007_02.jpg", "SegmentationClass/2007_02.png")
    assert plain.class_names[15] == "person"
    augmented = build_dataset("voc", tmp_path, split="train", aug="yes")
    assert augmented.pairs[1] == ("JPEGImages/2008_9.jpg", "SegmentationClassAug/2008_9.png")
    val = build_dataset("voc", tmp_path, split="val", aug="yes")
    assert val.pairs == [("JPEGImages/2007_03.jpg", "SegmentationClass/2007_03.png")]
    assert any((dataset[i]["label"] == 255).any() for dataset in (plain, val) for i in (0, -1))
    assert bytes(val.palette[20]).hex() == fakesets.VOC_COLOURS.split()[20]
    path = tmp_path / "ImageSets/Segmentation/val.txt"
    path.write_text("2007_03\n2007_99\n")
    with pytest.raises(UserError, match=rf"{path}, line 2: no image '2007_99' in JPEGImages"):
        build_dataset("voc", tmp_path, split="val")


def test_potsdam_tiles_and_options(tmp_path):
    fakesets.make_potsdam(tmp_path)
    val = build_dataset("potsdam", tmp_path, split="val", colours="IRRG")
    pair = ("3_Ortho_IRRG/top_potsdam_2_13_IRRG.tif", "5_Labels_all/top_potsdam_2_13_label.tif")
    assert val.pairs == [pair]
    kept = build_dataset("potsdam", tmp_path, split="train")
    eroded = build_dataset("potsdam", tmp_path, split="train", borders="ignore", clutter="ignore")
    assert kept.class_names[-1] == "clutter"
    assert eroded.class_names == kept.class_names[:-1]
    label, least = kept[0]["label"].numpy(), eroded[0]["label"].numpy()
    expected = np.where(label == 5, 255, label)
    expected[::8] = 255
    assert np.array_equal(least, expected)
    assert (label == 5).any()


def test_isprs_splits_are_whole():
    for name, counts in (("potsdam", (24, 14)), ("vaihingen", (16, 17))):
        train, val = (DATASETS[name].tiles[split].split() for split in ("train", "val"))
        assert (len(set(train)), len(set(val))) == (len(train), len(val)) == counts
        assert not set(train) & set(val)


def test_vaihingen_labels_of_either_download(tmp_path):
    complete = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
    for folder in ("gts_for_participants", complete):
        root = fakesets.make_vaihingen(tmp_path / folder, folder)
        dataset = build_dataset("vaihingen", root, split="val")
        assert dataset.pairs == [
            ("top/top_mosaic_09cm_area2.tif", f"{folder}/top_mosaic_09cm_area2.tif")
        ]
    with pytest.raises(UserError, match=r"eroded_COMPLETE/.*area1_noBoundary.tif: no such label"):
        build_dataset("vaihingen", root, split="train", borders="ignore")


def test_waste_refuses_other_classes(tmp_path):
    fakesets.make_waste(tmp_path)
    names = DATASETS["waste"].rows
    table = [{"id": row.id, "name": row.name, "color": list(row.colour)} for row in names]
    (tmp_path / "classes.json").write_text(json.dumps(table))
    assert len(build_dataset("waste", tmp_path, split="val")) == 2
    table[1]["name"], table[2]["name"] = table[2]["name"], table[1]["name"]
    (tmp_path / "classes.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"classes.json: these are other classes than those of"):
        build_dataset("waste", tmp_path, split="val")


@pytest.mark.parametrize("name", fakesets.SETS)
def test_lists_of_images_alone_find_their_labels(name, tmp_path):
    make, split, count = fakesets.SETS[name]
    root = make(tmp_path)
    walked = build_dataset(name, root, split=split)
    (tmp_path / "list.txt").write_text("".join(f"{image}\n" for image, _ in walked.pairs))
    listed = build_dataset(name, root, split=split, list_file=tmp_path / "list.txt")
    assert listed.pairs == walked.pairs
    assert len(listed) == count


@pytest.mark.parametrize("name", fakesets.SETS)
def test_an_archive_holds_the_same_samples(name, tmp_path):
    make, split, _ = fakesets.SETS[name]
    root = make(tmp_path / "data")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    folder, packed = (build_dataset(name, one, split=split) for one in (root, archive))
    assert packed.pairs == folder.pairs
    assert all(torch.equal(packed[0][key], folder[0][key]) for key in ("image", "label"))


def test_every_option_can_be_written_on_the_command_line():
    """Where `KEY=1.2` is a number, and no name of a release."""
    for name, dataset in DATASETS.items():
        for key, allowed in dataset.options.items():
            for value in allowed if isinstance(allowed, tuple) else ():
                assert key_value(f"{key}={value}") == (key, value), name


def test_the_page_tables_every_data_set():
    page = (ROOT / "docs/datasets.md").read_text()
    rows = [list(map(str.strip, line.split("|")[1:4])) for line in page.splitlines()]
    table = {row[0].strip("`"): row[1:] for row in rows if row and row[0].startswith("`")}
    assert list(table) == sorted(DATASETS)
    shared = SegmentationDataset.options
    for name, (splits, options) in table.items():
        assert splits == ", ".join(DATASETS[name].splits)
        own = {key: value for key, value in DATASETS[name].options.items() if key not in shared}
        given = dict(one.split("=") for one in options.split("; ") if one)
        assert given.keys() == own.keys(), name
        for key, allowed in own.items():
            if isinstance(allowed, tuple):
                assert given[key] == ", ".join(allowed)
