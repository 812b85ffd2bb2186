"""Colours by Pillow's definitions: what the published policies are made of.

Each is (float [N,3,H,W] of 0 to 255, value) -> the same; values stay fractional, where Pillow's are
whole after each operation.
"""

from collections.abc import Callable

import torch


def grey(images: torch.Tensor) -> torch.Tensor:
    """Return the luminance [N,1,H,W] in whole grey levels."""
    red, green, blue = images.split(1, dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round()


def enhance(plain: torch.Tensor | float, images: torch.Tensor, change: float) -> torch.Tensor:
    """Move images away from their plain version (change > 0) or towards it."""
    return (plain + (1 + change) * (images - plain)).clamp(0, 255)


def color(images: torch.Tensor, change: float) -> torch.Tensor:
    """Move colours away from grey, or towards it."""
    return enhance(grey(images), images, change)


def contrast(images: torch.Tensor, change: float) -> torch.Tensor:
    """Move levels away from the mean of the grey levels, or towards it."""
    mean = grey(images).mean((1, 2, 3), keepdim=True).round()
    return enhance(mean, images, change)


def brightness(images: torch.Tensor, change: float) -> torch.Tensor:
    """Move levels away from black, or towards it."""
    return enhance(0.0, images, change)


def sharpness(images: torch.Tensor, change: float) -> torch.Tensor:
    """Move levels away from the smoothed image, or towards it."""
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # Pillow keeps the border
    smooth = images.clone()
    across = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    around = across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]
    smooth[inner] = ((around + 4 * images[inner]) / 13).round()
    return enhance(smooth, images, change)


def count_levels(levels: torch.Tensor) -> torch.Tensor:
    """Return how often each level occurs in int64 [N,C,K], as int64 [N,C,256]."""
    if levels.device.type == "cpu":  # twice as fast
        rows = [torch.bincount(row, minlength=256) for row in levels.flatten(0, 1)]
        return torch.stack(rows).view(*levels.shape[:2], 256)
    counts = levels.new_zeros(*levels.shape[:2], 256)
    return counts.scatter_add_(2, levels, torch.ones_like(levels))


def autocontrast(images: torch.Tensor, _value: float) -> torch.Tensor:
    """Stretch each channel to 0 to 255."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, images)


def equalize(images: torch.Tensor, _value: float) -> torch.Tensor:
    """Spread each channel's levels evenly."""
    levels = images.round().long().flatten(2)  # [N,3,H*W]
    counts = count_levels(levels)
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, levels).view_as(images).to(images.dtype)


def solarize(images: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert the levels from a threshold on."""
    return torch.where(images < threshold, images, 255 - images)


def posterize(images: torch.Tensor, bits: float) -> torch.Tensor:
    """Keep the highest bits."""
    step = 2 ** (8 - round(bits))
    return (images / step).floor() * step


def invert(images: torch.Tensor, _value: float) -> torch.Tensor:
    """Turn into the negative."""
    return 255 - images


COLOUR: dict[str, Callable] = {
    "autocontrast": autocontrast,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "sharpness": sharpness,
    "solarize": solarize,
}
