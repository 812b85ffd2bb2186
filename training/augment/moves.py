"""Moves of the sampling grid: what a matrix says, exact in pixels."""

import math
from typing import Annotated

import torch
from torch import Tensor

from engine.parsing import scale_range, span, swing, width_height
from training.augment.row import Range, Row, uniform

Size = tuple[int, int]  # w, h of the frame in pixels
Degrees = Annotated[Range, swing(180), "degrees, counter-clockwise"]


def hflip(p: float) -> dict:
    """Mirror left to right."""
    return {"mirror": p}


def scale(p: None, *, factors: Annotated[Range, scale_range, "of the size"] = (0.5, 1.5)) -> dict:
    """Resize by a factor; what lies outside the image is black, its label 255."""
    return {"scale": factors}


def crop(p: None, *, size: Annotated[Size, width_height, "W,H in pixels"]) -> dict:
    """Cut out a window at a random place."""
    return {"crop_size": size}


def about_centre(linear: Tensor, shift: Tensor, size: Size) -> Tensor:
    """Turn a matrix of pixels about the frame's centre into one of grid_sample's coordinates.

    Args:
        linear: float [N,2,2], of where a pixel lies from the centre -> from where it comes.
        shift: float [N,2], in pixels, added after it.
        size: w, h in pixels.
    """
    half = torch.tensor(size) / 2
    matrix = torch.eye(3).repeat(len(linear), 1, 1)
    matrix[:, :2, :2] = linear * half / half.view(2, 1)
    matrix[:, :2, 2] = shift / half
    return matrix


def turn(degrees: Tensor) -> Tensor:
    """Return the matrices [N,2,2] that turn images counter-clockwise: y points down."""
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def vflip(n: int, size: Size) -> Tensor:
    """Turn upside down."""
    return torch.diag(torch.tensor([1.0, -1.0, 1.0])).repeat(n, 1, 1)


def rotate90(n: int, size: Size) -> Tensor:
    """Turn by none, one, two or three quarters."""
    quarters = torch.tensor([[1, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]])
    drawn = quarters.float()[(torch.rand(n) * 4).long()].view(n, 2, 2)
    return about_centre(drawn, torch.zeros(n, 2), size)


def transpose(n: int, size: Size) -> Tensor:
    """Swap rows and columns."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(n, 1, 1)
    return about_centre(swap, torch.zeros(n, 2), size)


def rotate(n: int, size: Size, *, degrees: Degrees = (-30.0, 30.0)) -> Tensor:
    """Turn about the centre."""
    return about_centre(turn(uniform(n, degrees)), torch.zeros(n, 2), size)


def shift_scale_rotate(
    n: int,
    size: Size,
    *,
    shift: Annotated[Range, swing(1), "shares of the width and of the height"] = (-0.0625, 0.0625),
    zoom: Annotated[Range, swing(0.9), "added to the factor 1"] = (-0.1, 0.1),
    degrees: Degrees = (-45.0, 45.0),
) -> Tensor:
    """Turn and enlarge about the centre, then shift."""
    moved = torch.stack([uniform(n, shift), uniform(n, shift)], 1) * torch.tensor(size)
    linear = turn(uniform(n, degrees)) / (1 + uniform(n, zoom)).view(n, 1, 1)
    return about_centre(linear, -(linear @ moved.unsqueeze(2)).squeeze(2), size)


def random_resized_crop(
    n: int,
    size: Size,
    *,
    area: Annotated[Range, span(0.001, 1), "share of the frame"] = (0.08, 1.0),
    ratio: Annotated[Range, scale_range, "width to height, 1: the frame's"] = (0.75, 1.333),
) -> Tensor:
    """Enlarge a random window of the frame to all of it."""
    share = uniform(n, area)
    aspect = uniform(n, (math.log(ratio[0]), math.log(ratio[1]))).exp()
    sides = torch.stack([share * aspect, share / aspect], 1).sqrt().clamp(max=1)
    place = (torch.rand(n, 2) - 0.5) * (1 - sides) * torch.tensor(size)
    return about_centre(torch.diag_embed(sides), place, size)


def affine(
    n: int,
    size: Size,
    *,
    zoom: Annotated[Range, scale_range, "factor of the size"] = (0.9, 1.1),
    shift: Annotated[Range, swing(1), "shares of the width and of the height"] = (-0.1, 0.1),
    degrees: Degrees = (-15.0, 15.0),
    shear: Annotated[Range, swing(44), "degrees, along x and along y"] = (-10.0, 10.0),
) -> Tensor:
    """Enlarge, turn and shear about the centre, then shift."""
    moved = torch.stack([uniform(n, shift), uniform(n, shift)], 1) * torch.tensor(size)
    slope_x, slope_y = (-torch.deg2rad(uniform(n, shear)).tan() for _ in range(2))
    one = torch.ones(n)
    shears = torch.stack([one, slope_x, slope_y, one], 1).view(n, 2, 2)
    # the image's own way is shears @ rotation @ zoom; ours is from where, hence the inverses
    linear = turn(uniform(n, degrees)) @ torch.linalg.inv(shears)
    linear = linear / uniform(n, zoom).view(n, 1, 1)
    return about_centre(linear, -(linear @ moved.unsqueeze(2)).squeeze(2), size)


def perspective(
    n: int,
    size: Size,
    *,
    strength: Annotated[Range, span(0, 0.32), "deviation of the corners, as shares"] = (0.05, 0.1),
) -> Tensor:
    """Enlarge a quadrilateral, whose corners lie within the frame's, to all of it."""
    inward = torch.randn(n, 4, 2).abs() * uniform(n, strength).view(n, 1, 1) % 0.32
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return homography(corners.repeat(n, 1, 1), corners * (1 - 2 * inward))


def homography(corners: Tensor, come_from: Tensor) -> Tensor:
    """Return the [N,3,3] that takes four points [N,4,2] to four others."""
    n, (x, y), (u, v) = len(corners), corners.unbind(2), come_from.unbind(2)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, none, none, none, -u * x, -u * y], 2)
    rows_v = torch.stack([none, none, none, x, y, one, -v * x, -v * y], 2)
    solved = torch.linalg.solve(torch.cat([rows_u, rows_v], 1), torch.cat([u, v], 1))
    return torch.cat([solved, torch.ones(n, 1)], 1).view(n, 3, 3)


NO_FRAME = "the frame keeps its size: what it no longer covers is ignored"
BLACK = "black and ignored outside; all geometry is one resampling"
WARPS = {
    "hflip": Row("warp", hflip, "albumentations HorizontalFlip", "none"),
    "scale": Row(
        "warp",
        scale,
        "albumentations RandomScale",
        "the frame keeps its size; a crop is drawn from the scaled image",
        p=None,
    ),
    "crop": Row("warp", crop, "albumentations RandomCrop", "none", p=None),
}
MOVES = {
    "vflip": Row("move", vflip, "albumentations VerticalFlip", "none"),
    "rotate90": Row("move", rotate90, "albumentations RandomRotate90", NO_FRAME),
    "transpose": Row("move", transpose, "albumentations Transpose", NO_FRAME),
    "rotate": Row("move", rotate, "albumentations Rotate", BLACK, still={"degrees": (0, 0)}),
    "shift_scale_rotate": Row(
        "move",
        shift_scale_rotate,
        "albumentations ShiftScaleRotate",
        BLACK,
        still={"shift": (0, 0), "zoom": (0, 0), "degrees": (0, 0)},
    ),
    "random_resized_crop": Row(
        "move",
        random_resized_crop,
        "torchvision RandomResizedCrop",
        "as large as the frame, and the ratio is to the frame's; too wide a window is cut",
        still={"area": (1, 1), "ratio": (1, 1)},
    ),
    "affine": Row(
        "move",
        affine,
        "albumentations Affine",
        "one factor for both sides; " + BLACK,
        still={"zoom": (1, 1), "shift": (0, 0), "degrees": (0, 0), "shear": (0, 0)},
    ),
    "perspective": Row(
        "move", perspective, "albumentations Perspective", "none", still={"strength": (0, 0)}
    ),
}
AUGMENTATIONS = WARPS | MOVES
