"""Bends of the sampling grid: what no matrix says."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least, between, swing
from training.augment.blur import with_kernels
from training.augment.row import Range, Row, uniform

Size = tuple[int, int]  # w, h of the frame in pixels


def optical_distortion(
    x: Tensor,
    y: Tensor,
    on: Tensor,
    size: Size,
    *,
    strength: Annotated[Range, swing(1), "k of the lens, both radial terms"] = (-0.05, 0.05),
) -> tuple[Tensor, Tensor]:
    """Look through a lens: r -> r (1 + k r^2 + k r^4), 1 being a whole side of the frame."""
    k = uniform(len(on), strength).to(on, non_blocking=True) * on
    square = (x * x + y * y) / 4
    factor = 1 + k.view(-1, 1, 1) * (square * (1 + square))
    return x * factor, y * factor


def elastic(
    x: Tensor,
    y: Tensor,
    on: Tensor,
    size: Size,
    *,
    alpha: Annotated[float, at_least(0, float), "pixels a field of -1 to 1 is multiplied by"] = 120,
    sigma: Annotated[float, between(0.5, 1000), "width of its blur, in pixels"] = 6,
) -> tuple[Tensor, Tensor]:
    """Move pixels by smooth random fields of mean 0 (Simard et al. 2003).

    White noise uniform in [-1, 1], blurred and multiplied by alpha, has a deviation of
    alpha / sqrt(3) / (2 sqrt(pi) sigma). Ours is normal noise of that deviation and correlation,
    drawn on a lattice of a point every sigma / 2 pixels and interpolated.
    """
    n, (width, height) = len(on), size
    pitch = max(1.0, sigma / 2)
    spread = sigma / pitch  # of the blur, in points
    radius = math.ceil(3 * spread)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0) / spread) ** 2)
    taps = taps / taps.square().sum().sqrt()  # what is blurred along both sides keeps deviation 1
    shape = [math.ceil(length / pitch) + 1 + 2 * radius for length in (height, width)]
    noise = torch.randn(2 * n, 1, *shape, device=on.device)
    along, down = (taps.expand(2 * n, -1).unsqueeze(axis) for axis in (1, 2))
    field = with_kernels(with_kernels(noise, along), down)
    field = field[..., radius:-radius, radius:-radius].unflatten(0, (n, 2)).squeeze(2)
    deviation = alpha / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)
    pixel = torch.tensor([2 / width, 2 / height], device=on.device) * deviation
    field = field * (pixel * on.view(n, 1)).view(n, 2, 1, 1)
    dx, dy = F.interpolate(field, (height, width), mode="bilinear", align_corners=True).unbind(1)
    return dx.add_(x), dy.add_(y)


def grid_distortion(
    x: Tensor,
    y: Tensor,
    on: Tensor,
    size: Size,
    *,
    strength: Annotated[Range, swing(0.9), "by what share columns and rows grow"] = (-0.3, 0.3),
    steps: Annotated[int, at_least(1), "columns, and rows"] = 5,
) -> tuple[Tensor, Tensor]:
    """Stretch columns and rows of a lattice, all of them together as wide and high as before."""
    draws = uniform(2 * len(on) * steps, strength).view(2, len(on), steps)
    shares = 1 + draws.to(on, non_blocking=True) * on.view(1, -1, 1)
    shares = 2 * shares / shares.sum(2, keepdim=True)
    return stretch(x, shares[0]), stretch(y, shares[1])


def stretch(x: Tensor, shares: Tensor) -> Tensor:
    """Return the piecewise linear map of [-1, 1] whose equal steps become `shares` [N,S] wide."""
    steps = shares.shape[1]
    u, total = (x + 1) * (steps / 2), -1
    for i, share in enumerate(shares.view(len(shares), steps, 1, 1).unbind(1)):
        low, high = None if i == 0 else 0, None if i == steps - 1 else 1
        inside = u if steps == 1 else (u - i).clamp(low, high)
        total = total + share * inside
    return total


AUGMENTATIONS = {
    "optical_distortion": Row(
        "bend",
        optical_distortion,
        "albumentations OpticalDistortion, camera",
        "black and ignored outside; all geometry is one resampling",
        still={"strength": (0, 0)},
    ),
    "elastic": Row(
        "bend",
        elastic,
        "albumentations ElasticTransform",
        "noise on a lattice of sigma / 2 pixels; the fields' deviation is theirs within 2 %",
        still={"alpha": 0},
    ),
    "grid_distortion": Row(
        "bend",
        grid_distortion,
        "albumentations GridDistortion, normalized",
        "cells of equal width, where theirs leave a rest; outside is never looked at",
        still={"strength": (0, 0)},
    ),
}
