"""What a set of masks, each with its class, is held to a label map by: pairs, then three losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.matching import assign

IGNORE = 255
POINTS = 112 * 112  # of each mask, at which it is compared, as published
OVERSAMPLED, UNSURE = 3, 0.75  # times the points that are looked at; share chosen for being unsure
NO_OBJECT = 0.1  # weight of the class "no object"
CLASS, MASK, DICE = 2.0, 5.0, 5.0  # weights of the terms, and of the costs of a pair
ROUNDED = 1 - 1e-4  # share of a point's pixels that is taken for all of them
Pairs = list[tuple[Tensor, Tensor]]  # of each image: queries, and places of their classes


class Label:
    """A batch of label maps as masks, read at points between pixels.

    Args:
        label: uint8 [N,H,W], 255 = ignore.
        pixel_weight: float [N,H,W]; None for 1 everywhere.

    Attributes:
        classes: int64 [K_i] of each image, those that it has.
        masks: float32 [K_i,H,W] of each image, 1 where the class is.
        labelled: float32 [N], 1 for an image that has a class.
        importance: float32 [N], the mean weight of an image's labelled pixels.
    """

    def __init__(self, label: Tensor, pixel_weight: Tensor | None = None):
        self.classes = [ids[ids != IGNORE].long() for ids in map(torch.unique, label)]
        self.masks = [
            (one == ids[:, None, None]).float()
            for one, ids in zip(label, self.classes, strict=True)
        ]
        known = (label != IGNORE).float()
        self.labelled = known.amax((1, 2))
        # [1,1,H,W] of each image; None where every pixel has a label
        self._known = [None if one.all() else one[None, None] for one in known]
        self.importance, self._weight = self.labelled, pixel_weight
        if pixel_weight is not None:
            total = (known * pixel_weight.float()).sum((1, 2))
            self.importance = total / known.sum((1, 2)).clamp(min=1)

    def counts(self, image: int, points: Tensor) -> Tensor:
        """Return whether the pixels around points all have a label.

        Args:
            image: which.
            points: float32 [K,P,2], x and y as shares of width and height.

        Returns:
            bool [K,P].
        """
        known = self._known[image]
        if known is None:
            return points.new_ones(points.shape[:2], dtype=torch.bool)
        seen = sample(known, points.flatten(0, 1)[None], padding_mode="border")
        return seen.view(points.shape[:2]) > ROUNDED

    def weight(self, image: int, points: Tensor) -> Tensor:
        """Return the weights of the pixels that points lie in, float32 [K,P]; see `counts`."""
        if self._weight is None:
            return points.new_ones(points.shape[:2])
        weight = self._weight[image][None, None].float()
        return sample(weight, points.flatten(0, 1)[None], mode="nearest").view(points.shape[:2])


def set_loss(
    queries: Tensor,
    masks: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    count: int = POINTS,
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
        count: points at which a mask is compared.

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
        pairs = [match(logits[i], maps[i], truth, i, count) for i in range(len(label))]
        mask, dice = mask_losses(maps, pairs, truth, count)
        total["mask"] = total["mask"] + MASK * mask
        total["dice"] = total["dice"] + DICE * dice
        total["class"] = total["class"] + CLASS * class_loss(logits, pairs, truth, weight)
    return total


@torch.no_grad()
def match(
    logits: Tensor, maps: Tensor, truth: Label, image: int, count: int
) -> tuple[Tensor, Tensor]:
    """Pair queries with the classes of one image.

    Args:
        logits: float32 [Q,C+1].
        maps: float32 [Q,h,w].
        truth: of the batch.
        image: which of it.
        count: points at which masks are compared.

    Returns:
        The queries, and the place of each one's class in `truth.classes`, int64 [min(Q,K)].
    """
    classes = truth.classes[image]
    if not len(classes):
        return classes, classes
    points = torch.rand(1, count, 2, device=maps.device)
    x = sample(maps[None], points)[0]  # [Q,P]
    counts = truth.counts(image, points).float()  # [1,P]
    wanted = sample(truth.masks[image][None], points)[0] * counts  # [K,P]
    number, probs = counts.sum().clamp(min=1), x.sigmoid() * counts
    off = F.softplus(x) @ (counts - wanted).T
    cost_mask = (F.softplus(-x) @ wanted.T + off) / number
    both = probs.sum(1, keepdim=True) + wanted.sum(1)
    cost_dice = 1 - (2 * probs @ wanted.T + 1) / (both + 1)
    cost = MASK * cost_mask - CLASS * logits.softmax(1)[:, classes] + DICE * cost_dice
    largest = torch.finfo(cost.dtype).max  # of what is undefined: the loss will say so
    cost = cost.nan_to_num(largest, largest, largest).cpu().numpy()
    chosen, which = assign(cost)
    return torch.from_numpy(chosen).to(maps.device), torch.from_numpy(which).to(maps.device)


def class_loss(logits: Tensor, pairs: Pairs, truth: Label, weight: Tensor) -> Tensor:
    """Return the mean cross-entropy of all queries' classes, weighted by class and image.

    Args:
        logits: float32 [N,Q,C+1].
        pairs: of each image, see `match`.
        truth: of the batch.
        weight: float32 [C+1].
    """
    wanted = torch.full(logits.shape[:2], logits.shape[2] - 1, device=logits.device)
    for row, (chosen, which), classes in zip(wanted, pairs, truth.classes, strict=True):
        row[chosen] = classes[which]
    losses = F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="none")
    count = (weight[wanted] * truth.labelled[:, None]).sum()
    return (losses * truth.importance[:, None]).sum() / count.clamp(min=1e-6)


def mask_losses(maps: Tensor, pairs: Pairs, truth: Label, count: int) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and dice of the paired masks at points, means over the masks.

    Args:
        maps: float32 [N,Q,h,w].
        pairs: of each image, see `match`.
        truth: of the batch.
        count: points at which a mask is compared.
    """
    numbers = [len(chosen) for chosen, _ in pairs]  # of masks, of each image
    if not any(numbers):
        return maps.sum() * 0, maps.sum() * 0
    paired = torch.cat([maps[i, chosen] for i, (chosen, _) in enumerate(pairs)])[:, None]
    masks = torch.cat([truth.masks[i][which] for i, (_, which) in enumerate(pairs)])[:, None]
    with torch.no_grad():
        points = unsure_points(paired, truth, numbers, count)
        wanted = sample(masks, points)[:, 0]
        parts = list(enumerate(points.split(numbers)))
        counts = torch.cat([truth.counts(i, part) for i, part in parts])
        weight = torch.cat([truth.weight(i, part) for i, part in parts])
    x = sample(paired, points)[:, 0]  # [K,P]
    asked = sum(len(ids) for ids in truth.classes)
    losses = F.binary_cross_entropy_with_logits(x, wanted, reduction="none") * weight * counts
    mask = (losses.sum(1) / counts.sum(1).clamp(min=1)).sum() / asked
    probs, wanted = x.sigmoid() * counts, wanted * counts
    overlap = (2 * (probs * wanted).sum(1) + 1) / (probs.sum(1) + wanted.sum(1) + 1)
    importance = torch.cat([truth.importance[i].expand(n) for i, n in enumerate(numbers)])
    return mask, ((1 - overlap) * importance).sum() / asked


def unsure_points(paired: Tensor, truth: Label, numbers: list[int], count: int) -> Tensor:
    """Draw the points of each mask: most where it is unsure, the rest anywhere; float32 [K,P,2].

    Args:
        paired: float32 [K,1,h,w], first those of the first image.
        truth: of the batch; a point that does not count there is the least unsure.
        numbers: of masks, of each image.
        count: P.

    Source: Kirillov et al. 2020 (PointRend), section 3.1.
    """
    number, device = len(paired), paired.device
    points = torch.rand(number, OVERSAMPLED * count, 2, device=device)
    unsure = -sample(paired, points)[:, 0].abs()
    counts = [truth.counts(i, part) for i, part in enumerate(points.split(numbers))]
    kept = int(UNSURE * count)
    at = unsure.masked_fill(~torch.cat(counts), -torch.inf).topk(kept, dim=1, sorted=False).indices
    chosen = points.gather(1, at[:, :, None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(number, count - kept, 2, device=device)], 1)


def sample(maps: Tensor, points: Tensor, **how: str) -> Tensor:
    """Return float maps [N,C,h,w] at points [N,P,2] between pixels, [N,C,P]; 0 lies outside.

    Args:
        maps: any.
        points: x and y as shares of width and height.
        **how: mode and padding_mode of `grid_sample`, in place of bilinear and zeros.
    """
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False, **how)[..., 0]
