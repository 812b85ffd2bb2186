"""Batched augmentation on the device: one warp, then colour; what mixing pastes.

Images are [N,3,H,W], 0 to 255.

Every draw comes from torch's global generator, which the training loops seed with the step.
"""

import math

import torch
import torch.nn.functional as F

from engine.errors import UserError

# A crop of an image drawn for a rare class should hold more of it than this share of the image:
# DAFormer's 0.5 x 3000 pixels of 1280x720.
RARE_CLASS_SHARE = 0.5 * 3000 / (1280 * 720)
CROPS_TRIED = 10


@torch.no_grad()
def warp(
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    crop_size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    mirror: bool = False,
    rare_class: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale, crop and mirror each image of a batch at random, its label along with it.

    Args:
        images: uint8 or float [N,3,H,W].
        labels: uint8 [N,K,H,W], K maps an image, the first the label; or None.
        crop_size: (W, H) in pixels; None keeps the size.
        scale: range of a uniform factor; what lies outside the image is black, label 255.
        mirror: flip left to right with probability 1/2.
        rare_class: int64 [N], the class that each crop should hold; see `crops_with`.

    Returns:
        float32 images [N,3,h,w] and uint8 labels [N,K,h,w] (None without labels).

    Raises:
        UserError: the crop is larger than the images.
    """
    n, _, height, width = images.shape
    crop_w, crop_h = crop_size or (width, height)
    if crop_w > width or crop_h > height:
        raise UserError(f"--crop-size {crop_w},{crop_h} is larger than the images {width},{height}")
    images = images.float()
    factor, left, top, flip = torch.rand(4, n)
    if (crop_w, crop_h) == (width, height) and scale == (1.0, 1.0) and not mirror:
        return images, labels
    if rare_class is None:
        factor = scale[0] + factor * (scale[1] - scale[0])
        left = place(left, width * factor, crop_w)
        top = place(top, height * factor, crop_h)
    else:
        factor, left, top = crops_with(rare_class, labels[:, 0], (crop_w, crop_h), scale)
        flip = flip.to(images.device, non_blocking=True)
    sign = torch.where(flip < 0.5, -1.0, 1.0) if mirror else torch.ones_like(flip)
    # grid_sample's coordinates run from -1 to 1 over the input: x_in = a * x_out + b
    a_x, a_y = crop_w / (width * factor), crop_h / (height * factor)
    b_x, b_y = 2 * left / (width * factor) + a_x - 1, 2 * top / (height * factor) + a_y - 1
    zero = torch.zeros_like(flip)
    theta = torch.stack([a_x * sign, zero, b_x, zero, a_y, b_y], 1).view(n, 2, 3)
    return sample(images, labels, theta, (crop_h, crop_w))


def sample(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    theta: torch.Tensor,
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move images bilinearly, labels by the nearest pixel; outside, images are 0 and labels 255.

    Args:
        images: float [N,3,H,W].
        labels: uint8 [N,H,W] or [N,K,H,W], or None.
        theta: float [N,2,3], from where in the input, as `torch.nn.functional.affine_grid` has it.
        size: h, w of the output in pixels.
    """
    n, _, height, width = images.shape
    theta = theta.to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, (n, 1, *size), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    if labels is not None:
        # sampled as 255 - label, so that grid_sample's zero outside the image means ignore
        inverse = (255 - labels).view(n, -1, height, width).float()
        inverse = F.grid_sample(inverse, grid, mode="nearest", align_corners=False)
        labels = 255 - inverse.view(*labels.shape[:-2], *size).to(torch.uint8)
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


@torch.no_grad()
def color_jitter(
    images: torch.Tensor, strength: float, hue: float, probability: float = 1.0
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each image at random.

    All four are linear, so each image gets one 3x4 matrix. Deviation from the usual chain
    (torchvision, kornia): values are clamped once, at the end, and the hue turns in YIQ.

    Args:
        images: float [N,3,H,W], 0 to 255, RGB.
        strength: s; the first three are multiplied by factors uniform in [1 - s, 1 + s].
        hue: the hue's turn is uniform in [-hue, hue], in whole turns; kornia's unit.
        probability: of changing an image at all.

    Returns:
        float [N,3,H,W], 0 to 255.
    """
    n, device = len(images), images.device
    brightness, contrast, saturation, turn, chosen = torch.rand(5, n)
    if strength == 0 and hue == 0:
        return images
    brightness, contrast, saturation = (
        (1 + strength * (2 * draw - 1)).view(n, 1, 1) for draw in (brightness, contrast, saturation)
    )
    turn = hue * (2 * turn - 1) * 2 * math.pi
    luma = torch.tensor([0.299, 0.587, 0.114])
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    rotation = torch.zeros(n, 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -turn.sin(), turn.sin()
    hue_matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    grey = luma.expand(3, 3)
    saturate = saturation * torch.eye(3) + (1 - saturation) * grey
    matrix = (brightness * contrast * (saturate @ hue_matrix)).to(device, non_blocking=True)
    # contrast keeps each image's mean luminance where brightness put it
    mean = (images.mean((2, 3)) * luma.to(device, non_blocking=True)).sum(1).view(n, 1, 1, 1)
    offset = ((1 - contrast) * brightness).to(device, non_blocking=True).view(n, 1, 1, 1) * mean
    changed = torch.einsum("nij,njhw->nihw", matrix, images) + offset
    chosen = (chosen < probability).to(device, non_blocking=True).view(n, 1, 1, 1)
    return torch.where(chosen, changed.clamp(0, 255), images)


@torch.no_grad()
def gaussian_blur(
    images: torch.Tensor, probability: float, sigma: tuple[float, float] = (0.15, 1.15)
) -> torch.Tensor:
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


def half_of_classes(label: torch.Tensor) -> torch.Tensor:
    """Choose ceil(n / 2) of the n classes present in each label at random.

    Args:
        label: uint8 [N,H,W], 255 = ignore, which is never chosen.

    Returns:
        bool [N,256]: the ids chosen.
    """
    present = torch.zeros(len(label), 256, dtype=torch.bool, device=label.device)
    present.scatter_(1, label.flatten(1).long(), True)
    present[:, 255] = False
    draw = torch.rand(present.shape).to(label.device, non_blocking=True).masked_fill(~present, 2.0)
    rank = draw.argsort(1).argsort(1)
    wanted = (present.sum(1, keepdim=True) + 1) // 2
    return rank < wanted


def half_area_boxes(n: int, height: int, width: int) -> torch.Tensor:
    """Draw a box of half the image's area, of random shape and place, for each image.

    Returns:
        int64 [N,1,4]: x0, y0, x1, y1 in pixels, half open.

    Source: CutMix-Seg (French et al. 2020), section 3.3: proportion 0.5, the height's share
    uniform in log scale between the proportion and 1.
    """
    share, x, y = torch.rand(3, n)
    tall = 0.5 ** (1 - share)
    box_h, box_w = (tall * height).round(), (0.5 / tall * width).round()
    x0, y0 = (x * (width - box_w + 1)).floor(), (y * (height - box_h + 1)).floor()
    return torch.stack([x0, y0, x0 + box_w, y0 + box_h], 1).long().unsqueeze(1)
