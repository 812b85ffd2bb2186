"""What a set of masks, each with its class, is held to a label map by: pairs, then three losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.matching import assign

IGNORE = 255
POINTS = 112 * 112  # of each mask, at which it is compared
OVERSAMPLED, UNSURE = 3, 0.75  # times the points that are looked at; share chosen for being unsure
NO_OBJECT = 0.1  # weight of the class "no object"
CLASS, MASK, DICE = 2.0, 5.0, 5.0  # weights of the terms, and of the costs of a pair


class Label:
    """A batch of label maps, read at points between pixels.

    Args:
        label: uint8 [N,H,W], 255 = ignore.
        pixel_weight: float [N,H,W]; None for 1 everywhere.

    Attributes:
        classes: int64 [K_i] of each image, those that it has.
        importance: float32 [N], the mean weight of an image's labelled pixels; 0 where none is.
    """

    def __init__(self, label: Tensor, pixel_weight: Tensor | None = None):
        self.label, self.pixel_weight = label, pixel_weight
        labelled = label != IGNORE
        self.classes = [ids[ids != IGNORE].long() for ids in map(torch.unique, label)]
        self.importance = labelled.any(2).any(1).float()
        if pixel_weight is not None:
            total = (labelled * pixel_weight.float()).sum((1, 2))
            self.importance = total / labelled.sum((1, 2)).clamp(min=1)

    def at(self, points: Tensor, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what masks are to be at points, and which of these count.

        Args:
            points: float32 [K,P,2], x and y as shares of width and height.
            images: int64 [K], whose they are.
            classes: int64 [K], of which class the masks are.

        Returns:
            float32 [K,P], interpolated bilinearly, 0 outside of the image; and bool [K,P], whether
            the pixels around it all have a label.
        """
        h, w = self.label.shape[-2:]
        x, y = points[..., 0] * w - 0.5, points[..., 1] * h - 0.5
        left, top = x.floor(), y.floor()
        wanted, counts = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
                ids = self._pixel(self.label, images, column, row)
                wanted += share_x * share_y * (inside & (ids == classes[:, None]))
                counts &= ids != IGNORE
        return wanted, counts

    def weight_at(self, points: Tensor, images: Tensor) -> Tensor | float:
        """Return the weight of the pixel that each point lies in, float32 [K,P], or 1."""
        if self.pixel_weight is None:
            return 1.0
        h, w = self.label.shape[-2:]
        x, y = (points * points.new_tensor([w, h])).floor().unbind(2)
        return self._pixel(self.pixel_weight, images, x, y).float()

    @staticmethod
    def _pixel(maps: Tensor, images: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the pixels of maps [N,H,W] at x and y, those outside being the nearest inside."""
        h, w = maps.shape[-2:]
        x, y = x.long().clamp(0, w - 1), y.long().clamp(0, h - 1)
        return maps.flatten()[(images[:, None] * h + y) * w + x]


def set_loss(
    queries: Tensor,
    masks: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the weighted terms of masks and their classes, each summed over the layers.

    Every class of an image is one mask; in each layer, it is paired with the query that fits it
    best, and the other queries are to say "no object".

    Args:
        queries: float [L,N,Q,C+1], logits of the classes and of "no object", by layer.
        masks: float [L,N,Q,h,w], logits.
        label: uint8 [N,H,W], 255 = ignore.
        class_weight: float [C], of the cross-entropy of classes; None for 1 each.
        pixel_weight: float [N,H,W]: of the points in masks; classes and overlaps weigh by its mean
            over the image.

    Returns:
        float32 scalars: "class", "mask" and "dice"; 0 with zero gradients where nothing is
        labelled.

    Source: Cheng et al. 2022 (Mask2Former), section 3.3 and its mask2former/modeling/criterion.py.
    Deviations: a pixel without a label is in no point, where theirs takes it for the background of
    every mask, and an image without any label asks for nothing; each process counts its own masks.
    """
    truth = Label(label, pixel_weight)
    weight = queries.new_ones(queries.shape[-1], dtype=torch.float32)
    if class_weight is not None:
        weight[:-1] = class_weight
    weight[-1] = NO_OBJECT
    layers = range(len(queries))
    total: dict[str, Tensor | float] = {"class": 0.0, "mask": 0.0, "dice": 0.0}
    for layer in (layers[-1], *layers[:-1]):
        logits, maps = queries[layer].float(), masks[layer].float()
        pairs = [match(logits[i], maps[i], truth, i) for i in range(len(label))]
        mask, dice = mask_losses(maps, pairs, truth)
        total["mask"] = total["mask"] + MASK * mask
        total["dice"] = total["dice"] + DICE * dice
        total["class"] = total["class"] + CLASS * class_loss(logits, pairs, truth, weight)
    return total


@torch.no_grad()
def match(logits: Tensor, maps: Tensor, truth: Label, image: int) -> tuple[Tensor, Tensor]:
    """Pair queries with the classes of one image.

    Args:
        logits: float32 [Q,C+1].
        maps: float32 [Q,h,w].
        truth: of the batch.
        image: which of it.

    Returns:
        The queries, and the class of each, int64 [min(Q,K)] on the device.
    """
    classes = truth.classes[image]
    if not len(classes):
        return classes, classes
    points = torch.rand(1, POINTS, 2, device=maps.device)
    x = sample(maps[None], points)[0]  # [Q,P]
    images = torch.full_like(classes, image)
    wanted, counts = truth.at(points.expand(len(classes), -1, -1), images, classes)
    counts = counts[:1].float()  # the same for all
    number, probs, wanted = counts.sum().clamp(min=1), x.sigmoid() * counts, wanted * counts
    off = F.softplus(x) * counts @ (counts - wanted).T
    cost_mask = ((F.softplus(-x) * counts) @ wanted.T + off) / number
    both = probs.sum(1, keepdim=True) + wanted.sum(1)
    cost_dice = 1 - (2 * probs @ wanted.T + 1) / (both + 1)
    cost = MASK * cost_mask - CLASS * logits.softmax(1)[:, classes] + DICE * cost_dice
    largest = torch.finfo(cost.dtype).max  # of what is undefined: the loss will say so
    cost = cost.nan_to_num(largest, largest, largest).cpu().numpy()
    chosen, which = (torch.from_numpy(one).to(maps.device) for one in assign(cost))
    return chosen, classes[which]


def class_loss(
    logits: Tensor, pairs: list[tuple[Tensor, Tensor]], truth: Label, weight: Tensor
) -> Tensor:
    """Return the mean cross-entropy of all queries' classes, weighted by class and image.

    Args:
        logits: float32 [N,Q,C+1].
        pairs: of each image, see `match`.
        truth: of the batch.
        weight: float32 [C+1].
    """
    wanted = torch.full(logits.shape[:2], logits.shape[2] - 1, device=logits.device)
    for row, (chosen, classes) in zip(wanted, pairs, strict=True):
        row[chosen] = classes
    losses = F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="none")
    known = (truth.label != IGNORE).any(2).any(1)[:, None]
    count = (weight[wanted] * known).sum()
    return (losses * truth.importance[:, None] * known).sum() / count.clamp(min=1e-6)


def mask_losses(
    maps: Tensor, pairs: list[tuple[Tensor, Tensor]], truth: Label
) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and dice of the paired masks at points, means over the masks.

    Args:
        maps: float32 [N,Q,h,w].
        pairs: of each image, see `match`.
        truth: of the batch.
    """
    device = maps.device
    images = torch.cat([torch.full_like(chosen, i) for i, (chosen, _) in enumerate(pairs)])
    if not len(images):
        return maps.sum() * 0, maps.sum() * 0
    chosen, classes = (torch.cat(part) for part in zip(*pairs, strict=True))
    paired = maps[images, chosen][:, None]  # [K,1,h,w]
    with torch.no_grad():
        points = unsure_points(paired, truth, images, classes)
        wanted, counts = truth.at(points, images, classes)
        weight = truth.weight_at(points, images)
    x = sample(paired, points)[:, 0]  # [K,P]
    asked = max(sum(len(ids) for ids in truth.classes), 1)
    losses = F.binary_cross_entropy_with_logits(x, wanted, reduction="none") * weight * counts
    mask = (losses.sum(1) / counts.sum(1).clamp(min=1)).sum() / asked
    probs, wanted = x.sigmoid() * counts, wanted * counts
    overlap = (2 * (probs * wanted).sum(1) + 1) / (probs.sum(1) + wanted.sum(1) + 1)
    dice = ((1 - overlap) * truth.importance.to(device)[images]).sum() / asked
    return mask, dice


def unsure_points(paired: Tensor, truth: Label, images: Tensor, classes: Tensor) -> Tensor:
    """Draw the points of each mask: most where it is unsure, the rest anywhere; float32 [K,P,2].

    Args:
        paired: float32 [K,1,h,w].
        truth, images, classes: whose points have labels, see `Label.at`.

    Source: Kirillov et al. 2020 (PointRend), section 3.1.
    """
    count, device = len(paired), paired.device
    points = torch.rand(count, OVERSAMPLED * POINTS, 2, device=device)
    unsure = -sample(paired, points)[:, 0].abs()
    unsure = unsure.masked_fill(~truth.at(points, images, classes)[1], -torch.inf)
    kept = int(UNSURE * POINTS)
    at = unsure.topk(kept, dim=1).indices
    chosen = points.gather(1, at[:, :, None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(count, POINTS - kept, 2, device=device)], 1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Return float maps [N,C,h,w] at points [N,P,2] between pixels, [N,C,P]; 0 lies outside."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
