"""What is done to a network's output maps wherever it is used."""

import torch
import torch.nn.functional as F


def resize(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Resize float maps [N,C,h,w] to (H, W) bilinearly, in float32."""
    if logits.shape[-2:] == tuple(size):
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=align_corners)


def divergence(reference: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence KL(reference || predicted) of each pixel.

    Args:
        reference, predicted: float [N,C,H,W], log-probabilities.

    Returns:
        float [N,H,W], in nats.
    """
    return (reference.exp() * (reference - predicted)).sum(1)
