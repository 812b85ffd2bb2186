"""The datasets by name; `build_dataset` is the one way in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.acdc import ACDC
from datasets.ade20k import ADE20K
from datasets.base import SegmentationDataset
from datasets.bdd100k import BDD100K
from datasets.cache import CachedDataset
from datasets.camvid import CamVid
from datasets.cityscapes import Cityscapes
from datasets.cyclegta import CycleGTA
from datasets.dark_zurich import DarkZurich
from datasets.files import colourise, write_label_png
from datasets.folder import Folder
from datasets.gta5 import GTA5
from datasets.loveda import LoveDA
from datasets.mapillary import Mapillary
from datasets.minicity import MiniCity
from datasets.potsdam import Potsdam
from datasets.pseudo import WithConfidence, check_classes
from datasets.streets import Streets
from datasets.synscapes import Synscapes
from datasets.synthia import Synthia
from datasets.urbansyn import UrbanSyn
from datasets.vaihingen import Vaihingen
from datasets.voc import VOC
from datasets.waste import Waste
from engine.errors import UserError
from engine.values import Images

DATASETS = {
    "acdc": ACDC,
    "ade20k": ADE20K,
    "bdd100k": BDD100K,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "cyclegta": CycleGTA,
    "dark_zurich": DarkZurich,
    "folder": Folder,
    "gta5": GTA5,
    "loveda": LoveDA,
    "mapillary": Mapillary,
    "minicity": MiniCity,
    "potsdam": Potsdam,
    "streets": Streets,
    "synscapes": Synscapes,
    "synthia": Synthia,
    "urbansyn": UrbanSyn,
    "vaihingen": Vaihingen,
    "voc": VOC,
    "waste": Waste,
}

__all__ = [
    "DATASETS",
    "SegmentationDataset",
    "build_dataset",
    "colourise",
    "open_images",
    "open_pseudo_labelled",
    "write_label_png",
]


def build_dataset(
    name: str, root: str | Path | None, *, cache_dir: str | Path | None = None, **how: Any
) -> SegmentationDataset | CachedDataset:
    """Build a dataset whose samples the default collate function can batch.

    Args:
        name: a key of `DATASETS`.
        root: the data folder; None for streets, which is drawn.
        cache_dir: folder where decoded samples are kept (`CachedDataset`); None keeps none, and
            neither does streets, which has no files.
        **how: what every dataset takes, and its own options, listed in its `options`:
            split: one of the dataset's `splits`; not looked at when a list is given.
            list_file: text file of `image` or `image label` lines relative to root, instead of the
                dataset's standard folder layout.
            size: (width, height) in pixels that images are resized to (bicubic); a number: the
                longer side, the ratio kept, and squares filled up where labels are resized too;
                None keeps them.
            resize_label: resize labels too (nearest), for training; False keeps them for scoring.
            labelled: False never opens a label file, nor needs one to exist.
            num_images: use only the first so many of a shuffle seeded with `seed`.
            seed: of that shuffle, and of what streets draws.

    Returns:
        The dataset; see `SegmentationDataset` for the samples and attributes.

    Raises:
        UserError: an unknown name, split or option; a missing folder, file or label; a bad list.
            Reading a sample raises it for damaged files, labels of a wrong kind or size, and label
            values outside the class table. The message names the file.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; there are: {', '.join(sorted(DATASETS))}")
    dataset = DATASETS[name](root, **how)
    return CachedDataset(dataset, cache_dir) if cache_dir and dataset.paths(0) else dataset


def open_images(images: Images, **how: Any) -> SegmentationDataset | CachedDataset:
    """Build the dataset that options name.

    Args:
        images: of `engine.data_options`.
        **how: labelled and resize_label of `build_dataset`.
    """
    return build_dataset(
        images.dataset,
        images.root,
        split=images.split,
        list_file=images.list_file,
        size=images.size,
        num_images=images.num_images,
        seed=images.seed,
        cache_dir=images.cache_dir,
        **how,
        **images.options,
    )


def open_pseudo_labelled(
    images: Images, folder: str | Path, confidence: bool
) -> SegmentationDataset | WithConfidence:
    """Build a dataset with the labels that pseudo_label.py wrote for its images.

    Args:
        images: whose dataset, folder and size are taken.
        folder: of the labels: list.txt, pseudo.json and the PNGs.
        confidence: samples hold `confidence` too, uint8 [h,w] from the folder's `confidence/`.

    Raises:
        UserError: as `build_dataset`; a folder that is not finished, or of other classes.
    """
    folder = Path(folder)
    if not (folder / "list.txt").is_file():
        raise UserError(f"{folder}: no list.txt: pseudo_label.py has not finished this folder")
    labels = {"label_root": folder, "label_kind": "trainIds", "holdout": "no"}
    dataset = open_images(
        replace(images, list_file=folder / "list.txt", options={**images.options, **labels})
    )
    check_classes(folder / "pseudo.json", dataset.class_names)
    return WithConfidence(dataset, folder / "confidence") if confidence else dataset
