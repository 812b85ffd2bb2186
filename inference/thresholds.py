"""How sure a prediction is: thresholds for each class, and how far two heads agree."""

import torch
from torch import Tensor

import kernels
from inference.predictor import Ensemble
from models.outputs import divergence, resize

# Trained networks are sure of most of what they see: equal parts of 0..1 would put half the road
# into the last one. Equal parts of log2(1 - confidence) still tell 0.9999 from 0.99999. 24 octaves
# are all that a float32 below 1 can hold.
OCTAVES, PARTS = 24, 170
BINS = OCTAVES * PARTS  # the kernel takes 4096


def position(confidence: Tensor) -> Tensor:
    """Return -log2(1 - confidence) / 24, float32 0..1 of the same shape.

    Args:
        confidence: float32, 0..1.
    """
    return -(1 - confidence).clamp_min(2.0**-OCTAVES).log2() / OCTAVES


def histogram(confidence: Tensor, pred: Tensor, num_classes: int) -> Tensor:
    """Count pixels by predicted class and bin, int64 [C,BINS].

    Args:
        confidence: float32 [N,H,W], 0..1.
        pred: uint8 [N,H,W].
        num_classes: C.
    """
    return kernels.confidence_histogram(position(confidence), pred, num_classes, BINS)


def class_bins(counts: Tensor, portion: float) -> Tensor:
    """Return the bin from which on each class is kept, int64 [C].

    It is the highest bin in and above which at least `portion` of the class's pixels lie: less is
    never kept, and what is kept beyond it lies in that one bin. So every class that was predicted
    keeps pixels. The bin of a class that was not is 0.

    Args:
        counts: int64 [C,BINS] of `histogram`.
        portion: share of each class's pixels to keep, above 0 to 1.

    Source: Zou et al. 2018 (CBST), algorithm 2: the threshold exp(-k_c) is the confidence of the
    pixel that ranks at the portion. Deviations: it is rounded down to the edge of a bin; a pixel
    keeps its most probable class, where theirs (equation 9) takes the class whose probability is
    the largest multiple of its threshold; the portion does not grow from round to round.
    """
    above = counts.flip(1).cumsum(1).flip(1)  # pixels in a bin or above it, falling from bin 0 on
    enough = (above > 0) & (above.double() >= portion * above[:, :1].double())
    return (enough.sum(1) - 1).clamp_min(0)


def lower_edges(bins: Tensor) -> list[float]:
    """Return the confidence at which bins begin: 0, 1 - 2^(-1/170), 1 - 2^(-2/170), ...

    Args:
        bins: int64 [C].
    """
    return [1 - 2 ** (-b / PARTS) for b in bins.tolist()]


def above_bins(confidence: Tensor, pred: Tensor, bins: Tensor) -> Tensor:
    """Return which pixels lie in the bin of their class or above it, bool [N,H,W].

    Args:
        confidence: float32 [N,H,W], 0..1.
        pred: uint8 [N,H,W].
        bins: int64 [C] of `class_bins`.
    """
    # the kernel's own arithmetic: trunc(position * BINS), the last bin at most
    own = (position(confidence) * BINS).clamp_max(BINS - 1).trunc()
    return own >= bins.to(own)[pred.long()]


class WithVariance:
    """Predict as an ensemble does, and return how far the two heads of its networks disagree.

    The disagreement is KL(main || auxiliary) in nats, of the probabilities averaged over views and
    networks, at the networks' resolution; then it is resized.

    Args:
        ensemble: of networks with two heads.

    Source: Zheng and Yang 2021 (Rectifying Pseudo Label Learning via Uncertainty Estimation),
    equation 6. Deviation: theirs is of one view and computed after the resizing.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble, self.device = ensemble, ensemble.device

    @torch.inference_mode()
    def __call__(
        self, images: Tensor, size: tuple[int, int], with_confidence: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids uint8, confidence float32 and disagreement float32, each [N,H,W].

        Args:
            images: uint8 [N,3,h,w] RGB, on any device.
            size: H, W.
            with_confidence: True, as it is returned anyway.
        """
        corners = self.ensemble.align_corners
        probs = self.ensemble.probabilities(images, ("out", "aux"))
        main, aux = self.ensemble.mean(probs).chunk(2, 1)
        pred, confidence = kernels.argmax_upsample(main, size, corners, with_confidence)
        # rounding may leave a divergence of nothing a little below 0
        disagreement = divergence(main, aux).clamp_min(0)
        return pred, confidence, resize(disagreement[:, None], size, corners)[:, 0]


def eight_bits(share: Tensor) -> Tensor:
    """Return round(255 * share) as uint8 of the same shape.

    Args:
        share: float, 0..1.
    """
    return (share * 255).round().clamp(0, 255).byte()
