"""Losses over logits, as functions. Logits are [N,C,h,w]; labels uint8 [N,H,W], 255 = ignore."""

import math

import torch
import torch.nn.functional as F

from models.outputs import resize


def cross_entropy(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    pixel_weight: torch.Tensor | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """Return the mean cross-entropy over labelled pixels; zero where there are none.

    Logits are resized to the label. A crop without a single labelled pixel gives 0 with zero
    gradients; torch's mean would give NaN and, through one bad crop, lose the run.

    Args:
        logits: float [N,C,h,w].
        label: integer [N,H,W], train ids, 255 = ignore.
        class_weight: float [C]; the mean is then weighted as torch does it.
        pixel_weight: float [N,H,W]. The mean is over all N*H*W pixels then, the ignored ones
            with loss 0: DACS's way, where an unsure image counts for less.

    Returns:
        float32 scalar.

    Source: DACS utils/loss.py (pixel weights).
    """
    logits = resize(logits, label.shape[-2:], align_corners)
    label = label.long()
    if pixel_weight is not None:
        loss = F.cross_entropy(
            logits, label, weight=class_weight, ignore_index=255, reduction="none"
        )
        return (loss * pixel_weight).mean()
    total = F.cross_entropy(logits, label, weight=class_weight, ignore_index=255, reduction="sum")
    valid = label != 255
    if class_weight is None:
        count = valid.sum()
    else:
        count = class_weight[label.masked_fill(~valid, 0)].masked_fill(~valid, 0).sum()
    return total / count.clamp(min=1e-6)


def segmentation(
    out: dict[str, torch.Tensor], label: torch.Tensor, lambda_seg: float, name: str = "seg", **how
) -> dict[str, torch.Tensor]:
    """Return the weighted cross-entropy terms of a network's outputs: `name` and `name`_aux.

    Args:
        out: logits under "out" and, for multi-level networks, "aux".
        label: see `cross_entropy`.
        lambda_seg: weight of the auxiliary output.
        name: of the main term.
        **how: of `cross_entropy`.
    """
    terms = {name: cross_entropy(out["out"], label, **how)}
    if "aux" in out:
        terms[f"{name}_aux"] = lambda_seg * cross_entropy(out["aux"], label, **how)
    return terms


def weighted_information(probs: torch.Tensor) -> torch.Tensor:
    """Return the map -p log2(p) / log2(C), same shape as `probs` [N,C,H,W], values in [0, 1].

    Source: AdvEnt (Vu et al. 2019), section 3.2: the discriminator's input, not summed over
    classes.
    """
    return -probs * torch.log2(probs + 1e-30) / math.log2(probs.shape[1])


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean over pixels of the normalised entropy of softmax(logits), a scalar in [0, 1].

    Source: MinEnt (Vu et al. 2019), equation 3. Computed from log-probabilities: the 1e-30 that
    ADVENT adds inside the logarithm is not needed, and the gradient at p = 0 is exact.
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    per_pixel = -(log_probs.exp() * log_probs).sum(1) / math.log(logits.shape[1])
    return per_pixel.mean()


def gan(decision: torch.Tensor, target: float, kind: str) -> torch.Tensor:
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
