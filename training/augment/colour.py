"""Colours that a matrix changes: all of --augment's that a batch meets are one, applied once.

Each linear one is (mean) -> a matrix [N,3,3] and what is added [N,3]; see `Row`.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from engine.parsing import at_least, swing
from training.augment.row import Range, Row, uniform

Linear = tuple[Tensor, Tensor]
Change = Annotated[Range, swing(1), "added to the factor 1"]
LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def color_jitter(images: Tensor, strength: float, hue: float, probability: float = 1.0) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image at random.

    All four are linear, so each image gets one 3x4 matrix. Deviation from the usual chain
    (torchvision, kornia): values are clamped once, at the end, and the hue turns in YIQ.

    Args:
        images: float [N,3,H,W], 0 to 255, RGB.
        strength: s; the first three are multiplied by factors uniform in [1 - s, 1 + s].
        hue: the hue's turn is uniform in [-hue, hue], in whole turns; kornia's unit.
        probability: of changing an image at all.

    Returns:
        float [N,3,H,W], 0 to 255.
    """
    n, device = len(images), images.device
    brightness, contrast, saturation, turn, chosen = torch.rand(5, n)
    if strength == 0 and hue == 0:
        return images
    brightness, contrast, saturation = (
        (1 + strength * (2 * draw - 1)).view(n, 1, 1) for draw in (brightness, contrast, saturation)
    )
    turn = hue_matrix(hue * (2 * turn - 1))
    luma = torch.tensor(LUMA)
    grey = luma.expand(3, 3)
    saturate = saturation * torch.eye(3) + (1 - saturation) * grey
    matrix = (brightness * contrast * (saturate @ turn)).to(device, non_blocking=True)
    # contrast keeps each image's mean luminance where brightness put it
    mean = (images.mean((2, 3)) * luma.to(device, non_blocking=True)).sum(1).view(n, 1, 1, 1)
    offset = ((1 - contrast) * brightness).to(device, non_blocking=True).view(n, 1, 1, 1) * mean
    changed = torch.einsum("nij,njhw->nihw", matrix, images) + offset
    chosen = (chosen < probability).to(device, non_blocking=True).view(n, 1, 1, 1)
    return torch.where(chosen, changed.clamp(0, 255), images)


def hue_matrix(turns: Tensor) -> Tensor:
    """Return the matrices [N,3,3] that turn the hue in YIQ, by whole turns [N]."""
    angle = turns * 2 * math.pi
    to_yiq = torch.tensor([[*LUMA], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    rotation = torch.zeros(len(angle), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def factors(mean: Tensor, change: Range) -> Tensor:
    """Return 1 + change for each image, [N,1,1], where the means are."""
    return (1 + uniform(len(mean), change)).to(mean, non_blocking=True).view(-1, 1, 1)


def grey_matrix(mean: Tensor) -> Tensor:
    """Return the matrix [3,3] that gives every channel the luminance."""
    return mean.new_tensor(LUMA).expand(3, 3)


def linear(matrix: Tensor, mean: Tensor, added: Tensor | None = None) -> Linear:
    """Return a matrix that broadcasts to [N,3,3] as such, and zeros where nothing is added."""
    matrix = matrix.to(mean, non_blocking=True).expand(len(mean), 3, 3)
    return matrix, torch.zeros_like(mean) if added is None else added


def brightness(mean: Tensor, *, strength: Change = (-0.2, 0.2)) -> Linear:
    """Multiply levels by a factor."""
    return linear(factors(mean, strength) * torch.eye(3, device=mean.device), mean)


def contrast(mean: Tensor, *, strength: Change = (-0.2, 0.2)) -> Linear:
    """Multiply the distance from the image's mean luminance by a factor."""
    factor = factors(mean, strength)
    middle = mean @ mean.new_tensor(LUMA).view(3, 1)
    added = ((1 - factor.view(-1, 1)) * middle).expand_as(mean)
    return linear(factor * torch.eye(3, device=mean.device), mean, added)


def saturation(mean: Tensor, *, strength: Change = (-0.3, 0.3)) -> Linear:
    """Multiply the distance from grey of the same luminance by a factor."""
    factor = factors(mean, strength)
    return linear(factor * torch.eye(3).to(mean) + (1 - factor) * grey_matrix(mean), mean)


def hue(
    mean: Tensor, *, turn: Annotated[Range, swing(0.5), "of the colour wheel"] = (-0.05, 0.05)
) -> Linear:
    """Turn the colours about grey, at their luminance."""
    return linear(hue_matrix(uniform(len(mean), turn)), mean)


def brightness_contrast(
    mean: Tensor,
    *,
    brightness_by: Annotated[Range, swing(1), "added, as a share of 255"] = (-0.2, 0.2),
    contrast_by: Annotated[Range, swing(1), "added to the factor 1"] = (-0.2, 0.2),
) -> Linear:
    """Multiply levels by a factor, about black, and add a number."""
    added = 255 * uniform(len(mean), brightness_by).to(mean, non_blocking=True).view(-1, 1)
    factor = factors(mean, contrast_by)
    return linear(factor * torch.eye(3, device=mean.device), mean, added.expand_as(mean))


def rgb_shift(
    mean: Tensor, *, levels: Annotated[Range, swing(255), "added to each channel"] = (-20.0, 20.0)
) -> Linear:
    """Add a number to each channel."""
    added = uniform(mean.numel(), levels).to(mean, non_blocking=True).view_as(mean)
    return linear(torch.eye(3), mean, added)


def channel_shuffle(mean: Tensor) -> Linear:
    """Put the channels into any order."""
    return linear(torch.eye(3)[torch.rand(len(mean), 3).argsort(1)], mean)


def grey(mean: Tensor) -> Linear:
    """Take the colour away."""
    return linear(grey_matrix(mean), mean)


def jitter(
    images: Tensor,
    *,
    strength: Annotated[
        float, at_least(0, float), "of all but the hue, which turns a quarter of it"
    ] = 0.4,
) -> Tensor:
    """Jitter colours by `strength`, the hue by a quarter of it in turns."""
    return color_jitter(images, strength, strength / 4)


CUT = "cut to 0..255 once, after all linear colours"
STILL = {"strength": (0, 0)}
LINEAR = {
    "brightness": Row(
        "linear", brightness, "torchvision ColorJitter(brightness)", CUT, still=STILL
    ),
    "contrast": Row("linear", contrast, "torchvision ColorJitter(contrast)", CUT, still=STILL),
    "saturation": Row(
        "linear", saturation, "torchvision ColorJitter(saturation)", CUT, still=STILL
    ),
    "hue": Row(
        "linear",
        hue,
        "torchvision ColorJitter(hue)",
        "turns in YIQ at constant luminance, not in HSV; " + CUT,
        still={"turn": (0, 0)},
    ),
    "brightness_contrast": Row(
        "linear",
        brightness_contrast,
        "albumentations RandomBrightnessContrast",
        CUT,
        still={"brightness_by": (0, 0), "contrast_by": (0, 0)},
    ),
    "rgb_shift": Row("linear", rgb_shift, "albumentations RGBShift", CUT, still={"levels": (0, 0)}),
    "channel_shuffle": Row("linear", channel_shuffle, "albumentations ChannelShuffle", "none"),
    "grey": Row("linear", grey, "albumentations ToGray", "levels stay fractional"),
}
JITTER = {
    "jitter": Row(
        "image",
        jitter,
        "torchvision ColorJitter",
        "one matrix: cut to 0..255 once, at the end; the hue turns in YIQ",
        p=1.0,
    )
}
AUGMENTATIONS = LINEAR | JITTER
