"""Weather and light, drawn over images; labels stay."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least, span, swing
from training.augment.blur import with_kernels
from training.augment.colour import LUMA
from training.augment.row import Range, Row, each, uniform


def over(images: Tensor, colour: Tensor | float, cover: Tensor) -> Tensor:
    """Return images under a colour that covers a share of each pixel, [N,1,H,W]."""
    return images + cover * (colour - images)


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels' x, [1,1,1,W], and y, [1,1,H,1], as shares of the width and height."""
    height, width = images.shape[2:]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    return ((x + 0.5) / width).view(1, 1, 1, -1), ((y + 0.5) / height).view(1, 1, -1, 1)


def rain(
    images: Tensor,
    *,
    strength: Annotated[Range, span(0, 1), "share of a pixel that a drop covers"] = (0.3, 0.7),
    density: Annotated[Range, span(0, 0.1), "drops a pixel"] = (0.001, 0.003),
    length: Annotated[int, at_least(1), "of a streak, in pixels"] = 20,
    slant: Annotated[Range, swing(60), "degrees from upright, of the whole image"] = (-10.0, 10.0),
) -> Tensor:
    """Draw grey streaks of one direction, and darken what is behind by a fifth."""
    n = len(images)
    drops = torch.rand_like(images[:, :1]) < each(uniform(n, density), images)
    radius = max(1, length // 2)
    down = torch.arange(-radius, radius + 1.0)
    aside = torch.deg2rad(uniform(n, slant)).tan().view(n, 1) * down
    streak = (1 - (down.view(1, 1, -1) - aside.unsqueeze(2)).abs()).clamp(min=0)  # [n, y, x]
    cover = with_kernels(drops.to(images.dtype), streak).clamp_(0, 1)
    strength = each(uniform(n, strength), images)
    return over(images * (1 - 0.2 * strength), 200.0, cover * strength)


def snow(
    images: Tensor,
    *,
    strength: Annotated[Range, span(0, 10), "added to the factor 1 of dark pixels"] = (0.5, 1.5),
    point: Annotated[Range, span(0, 1), "the luminance below which pixels are dark"] = (0.3, 0.5),
) -> Tensor:
    """Bleach the pixels whose luminance is low, as snow on the ground does."""
    n = len(images)
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    dark = luma < 255 * each(uniform(n, point), images)
    factor = torch.where(dark, 1 + each(uniform(n, strength), images), 1.0)
    return (images * factor).clamp_(0, 255)


def fog(
    images: Tensor,
    *,
    strength: Annotated[Range, span(0, 1), "share of a pixel that the thickest covers"] = (
        0.3,
        0.7,
    ),
    patch: Annotated[Range, span(0.02, 1), "size of a bank, as a share of the height"] = (
        0.25,
        0.25,
    ),
) -> Tensor:
    """Cover with light grey that is thicker in banks and thinner, by half, between them."""
    n, _, height, width = images.shape
    side = max(2.0, height * patch[1])
    coarse = [math.ceil(length / side) + 1 for length in (height, width)]
    banks = torch.rand(n, 1, *coarse).to(images, non_blocking=True)
    banks = F.interpolate(banks, (height, width), mode="bilinear", align_corners=True)
    strength = each(uniform(n, strength), images)
    return over(images, 230.0, strength * (0.5 + 0.5 * banks))


def sun_flare(
    images: Tensor,
    *,
    strength: Annotated[Range, span(0, 1), "share of white at its centre"] = (0.6, 1.0),
    radius: Annotated[Range, span(0.01, 2), "shares of the height"] = (0.3, 0.8),
    ghosts: Annotated[int, at_least(0), "coloured discs towards the other side"] = 5,
) -> Tensor:
    """Draw a sun in the upper half, and ghosts on the line through the image's centre."""
    n, _, height, width = images.shape
    x, y = places(images)
    sun_x, sun_y = each(uniform(n, (0, 1)), images), each(uniform(n, (0, 0.5)), images)
    reach, ratio = each(uniform(n, radius), images), width / height
    strength = each(uniform(n, strength), images)

    def away(at_x: Tensor, at_y: Tensor) -> Tensor:
        return (((x - at_x) * ratio) ** 2 + (y - at_y) ** 2).sqrt()

    for _ in range(ghosts):
        along, size, thick = (
            each(uniform(n, s), images) for s in ((0.3, 2), (0.02, 0.12), (0.1, 0.3))
        )
        colour = (155 + 100 * torch.rand(n, 3)).to(images, non_blocking=True).view(n, 3, 1, 1)
        at = sun_x + along * (0.5 - sun_x), sun_y + along * (0.5 - sun_y)
        disc = ((size - away(*at)) * height).clamp_(0, 1)  # its rim is a pixel wide
        images = over(images, colour, disc * thick * strength)
    return over(images, 255.0, (1 - away(sun_x, sun_y) / reach).clamp_(min=0).square_() * strength)


def shadow(
    images: Tensor,
    *,
    strength: Annotated[Range, span(0, 1), "share of the light that is taken"] = (0.3, 0.6),
    top: Annotated[Range, span(0, 1), "where it begins, as a share of the height"] = (0.0, 0.5),
) -> Tensor:
    """Darken a quadrilateral that goes from a height to the lower edge."""
    n = len(images)
    x, y = places(images)
    begin = each(uniform(n, top), images)
    far = (y - begin) / (1 - begin).clamp(min=1e-3)
    ends = torch.rand(2, 2, n).sort(1).values.to(images, non_blocking=True)
    left, right = (ends[:, i].view(2, n, 1, 1, 1) for i in (0, 1))
    inside = (x >= left[0] + far * (left[1] - left[0])) & (
        x < right[0] + far * (right[1] - right[0])
    )
    cover = (inside & (far >= 0)).to(images.dtype)
    return images * (1 - cover * each(uniform(n, strength), images))


DRAWN = "drawn by formula: alike in kind, not pixel by pixel"
STILL = {"strength": (0, 0)}
AUGMENTATIONS = {
    "rain": Row("image", rain, "albumentations RandomRain", DRAWN, still=STILL),
    "snow": Row(
        "image", snow, "albumentations RandomSnow, bleach", "luminance for HLS's L", still=STILL
    ),
    "fog": Row("image", fog, "albumentations RandomFog", DRAWN, still=STILL),
    "sun_flare": Row("image", sun_flare, "albumentations RandomSunFlare", DRAWN, still=STILL),
    "shadow": Row("image", shadow, "albumentations RandomShadow", DRAWN, still=STILL),
}
