"""The cache of decoded samples: the same tensors, whatever happens to its file meanwhile."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedata
import train_da
from datasets import build_dataset
from datasets.base import SegmentationDataset
from engine.errors import UserError

fork = multiprocessing.get_context("fork")


@pytest.fixture
def gta5(tmp_path: Path) -> Path:
    """Return a folder of 6 labelled images, two of which have another size."""
    fakedata.make_gta5(tmp_path / "gta5", n=6, size=(66, 50))
    return fakedata.make_gta5(tmp_path / "gta5", n=2, size=(38, 54), seed=1)


@pytest.fixture
def undecoded(monkeypatch):
    """Return a function after whose call no image can be decoded."""

    def read(_dataset, index: int):
        raise AssertionError(f"sample {index} was decoded")

    return lambda: monkeypatch.setattr(SegmentationDataset, "read", read)


def opened(root: Path, cache: Path | None, **how):
    """Return the images of `gta5`, cached or not."""
    return build_dataset("gta5", root, split="train", cache_dir=cache, **{"size": (40, 30)} | how)


def assert_same(first, second) -> None:
    """Assert that two datasets hold the same samples."""
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert one["name"] == two["name"]
        for key in one.keys() - {"name"}:
            assert one[key].dtype == two[key].dtype == torch.uint8
            assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize(
    "how",
    [{}, {"size": None}, {"labelled": False}, {"resize_label": False}, {"num_images": 3}],
    ids=str,
)
def test_samples_are_equal_cold_warm_and_reopened(gta5, tmp_path, undecoded, how: dict):
    plain, cache = list(opened(gta5, None, **how)), tmp_path / "cache"
    cached = opened(gta5, cache, **how)
    assert_same(cached, plain)
    undecoded()
    assert_same(cached, plain)
    assert_same(opened(gta5, cache, **how), plain)
    assert torch.equal(cached[-1]["image"], plain[-1]["image"])
    assert len(list(cache.iterdir())) == 1


def test_attributes_are_the_datasets_own(gta5: Path, tmp_path: Path):
    plain, cached = opened(gta5, None), opened(gta5, tmp_path / "cache")
    for name in ("name", "num_classes", "class_names", "palette", "pairs", "arguments", "size"):
        assert getattr(cached, name) == getattr(plain, name), name
    assert cached.full_size(0) == (54, 38)
    assert not hasattr(cached, "datasets")


def test_what_a_sample_depends_on_names_the_file(gta5: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    ways = [{}, {"size": (30, 40)}, {"labelled": False}, {"resize_label": False}]
    for how in [*ways, {"num_images": 3}, {"label_kind": "trainIds"}]:
        opened(gta5, cache, **how)
    assert len(list(cache.iterdir())) == 6
    opened(gta5, cache, seed=7)  # chooses nothing here
    assert len(list(cache.iterdir())) == 6


def test_a_changed_file_is_noticed(gta5: Path, tmp_path: Path):
    before = opened(gta5, tmp_path / "cache")[3]
    other = np.full((50, 66), 7, np.uint8)
    fakedata.save(gta5 / "labels" / "00004.png", other)
    after = opened(gta5, tmp_path / "cache")[3]
    assert not torch.equal(before["label"], after["label"])
    assert not after["label"].any()  # road


def test_a_changed_colour_of_a_class_is_noticed(tmp_path: Path):
    """Labels may be read by their colours."""
    root = fakedata.make_folder(tmp_path / "own")
    names = set()
    table = (root / "classes.json").read_text()
    for red in (60, 61):
        (root / "classes.json").write_text(table.replace('"color": [60,', f'"color": [{red},'))
        dataset = build_dataset("folder", root, split="train", cache_dir=tmp_path / "cache")
        names.add(dataset.path.name)
    assert len(names) == 2


def test_drawn_datasets_are_not_cached(tmp_path: Path):
    build_dataset("streets", None, split="val", num_images=2, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("harm", ["bit", "tail", "all", "cut short"])
def test_what_is_damaged_is_decoded_and_written_again(gta5, tmp_path, undecoded, harm: str):
    plain, cached = list(opened(gta5, None)), opened(gta5, tmp_path / "cache")
    assert_same(cached, plain)
    start, stop = cached.starts[2], cached.starts[3]
    with cached.path.open("r+b") as file:
        if harm == "bit":
            file.seek(start + 100)
            file.write(bytes([255 - cached._read(start + 100, 1)[0]]))
        elif harm == "tail":  # the rest of the sample was never written, its checksum was
            file.seek(start + 1000)
            file.write(bytes(stop - start - 1000))
        elif harm == "cut short":  # by somebody else; read through a map it would end the process
            file.truncate(start + 1000)
        else:
            file.write(bytes(cached.starts[-1]))
    assert_same(cached, plain)
    undecoded()
    assert_same(cached, plain)


def read_for_ever(root: Path, cache: Path, seed: int) -> None:
    """Open the cache and read it in random order, until it is wrong or this process is killed."""
    plain = list(opened(root, None))
    random = np.random.default_rng(seed)
    while True:
        cached = opened(root, cache)
        for index in random.permutation(len(plain)):
            sample = cached[int(index)]
            assert all(torch.equal(sample[key], plain[index][key]) for key in ("image", "label"))


def test_readers_and_writers_at_once_and_kills_tear_nothing(gta5: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    cached = opened(gta5, cache)
    workers = [fork.Process(target=read_for_ever, args=(gta5, cache, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(15):  # make them all write again, now and then in the middle of a sample
        time.sleep(0.05)
        with cached.path.open("r+b") as file:
            file.seek(cached.starts[0])
            file.write(bytes(cached.starts[-1] - cached.starts[0]))
    for worker in workers:
        assert worker.is_alive(), "a reader saw a torn sample"
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert_same(opened(gta5, cache), opened(gta5, None))


def test_a_full_disk_is_found_out_before_the_first_sample(gta5, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(UserError, match=r"cache: gta5-40x30-\w+.samples needs 0.000 GB, 0.000 GB"):
        opened(gta5, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_quota_is_found_out_before_the_first_sample(gta5: Path, tmp_path: Path):
    """The system refuses to reserve the bytes, though the disk has space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(UserError, match=r"needs .* File too large"):
            opened(gta5, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").iterdir())
    assert_same(opened(gta5, tmp_path / "cache"), opened(gta5, None))


def test_an_unwritable_folder_is_one_line(gta5: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError, match=f"cannot write --cache {folder}: "):
            opened(gta5, folder)


def test_a_cached_run_is_the_same_run(tmp_path: Path, undecoded):
    root = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    words = f"""--recipe streets --source camvid --source-set day_train --target camvid
        --set dusk_train --val-set dusk_val --input-size 48,40 --batch-size 2 --save-pred-every 100
        --no-baseline --adapt-from 1 --num-steps 3 --data-dir {root} --num-workers 2""".split()

    def train(name: str, *flags: str) -> dict:
        train_da.main(train_da.parse_args([*words, "--snapshot-dir", str(tmp_path / name), *flags]))
        return torch.load(tmp_path / name / "last.pth", weights_only=True)["state"]["model"]

    plain = train("plain")
    cache = ["--cache", str(tmp_path / "cache")]
    for name in ("cold", "warm"):
        for key, value in train(name, *cache).items():
            assert torch.equal(value, plain[key]), key


def test_evaluate_takes_the_cache_too(gta5: Path, tmp_path: Path):
    words = [sys.executable, "evaluate.py", "--predictions", str(gta5 / "labels")]
    words += f"--prediction-ids label --dataset gta5 --set train --data-dir {gta5}".split()
    words += ["--cache", str(tmp_path / "cache"), "--num-workers", "0"]
    done = subprocess.run(
        words, cwd=Path(train_da.__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "mIoU: 100.0" in done.stdout
    assert len(list((tmp_path / "cache").iterdir())) == 1
