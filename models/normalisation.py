"""What weights expect of pixel values: it belongs to the weights, not to the data."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.shapes import OneOf, misfit

# Channel order, then mean and standard deviation in the 0..255 range of the images.
NORMALISATIONS = {
    "caffe": {
        "order": "BGR",
        "mean": [104.00698793, 116.66876762, 122.67891434],
        "std": [1.0, 1.0, 1.0],
    },
    "torchvision": {
        "order": "RGB",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    },
    "half": {"order": "RGB", "mean": [127.5] * 3, "std": [127.5] * 3},
    "lite": {"order": "RGB", "mean": [127.0] * 3, "std": [128.0] * 3},
}
SHAPE = {"order": OneOf("RGB", "BGR"), "mean": (float,) * 3, "std": (float,) * 3}


def wrong(normalisation: object) -> str | None:
    """Return what is wrong with a normalisation of a file; None where nothing is."""
    fault = misfit(normalisation, SHAPE, "normalisation")
    if fault is None and min(normalisation["std"]) <= 0:
        return f"normalisation.std is {normalisation['std']}; numbers above 0 expected"
    return fault


def mean_colour(normalisation: dict) -> tuple[float, ...]:
    """Return the red, green and blue, 0 to 255, that are 0 once normalised."""
    mean = normalisation["mean"]
    return tuple(mean if normalisation["order"] == "RGB" else reversed(mean))


def normalise(images: Tensor, normalisation: dict) -> Tensor:
    """Turn images into what a network expects, on the device where they are.

    Args:
        images: uint8 (or float in 0..255) [N,3,H,W], RGB.
        normalisation: {"order": "RGB" or "BGR", "mean": 3 floats, "std": 3 floats}; mean and std
            in 0..255 and in the order named.

    Returns:
        float32 [N,3,H,W] in that channel order, (images - mean) / std.
    """
    channels = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}[normalisation["order"]]
    # Python numbers instead of a tensor of means: no copy to the device, so no synchronisation.
    planes = [
        (images[:, channel].float() - mean) / std
        for channel, mean, std in zip(
            channels, normalisation["mean"], normalisation["std"], strict=True
        )
    ]
    return torch.stack(planes, dim=1)
