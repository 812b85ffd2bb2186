"""Occlusion: parts of images become black; labels stay, or are ignored there (`label=ignore`)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from engine.parsing import span
from training.augment.row import Range, Row, each, uniform

Maps = Tensor | None
Label = Annotated[Literal["keep", "ignore"], "what becomes of the label there"]
Sides = Annotated[Range, span(0, 1), "shares of the height and of the width"]


def hide(images: Tensor, maps: Maps, holes: Tensor, label: str) -> tuple[Tensor, Maps]:
    """Return images that are black in the holes, bool [N,H,W], and maps that are ignored there."""
    images = images.masked_fill(holes.unsqueeze(1), 0)
    if maps is not None and label == "ignore":
        maps = torch.cat([maps[:, :1].masked_fill(holes.unsqueeze(1), 255), maps[:, 1:]], 1)
    return images, maps


def coarse_dropout(
    images: Tensor,
    maps: Maps,
    *,
    holes: Annotated[Range, span(0, 100), "how many"] = (1.0, 8.0),
    height: Sides = (0.05, 0.2),
    width: Sides = (0.05, 0.2),
    label: Label = "keep",
) -> tuple[Tensor, Maps]:
    """Cut rectangles out, which lie within the image."""
    n, _, *size = images.shape
    most = round(holes[1])
    there = torch.arange(most) < uniform(n, (holes[0], holes[1] + 1)).floor().view(n, 1)
    inside = there.to(images.device, non_blocking=True).view(n, most, 1)
    spans = []
    for length, share in zip(size, (height, width), strict=True):
        side = (uniform(n * most, share) * length).round()
        first = (torch.rand(n * most) * (length - side + 1)).floor()
        ends = torch.stack([first, first + side]).to(images.device, non_blocking=True)
        first, last = ends.view(2, n, most, 1)
        place = torch.arange(length, device=images.device)
        spans.append((place >= first) & (place < last))
    rows, columns = spans
    # a pixel is hidden where its row and its column are in one of the holes
    covered = (rows & inside).to(images.dtype).transpose(1, 2) @ columns.to(images.dtype) > 0
    return hide(images, maps, covered, label)


def grid_dropout(
    images: Tensor,
    maps: Maps,
    *,
    ratio: Annotated[Range, span(0, 1), "side of a hole to that of its cell"] = (0.5, 0.5),
    cell: Annotated[Range, span(2, 10000), "pixels a side"] = (32.0, 96.0),
    label: Label = "keep",
) -> tuple[Tensor, Maps]:
    """Cut a square out of every cell of a lattice, which begins anywhere."""
    n, _, *size = images.shape
    side = uniform(n, cell).round()
    hole = (side * uniform(n, ratio)).round()
    drawn = torch.stack([side, hole, *torch.rand(2, n) * side]).to(images.device, non_blocking=True)
    side, hole, *begin = drawn.unsqueeze(2).unbind()
    rows, columns = (
        (torch.arange(length, device=images.device) + first.floor()).remainder(side) < hole
        for length, first in zip(size, begin, strict=True)
    )
    return hide(images, maps, rows.unsqueeze(2) & columns.unsqueeze(1), label)


def mask_blocks(
    images: Tensor,
    maps: Maps,
    *,
    ratio: Annotated[Range, span(0, 1), "of the blocks, each by chance"] = (0.7, 0.7),
    block: Annotated[Range, span(1, 10000), "pixels a side"] = (64.0, 64.0),
    label: Label = "keep",
) -> tuple[Tensor, Maps]:
    """Hide square blocks, as masked image consistency does (Hoyer et al. 2023, section 3.2)."""
    return hide(images, maps, random_blocks(images, ratio, block), label)


def random_blocks(images: Tensor, ratio: Range, block: Range) -> Tensor:
    """Draw which pixels of images [N,C,H,W] lie in hidden blocks, bool [N,H,W].

    Args:
        images: their size and device alone are looked at.
        ratio: share of the blocks that are hidden, each by chance; drawn for each image.
        block: pixels a side, drawn for each image.
    """
    n, _, height, width = images.shape
    side = uniform(n, block).round()
    most = [-(-length // max(1, round(block[0]))) for length in (height, width)]
    hidden = torch.rand(n, *most, device=images.device) < each(uniform(n, ratio), images)[:, 0]
    side = side.to(images.device, non_blocking=True).view(n, 1)
    rows, columns = (
        (torch.arange(length, device=images.device) / side).long() for length in (height, width)
    )
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    return hidden[which, rows.unsqueeze(2), columns.unsqueeze(1)]


AUGMENTATIONS = {
    "coarse_dropout": Row(
        "pair",
        coarse_dropout,
        "albumentations CoarseDropout",
        "sides are shares of the image's",
        still={"holes": (0, 0)},
    ),
    "grid_dropout": Row(
        "pair",
        grid_dropout,
        "albumentations GridDropout",
        "the lattice begins anywhere, also above and left of the image",
        still={"ratio": (0, 0)},
    ),
    "mask_blocks": Row(
        "pair",
        mask_blocks,
        "MIC's masks",
        "black, where theirs is the mean colour",
        still={"ratio": (0, 0)},
    ),
}
