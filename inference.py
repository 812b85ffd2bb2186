"""From uint8 images to train ids: one pass, windows, several scales, mirrored; score and save.

Logits stay at the network's own resolution. They are resized and reduced to class ids in one step
by `kernels.argmax_upsample`, so that no [N,C,H,W] tensor of the label's size ever exists.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

import distributed
import kernels
import models
from checkpoint import load_model
from datasets import build_dataset
from engine import autocast, pick_precision
from errors import UserError
from loading import make_loader, on_device
from metrics import ConfusionMatrix
from windows import in_windows


class Predictor:
    """Predict class ids with a trained network.

    Several views of an image (scales, mirrored) are averaged as softmax probabilities on the
    output grid of the largest scale; the logarithm of the mean then takes the place of the logits,
    so that one view gives exactly the ids and confidences of the plain pass.

    Args:
        model: network with `normalisation`, in evaluation mode; its device is where this runs.
        precision: "bf16" or "fp32" of the network; everything after it is float32.
        align_corners: how logits are resized. True is AdaptSegNet's and ADVENT's protocol, False
            DAFormer's; it moves mIoU by about a point, so it belongs to the checkpoint.
        scales: factors of the input size, each > 0.
        flip: add the mirrored image of every scale.
        slide: windows of W, H input pixels, multiples of 32 (see `windows`); None for the whole
            image at once.

    Raises:
        UserError: a value that is not allowed.

    Source: averaging of views: Seg-Uncertainty evaluate_cityscapes.py and
    generate_plabel_cityscapes.py. Deviation: they resize each view's logits to the full size
    before the softmax.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str = "fp32",
        align_corners: bool = False,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        slide: tuple[int, int] | None = None,
    ) -> None:
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UserError(f"scales must be above 0, finite, given {','.join(map(str, scales))}")
        if slide is not None and any(side < 32 or side % 32 for side in slide):
            raise UserError(f"a window's sides must be multiples of 32, given {slide}")
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.align_corners = align_corners
        self.scales = scales
        self.flip = flip
        self.slide = slide

    @torch.inference_mode()
    def __call__(
        self, images: Tensor, size: tuple[int, int], with_confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the class of every pixel.

        Args:
            images: uint8 [N,3,h,w] RGB, on any device.
            size: H, W of the result, usually the label's.
            with_confidence: return the softmax maximum too.

        Returns:
            train ids uint8 [N,H,W] (and confidence float32 [N,H,W], 0..1).
        """
        logits = self.logits(images)
        return kernels.argmax_upsample(logits, size, self.align_corners, with_confidence)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N,C,h,w] at the network's own resolution.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
        """
        if self.scales == (1.0,) and not self.flip:
            return self._forward(self._normalised(images))
        return log_probs(self.probabilities(images))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> Tensor:
        """Return the softmax averaged over the views, on the grid of the largest of them.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
            heads: outputs of the network, "out" and "aux".

        Returns:
            float32 [N,K*C,h,w], the C classes of each of the K heads one after the other.
        """
        images = self._normalised(images)
        total: Tensor | None = None
        for scale in sorted(self.scales, reverse=True):
            scaled = _resize_images(images, scale)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self._forward(scaled.flip(3) if mirrored else scaled, heads)
                probs = torch.cat([head.softmax(1) for head in logits.chunk(len(heads), 1)], 1)
                probs = probs.flip(3) if mirrored else probs
                if total is None:
                    total = torch.zeros_like(probs)
                total += _resize(probs, total.shape[-2:], self.align_corners)
        return total / (len(self.scales) * (1 + self.flip))

    def _normalised(self, images: Tensor) -> Tensor:
        assert not self.model.training, "the network is in training mode"
        images = images.to(self.device, non_blocking=True)
        return models.normalise(images, self.model.normalisation)

    def _forward(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> Tensor:
        network = functools.partial(self._network, heads=heads)
        if self.slide is None:
            return network(images)
        return in_windows(network, images, self.slide)

    def _network(self, images: Tensor, heads: tuple[str, ...]) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            outputs = self.model(images, aux="aux" in heads)
        return torch.cat([outputs[head].float() for head in heads], 1)


class Ensemble:
    """Predict class ids with several networks: the mean of their softmax probabilities.

    Every network's probabilities (themselves the mean of its views) are resized to the grid of the
    one with the most cells; the logarithm of the mean then takes the place of the logits.

    Args:
        predictors: of the same classes, device and align_corners; their networks, normalisation
            and strides may differ. One alone predicts what it predicts by itself.
        weights: of each in the mean, above 0; None for 1 each.
    """

    def __init__(self, predictors: list[Predictor], weights: list[float] | None = None) -> None:
        assert len({(p.device, p.align_corners) for p in predictors}) == 1, "members must agree"
        self.predictors = predictors
        self.weights = weights or [1.0] * len(predictors)
        self.device = predictors[0].device
        self.align_corners = predictors[0].align_corners

    # the same method for one network and for several
    __call__ = Predictor.__call__

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N,C,h,w] on the finest grid of the networks.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
        """
        if len(self.predictors) == 1:
            return self.predictors[0].logits(images)
        return self.mean(self.probabilities(images))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> list[Tensor]:
        """Return what `Predictor.probabilities` does of every network, each on its own grid."""
        images = images.to(self.device, non_blocking=True)
        return [predictor.probabilities(images, heads) for predictor in self.predictors]

    def mean(self, probs: list[Tensor]) -> Tensor:
        """Return the logarithm of the weighted mean, float32 [N,C,h,w], on the finest grid.

        Args:
            probs: float32 [N,C,h,w] of every network, each on its own grid.
        """
        size = max((p.shape[-2:] for p in probs), key=math.prod)
        share = [weight / sum(self.weights) for weight in self.weights]
        resized = (_resize(p, size, self.align_corners) for p in probs)
        return log_probs(sum(w * p for w, p in zip(share, resized, strict=True)))


def log_probs(probs: Tensor) -> Tensor:
    """Return finite logarithms: a probability of 0 would make -inf * 0 = nan when interpolated."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def _resize_images(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


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
    *,
    with_confidence: bool = False,
    start: int = 0,
    **loading,
) -> Iterator[tuple]:
    """Predict every image of a dataset, in order, at the size of its label or file.

    Of several processes, each predicts images of its own: every image is somebody's.

    Args:
        predictor: `Predictor`, `Ensemble`, or what is called as they are and has their `device`.
        dataset: of segshift.
        with_confidence: fill the third entry.
        start: images to leave out, the first ones.
        **loading: batch_size (1 if left out), num_workers and timeout_seconds of
            `loading.make_loader`.

    Yields:
        the batch on the network's device, its train ids uint8 [N,H,W], its confidences float32
        [N,H,W] or None, and what else the predictor returns with confidences.

    Raises:
        UserError: an unreadable file, or a batch of images of several sizes.
    """
    pinned = predictor.device.type == "cuda"
    loading |= {"sampler": distributed.share(len(dataset))[start:], "collate_fn": _collate}
    loader = make_loader(_Sized(dataset), pin_memory=pinned, **loading)
    batches = on_device(loader, predictor.device)
    for batch in tqdm(batches, total=len(loader), disable=None, leave=False):
        result = predictor(batch["image"], batch["size"], with_confidence)
        yield (batch, *result) if with_confidence else (batch, result, None)


def evaluate(predictor: Predictor, dataset: Dataset, **loading) -> ConfusionMatrix:
    """Score a network on a labelled dataset.

    Args:
        predictor: see `Predictor`.
        dataset: of segshift, labelled; with `resize_label=False` the score is at full size.
        **loading: see `predict`.

    Returns:
        the confusion matrix of all processes' images; `compute` reads it.
    """
    confusion = ConfusionMatrix(dataset.num_classes, dataset.class_names, dataset.ignore_index)
    for batch, pred, _ in predict(predictor, dataset, **loading):
        confusion.update(pred, batch["label"])
    confusion.add_up_processes()
    return confusion


def open_dataset(
    dataset: str | None,
    *,
    data_dir: str | None,
    split: str | None,
    list_file: str | None,
    input_size: tuple[int, int] | None,
    data_options: dict,
    checkpoint: dict,
    labelled: bool = True,
    cache_dir: str | None = None,
) -> Dataset:
    """Open the images a network is to be run on, their labels in their own size.

    What is None is what the network was validated on, if the checkpoint says so.

    Args:
        dataset: name.
        data_dir: its folder.
        split, list_file: one of them chooses the images; split val where nothing says otherwise.
        input_size: W, H in pixels that images are resized to; their own where nothing says.
        data_options: further arguments of `datasets.build_dataset`.
        checkpoint: of ours, or empty: `dataset`, `input_size`, and `data` with `root`, `split`,
            `list_file` and `options`.
        labelled: whether the labels are read.
        cache_dir: where decoded samples are kept; see `datasets.build_dataset`.

    Raises:
        UserError: no dataset is named, or it cannot be opened; see `datasets.build_dataset`.
    """
    if dataset is None and "dataset" not in checkpoint:
        raise UserError("give --dataset, nothing else says which it is")
    known = {}
    if dataset in (None, checkpoint.get("dataset")):
        dataset, known = checkpoint["dataset"], checkpoint.get("data", {})
    if split is None and list_file is None:
        split, list_file = known.get("split"), known.get("list_file")
    arguments = {
        "name": dataset,
        "root": data_dir or known.get("root"),
        "split": split or "val",
        "list_file": list_file,
        "size": input_size or checkpoint.get("input_size"),
        "resize_label": False,
        "labelled": labelled,
        "cache_dir": cache_dir,
        **known.get("options", {}),
        **data_options,
    }
    return build_dataset(**arguments)


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
    architecture: dict | None,
    data: dict,
    precision: str = "auto",
    align_corners: bool | None = None,
    **how,
) -> tuple[list[Predictor], Dataset]:
    """Load networks of the same classes for inference and open the images they are to be run on.

    Args:
        paths: checkpoints of ours, or weights of another project when `architecture` is given.
        device: where the networks go.
        architecture: `name` and options of `models.build_model`; None for the checkpoint's.
        data: see `open_dataset`; what it leaves open is what the first checkpoint says.
        precision: bf16, fp32, or auto for the checkpoint's, else what suits the device.
        align_corners: None for the checkpoints', else False.
        **how: of `Predictor`.

    Returns:
        a predictor of each, its network's batch norms folded, and the dataset.

    Raises:
        UserError: a file cannot be loaded, its classes are not the dataset's, or the checkpoints
            disagree on the input size or align_corners where the command line leaves it open.
    """
    loaded = []
    if architecture is None:
        loaded = [load_model(path, device) for path in paths]
        given = {"input_size": data["input_size"], "align_corners": align_corners}
        _check_agreement(paths, [checkpoint for _, checkpoint in loaded], given)
    dataset = open_dataset(checkpoint=loaded[0][1] if loaded else {}, **data)
    for path in paths if architecture is not None else ():
        model = models.build_model(num_classes=dataset.num_classes, **architecture)
        print(models.load_weights(model, path, strict=True), flush=True)
        loaded.append((model, {"classes": dataset.class_names}))
    predictors = []
    for path, (model, checkpoint) in zip(paths, loaded, strict=True):
        _check_classes(path, checkpoint["classes"], dataset.name, dataset.class_names)
        corners = checkpoint.get("align_corners", False) if align_corners is None else align_corners
        chosen = checkpoint.get("precision", "auto") if precision == "auto" else precision
        chosen = pick_precision(chosen, device)
        model = models.fold_batchnorm(model).to(device, memory_format=torch.channels_last)
        predictors.append(Predictor(model, precision=chosen, align_corners=corners, **how))
    return predictors, dataset


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
    pairs = itertools.zip_longest(theirs, ours, fillvalue="none")
    c, (a, b) = next((c, pair) for c, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
        f"{one} knows {len(theirs)} classes, {other} has {len(ours)}; the first that differs: "
        f"class {c} is {a} in the one, {b} in the other"
    )


def validate(
    model: nn.Module, dataset: Dataset, *, precision: str, align_corners: bool, **loading
) -> dict:
    """Score a network in the middle of its training, and put it back into training mode.

    Returns:
        the scores as plain values; see `ConfusionMatrix.summary`.
    """
    predictor = Predictor(model.eval(), precision=precision, align_corners=align_corners)
    confusion = evaluate(predictor, dataset, **loading)
    model.train()
    return confusion.summary()
