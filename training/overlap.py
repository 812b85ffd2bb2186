"""Losses of regions instead of pixels: how far prediction and label overlap, class by class.

Each is the mean over the classes that occur in the labels of the batch, as a class without a pixel
has no overlap; `class_weight` weighs that mean. Where pixels are weighted (`pixel_weight`), they
count by their weights and the loss is multiplied by the mean weight of all N*H*W pixels, those
without a label having 0: half the weights everywhere is half the loss, as with cross-entropy.

Arguments and result are those of `training.losses.cross_entropy`; logits may be of any float type,
the arithmetic is float32.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parsing import at_least
from engine.words import Count, Weight

IGNORE = 255
ONE = 0x3F80_0000  # the bits of 1.0: those of floats in 0 to 1 are integers in the same order


def lovasz(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Return the Lovasz extension of the Jaccard loss 1 - IoU, over all pixels of the batch.

    The errors of a class are sorted, and each counts by how much the Jaccard loss grows when its
    pixel joins the wrong ones: by 1 / U for a pixel of the class, by I / (U (U - 1)) for another,
    I and U being intersection and union once it has joined.

    Source: Lovasz-Softmax (Berman et al. 2018), section 3.1 and algorithm 1, classes "present".
    Deviations: the growth is computed as it stands above, not as a difference of two rounded
    losses; errors are sorted by their bits, as integers, which is quicker; pixel weights.
    """
    probs, _, scale = _prepare(logits, label, pixel_weight)
    with torch.no_grad():  # the loss is linear in the probabilities, given the order of the errors
        counts = torch.bincount(label[label != IGNORE], minlength=probs.shape[1]).tolist()
        present = [c for c, count in enumerate(counts) if count]
        share = [1.0 if class_weight is None else float(class_weight[c]) for c in present]
        slope, constant = torch.zeros_like(probs), probs.new_zeros(())
        for c, part in zip(present, share, strict=True):
            fg = label == c
            growth = _growth(probs[:, c], fg, label == IGNORE, pixel_weight) * part
            constant += growth[fg].sum()
            slope[:, c] = torch.where(fg, -growth, growth)
        total = max(sum(share), 1e-6)
    return scale * ((probs * slope).sum() + constant) / total


def _growth(probs: Tensor, fg: Tensor, ignored: Tensor, pixel_weight: Tensor | None) -> Tensor:
    """Return what the error of each pixel is multiplied by in the Lovasz extension of a class.

    Args:
        probs: float32 [N,H,W] of the class.
        fg, ignored: bool [N,H,W], the pixels of the class, and those without a label.
        pixel_weight: float [N,H,W], or None.

    Returns:
        float32 [N,H,W], 0 where there is no label.
    """
    error = torch.where(fg, 1 - probs, probs).clamp_(0, 1)
    key = (ONE - error.view(torch.int32)).masked_fill_(ignored, ONE + 1)  # the worst come first
    order = key.flatten().argsort()
    fg = fg.flatten()[order]
    if pixel_weight is None:  # integers, as float32 counts to 16 million only
        seen = fg.cumsum(0, dtype=torch.int32)
        missed, total, own = torch.arange(1, len(seen) + 1, device=fg.device) - seen, seen[-1], 1
    else:
        own = pixel_weight.masked_fill(ignored, 0).flatten().float()[order]
        seen, missed = (own * fg).cumsum(0), (own * ~fg).cumsum(0)
        total = seen[-1]
    union = (total + missed).float().clamp_(min=1e-6)
    before = (union - own).clamp_(min=1e-6)  # for a pixel that is not of the class
    growth = torch.where(fg, 1 / union, (total - seen).clamp_(min=0) / (union * before)) * own
    return torch.empty_like(growth).index_copy_(0, order, growth).view_as(probs) * ~ignored


def tversky(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    fp: Annotated[Weight, "weight of false positives"] = 0.3,
    fn: Annotated[Weight, "weight of misses"] = 0.7,
    smooth: Annotated[Weight, "pixels added to both sides of the fraction"] = 1.0,
) -> Tensor:
    """Return 1 - TP / (TP + fp FP + fn FN), probabilities in place of counts.

    Source: Salehi et al. 2017, equation 3 (alpha is `fp`, beta is `fn`; theirs has no `smooth`).
    """
    index, present, scale = _tversky_index(logits, label, pixel_weight, (fp, fn, smooth))
    return scale * _mean(1 - index, present, class_weight)


def dice(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    smooth: Annotated[Weight, "pixels added to both sides of the fraction"] = 1.0,
) -> Tensor:
    """Return 1 - 2 TP / (predicted + true), probabilities in place of counts: Tversky's at a half.

    Source: Sudre et al. 2017, section 2.1 (DL2 without its weights); V-Net (Milletari et al. 2016)
    has squares in the denominator.
    """
    return tversky(logits, label, class_weight, pixel_weight, fp=0.5, fn=0.5, smooth=smooth / 2)


def focal_tversky(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    fp: Annotated[Weight, "weight of false positives"] = 0.3,
    fn: Annotated[Weight, "weight of misses"] = 0.7,
    gamma: Annotated[float, at_least(1, float), "1 is Tversky's loss"] = 4 / 3,
    smooth: Annotated[Weight, "pixels added to both sides of the fraction"] = 1.0,
) -> Tensor:
    """Return Tversky's loss of each class to the power of 1 / gamma: classes that fail count more.

    Source: Abraham and Khan 2019, equation 4 (gamma 4/3, their alpha is `fn`).
    """
    index, present, scale = _tversky_index(logits, label, pixel_weight, (fp, fn, smooth))
    wrong = (1 - index).clamp(min=1e-6)  # at 0 a root has no slope
    return scale * _mean(wrong ** (1 / gamma), present, class_weight)


def boundary(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    width: Annotated[Count, "pixels across a boundary, odd"] = 3,
    tolerance: Annotated[Count, "pixels across what counts as met, odd"] = 5,
) -> Tensor:
    """Return 1 - F1 of the boundaries of each class in each image.

    The boundary of a class is what a maximum filter of `width` adds to all that is not the class;
    a filter of `tolerance` widens it for the other side's to be found.

    Source: Bokhovkin and Burnaev 2019, equations 1 to 4. Deviations: an edge towards pixels without
    a label is none; classes that an image lacks are left out of the mean.
    """
    probs, weight, scale = _prepare(logits, label, pixel_weight)
    valid, inner, outer = label != IGNORE, width // 2 * 2 + 1, tolerance // 2 * 2 + 1

    def widened(map_: Tensor, side: int) -> Tensor:
        return F.max_pool2d(map_[:, None], side, stride=1, padding=side // 2)[:, 0]

    def overlap(one: Tensor, other: Tensor) -> Tensor:  # of each image
        met, total = (one * other * weight).sum((1, 2)), (one * weight).sum((1, 2))
        return met / total.clamp(min=1e-6)

    losses, present = [], []
    for c in range(probs.shape[1]):
        edges = []
        for share in ((label == c).float(), probs[:, c]):
            rest = (1 - share) * valid
            edges.append((widened(rest, inner) - rest) * valid)
        true, predicted = edges
        precision = overlap(predicted, widened(true, outer))
        recall = overlap(true, widened(predicted, outer))
        losses.append(1 - 2 * precision * recall / (precision + recall).clamp(min=1e-6))
        present.append((true * weight).sum((1, 2)) > 0)
    losses, present = torch.stack(losses, 1), torch.stack(present, 1)  # [N,C]
    return scale * _mean(losses, present, class_weight)


def _prepare(logits: Tensor, label: Tensor, pixel_weight: Tensor | None) -> tuple:
    """Return probabilities float32 [N,C,H,W], weights [N,H,W] and what the loss is scaled by."""
    valid = label != IGNORE
    probs = logits.float().softmax(1)
    if pixel_weight is None:
        return probs, valid.float(), 1.0
    weight = pixel_weight.float().masked_fill(~valid, 0)
    return probs, weight, weight.mean()


def _tversky_index(
    logits: Tensor, label: Tensor, pixel_weight: Tensor | None, how: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return the index of each class [C], whether it occurs [C], and the scale of the loss.

    Args:
        logits, label, pixel_weight: of the loss.
        how: weight of false positives and of misses, and what smoothes.
    """
    probs, weight, scale = _prepare(logits, label, pixel_weight)
    fp, fn, smooth = how
    hit = probs.gather(1, label.masked_fill(label == IGNORE, 0)[:, None])[:, 0] * weight
    predicted = torch.einsum("nchw,nhw->c", probs, weight)
    of_class = [label == c for c in range(probs.shape[1])]
    hits = torch.stack([(hit * fg).sum() for fg in of_class])
    truth = torch.stack([(weight * fg).sum() for fg in of_class])
    missed, wrong = truth - hits, predicted - hits
    index = (hits + smooth) / (hits + fp * wrong + fn * missed + smooth).clamp(min=1e-6)
    return index, truth > 0, scale


def _mean(values: Tensor, present: Tensor, class_weight: Tensor | None) -> Tensor:
    """Return the mean of [...,C] over what is present, by the weights of its classes."""
    share = present.float() if class_weight is None else present * class_weight
    return (values * share).sum() / share.sum().clamp(min=1e-6)
