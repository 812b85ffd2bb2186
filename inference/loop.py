"""Run a trained network over a dataset: restore it, predict every image, score."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

import models
from datasets import DATASETS, open_images
from datasets.base import NoLabels
from datasets.loading import first_difference, make_loader, on_device
from engine import processes
from engine.device import pick_precision
from engine.errors import UserError
from engine.values import Foreign, Images, Loading, Views
from inference.metrics import ConfusionMatrix
from inference.predictor import Predictor
from models.checkpoint import load_model


class _Sized(Dataset):
    """Samples with `size`, the height and width a prediction of the image should have."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        if "label" in sample:
            return sample | {"size": tuple(sample["label"].shape)}
        return sample | {"size": self.dataset.full_size(index)}


def _collate(samples: list[dict]) -> dict:
    """Batch samples, or say which images cannot be in one batch."""
    first = samples[0]
    for other in samples[1:]:
        if other["image"].shape != first["image"].shape or other["size"] != first["size"]:
            raise UserError(
                f"{first['name']} and {other['name']} differ in size: give --batch-size 1"
            )
    batch = default_collate([{k: v for k, v in s.items() if k != "size"} for s in samples])
    return batch | {"size": first["size"]}


def predict(
    predictor: Callable,
    dataset: Dataset,
    loading: Loading,
    *,
    batch_size: int = 1,
    with_confidence: bool = False,
    start: int = 0,
) -> Iterator[tuple]:
    """Predict every image of a dataset, in order, at the size of its label or file.

    Of several processes, each predicts images of its own: every image is somebody's.

    Args:
        predictor: `Predictor`, `Ensemble`, or what is called as they are and has their `device`.
        dataset: of segshift.
        loading: see `datasets.loading.make_loader`.
        batch_size: images that are predicted at once.
        with_confidence: fill the third entry.
        start: images to leave out, the first ones.

    Yields:
        the batch on the network's device, its train ids uint8 [N,H,W], its confidences float32
        [N,H,W] or None, and what else the predictor returns with confidences.

    Raises:
        UserError: an unreadable file, or a batch of images of several sizes.
    """
    loader = make_loader(
        _Sized(dataset),
        loading,
        batch_size=batch_size,
        sampler=processes.share(len(dataset))[start:],
        collate_fn=_collate,
        pin_memory=predictor.device.type == "cuda",
    )
    batches = on_device(loader, predictor.device)
    for batch in tqdm(batches, total=len(loader), disable=None, leave=False):
        result = predictor(batch["image"], batch["size"], with_confidence)
        yield (batch, *result) if with_confidence else (batch, result, None)


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    loading: Loading,
    batch_size: int = 1,
    also: Callable[[dict, Tensor, Tensor | None], None] = lambda *_: None,
    each_image: bool = False,
    with_confidence: bool = False,
) -> ConfusionMatrix:
    """Score a network on a labelled dataset, or predict one without labels.

    Args:
        predictor: see `Predictor`.
        dataset: of segshift; with `resize_label=False` the score is at full size.
        loading, batch_size: see `predict`.
        also: is given every batch, its predictions, uint8 [N,H,W], and its confidences.
        each_image: keep each image's counts; see `ConfusionMatrix`.
        with_confidence: see `predict`.

    Returns:
        the confusion matrix of all processes' images, empty without labels; `compute` reads it.
    """
    names, ignore = dataset.class_names, dataset.ignore_index
    confusion = ConfusionMatrix(dataset.num_classes, names, ignore, each_image=each_image)
    how = {"batch_size": batch_size, "with_confidence": with_confidence}
    for batch, pred, confidence in predict(predictor, dataset, loading, **how):
        if "label" in batch:
            confusion.update(pred, batch["label"])
        also(batch, pred, confidence)
    confusion.add_up_processes()
    return confusion


def open_dataset(images: Images, checkpoint: dict, labelled: bool = True) -> Dataset:
    """Open the images a network is to be run on, their labels in their own size.

    Args:
        images: what is None there is what the network was validated on, if the checkpoint says so.
        checkpoint: of ours, or empty: `dataset`, `input_size`, and `data` with `root`, `split`,
            `list_file` and `options`.
        labelled: whether the labels are read.

    Raises:
        UserError: no dataset is named, or it cannot be opened; see `datasets.build_dataset`.
    """
    dataset, split, list_file = images.dataset, images.split, images.list_file
    if dataset is None and "dataset" not in checkpoint:
        raise UserError("give --dataset, nothing else says which it is")
    known = {}
    if dataset in (None, checkpoint.get("dataset")):
        dataset, known = checkpoint["dataset"], checkpoint.get("data", {})
    known_options = _own_options(dataset, known.get("options", {}))
    if split is None and list_file is None:
        split, list_file = known.get("split"), known.get("list_file")
    else:
        known_options.pop("holdout", None)  # which divides the split that it was validated on
    named = replace(
        images,
        dataset=dataset,
        root=images.root or known.get("root"),
        split=split or "val",
        list_file=list_file,
        size=images.size or checkpoint.get("input_size"),
        options={**known_options, **images.options},
    )
    if "seed" in named.options:  # streets are drawn from it
        options = dict(named.options)
        named = replace(named, seed=options.pop("seed"), options=options)
    return open_images(named, labelled=labelled, resize_label=False)


def open_test_set(images: Images, checkpoint: dict) -> Dataset:
    """Open images as `open_dataset` does; a test set may have no labels at all."""
    try:
        return open_dataset(images, checkpoint)
    except NoLabels:
        split = images.split or checkpoint.get("data", {}).get("split")
        if split != "test":
            raise
        return open_dataset(images, checkpoint, labelled=False)


def _own_options(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of its data and may say: the dataset's own options.

    Somebody else's checkpoint must not choose where a cache is written, for instance.
    """
    known = DATASETS[name].options if name in DATASETS else {}
    return {key: value for key, value in said.items() if key in known or key == "seed"}


def restore(path: str | Path, device: torch.device, **how) -> tuple[Predictor, Dataset]:
    """Load one network for inference and open the images it is to be run on.

    Arguments, results and errors are those of `restore_all`.
    """
    (predictor,), dataset = restore_all([path], device, **how)
    return predictor, dataset


def restore_all(
    paths: list[str],
    device: torch.device,
    *,
    foreign: Foreign | None,
    images: Images,
    opener: Callable[[Images, dict], Dataset] = open_dataset,
    precision: str = "auto",
    align_corners: bool | None = None,
    views: Views = Views(),  # noqa: B008 -- frozen
) -> tuple[list[Predictor], Dataset]:
    """Load networks of the same classes for inference and open the images they are to be run on.

    Args:
        paths: checkpoints of ours, or weights of another project when `foreign` is given.
        device: where the networks go.
        foreign: what such weights do not say; None for checkpoints of ours.
        images: what to run on; what is None there the first checkpoint says.
        opener: is given the images and the first checkpoint, empty for weights of others.
        precision: bf16, fp32, or auto for the checkpoint's, else what suits the device.
        align_corners: None for the checkpoints', else the network's own.
        views: of the images.

    Returns:
        a predictor of each, its network's batch norms folded, and the dataset.

    Raises:
        UserError: a file cannot be loaded, its classes are not the dataset's, or the checkpoints
            disagree on the input size or align_corners where the command line leaves it open.
    """
    loaded = []
    if foreign is None:
        loaded = [load_model(path, device) for path in paths]
        given = {"input_size": images.size, "align_corners": align_corners}
        _check_agreement(paths, [checkpoint for _, checkpoint in loaded], given)
    dataset = opener(images, loaded[0][1] if loaded else {})
    for path in paths if foreign is not None else ():
        network = models.build_model(num_classes=dataset.num_classes, **foreign.architecture)
        report = models.load_weights(network, path, strict=True, entry=foreign.entry)
        print(report, flush=True)
        loaded.append((network, {"classes": dataset.class_names}))
    predictors = []
    for path, (network, checkpoint) in zip(paths, loaded, strict=True):
        _check_classes(path, checkpoint["classes"], dataset.name, dataset.class_names)
        if align_corners is not None:
            network.align_corners = align_corners
        chosen = checkpoint.get("precision", "auto") if precision == "auto" else precision
        network = models.fold_batchnorm(network)
        models.check_values(network.state_dict(), f"{path} with batch norms folded")
        network = network.to(device, memory_format=torch.channels_last)
        chosen = pick_precision(chosen, device)
        predictors.append(Predictor(network, chosen, views, _temperature(path, checkpoint, views)))
    return predictors, dataset


def _temperature(path: str | Path, checkpoint: dict[str, Any], views: Views) -> float:
    if views.temperature and "temperature" not in checkpoint:
        raise UserError(f"{path} has no temperature: python -m tools.calibrate fits one")
    return checkpoint["temperature"] if views.temperature else 1.0


def _check_agreement(paths: list[str], checkpoints: list[dict], given: dict) -> None:
    """Raise UserError where checkpoints differ in what one prediction can only have once."""
    first = checkpoints[0]
    for path, other in zip(paths, checkpoints, strict=True):
        _check_classes(path, other["classes"], paths[0], first["classes"])
        for key in [key for key, value in given.items() if value is None]:
            if other.get(key) != first.get(key):
                raise UserError(
                    f"{paths[0]} has {key} {first.get(key)}, {path} {other.get(key)}: "
                    f"give --{key.replace('_', '-')}"
                )


def _check_classes(one: str | Path, theirs: list[str], other: str | Path, ours: list[str]) -> None:
    """Raise UserError that names the first class in which two tables differ."""
    if theirs == ours:
        return
    raise UserError(
        f"{one} knows {len(theirs)} classes, {other} has {len(ours)}; the first that differs: "
        f"{first_difference(theirs, ours)}"
    )


def validate_all(
    network: nn.Module,
    val: Dataset | None,
    sets: Mapping[str, Dataset],
    loading: Loading,
    precision: str,
) -> dict | None:
    """Score a network in the middle of its training on all that it is validated on.

    Args:
        network: in training mode.
        val: what chooses the best checkpoint; None where nothing is scored.
        sets: of --val by name, the first being `val`; empty without it.
        loading, precision: see `validate`.

    Returns:
        the scores on `val`; of several sets also its name, `on`, and those on the others, `also`.
    """
    if val is None or not sets:
        return None if val is None else validate(network, val, loading, precision)
    scores = {name: validate(network, one, loading, precision) for name, one in sets.items()}
    (on, first), *others = scores.items()
    return {**first, "on": on, "also": dict(others)}


def validate(network: nn.Module, dataset: Dataset, loading: Loading, precision: str) -> dict:
    """Score a network in the middle of its training, and put it back into training mode.

    Returns:
        the scores as plain values; see `ConfusionMatrix.summary`.
    """
    confusion = evaluate(Predictor(network.eval(), precision), dataset, loading)
    network.train()
    return confusion.summary()
