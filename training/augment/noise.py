"""Noise, and what saving as JPEG does; the pixels' draws are the device's generator's."""

from typing import Annotated

import torch
from torch import Tensor

from engine.parsing import span
from training.augment.colour import LUMA
from training.augment.row import Range, Row, each, uniform


def gaussian_noise(
    images: Tensor, *, deviation: Annotated[Range, span(0, 255), "in levels"] = (5.0, 20.0)
) -> Tensor:
    """Add normal noise to each pixel and channel."""
    deviation = each(uniform(len(images), deviation), images)
    return torch.randn_like(images).mul_(deviation).add_(images).clamp_(0, 255)


def iso_noise(
    images: Tensor,
    *,
    light: Annotated[Range, span(0, 255), "deviation at mid grey, in levels"] = (5.0, 20.0),
    colour: Annotated[Range, span(0, 255), "deviation of the colour, in levels"] = (2.0, 8.0),
) -> Tensor:
    """Add what a sensor adds: noise of the luminance that grows with its root, and of the colour.

    The colour's noise leaves the luminance as it is.
    """
    n, luma = len(images), images.new_tensor(LUMA).view(1, 3, 1, 1)
    level = (images * luma).sum(1, keepdim=True)
    noise = torch.randn_like(images).mul_(each(uniform(n, colour), images))
    noise -= (noise * luma).sum(1, keepdim=True)
    shot = torch.randn_like(level).mul_(each(uniform(n, light), images))
    return noise.add_(shot * (level / 127.5).sqrt()).add_(images).clamp_(0, 255)


def multiplicative_noise(
    images: Tensor,
    *,
    factor: Annotated[Range, span(0, 10), "of each pixel and channel"] = (0.9, 1.1),
) -> Tensor:
    """Multiply each pixel and channel by a factor of its own."""
    return torch.empty_like(images).uniform_(*factor).mul_(images).clamp_(0, 255)


# the tables of Annex K of the JPEG standard (ITU-T T.81): luminance and chrominance
LUMINANCE = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56
    14 17 22 29 51 87 80 62  18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMINANCE = f"""17 18 24 47 {"99 " * 4}  18 21 26 66 {"99 " * 4}  24 26 56 {"99 " * 5}
    47 66 {"99 " * 6} {"99 " * 32}"""
TO_YCC = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def quantisation(quality: Tensor) -> Tensor:
    """Return the steps of luminance and chrominance, [N,2,64], for qualities of 1 to 100 [N].

    Source: libjpeg's scaling of the standard's tables.
    """
    tables = torch.tensor([[float(x) for x in t.split()] for t in (LUMINANCE, CHROMINANCE)])
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((tables * percent.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)


def jpeg(
    images: Tensor, *, quality: Annotated[Range, span(1, 100), "1 to 100"] = (30.0, 90.0)
) -> Tensor:
    """Quantise the cosine transform of 8x8 blocks as JPEG of full chroma resolution does."""
    n, _, height, width = images.shape
    to_ycc = images.new_tensor(TO_YCC)
    more = (0, -width % 8, 0, -height % 8)
    padded = torch.nn.functional.pad(images.round(), more, mode="replicate")
    tall, wide = padded.shape[2:]
    ycc = (to_ycc @ padded.flatten(2)).view(n, 3, -1, 8, wide)
    ycc[:, 0] -= 128
    place = torch.arange(8.0, device=images.device)
    cosine = torch.cos(torch.pi / 8 * (place + 0.5) * place.view(8, 1)) / 2
    cosine[0] /= 2**0.5
    steps = quantisation(uniform(n, quality).round()).view(n, 2, 1, 8, 1, 8)
    steps = steps.to(images, non_blocking=True)[:, [0, 1, 1]]
    # [n, 3, rows of blocks, 8, columns of blocks, 8]: along y, then along x
    waves = (cosine @ ycc.round_()).view(n, 3, -1, 8, wide // 8, 8) @ cosine.T
    waves = waves.div_(steps).round_().mul_(steps) @ cosine
    ycc = (cosine.T @ waves.view(n, 3, -1, 8, wide)).view(n, 3, tall * wide)
    ycc[:, 0] += 128
    rgb = (torch.linalg.inv(to_ycc) @ ycc.round_()).view(n, 3, tall, wide)
    return rgb[..., :height, :width].round().clamp_(0, 255)


AUGMENTATIONS = {
    "gaussian_noise": Row(
        "image",
        gaussian_noise,
        "albumentations GaussNoise",
        "the deviation is in levels of 255",
        still={"deviation": (0, 0)},
    ),
    "iso_noise": Row(
        "image",
        iso_noise,
        "albumentations ISONoise",
        "added in RGB, where theirs changes hue and lightness (HLS)",
        still={"light": (0, 0), "colour": (0, 0)},
    ),
    "multiplicative_noise": Row(
        "image",
        multiplicative_noise,
        "albumentations MultiplicativeNoise, elementwise per channel",
        "none",
        still={"factor": (1, 1)},
    ),
    "jpeg": Row(
        "image",
        jpeg,
        "albumentations ImageCompression",
        "chroma keeps its resolution (4:4:4), theirs is halved; nothing is entropy-coded",
    ),
}
