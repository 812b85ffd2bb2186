"""Data read from a zip archive: the same samples as from the folder; what could harm is refused."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedata
import train_seg
from datasets import DATASETS, build_dataset
from datasets.cache import fingerprint
from datasets.loading import make_loader
from datasets.photographs import Photographs
from datasets.text import read_text
from engine import zips
from engine.errors import UserError
from engine.files import read_regular
from engine.values import Loading

MAKERS = {
    "camvid": fakedata.make_camvid,
    "cityscapes": fakedata.make_cityscapes,
    "cyclegta": fakedata.make_cyclegta,
    "folder": fakedata.make_folder,
    "gta5": fakedata.make_gta5,
    "loveda": fakedata.make_loveda,
    "synthia": fakedata.make_synthia,
}


def pack(folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Return an archive of a folder's files, with and without entries of the folders."""
    path = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for i, file in enumerate(sorted(folder.rglob("*"))):
            if file.is_file() or i % 2:
                archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a function that gives a data set's folder and its archive."""
    made = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = MAKERS[name](tmp_path_factory.mktemp("data") / name)
            made[name] = root, pack(root)
        return made[name]

    return get


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if torch.is_tensor(v) else v == other[k] for k, v in one.items()
    )


@pytest.mark.parametrize("name", MAKERS)
def test_samples_are_those_of_the_folder(name, packed):
    root, archive = packed(name)
    folder, zipped = (build_dataset(name, one, split="train") for one in (root, archive))
    assert zipped.pairs == folder.pairs
    assert len(zipped.pairs) > 0
    for index in range(len(folder)):
        assert equal(zipped[index], folder[index])


def test_workers_and_methods(packed, tmp_path: Path):
    root, archive = packed("camvid")
    stored = pack(shutil.copytree(root, tmp_path / "camvid"), zipfile.ZIP_STORED)
    expected = list(build_dataset("camvid", root, split="train"))
    for path in (archive, stored):
        dataset = build_dataset("camvid", path, split="train")
        for workers in (0, 2):
            loader = make_loader(dataset, Loading(workers, 60), batch_size=1)
            for sample, batch in zip(expected, loader, strict=True):
                assert torch.equal(batch["image"][0], sample["image"])


def test_a_list_and_a_folder_inside(packed, tmp_path: Path):
    root, archive = packed("gta5")
    listed = fakedata.write_list(tmp_path / "list.txt", [("images/00002.png", "labels/00002.png")])
    dataset = build_dataset("gta5", archive, split="train", list_file=listed)
    assert dataset.pairs == [("images/00002.png", "labels/00002.png")]
    outer = pack(shutil.copytree(root, tmp_path / "outer/GTA5").parent)
    assert len(build_dataset("gta5", outer / "GTA5", split="train")) == 3
    fakedata.write_list(listed, [("../images/00002.png",)])
    with pytest.raises(UserError, match="leaves the data folder"):
        build_dataset("gta5", archive, split="train", list_file=listed)


def test_photographs_without_labels(packed):
    _, archive = packed("camvid")
    names = [name for name, _ in Photographs(archive, split="all", labelled=False).pairs]
    assert "train/0006R0_f00930.png" in names
    assert len(names) == 48


def test_a_changed_archive_is_read_anew(tmp_path: Path):
    root = fakedata.make_folder(tmp_path / "data")
    before = build_dataset("folder", pack(root), split="train")
    name, image = fingerprint(before), before[0]["image"]
    shutil.rmtree(root)
    after = build_dataset("folder", pack(fakedata.make_folder(root, seed=9)), split="train")
    assert fingerprint(after) != name
    assert not torch.equal(after[0]["image"], image)


def test_training_reads_it(packed, tmp_path: Path):
    _, archive = packed("folder")
    words = f"--dataset folder --data-dir {archive} --snapshot-dir {tmp_path / 'run'}"
    words += " --model compact"
    words += " --input-size 32,32 --batch-size 2 --num-steps 1 --num-workers 1 --weights none"
    train_seg.main(train_seg.parse_args(words.split()))
    assert (tmp_path / "run/folder_best.pth").exists()


def write(path: Path, *entries: tuple, **changes) -> Path:
    """Write an archive of (name, content), and change its last entry's record."""
    with zipfile.ZipFile(path, "w", changes.pop("method", zipfile.ZIP_DEFLATED)) as archive:
        for name, content in entries:
            archive.writestr(name, content)
        for key, value in changes.items():
            setattr(archive.infolist()[-1], key, value)
    return path


@pytest.mark.parametrize(
    ("entries", "changes", "message"),
    [
        ([("a/../../b.png", b"")], {}, r"the entry 'a/../../b.png' leaves the archive"),
        ([("..\\b.png", b"")], {}, r"the entry '../b.png' leaves the archive"),
        ([("/b.png", b"")], {}, "leaves the archive"),
        ([("C:\\b.png", b"")], {}, "leaves the archive"),
        ([("b.png", b"x")], {"flag_bits": 1}, r"the entry 'b.png' is encrypted"),
        ([("b.png", b"x")], {"file_size": 2**31}, r"the entry 'b.png' is refused: 2147483648"),
        ([("b.png", b"x")], {"file_size": 2**27}, r"is refused: 134217728 bytes packed into 3"),
        ([("b", b"x"), ("b/c.png", b"x")], {}, "lies in a file of the archive"),
    ],
)
def test_what_could_harm_is_refused_by_name(entries, changes, message, tmp_path: Path):
    path = write(tmp_path / "a.zip", *entries, **changes)
    with pytest.raises(UserError, match=message) as caught:
        build_dataset("folder", path, split="train")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_stand_twice(tmp_path: Path):
    with pytest.raises(UserError, match=r"the entry 'b.png' stands twice"):
        zips.is_dir(write(tmp_path / "a.zip", ("b.png", b"1"), ("b.png", b"2")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_size": 90}, "damaged"),
        ({"file_size": 110}, "damaged"),
        ({"CRC": 1}, "damaged"),
        ({"header_offset": 3}, "damaged|cannot unpack"),
        ({"header_offset": 10**6}, "cannot unpack"),
        ({"method": zipfile.ZIP_BZIP2}, "packed by method 12: deflate or store it"),
        ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "not a regular file"),
    ],
)
def test_what_cannot_be_unpacked_is_named(changes, message, tmp_path: Path):
    path = write(tmp_path / "a.zip", ("in/b.txt", os.urandom(100)), **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_regular(path / "in/b.txt")
    assert str(caught.value).startswith(f"{path}/in/b.txt: ")


def test_other_things_called_zip(tmp_path: Path):
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no.zip: cannot read this archive"):
        build_dataset("folder", tmp_path / "no.zip", split="train")
    with pytest.raises(UserError, match=r"none.zip: no such data folder"):
        build_dataset("folder", tmp_path / "none.zip", split="train")
    root = fakedata.make_folder(tmp_path / "a.zip/b.ZIP")  # folders of such names
    assert len(build_dataset("folder", root, split="train")) == 3
    path = write(tmp_path / "text.zip", ("a.txt", b"1\n"))
    assert read_text(path / "a.txt", "list") == "1\n"
    with pytest.raises(UserError, match=r"text.zip/b.txt: .*no such file"):
        read_text(path / "b.txt", "list")
    with pytest.raises(UserError, match="2 bytes are too many: 1 at most"):
        read_regular(path / "a.txt", 1)
    assert not zips.is_dir(path / "a.txt")
    assert not zips.is_file(path)


def test_the_one_folder_of_an_archive(packed, tmp_path: Path):
    """As file managers pack it; of two, neither is meant."""
    root, _ = packed("folder")
    path = pack(shutil.copytree(root, tmp_path / "mine/my data").parent)
    dataset = build_dataset("folder", path, split="val")
    assert dataset.pairs == build_dataset("folder", root, split="val").pairs
    assert dataset.root == path / "my data"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/my data/._classes.json", b"x")
    assert DATASETS["folder"].has_split(path, "val")
    assert len(build_dataset("folder", path, split="val")) == 3
    shutil.copytree(root, tmp_path / "mine/more")
    with pytest.raises(UserError, match=r"mine\.zip/classes\.json: .*no such file"):
        build_dataset("folder", pack(tmp_path / "mine"), split="val")


def test_names_with_accents_and_blanks(tmp_path: Path):
    label = np.zeros((4, 4), np.uint8)
    label[0] = 10
    root = fakedata.make_folder(tmp_path / "data", n=1, splits=("train",))
    fakedata.save(root / "images/train/größe 1.png", np.zeros((4, 4, 3), np.uint8))
    fakedata.save(root / "labels/train/größe 1.png", label + 10)
    dataset = build_dataset("folder", pack(root), split="train")
    assert ("images/train/größe 1.png", "labels/train/größe 1.png") in dataset.pairs
