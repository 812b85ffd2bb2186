"""Policies: a few operations drawn for each image; geometry moves labels too.

A policy is (n) -> a plan: for each of n images a list of (operation, value), operations being those
of GEOMETRY and of `pillow.COLOUR`. Pictures are moved by all of a plan's geometry first, in the one
grid.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated

import torch

from engine.parsing import at_least, between
from training.augment.pillow import COLOUR
from training.augment.row import Row

Plan = list[list[tuple[str, float]]]

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
# what RandAugment and TrivialAugment draw among: identity has neither geometry nor colour
OPERATIONS = ("identity", *(f"{kind}_{axis}" for kind in ("shear", "translate") for axis in "xy"),
    "rotate", "brightness", "color", "contrast", "sharpness", "posterize", "solarize",
    "autocontrast", "equalize")  # fmt: skip
RANDOM = {**RANGES, "solarize": (255.0, 0.0)}
WIDE = {
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 32 / 331)),
    "rotate": (0.0, 135.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.0, 0.99)),
    "solarize": (255.0, 0.0),
    "posterize": (8.0, 2.0),
}


def auto(n: int) -> Plan:
    """Draw AutoAugment's pair of operations for each image, each with its probability.

    Source: Cubuk et al. 2019, section 3 and table 6. Deviations: an image's geometry comes before
    its colours, in the one grid; black outside, where grey is usual; values stay fractional, where
    Pillow's are whole after each operation. The signs are drawn, as in the published code.
    """
    plan = []
    for which, *chances in torch.rand(n, 5).tolist():  # on the CPU: nothing waits for a GPU
        pair = POLICY[int(which * len(POLICY))]
        drawn = zip(pair, chances[:2], chances[2:], strict=True)
        plan.append(
            [
                (name, magnitude(name, level, -1 if sign < 0.5 else 1))
                for (name, probability, level), chance, sign in drawn
                if chance < probability
            ]
        )
    return plan


def rand(
    n: int,
    *,
    level: Annotated[float, between(0, 30), "magnitude, 0 to 30"] = 9,
    operations: Annotated[int, at_least(0), "of each image"] = 2,
) -> Plan:
    """Draw RandAugment's operations for each image, all of one magnitude (Cubuk et al. 2020).

    The fourteen operations and what a magnitude means are torchvision's.
    """
    draws = torch.rand(2, n, operations)
    which, sign = (draws[0] * len(OPERATIONS)).long().tolist(), (draws[1] < 0.5).tolist()
    share = level / 30
    return [
        [
            (OPERATIONS[k], wide(OPERATIONS[k], share, down, RANDOM))
            for k, down in zip(*one, strict=True)
        ]
        for one in zip(which, sign, strict=True)
    ]


def trivial(n: int) -> Plan:
    """Draw one operation of any magnitude for each image (Mueller and Hutter 2021).

    The operations and their wide ranges are torchvision's TrivialAugmentWide's.
    """
    which, level, sign = torch.rand(3, n)
    drawn = zip(
        (which * len(OPERATIONS)).long().tolist(),
        ((level * 31).floor() / 30).tolist(),
        (sign < 0.5).tolist(),
        strict=True,
    )
    return [[(OPERATIONS[k], wide(OPERATIONS[k], share, down, WIDE))] for k, share, down in drawn]


def wide(name: str, share: float, down: bool, ranges: dict[str, tuple[float, float]]) -> float:
    """Return what a share of an operation's range means; `down` turns those with two sides."""
    low, high = ranges.get(name, (0.0, 0.0))
    value = low + (high - low) * share
    if name == "posterize":
        value = float(round(value))
    return -value if down and name not in ONE_SIDED else value


def magnitude(name: str, level: int, sign: int) -> float:
    """Return what an operation's level means; see RANGES. 0 for an operation that has no levels."""
    low, high = RANGES.get(name, (0.0, 0.0))
    value = low + (high - low) * level / 9
    return value if name in ONE_SIDED else sign * value


def matrix(operations: Iterable[tuple[str, float]], size: tuple[int, int]) -> torch.Tensor | None:
    """Return an image's geometry, float [3,3] in grid_sample's coordinates; None for none.

    Args:
        operations: of a plan; those of COLOUR are passed over.
        size: w, h of the frame in pixels.
    """
    product, (w, h) = None, size
    for name, value in operations:
        if name in GEOMETRY:
            a, b, c, d, e, f = GEOMETRY[name](value, w, h)
            # x = w / 2 * (x' + 1)
            rows = [
                [a, b * h / w, a + b * h / w + 2 * c / w - 1],
                [d * w / h, e, d * w / h + e + 2 * f / h - 1],
                [0, 0, 1],
            ]
            one = torch.tensor(rows, dtype=torch.float)
            product = one if product is None else product @ one
    return product


def recolour(images: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return images, float [N,3,H,W], 0 to 255, with each one's colour operations done."""
    changed = []
    for image, operations in zip(images.split(1), plan, strict=True):
        for name, value in operations:
            if name in COLOUR:
                image = COLOUR[name](image, value)
        changed.append(image)
    return torch.cat(changed).clamp_(0, 255)  # rounding leaves 255.00002


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


DIFFERENCE = "geometry before colours, in the one grid; ignored outside; fractional levels"
AUGMENTATIONS = {
    "auto": Row(
        "policy",
        auto,
        "torchvision AutoAugment, imagenet",
        DIFFERENCE,
        p=1.0,
    ),
    "rand": Row("policy", rand, "torchvision RandAugment", DIFFERENCE, p=1.0),
    "trivial": Row(
        "policy",
        trivial,
        "torchvision TrivialAugmentWide",
        "shifts are shares, 32 pixels of 331; " + DIFFERENCE,
        p=1.0,
    ),
}
