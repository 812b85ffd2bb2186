"""Geometry: one sampling grid for all that moves pixels, images bilinear and labels nearest."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from engine.errors import UserError

# A crop of an image drawn for a rare class should hold more of it than this share of the image:
# DAFormer's 0.5 x 3000 pixels of 1280x720.
RARE_CLASS_SHARE = 0.5 * 3000 / (1280 * 720)
CROPS_TRIED = 10
# On the CPU a batch is changed a few images at a time: they stay near, and their memory is used
# again, where every new block beyond 32 MiB is asked of the system page by page.
PORTION = 2**24


def portions(images: torch.Tensor) -> list[slice]:
    """Return what to change at a time of images [N,C,H,W]: all on a GPU, few on a CPU."""
    n = len(images)
    several = n if images.device.type != "cpu" else PORTION // (4 * images[:1].numel() or 1)
    return [slice(i, i + max(1, several)) for i in range(0, n, max(1, several))]


@dataclass
class Way:
    """From where in a warped frame its pixels come, after all else that moves them.

    Attributes:
        matrix: float [N,3,3], in grid_sample's coordinates, on the CPU.
        moved: bool [N], on the CPU, which images it moves at all.
        bends: functions of x, y (float [N,h,w] or what broadcasts to it), and float [N], which
            images they bend; the first is looked through first; see `Row`.
    """

    matrix: torch.Tensor
    moved: torch.Tensor
    bends: list[tuple[Callable, torch.Tensor]] = field(default_factory=list)

    def part(self, which: slice | torch.Tensor) -> "Way":
        """Return that of some of the images."""
        bends = [(bend, on[which]) for bend, on in self.bends]
        return Way(self.matrix[which], self.moved[which], bends)


@torch.no_grad()
def warp(
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    crop_size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    mirror: float = 0.0,
    rare_class: torch.Tensor | None = None,
    extent: torch.Tensor | None = None,
    way: Callable[[int, tuple[int, int]], Way] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale, crop, mirror and move each image of a batch at random, its label along with it.

    Args:
        images: uint8 or float [N,3,H,W].
        labels: uint8 [N,K,H,W], K maps an image, the first the label; or None.
        crop_size: (W, H) in pixels; None keeps the size.
        scale: range of a uniform factor; what lies outside the image is black, label 255.
        mirror: probability of flipping left to right.
        rare_class: int64 [N], the class that each crop should hold; see `crops_with`.
        extent: int64 [N,2], w and h of what each image fills, where crops lie; None for all of it.
        way: N and the frame's w, h -> what moves it after all this.

    Returns:
        float32 images [N,3,h,w] and uint8 labels [N,K,h,w] (None without labels).

    Raises:
        UserError: the crop is larger than the images.
    """
    n, _, height, width = images.shape
    crop_w, crop_h = crop_size or (width, height)
    if crop_w > width or crop_h > height:
        raise UserError(f"--crop-size {crop_w},{crop_h} is larger than the images {width},{height}")
    factor, left, top, flip = torch.rand(4, n)
    plain = (crop_w, crop_h) == (width, height) and scale == (1.0, 1.0) and not mirror
    if plain:
        theta = torch.eye(3)[:2].repeat(n, 1, 1)
        way = way and way(n, (crop_w, crop_h))
        if way is None or not way.moved.any():
            return images.to(torch.float, copy=True), labels
    else:
        if rare_class is None:
            factor = scale[0] + factor * (scale[1] - scale[0])
            filled = (width, height)
            if extent is not None:
                filled = extent.unbind(1)
                drawn = (factor, left, top, flip)
                factor, left, top, flip = (x.to(extent.device, non_blocking=True) for x in drawn)
            left = place(left, filled[0] * factor, crop_w)
            top = place(top, filled[1] * factor, crop_h)
        else:
            factor, left, top = crops_with(rare_class, labels[:, 0], (crop_w, crop_h), scale)
            flip = flip.to(images.device, non_blocking=True)
        sign = torch.where(flip < mirror, -1.0, 1.0) if mirror else torch.ones_like(flip)
        # grid_sample's coordinates run from -1 to 1 over the input: x_in = a * x_out + b
        a_x, a_y = crop_w / (width * factor), crop_h / (height * factor)
        b_x, b_y = 2 * left / (width * factor) + a_x - 1, 2 * top / (height * factor) + a_y - 1
        zero = torch.zeros_like(flip)
        theta = torch.stack([a_x * sign, zero, b_x, zero, a_y, b_y], 1).view(n, 2, 3)
        way = way and way(n, (crop_w, crop_h))
    return resample(images, labels, theta, way, (crop_h, crop_w), plain)


def resample(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    theta: torch.Tensor,
    way: Way | None,
    size: tuple[int, int],
    plain: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sample images and labels once, by a warp and what is looked through before it.

    Args:
        images: uint8 or float [N,3,H,W].
        labels: uint8 [N,K,H,W] or None.
        theta: float [N,2,3], of the warp.
        way: see `warp`.
        size: h, w of the frame in pixels.
        plain: whether the warp is none: what the way does not move stays as it is, to the bit.
    """
    n = len(images)
    warped = torch.empty(n, 3, *size, device=images.device)
    moved = None if labels is None else labels.new_empty(*labels.shape[:-2], *size)
    for part in portions(warped):
        which = torch.arange(n)[part]
        if plain:
            which = which[way.moved[part]]
            warped[part] = images[part]
            if labels is not None:
                moved[part] = labels[part]
        if not len(which):
            continue
        there = part if len(which) == len(warped[part]) else which.to(images.device)
        on_theta = part if there is part else which.to(theta.device)
        some = way and way.part(part if there is part else which)
        grid = make_grid(theta[on_theta], some, size, images.device)
        below = None if labels is None else labels[there]
        warped[there], below = sample(images[there].float(), below, grid)
        if labels is not None:
            moved[there] = below
    return warped, moved


def make_grid(
    theta: torch.Tensor, way: Way | None, size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Return from where each pixel comes, float [N,h,w,2], in grid_sample's coordinates.

    Args:
        theta: float [N,2,3], of the warp.
        way: what is looked through before it.
        size: h, w in pixels.
        device: of the grid.
    """
    n, (height, width) = len(theta), size
    projective = way is not None and bool(way.matrix[:, 2, :2].any())  # on the CPU
    if way is None:
        matrix = theta
    elif projective:
        last = torch.tensor([0.0, 0.0, 1.0], device=theta.device).repeat(n, 1, 1)
        matrix = torch.cat([theta, last], 1) @ way.matrix.to(theta.device, non_blocking=True)
    else:
        matrix = theta @ way.matrix.to(theta.device, non_blocking=True)
    matrix = matrix.to(device, non_blocking=True)
    # as affine_grid rounds them, to the bit
    x, y = (
        torch.linspace(-1, 1, length, device=device) * (length - 1) / length
        if length > 1
        else torch.zeros(1, device=device)
        for length in (width, height)
    )
    x, y = x.view(1, 1, -1), y.view(1, -1, 1)
    for bend, on in way.bends if way else ():
        x, y = bend(x, y, on.to(device, torch.float, non_blocking=True))
    grid = torch.empty(n, height, width, 2, device=device)
    for axis, row in enumerate(matrix.unbind(1)[:2]):
        by_x, by_y, more = row.view(n, 3, 1, 1).unbind(1)
        torch.add(by_x * x, by_y * y + more, out=grid[..., axis])
    if projective:
        by_x, by_y, more = matrix[:, 2].view(n, 3, 1, 1).unbind(1)
        grid /= (by_x * x + (by_y * y + more)).unsqueeze(3)
    return grid


def sample(
    images: torch.Tensor, labels: torch.Tensor | None, grid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move images bilinearly, labels by the nearest pixel; outside, images are 0 and labels 255.

    Args:
        images: float [N,3,H,W].
        labels: uint8 or float [N,H,W] or [N,K,H,W], or None.
        grid: float [N,h,w,2], from where, as `torch.nn.functional.grid_sample` has it.
    """
    n, _, height, width = images.shape
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    if labels is not None:
        # sampled as 255 - label, so that grid_sample's zero outside the image means ignore
        inverse = (255 - labels).view(n, -1, height, width).float()
        inverse = F.grid_sample(inverse, grid, mode="nearest", align_corners=False)
        labels = 255 - inverse.view(*labels.shape[:-2], *grid.shape[1:3]).to(labels.dtype)
    return images, labels


def place(draw: torch.Tensor, length: torch.Tensor, crop: int) -> torch.Tensor:
    """Return where a crop begins: a whole pixel, so that a scale of 1 copies pixels exactly.

    Args:
        draw: uniform, 0 to 1.
        length: of the scaled image, in pixels.
        crop: its length in pixels.
    """
    return (draw * (length - crop + 1)).floor()


def crops_with(
    rare_class: torch.Tensor,
    labels: torch.Tensor,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
) -> torch.Tensor:
    """Choose the first of ten random crops of each image with enough of a class, else the last.

    Args:
        rare_class: int64 [N], the class of each image.
        labels: uint8 [N,H,W].
        crop_size: W, H in pixels.
        scale: range of the images' uniform factor.

    Returns:
        float32 [3,N], on the labels' device: factor, and left and top in the scaled image.

    Source: DAFormer (Hoyer et al. 2022), section 3.3. Deviation: all ten are drawn at once and
    counted in a summed-area table, so that a GPU is not waited for.
    """
    n, height, width = labels.shape
    draws = torch.rand(3, n, CROPS_TRIED).to(labels.device, non_blocking=True)
    factor = scale[0] + draws[0] * (scale[1] - scale[0])
    left = place(draws[1], width * factor, crop_size[0])
    top = place(draws[2], height * factor, crop_size[1])
    # table[y, x]: pixels of the class above y and left of x, in the image as it was
    table = (labels == rare_class.view(n, 1, 1)).cumsum(1, dtype=torch.int32)
    table = F.pad(table.cumsum(2, dtype=torch.int32), (1, 0, 1, 0)).flatten(1)
    x0, x1 = ((x / factor).round().clamp(0, width).long() for x in (left, left + crop_size[0]))
    y0, y1 = ((y / factor).round().clamp(0, height).long() for y in (top, top + crop_size[1]))
    corners = [
        table.gather(1, y * (width + 1) + x) for x, y in ((x1, y1), (x0, y1), (x1, y0), (x0, y0))
    ]
    held = (corners[0] - corners[1] - corners[2] + corners[3]) * factor**2
    enough = held > RARE_CLASS_SHARE * width * height
    enough[:, -1] = True
    chosen = enough.int().argmax(1, keepdim=True)
    return torch.stack([factor, left, top]).gather(2, chosen.expand(3, n, 1)).squeeze(2)
