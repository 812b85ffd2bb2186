"""Time the loader: PNG files in, training samples out, for several numbers of workers.

With and without --cache: while the cache is filled and once it is full. All files are in memory,
so that decoding is timed and not the disk.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import models
from datasets import SegmentationDataset, build_dataset
from datasets.cache import CachedDataset
from datasets.loading import make_loader
from engine.values import Loading
from models.normalisation import NORMALISATIONS
from tools.benchmark import scenes
from tools.benchmark.timing import alternate, compare

# dataset, size of its files, size to train at
CASES = (
    ("gta5", (1280, 720), (1280, 720)),
    ("gta5", (1914, 1052), (1280, 720)),
    ("cityscapes", (2048, 1024), (2048, 1024)),
    ("cityscapes", (2048, 1024), (1024, 512)),
)
WORKERS = (0, 1, 2)


def run(
    device: torch.device, *, size: tuple[int, int] | None, images: int, repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield a row, the time of an image, and a remark for every case and number of workers.

    Args:
        device: not loaded to: samples stay in memory.
        size: W, H of the files and of training, instead of `CASES`.
        images: loaded in a round, by workers that are running; two files are behind them.
        repeats: rounds.
    """
    cases = CASES if size is None else [(name, size, size) for name in ("gta5", "cityscapes")]
    for name, files, input_size in cases:
        with tempfile.TemporaryDirectory() as folder:
            listed = scenes.write_files(Path(folder), files, images, distinct=2)
            ours = build_dataset(name, folder, split="train", list_file=listed, size=input_size)
            plain = PlainSamples(ours)
            check_equal(ours[0], plain[0])
            cached = CachedDataset(ours, Path(folder) / "cache")
            megabytes = (Path(folder) / "image0.png").stat().st_size / 1e6
            cpu = {way: cpu_ms(call) / images for way, call in ways(ours, cached, plain, 0).items()}
            for workers in WORKERS:
                calls = ways(ours, cached, plain, workers)
                times = alternate(list(calls.values()), device, repeats)
                check_equal(cached[0], plain[0])
                seconds = dict(zip(calls, times, strict=True))
                title = "{} {}x{} -> {}x{}, workers {}".format(name, *files, *input_size, workers)
                for way in list(calls)[:-1]:
                    row = {
                        "name": title + way,
                        **compare(seconds[way], seconds["plain"], count=images),
                        "image_megabytes": megabytes,
                        "cpu_ms": cpu[way],
                        "plain_cpu_ms": cpu["plain"],
                    }
                    row["images_per_s"] = 1e3 / row["ours_ms"]
                    yield row, remark(row)


def remark(row: dict) -> str:
    """Return what the row's numbers beside the times say."""
    return (
        f"{row['images_per_s']:.1f} images/s; {row['cpu_ms']:.1f} ms of a core beside "
        f"{row['plain_cpu_ms']:.1f}; PNGs of {row['image_megabytes']:.1f} MB"
    )


def ways(
    ours: Dataset, cached: CachedDataset, plain: Dataset, workers: int
) -> dict[str, Callable[[], None]]:
    """Return by name the ways to load every sample once, with so many workers."""
    how = {"persistent_workers": workers > 0, "batch_size": 1}
    loader, kept, other = (
        make_loader(data, Loading(workers), **how) for data in (ours, cached, plain)
    )
    return {
        "": functools.partial(drain, loader),
        ", cache cold": functools.partial(fill, kept),
        ", cache warm": functools.partial(drain, kept),
        "plain": functools.partial(drain, other),
    }


def cpu_ms(call: Callable[[], None]) -> float:
    """Return the milliseconds of this process's cores, which no busy neighbour lengthens much."""
    started = time.process_time()
    call()
    return (time.process_time() - started) * 1e3


def drain(loader: DataLoader) -> None:
    """Load every sample once."""
    for _ in loader:
        pass


def fill(loader: DataLoader) -> None:
    """Load every sample once, with nothing in the cache."""
    with loader.dataset.path.open("r+b") as file:
        file.write(bytes(4 * len(loader.dataset)))  # the checksums
    drain(loader)


def check_equal(sample: dict, plain: dict) -> None:
    """Stop unless both loaded the same pixels and labels."""
    pixels = models.normalise(sample["image"][None], NORMALISATIONS["caffe"])[0]
    assert np.abs(pixels.numpy() - plain["image"]).max() < 1e-3, "the images differ"
    assert (sample["label"].numpy() == plain["label"]).all(), "the labels differ"
    assert sample["label"].any(), "one class everywhere: not worth timing"


class PlainSamples(Dataset):
    """The same files as normalised float images and float labels, as AdaptSegNet's dataset/ does.

    Args:
        dataset: whose files and size to take.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.root, self.pairs, self.size = dataset.root, dataset.pairs, dataset.size
        self.mean = np.array(NORMALISATIONS["caffe"]["mean"], np.float32)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image, ids = (Image.open(self.root / name) for name in self.pairs[index])
        image = image.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        ids = np.asarray(ids.resize(self.size, Image.Resampling.NEAREST), np.float32)
        label = np.full(ids.shape, scenes.IGNORE, np.float32)
        for raw, train in scenes.RAW_TO_TRAIN.items():
            label[ids == raw] = train
        pixels = np.asarray(image, np.float32)[:, :, ::-1] - self.mean
        return {"image": pixels.transpose(2, 0, 1).copy(), "label": label}
