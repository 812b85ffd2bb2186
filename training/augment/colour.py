"""Colours and blur: what changes images alone."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F

from engine.parsing import at_least
from training.augment.row import Row


@torch.no_grad()
def color_jitter(
    images: torch.Tensor, strength: float, hue: float, probability: float = 1.0
) -> torch.Tensor:
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
    turn = hue * (2 * turn - 1) * 2 * math.pi
    luma = torch.tensor([0.299, 0.587, 0.114])
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    rotation = torch.zeros(n, 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -turn.sin(), turn.sin()
    hue_matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    grey = luma.expand(3, 3)
    saturate = saturation * torch.eye(3) + (1 - saturation) * grey
    matrix = (brightness * contrast * (saturate @ hue_matrix)).to(device, non_blocking=True)
    # contrast keeps each image's mean luminance where brightness put it
    mean = (images.mean((2, 3)) * luma.to(device, non_blocking=True)).sum(1).view(n, 1, 1, 1)
    offset = ((1 - contrast) * brightness).to(device, non_blocking=True).view(n, 1, 1, 1) * mean
    changed = torch.einsum("nij,njhw->nihw", matrix, images) + offset
    chosen = (chosen < probability).to(device, non_blocking=True).view(n, 1, 1, 1)
    return torch.where(chosen, changed.clamp(0, 255), images)


@torch.no_grad()
def gaussian_blur(
    images: torch.Tensor, probability: float, sigma: tuple[float, float] = (0.15, 1.15)
) -> torch.Tensor:
    """Blur each image at random with a Gaussian of its own width, in pixels.

    Args:
        images: float [N,3,H,W].
        probability: of blurring an image.
        sigma: range of the uniform standard deviation in pixels; DACS's by default.
    """
    n, channels, height, width = images.shape
    draw, chosen = torch.rand(2, n)
    radius = min(math.ceil(3 * sigma[1]), height - 1, width - 1)
    if probability == 0 or radius == 0:
        return images
    widths = (sigma[0] + draw * (sigma[1] - sigma[0])).view(n, 1)
    taps = torch.arange(-radius, radius + 1.0).view(1, -1)
    kernel = torch.exp(-0.5 * (taps / widths) ** 2)
    kernel /= kernel.sum(1, keepdim=True)
    identity = (taps == 0).float()
    kernel = torch.where((chosen < probability).view(n, 1), kernel, identity)
    kernel = kernel.to(images, non_blocking=True).repeat_interleave(
        channels, 0
    )  # one filter per image and channel
    flat = images.reshape(1, n * channels, height, width)
    flat = F.pad(flat, (radius, radius, radius, radius), mode="reflect")
    flat = F.conv2d(flat, kernel.view(n * channels, 1, 1, -1), groups=n * channels)
    flat = F.conv2d(flat, kernel.view(n * channels, 1, -1, 1), groups=n * channels)
    return flat.view(n, channels, height, width)


def jitter(
    images: torch.Tensor,
    *,
    strength: Annotated[
        float, at_least(0, float), "of all but the hue, which turns a quarter of it"
    ],
) -> torch.Tensor:
    """Jitter colours by `strength`, the hue by a quarter of it in turns."""
    return color_jitter(images, strength, strength / 4)


AUGMENTATIONS = {
    "jitter": Row(
        "image",
        jitter,
        "torchvision ColorJitter",
        "one matrix: cut to 0..255 once, at the end; the hue turns in YIQ",
        p=1.0,
    )
}
