"""From uint8 images to train ids by one network or several: windows, scales, mirrored.

Logits stay at the network's own resolution. They are resized and reduced to class ids in one step
by `kernels.argmax_upsample`, so that no [N,C,H,W] tensor of the label's size ever exists.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
import models
from engine.device import autocast
from engine.errors import UserError
from engine.values import Views
from inference.windows import in_windows
from models.outputs import resize


class Predictor:
    """Predict class ids with a trained network.

    Several views of an image (scales, mirrored) are averaged as softmax probabilities on the
    output grid of the largest scale; the logarithm of the mean then takes the place of the logits,
    so that one view gives exactly the ids and confidences of the plain pass.

    Args:
        network: in evaluation mode; its device is where this runs. Its `align_corners` says how
            logits are resized: True is AdaptSegNet's and ADVENT's protocol, False DAFormer's; it
            moves mIoU by about a point, so it belongs to the checkpoint.
        precision: "bf16" or "fp32" of the network; everything after it is float32.
        views: see `Views`, and `windows`.
        temperature: that logits are divided by; 1 leaves them as they are.

    Raises:
        UserError: a value that is not allowed.

    Source: averaging of views: Seg-Uncertainty evaluate_cityscapes.py and
    generate_plabel_cityscapes.py. Deviation: they resize each view's logits to the full size
    before the softmax.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: str = "fp32",
        views: Views = Views(),  # noqa: B008 -- frozen
        temperature: float = 1.0,
    ) -> None:
        scales, slide = views.scales, views.slide
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UserError(f"scales must be above 0, finite, given {','.join(map(str, scales))}")
        if slide is not None and any(side < 32 or side % 32 for side in slide):
            raise UserError(f"a window's sides must be multiples of 32, given {slide}")
        self.network, self.precision, self.views = network, precision, views
        self.temperature = temperature
        self.device = next(network.parameters()).device
        self.align_corners = network.align_corners

    @torch.inference_mode()
    def __call__(
        self, images: Tensor, size: tuple[int, int], with_confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the class of every pixel.

        Args:
            images: uint8 [N,3,h,w] RGB, on any device.
            size: H, W of the result, usually the label's.
            with_confidence: return the softmax maximum too.

        Returns:
            train ids uint8 [N,H,W] (and confidence float32 [N,H,W], 0..1).
        """
        logits = self.logits(images)
        return kernels.argmax_upsample(logits, size, self.align_corners, with_confidence)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N,C,h,w] at the network's own resolution.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
        """
        if self.views.scales == (1.0,) and not self.views.flip:
            return self._forward(self._normalised(images))
        return log_probs(self.probabilities(images))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> Tensor:
        """Return the softmax averaged over the views, on the grid of the largest of them.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
            heads: outputs of the network, "out" and "aux".

        Returns:
            float32 [N,K*C,h,w], the C classes of each of the K heads one after the other.
        """
        images = self._normalised(images)
        total: Tensor | None = None
        for scale in sorted(self.views.scales, reverse=True):
            scaled = _resize_images(images, scale)
            for mirrored in (False, True) if self.views.flip else (False,):
                logits = self._forward(scaled.flip(3) if mirrored else scaled, heads)
                probs = torch.cat([head.softmax(1) for head in logits.chunk(len(heads), 1)], 1)
                probs = probs.flip(3) if mirrored else probs
                if total is None:
                    total = torch.zeros_like(probs)
                total += resize(probs, total.shape[-2:], self.align_corners)
        return total / (len(self.views.scales) * (1 + self.views.flip))

    def _normalised(self, images: Tensor) -> Tensor:
        assert not self.network.training, "the network is in training mode"
        images = images.to(self.device, non_blocking=True)
        return models.normalise(images, self.network.normalisation)

    def _forward(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> Tensor:
        network = functools.partial(self._network, heads=heads)
        if self.views.slide is None:
            return network(images)
        return in_windows(network, images, self.views.slide)

    def _network(self, images: Tensor, heads: tuple[str, ...]) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            outputs = self.network(images, aux="aux" in heads)
        logits = torch.cat([outputs[head].float() for head in heads], 1)
        return logits if self.temperature == 1 else logits / self.temperature


class Ensemble:
    """Predict class ids with several networks: the mean of their softmax probabilities.

    Every network's probabilities (themselves the mean of its views) are resized to the grid of the
    one with the most cells; the logarithm of the mean then takes the place of the logits.

    Args:
        predictors: of the same classes, device and align_corners; their networks, normalisation
            and strides may differ. One alone predicts what it predicts by itself.
        weights: of each in the mean, above 0; None for 1 each.
    """

    def __init__(self, predictors: list[Predictor], weights: list[float] | None = None) -> None:
        assert len({(p.device, p.align_corners) for p in predictors}) == 1, "members must agree"
        self.predictors = predictors
        self.weights = weights or [1.0] * len(predictors)
        self.device = predictors[0].device
        self.align_corners = predictors[0].align_corners

    # the same method for one network and for several
    __call__ = Predictor.__call__

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N,C,h,w] on the finest grid of the networks.

        Args:
            images: uint8 [N,3,H,W] RGB, on any device.
        """
        if len(self.predictors) == 1:
            return self.predictors[0].logits(images)
        return self.mean(self.probabilities(images))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, heads: tuple[str, ...] = ("out",)) -> list[Tensor]:
        """Return what `Predictor.probabilities` does of every network, each on its own grid."""
        images = images.to(self.device, non_blocking=True)
        return [predictor.probabilities(images, heads) for predictor in self.predictors]

    def mean(self, probs: list[Tensor]) -> Tensor:
        """Return the logarithm of the weighted mean, float32 [N,C,h,w], on the finest grid.

        Args:
            probs: float32 [N,C,h,w] of every network, each on its own grid.
        """
        size = max((p.shape[-2:] for p in probs), key=math.prod)
        share = [weight / sum(self.weights) for weight in self.weights]
        resized = (resize(p, size, self.align_corners) for p in probs)
        return log_probs(sum(w * p for w, p in zip(share, resized, strict=True)))


def log_probs(probs: Tensor) -> Tensor:
    """Return finite logarithms: a probability of 0 would make -inf * 0 = nan when interpolated."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _resize_images(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
