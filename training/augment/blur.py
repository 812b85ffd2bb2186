"""Blurs."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least, span, swing
from training.augment.row import Range, Row, uniform


@torch.no_grad()
def gaussian_blur(
    images: Tensor, probability: float, sigma: tuple[float, float] = (0.15, 1.15)
) -> Tensor:
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


# On the CPU, adding shifted images is faster than a convolution of fewer pixels than this.
FEW = 64


def with_kernels(images: Tensor, kernels: Tensor) -> Tensor:
    """Return images, float [N,C,H,W], each under its own kernel [N,k,l]; edges are mirrored."""
    n, channels, height, width = images.shape
    tall, wide = (side // 2 for side in kernels.shape[1:])
    # an image that is smaller than its kernel has no such mirror
    mode = "reflect" if tall < height and wide < width else "replicate"
    padded = F.pad(images, (wide, wide, tall, tall), mode=mode)
    if images.device.type == "cpu" and (kernels != 0).sum((1, 2)).max() < FEW:
        result = torch.zeros_like(images)
        for one, kernel, source in zip(result, kernels, padded, strict=True):
            for i, j in kernel.nonzero().tolist():
                near = source[:, i : i + height, j : j + width]
                one.add_(near, alpha=kernel[i, j].item())
        return result
    kernels = kernels.to(images, non_blocking=True).repeat_interleave(channels, 0).unsqueeze(1)
    flat = F.conv2d(padded.flatten(0, 1).unsqueeze(0), kernels, groups=n * channels)
    return flat.view_as(images)


def gaussian(
    images: Tensor, *, sigma: Annotated[Range, span(0, 50), "pixels"] = (0.5, 3.0)
) -> Tensor:
    """Blur with a Gaussian."""
    widths = uniform(len(images), sigma).clamp(min=1e-3).view(-1, 1)
    radius = math.ceil(3 * float(widths.max()))
    taps = torch.arange(-radius, radius + 1.0)
    # beyond 3 deviations there is nothing, that of an image of less blur too
    kernel = torch.exp(-0.5 * (taps / widths) ** 2) * (taps.abs() <= (3 * widths).ceil())
    kernel /= kernel.sum(1, keepdim=True)
    return with_kernels(with_kernels(images, kernel.unsqueeze(1)), kernel.unsqueeze(2))


def motion(
    images: Tensor,
    *,
    length: Annotated[Range, span(1, 99), "pixels of the way"] = (3.0, 7.0),
    degrees: Annotated[Range, swing(180), "its direction"] = (-90.0, 90.0),
) -> Tensor:
    """Blur along a straight way, centred on the pixel.

    Each point of the way is shared among the four pixels about it.
    """
    n, radius = len(images), math.ceil(max(length[1] - 1, 0) / 2)
    angle, way = torch.deg2rad(uniform(n, degrees)), uniform(n, length) - 1
    points = torch.linspace(-0.5, 0.5, 8 * radius + 1) * way.view(n, 1)
    x, y = points * angle.cos().view(n, 1), -points * angle.sin().view(n, 1)
    places = torch.arange(-radius, radius + 1.0)
    near_x = (1 - (places - x.unsqueeze(2)).abs()).clamp(min=0)  # [n, points, k]
    near_y = (1 - (places - y.unsqueeze(2)).abs()).clamp(min=0)
    kernels = near_y.transpose(1, 2) @ near_x
    return with_kernels(images, kernels / kernels.sum((1, 2), keepdim=True))


def defocus(
    images: Tensor, *, radius: Annotated[Range, span(0, 50), "pixels of the disc"] = (3.0, 8.0)
) -> Tensor:
    """Spread each pixel over a disc, whose rim is cut across pixels."""
    reach = math.ceil(radius[1])
    places = torch.arange(-reach, reach + 1.0)
    distance = (places.view(-1, 1) ** 2 + places**2).sqrt()
    kernels = (uniform(len(images), radius).view(-1, 1, 1) + 0.5 - distance).clamp(0, 1)
    return with_kernels(images, kernels / kernels.sum((1, 2), keepdim=True))


# exchanges that leave the median of nine in the fifth (Paeth 1990)
EXCHANGES = "12 45 78 01 34 67 12 45 78 03 58 47 36 14 25 47 42 64 42"


def median(images: Tensor, *, times: Annotated[int, at_least(0), "over"] = 1) -> Tensor:
    """Take the median of 3x3 pixels, of whole levels; edges are repeated."""
    height, width = images.shape[2:]
    levels = images.round().clamp(0, 255).to(torch.uint8)
    for _ in range(times):
        # torch pads no bytes by repeating
        padded = torch.cat([levels[:, :, :1], levels, levels[:, :, -1:]], 2)
        padded = torch.cat([padded[..., :1], padded, padded[..., -1:]], 3)
        nine = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        for a, b in EXCHANGES.split():
            one, other = nine[int(a)], nine[int(b)]
            nine[int(a)], nine[int(b)] = torch.minimum(one, other), torch.maximum(one, other)
        levels = nine[4]
    return levels.to(images.dtype)


AUGMENTATIONS = {
    "gaussian_blur": Row(
        "image",
        gaussian,
        "albumentations GaussianBlur",
        "a kernel of 3 sigma; fractional levels",
        still={"sigma": (0, 0)},
    ),
    "motion_blur": Row(
        "image",
        motion,
        "albumentations MotionBlur",
        "a centred way at any angle, spread evenly, where theirs joins whole pixels",
        still={"length": (1, 1)},
    ),
    "median_blur": Row(
        "image", median, "albumentations MedianBlur", "3x3, as often as said", still={"times": 0}
    ),
    "defocus": Row(
        "image",
        defocus,
        "albumentations Defocus",
        "a smooth rim, where theirs blurs the disc by 0.1 to 0.5 pixels",
        still={"radius": (0, 0)},
    ),
}
