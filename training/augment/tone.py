"""Colours that no matrix changes: curves, histograms, HSV, sharpening."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least, span, swing
from training.augment import pillow
from training.augment.colour import LUMA
from training.augment.row import Range, Row, each, uniform


def gamma(
    images: Tensor, *, exponent: Annotated[Range, span(0.05, 20), "of the curve"] = (0.8, 1.2)
) -> Tensor:
    """Raise levels, as shares of 255, to a power."""
    return (images / 255).pow(each(uniform(len(images), exponent), images)).mul_(255)


def hue_saturation_value(
    images: Tensor,
    *,
    hue_by: Annotated[Range, swing(90), "of 180 a turn"] = (-20.0, 20.0),
    saturation_by: Annotated[Range, swing(255), "added, of 255"] = (-30.0, 30.0),
    value_by: Annotated[Range, swing(255), "added, of 255"] = (-20.0, 20.0),
) -> Tensor:
    """Add to hue, saturation and value (HSV)."""
    turn, more, lighter = (
        each(uniform(len(images), by), images)[:, 0] for by in (hue_by, saturation_by, value_by)
    )
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    sector = torch.where(value == red, (green - blue) * scale, sector).add_(turn / 30)
    full = chroma.div_(value.clamp(min=1e-6)).add_(more / 255).clamp_(0, 1)
    value = value.add_(lighter).clamp_(0, 255)
    full.mul_(value)
    result = torch.empty_like(images)
    for i, start in enumerate((5, 3, 1)):  # Foley and van Dam, each channel by itself
        k = (sector + start).remainder_(6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, share.mul_(full), out=result[:, i])
    return result


def clahe(
    images: Tensor,
    *,
    clip: Annotated[Range, span(0, 1000), "times the mean count, above which counts are cut"] = (
        1.0,
        4.0,
    ),
    tiles: Annotated[int, at_least(1), "rows, and columns"] = 8,
) -> Tensor:
    """Equalise the luminance within tiles, the curves interpolated between them.

    Source: Zuiderveld 1994, as OpenCV does it: what is cut is shared among all levels.
    """
    n, _, height, width = images.shape
    luma = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1)
    levels = luma.round().clamp(0, 255)
    tile_h, tile_w = -(-height // tiles), -(-width // tiles)
    area = tile_h * tile_w
    more = (0, tiles * tile_w - width, 0, tiles * tile_h - height)
    mode = "reflect" if more[1] < width and more[3] < height else "replicate"
    padded = F.pad(levels.unsqueeze(1), more, mode=mode).long()
    cells = padded.view(n, tiles, tile_h, tiles, tile_w).transpose(2, 3).reshape(n, tiles**2, area)
    counts = pillow.count_levels(cells)
    limit = (uniform(n, clip) * area / 256).long().clamp(min=1).to(images.device).view(n, 1, 1)
    cut = (counts - limit).clamp(min=0).sum(2, keepdim=True)
    rest = cut % 256
    every = torch.arange(256, device=images.device)
    step = (256 // rest.clamp(min=1)).clamp(min=1)
    counts = torch.minimum(counts, limit) + cut // 256
    counts += (every % step == 0) & (every // step < rest)
    curves = (counts.cumsum(2) * (255 / area)).round().clamp(max=255).to(images.dtype)
    equalised = between_tiles(curves.view(n, -1), levels.long(), tiles, (tile_h, tile_w))
    return (images + (equalised - levels).unsqueeze(1)).clamp_(0, 255)


def between_tiles(curves: Tensor, levels: Tensor, tiles: int, tile: tuple[int, int]) -> Tensor:
    """Look levels, int64 [N,H,W], up in the curves [N, tiles * tiles * 256] of tiles near by."""
    n, *sides = levels.shape
    near = []
    for length, side in zip(sides, tile, strict=True):
        place = torch.arange(length, device=levels.device) / side - 0.5
        first = place.floor()
        pair = [(first + more).clamp(0, tiles - 1).long() for more in (0, 1)]
        near.append((pair, place - first))
    (rows, down), (columns, right) = near
    result = torch.zeros(levels.shape, dtype=curves.dtype, device=levels.device)
    for row, weight_y in zip(rows, (1 - down, down), strict=True):
        for column, weight_x in zip(columns, (1 - right, right), strict=True):
            start = (row.view(-1, 1) * tiles + column) * 256
            found = curves.gather(1, (levels + start).view(n, -1)).view_as(result)
            result += found * (weight_y.view(-1, 1) * weight_x)
    return result


def equalize(images: Tensor) -> Tensor:
    """Spread each channel's levels evenly."""
    return pillow.equalize(images, 0.0)


def posterize(
    images: Tensor, *, bits: Annotated[Range, span(1, 8), "kept, of 8; whole ones"] = (4.0, 4.0)
) -> Tensor:
    """Keep the highest bits of the levels."""
    step = 2 ** (8 - each(uniform(len(images), bits).round(), images))
    return (images / step).floor_().mul_(step)


def solarize(
    images: Tensor,
    *,
    threshold: Annotated[Range, span(0, 256), "the first level that is inverted"] = (128.0, 128.0),
) -> Tensor:
    """Invert the levels from a threshold on."""
    return torch.where(images < each(uniform(len(images), threshold), images), images, 255 - images)


def sharpen(
    images: Tensor, *, strength: Annotated[Range, span(0, 10), "0: as it is"] = (0.2, 1.0)
) -> Tensor:
    """Move levels away from those of the smoothed image; the border stays."""
    return pillow.sharpness(images, each(uniform(len(images), strength), images))


AUGMENTATIONS = {
    "gamma": Row(
        "image",
        gamma,
        "albumentations RandomGamma",
        "levels stay fractional",
        still={"exponent": (1, 1)},
    ),
    "hue_saturation_value": Row(
        "image",
        hue_saturation_value,
        "albumentations HueSaturationValue",
        "levels and hues stay fractional, theirs are bytes",
        still={"hue_by": (0, 0), "saturation_by": (0, 0), "value_by": (0, 0)},
    ),
    "clahe": Row(
        "image",
        clahe,
        "albumentations CLAHE",
        "the luminance is equalised, and colours are shifted by what it changes; theirs is LAB's L",
        still={"clip": (0, 0)},
    ),
    "equalize": Row("image", equalize, "Pillow ImageOps.equalize", "none"),
    "posterize": Row(
        "image", posterize, "albumentations Posterize", "none", still={"bits": (8, 8)}
    ),
    "solarize": Row(
        "image", solarize, "albumentations Solarize", "none", still={"threshold": (256, 256)}
    ),
    "sharpen": Row(
        "image",
        sharpen,
        "Pillow ImageEnhance.Sharpness",
        "the factor is 1 + strength; fractional levels",
        still={"strength": (0, 0)},
    ),
}
