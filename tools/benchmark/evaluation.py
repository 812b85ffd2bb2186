"""Time the scoring of a network: PNG files in, confusion matrix out."""

import copy
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

import models
from datasets import build_dataset
from datasets.loading import make_loader
from engine.device import pick_precision
from engine.values import Loading
from inference import loop
from inference.predictor import Predictor
from tools.benchmark import scenes
from tools.benchmark.classifier import plain_copy
from tools.benchmark.operations import fast_hist
from tools.benchmark.timing import NetworkClock, alternate, compare, exact_convolutions


def run(
    machine: dict,
    device: torch.device,
    *,
    size: tuple[int, int],
    images: int,
    batch_size: int,
    num_workers: int,
    backbone: str,
    repeats: int,
) -> Iterator[tuple[dict, str]]:
    """Yield one row, the time of an image, and a remark: multi-level DeepLabv2 at half the size.

    Args:
        machine: the matrix rates are read.
        device: where the networks run.
        size: W, H of files and labels in pixels.
        images: scored in a round; at most 8 files are behind them.
        batch_size: of ours; the plain way has 1.
        num_workers: loader processes of both.
        backbone: of the network, which is not trained.
        repeats: rounds.
    """
    precision = pick_precision("auto", device)
    input_size = (size[0] // 2, size[1] // 2)
    with tempfile.TemporaryDirectory() as folder:
        listed = scenes.write_files(Path(folder), size, images)
        how = {"split": "val", "size": input_size, "resize_label": False}
        dataset = build_dataset("cityscapes", folder, list_file=listed, **how)
        ours = calibrated(backbone, dataset[0]["image"][None]).to(device)
        plain = plain_copy(ours)
        ours = models.fold_batchnorm(ours).to(memory_format=torch.channels_last)
        predictor = Predictor(ours, precision)
        row = {"precision": precision, "gflop_per_image": forward_gflop(plain, input_size)}
        row |= agreement(predictor, plain, dataset[0])

        clock = NetworkClock(predictor.network)
        loading = Loading(num_workers)
        seconds = alternate(
            [
                lambda: loop.evaluate(predictor, dataset, loading, batch_size).compute(),
                lambda: plain_counts(plain, dataset, loading),
            ],
            device,
            repeats,
        )
    passes = clock.seconds()[math.ceil(images / batch_size) :]  # without the first round
    network = sum(passes) / (repeats * images)
    row["network_ms"] = network * 1e3
    row["network_share"] = sum(passes) / sum(seconds[0])
    rate = machine[f"{precision}_gflop_per_s"]
    row["network_of_matrix_rate"] = row["gflop_per_image"] / network / rate
    shown = "evaluate {} {}x{} -> {}x{}".format(backbone, *input_size, *size)
    yield {"name": shown, **compare(*seconds, count=images), **row}, remark(row)


def remark(row: dict) -> str:
    """Return what the row's numbers beside the times say."""
    return (
        f"network {row['network_share']:.1%} of ours, {row['gflop_per_image']:.0f} GFLOP at "
        f"{row['network_of_matrix_rate']:.0%} of the {row['precision']} matrix rate; the plain ids "
        f"on {row['same_ids_fp32']:.4%} of the pixels in fp32, {row['same_ids']:.2%} as timed "
        "(rounding moves an untrained network far)"
    )


def calibrated(backbone: str, images: Tensor) -> nn.Module:
    """Return a random network whose batch norms know these images, so that values are in range.

    Args:
        images: uint8 [N,3,H,W].
    """
    torch.manual_seed(0)
    model = models.build_model(
        "deeplabv2", scenes.NUM_CLASSES, backbone=backbone, multi_level=True, aspp_dilations=(6, 12)
    )
    model.align_corners = True
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics become the average, here of one batch
    with torch.no_grad():
        model.train()(models.normalise(images, model.normalisation))
    return model.eval()


def forward_gflop(model: nn.Module, size: tuple[int, int]) -> float:
    """Count the 10^9 operations of a forward pass without the auxiliary head, without doing it."""
    shapes = copy.deepcopy(model).to("meta")
    image = torch.empty(1, 3, size[1], size[0], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(image, aux=False)
    return counter.get_total_flops() / 1e9


def agreement(predictor: Predictor, plain: nn.Module, sample: dict) -> dict:
    """Return the share of pixels on which ours is the plain prediction, as timed and in fp32.

    An untrained network amplifies rounding from layer to layer, so the share in bf16 says nothing
    about a trained one: compare `evaluate.py --precision` with a checkpoint for that.
    """
    image, size = sample["image"][None], tuple(sample["label"].shape)
    exact = Predictor(predictor.network)
    with exact_convolutions():
        expected = plain_ids(plain, image, size)
        ids = exact(image, size)[0].cpu().numpy()
    same = {
        "same_ids_fp32": float((ids == expected).mean()),
        "same_ids": float((predictor(image, size)[0].cpu().numpy() == expected).mean()),
    }
    assert same["same_ids_fp32"] > 0.999, f"ours predicts something else: {same}"
    assert len(np.unique(expected)) > 1, "one class everywhere: not worth timing"
    return same


@torch.no_grad()
def plain_ids(model: nn.Module, images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Predict as AdaptSegNet's evaluate_cityscapes.py does: fp32, full-size logits, NumPy."""
    device = next(model.parameters()).device
    logits = model(models.normalise(images.to(device), model.normalisation))["out"]
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return full[0].cpu().numpy().argmax(0)


def plain_counts(model: nn.Module, dataset: Dataset, loading: Loading) -> np.ndarray:
    """Predict and count as AdaptSegNet does, without the PNG files between the two."""
    counts = np.zeros(scenes.NUM_CLASSES**2, np.int64)
    for batch in make_loader(dataset, loading, batch_size=1):
        label = batch["label"][0].numpy()
        counts += fast_hist(label, plain_ids(model, batch["image"], label.shape))
    return counts
