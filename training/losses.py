"""Losses over logits, as functions; those of pixels against labels are chosen by name: LOSSES.

Logits are [N,C,h,w]; labels [N,H,W], 255 = ignore.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import UserError
from engine.words import Count, Share, Weight, bind
from models.outputs import resize
from training.overlap import IGNORE, boundary, dice, focal_tversky, lovasz, tversky


class PixelLoss:
    """The weighted sum of losses that a network's outputs are held to their labels by.

    Args:
        terms: weight, name in LOSSES and arguments of each; see `parse_loss`.
        class_weight: float [C] on the device of the logits, or None.
        align_corners: how logits are resized to the label.

    Raises:
        UserError: a name that does not exist.
    """

    def __init__(
        self,
        terms: list[tuple[float, str, dict]],
        class_weight: Tensor | None = None,
        align_corners: bool = False,
    ):
        self.terms, self.class_weight, self.align_corners = terms, class_weight, align_corners

    def __call__(
        self,
        logits: Tensor,
        label: Tensor,
        kind: str | None = None,
        *,
        pixel_weight: Tensor | None = None,
        balanced: bool = True,
    ) -> Tensor:
        """Return a float32 scalar; 0 with zero gradients where no pixel has a label.

        Args:
            logits: float [N,C,h,w].
            label: integer [N,H,W].
            kind: one of LOSSES in place of the sum.
            pixel_weight: float [N,H,W], see `cross_entropy`.
            balanced: whether classes weigh by `class_weight`.
        """
        terms = self.terms if kind is None else [(1.0, kind, {})]
        if not terms:
            return torch.zeros((), device=logits.device)
        logits, label = resize(logits, label.shape[-2:], self.align_corners), label.long()
        class_weight = self.class_weight if balanced else None
        return sum(
            weight * LOSSES[name](logits, label, class_weight, pixel_weight, **arguments)
            for weight, name, arguments in terms
        )


def parse_loss(words: list[str]) -> list[tuple[float, str, dict]]:
    """Read the words of --loss: `0.8*ce 0.2*ohem threshold=0.7`.

    A word is [WEIGHT*]NAME; `KEY=VALUE` words are arguments of the loss before them.

    Raises:
        UserError: a name, key or value that does not exist; says which do.
    """
    terms: list[tuple[float, str, dict]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            if not terms:
                raise UserError(f"--loss {word}: an argument follows the loss that it belongs to")
            name = terms[-1][1]
            terms[-1][2].update(bind(f"loss {name}", LOSSES[name], [(key, value)]))
            continue
        factor, star, name = word.rpartition("*")
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight < math.inf:
            raise UserError(f"--loss {word}: the weight before * is a number of at least 0")
        if name not in LOSSES:
            raise UserError(f"--loss {word}: no loss {name!r}; there are: {', '.join(LOSSES)}")
        terms.append((weight, name, {}))
    return terms


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    smoothing: Annotated[Share, "of the target that all classes share"] = 0.0,
) -> Tensor:
    """Return the mean cross-entropy over labelled pixels; zero where there are none.

    A crop without a single labelled pixel gives 0 with zero gradients; torch's mean would give NaN
    and, through one bad crop, lose the run.

    Args:
        logits: float [N,C,H,W]; the arithmetic is float32.
        label: int64 [N,H,W], train ids, 255 = ignore.
        class_weight: float [C]; the mean is then weighted as torch does it.
        pixel_weight: float [N,H,W]. The mean is over all N*H*W pixels then, the ignored ones
            with loss 0: DACS's way, where an unsure image counts for less.
        smoothing: e; the target of a pixel is 1 - e + e / C for its class, e / C for the others.

    Returns:
        float32 scalar.

    Source: DACS utils/loss.py (pixel weights); Szegedy et al. 2016, section 7 (smoothing).
    """
    logits = logits.float()
    how = {"weight": class_weight, "ignore_index": IGNORE, "label_smoothing": smoothing}
    if pixel_weight is not None:
        return (F.cross_entropy(logits, label, reduction="none", **how) * pixel_weight).mean()
    total = F.cross_entropy(logits, label, reduction="sum", **how)
    valid = label != IGNORE
    if class_weight is None:
        count = valid.sum()
    else:
        count = class_weight[label.masked_fill(~valid, 0)].masked_fill(~valid, 0).sum()
    return total / count.clamp(min=1e-6)


def ohem(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    threshold: Annotated[Share, "pixels whose true class is surer are easy"] = 0.9,
    kept: Annotated[Count, "pixels that are at least counted as hard"] = 131_072,
) -> Tensor:
    """Return the mean cross-entropy over the hard pixels of a batch; zero where there are none.

    A pixel is hard where the probability of its true class is below `threshold` or, where fewer
    than `kept` pixels are, below that of the pixel that ranks there.

    Args:
        logits, label: see `cross_entropy`.
        class_weight: float [C]; multiplies, the mean is the plain one.
        pixel_weight: float [N,H,W]; multiplies, the mean is over the hard pixels.
        threshold: probability.
        kept: pixels of the batch.

    Source: Shrivastava et al. 2016 (online hard example mining), in the form of HRNet's and
    PIDNet's utils/criterion.py; theirs fails on a batch without labels.
    """
    logits, valid = logits.float(), label != IGNORE
    pixels = F.cross_entropy(
        logits, label, weight=class_weight, ignore_index=IGNORE, reduction="none"
    )
    if pixel_weight is not None:
        pixels = pixels * pixel_weight
    with torch.no_grad():  # which pixels count; probabilities of 2 stand for "no label"
        true = label.masked_fill(~valid, 0)[:, None]
        probs = logits.softmax(1).gather(1, true)[:, 0].masked_fill(~valid, 2.0).flatten()
        lowest = probs.topk(min(kept + 1, len(probs)), largest=False).values
        rank = (valid.sum() - 1).clamp(0, len(lowest) - 1)
        limit = lowest[rank].clamp(min=threshold)
        hard = (probs < limit).view_as(label) & valid
    return pixels.masked_fill(~hard, 0).sum() / hard.sum().clamp(min=1)


def focal(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    *,
    gamma: Annotated[Weight, "how much less sure pixels count; 0 is cross-entropy"] = 2.0,
) -> Tensor:
    """Return the mean of (1 - p) ** gamma times the cross-entropy, p being the true class's.

    Args:
        logits, label, class_weight, pixel_weight: see `cross_entropy`, whose means these are.
        gamma: of the power.

    Source: Lin et al. 2017 (Focal Loss for Dense Object Detection), equation 4; class weights are
    the alpha of equation 5.
    """
    pixels = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="none")
    unsure = (1 - (-pixels).exp()).clamp(min=1e-7)  # at 0 a root has no slope
    pixels = unsure**gamma * pixels
    valid = label != IGNORE
    weight = valid.float()
    if class_weight is not None:
        weight = class_weight[label.masked_fill(~valid, 0)].masked_fill(~valid, 0)
    if pixel_weight is not None:
        return (weight * pixels * pixel_weight).mean()
    return (weight * pixels).sum() / weight.sum().clamp(min=1e-6)


def recall(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy, each class weighing the share of its pixels that the batch misses.

    A class of which every pixel is right weighs 0, one of which none is weighs 1; the mean is the
    plain one over labelled pixels.

    Args:
        logits, label: see `cross_entropy`.
        class_weight: float [C]; multiplies.
        pixel_weight: see `cross_entropy`.

    Source: Tian et al. 2022 (Recall Loss), equation 5: 1 - recall of the batch in hand.
    """
    logits = logits.float()
    with torch.no_grad():
        right = logits.argmax(1) == label
        classes = [label == c for c in range(logits.shape[1])]
        found = torch.stack([(right & fg).sum() for fg in classes])
        missed = 1 - found / torch.stack([fg.sum() for fg in classes]).clamp(min=1)
        missed = missed if class_weight is None else missed * class_weight
    pixels = F.cross_entropy(logits, label, missed, ignore_index=IGNORE, reduction="none")
    if pixel_weight is not None:
        return (pixels * pixel_weight).mean()
    return pixels.sum() / (label != IGNORE).sum().clamp(min=1)


def weighted_information(probs: Tensor) -> Tensor:
    """Return the map -p log2(p) / log2(C), same shape as `probs` [N,C,H,W], values in [0, 1].

    Source: AdvEnt (Vu et al. 2019), section 3.2: the discriminator's input, not summed over
    classes.
    """
    return -probs * torch.log2(probs + 1e-30) / math.log2(probs.shape[1])


def entropy(logits: Tensor) -> Tensor:
    """Return the mean over pixels of the normalised entropy of softmax(logits), a scalar in [0, 1].

    Source: MinEnt (Vu et al. 2019), equation 3. Computed from log-probabilities: the 1e-30 that
    ADVENT adds inside the logarithm is not needed, and the gradient at p = 0 is exact.
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    per_pixel = -(log_probs.exp() * log_probs).sum(1) / math.log(logits.shape[1])
    return per_pixel.mean()


def gan(decision: Tensor, target: float, kind: str) -> Tensor:
    """Return how far a discriminator's output map is from `target` (0 = source, 1 = target domain).

    Args:
        decision: float map, before a sigmoid.
        target: the value wanted everywhere.
        kind: Vanilla (binary cross-entropy on logits) or LS (squared error).
    """
    decision = decision.float()
    wanted = torch.full_like(decision, target)
    if kind == "LS":
        return F.mse_loss(decision, wanted)
    return F.binary_cross_entropy_with_logits(decision, wanted)


# name on the command line -> function(logits, label, class_weight, pixel_weight, **arguments)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "ohem": ohem,
    "focal": focal,
    "recall": recall,
    "lovasz": lovasz,
    "dice": dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "boundary": boundary,
}
