"""Pasting from one image of a batch onto another: classes and boxes, drawn at random.

What is pasted comes from the next image of the batch, its label with it. Methods that mix domains
draw their classes and boxes here too.
"""

from typing import Annotated

import torch

from engine.errors import UserError
from engine.parsing import between, scale_range, swing
from training.augment import geometry, moves
from training.augment.row import Range, Row

Maps = torch.Tensor | None


def class_ids(text: str) -> tuple[int, ...]:
    """Parse train ids with commas between."""
    return tuple(int(between(0, 254)(part)) for part in text.split(","))


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


def paste(
    images: torch.Tensor, maps: Maps, above: tuple[torch.Tensor, Maps], where: torch.Tensor
) -> tuple[torch.Tensor, Maps]:
    """Return images and maps with others on top of them where a mask, bool [N,H,W], says so."""
    where = where.unsqueeze(1)
    images = torch.where(where, above[0], images)
    return images, None if maps is None else torch.where(where, above[1], maps)


def next_ones(name: str, images: torch.Tensor, maps: Maps, labelled: bool) -> tuple:
    """Return what each image of a batch is pasted from.

    Raises:
        UserError: the batch has one image, or no labels where they are needed.
    """
    if labelled and maps is None:
        raise UserError(f"--augment {name} pastes by labels, and these images have none")
    if len(images) == 1:
        raise UserError(f"--augment {name} pastes within a batch: give --batch-size 2 or more")
    return images.roll(-1, 0), None if maps is None else maps.roll(-1, 0)


def cutmix(images: torch.Tensor, maps: Maps, on: torch.Tensor) -> tuple[torch.Tensor, Maps]:
    """Paste a box of half the area."""
    above, (n, _, height, width) = next_ones("cutmix", images, maps, False), images.shape
    boxes = half_area_boxes(n, height, width).to(images.device, non_blocking=True)
    x0, y0, x1, y1 = boxes.view(n, 4, 1).unbind(1)
    x, y = (torch.arange(length, device=images.device) for length in (width, height))
    rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
    return paste(images, maps, above, rows.unsqueeze(2) & columns.unsqueeze(1) & on.view(n, 1, 1))


def classmix(images: torch.Tensor, maps: Maps, on: torch.Tensor) -> tuple[torch.Tensor, Maps]:
    """Paste half of the classes."""
    above = next_ones("classmix", images, maps, True)
    label = above[1][:, 0]
    chosen = half_of_classes(label)[torch.arange(len(label)).view(-1, 1), label.flatten(1).long()]
    return paste(images, maps, above, chosen.view_as(label) & on.view(-1, 1, 1))


def copy_paste(
    images: torch.Tensor,
    maps: Maps,
    on: torch.Tensor,
    *,
    classes: Annotated[tuple[int, ...], class_ids, "train ids, for instance 11,12,18"],
    zoom: Annotated[Range, scale_range, "factor of the size"] = (0.5, 1.5),
    degrees: moves.Degrees = (-15.0, 15.0),
    shift: Annotated[Range, swing(1), "shares of the width and of the height"] = (-0.3, 0.3),
) -> tuple[torch.Tensor, Maps]:
    """Paste all that is of some classes, moved, enlarged and turned as a whole."""
    above, (n, _, height, width) = next_ones("copy_paste", images, maps, True), images.shape
    moved = moves.affine(
        n, (width, height), zoom=zoom, shift=shift, degrees=degrees, shear=(0.0, 0.0)
    )
    grid = geometry.make_grid(moved[:, :2], None, (height, width), images.device)
    above = geometry.sample(*above, grid)
    wanted = torch.zeros(256, dtype=torch.bool)
    wanted[list(classes)] = True
    where = wanted.to(images.device, non_blocking=True)[above[1][:, 0].long()]
    return paste(images, maps, above, where & on.view(n, 1, 1))


FROM_BATCH = "from the batch's next image; "
AUGMENTATIONS = {
    "cutmix": Row("paste", cutmix, "CutMix-Seg", FROM_BATCH + "in one domain, with true labels"),
    "classmix": Row("paste", classmix, "ClassMix", FROM_BATCH + "in one domain, with true labels"),
    "copy_paste": Row(
        "paste",
        copy_paste,
        "Simple Copy-Paste (Ghiasi et al. 2021)",
        FROM_BATCH + "whole classes, for there are no instances; edges are not blended",
    ),
}
