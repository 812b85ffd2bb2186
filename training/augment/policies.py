"""AutoAugment for segmentation: two operations drawn for each image; geometry moves labels too.

Images are [N,3,H,W], 0 to 255, as in augment.py, and every draw comes from torch's global
generator.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from training.augment import geometry
from training.augment.row import Row

# Cubuk et al. 2019 (AutoAugment: Learning Augmentation Policies from Data), table 9, the policy
# found on ImageNet: 25 pairs of (operation, probability, level of magnitude 0 to 9).
POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)

# What level 0 and level 9 mean (table 6), the levels between evenly spaced: the slope of a shear;
# the share of the side that is moved (150 of 331 pixels); degrees; what is added to an
# enhancement's factor of 1; the grey level from which to invert; bits kept.
RANGES = {
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 150 / 331)),
    "rotate": (0.0, 30.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.0, 0.9)),
    "solarize": (256.0, 0.0),
    "posterize": (8.0, 4.0),
}
ONE_SIDED = ("solarize", "posterize")  # the others go either way


@torch.no_grad()
def auto_augment(
    images: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw a pair of operations for each image and apply each with its probability.

    Args:
        images: float [N,3,H,W], 0 to 255.
        labels: uint8 [N,H,W], or several maps an image [N,K,H,W], or None.

    Returns:
        The images, and the labels moved along; outside the image it is black, the label 255.

    Source: Cubuk et al. 2019, section 3 and table 6. Deviations: labels; black outside, where
    grey is usual; values stay fractional, where Pillow's are whole after each operation. The
    signs are drawn, as in the published code.
    """
    drawn = torch.rand(len(images), 5).tolist()  # on the CPU: nothing waits for a GPU
    changed = []
    for i, (which, *chances) in enumerate(drawn):
        image, label = images[i : i + 1], None if labels is None else labels[i : i + 1]
        pair = POLICY[int(which * len(POLICY))]
        for (name, probability, level), chance, sign in zip(
            pair, chances[:2], chances[2:], strict=True
        ):
            if chance < probability:
                value = magnitude(name, level, -1 if sign < 0.5 else 1)
                image, label = apply(name, value, image, label)
        changed.append((image, label))
    images = torch.cat([image for image, _ in changed]).clamp_(0, 255)  # rounding leaves 255.00002
    return images, None if labels is None else torch.cat([label for _, label in changed])


def magnitude(name: str, level: int, sign: int) -> float:
    """Return what an operation's level means; see RANGES. 0 for an operation that has no levels."""
    low, high = RANGES.get(name, (0.0, 0.0))
    value = low + (high - low) * level / 9
    return value if name in ONE_SIDED else sign * value


def apply(
    name: str, value: float, images: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply one operation to a batch.

    Args:
        name: of GEOMETRY or COLOUR.
        value: of `magnitude`.
        images: float [N,3,H,W], 0 to 255; left as they are.
        labels: uint8 [N,H,W] or None; changed by an operation of GEOMETRY only.
    """
    if name in GEOMETRY:
        height, width = images.shape[-2:]
        return transform(images, labels, GEOMETRY[name](value, width, height))
    return COLOUR[name](images, value), labels


# ------------------------------------------------------------------ geometry


def transform(
    images: torch.Tensor, labels: torch.Tensor | None, matrix: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move images bilinearly and labels by the nearest pixel.

    Args:
        images: float [N,3,H,W].
        labels: uint8 [N,H,W] or None.
        matrix: a, b, c, d, e, f as Pillow's `Image.transform` takes them: the pixel at (x, y)
            comes from (a x + b y + c, d x + e y + f), in pixels from the top left corner.
    """
    a, b, c, d, e, f = matrix
    h, w = images.shape[-2:]
    # the same in grid_sample's coordinates, which run from -1 to 1: x = w / 2 * (x' + 1)
    rows = [
        [a, b * h / w, a + b * h / w + 2 * c / w - 1],
        [d * w / h, e, d * w / h + e + 2 * f / h - 1],
    ]
    theta = torch.tensor([rows]).expand(len(images), 2, 3)
    return geometry.sample(images, labels, theta, (h, w))


def _rotation(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Turn counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


# value, width, height -> the matrix of `transform`; shears keep the top left corner
GEOMETRY: dict[str, Callable] = {
    "shear_x": lambda value, _w, _h: (1, value, 0, 0, 1, 0),
    "shear_y": lambda value, _w, _h: (1, 0, 0, value, 1, 0),
    "translate_x": lambda value, width, _h: (1, 0, value * width, 0, 1, 0),
    "translate_y": lambda value, _w, height: (1, 0, 0, 0, 1, value * height),
    "rotate": _rotation,
}


# ------------------------------------------------------------------ colour, by Pillow's definitions


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Return the luminance [N,1,H,W] in whole grey levels."""
    red, green, blue = images.split(1, dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round()


def _enhance(plain: torch.Tensor | float, images: torch.Tensor, change: float) -> torch.Tensor:
    """Move images away from their plain version (change > 0) or towards it."""
    return (plain + (1 + change) * (images - plain)).clamp(0, 255)


def _color(images: torch.Tensor, change: float) -> torch.Tensor:
    return _enhance(_grey(images), images, change)


def _contrast(images: torch.Tensor, change: float) -> torch.Tensor:
    mean = _grey(images).mean((1, 2, 3), keepdim=True).round()
    return _enhance(mean, images, change)


def _brightness(images: torch.Tensor, change: float) -> torch.Tensor:
    return _enhance(0.0, images, change)


def _sharpness(images: torch.Tensor, change: float) -> torch.Tensor:
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # Pillow keeps the border
    smooth = images.clone()
    around = 9 * F.avg_pool2d(images, 3, stride=1)
    smooth[inner] = ((around + 4 * images[inner]) / 13).round()
    return _enhance(smooth, images, change)


def _autocontrast(images: torch.Tensor, _value: float) -> torch.Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, images)


def _equalize(images: torch.Tensor, _value: float) -> torch.Tensor:
    levels = images.round().long().flatten(2)  # [N,3,H*W]
    counts = levels.new_zeros(*levels.shape[:2], 256)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, levels).view_as(images).to(images.dtype)


def _solarize(images: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.where(images < threshold, images, 255 - images)


def _posterize(images: torch.Tensor, bits: float) -> torch.Tensor:
    step = 2 ** (8 - round(bits))
    return (images / step).floor() * step


def _invert(images: torch.Tensor, _value: float) -> torch.Tensor:
    return 255 - images


COLOUR: dict[str, Callable] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}


def auto(
    images: torch.Tensor, maps: torch.Tensor | None, _value: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply AutoAugment's policy; see `auto_augment`."""
    return auto_augment(images, maps)


AUGMENTATIONS = {"auto": Row("both", auto, None, True)}
