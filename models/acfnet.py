"""ACFNet: what each class looks like in this image, handed to each pixel by its probabilities."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from engine.words import Count
from models.deeplabv3 import ASPP
from models.encoded import EncodedNetwork
from models.layers import conv_norm_relu, require_positive


def class_centers(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each class's mean feature, weighted by its probability (equation 2).

    Args:
        features: float [N,D,h,w].
        logits: float [N,C,h,w].

    Returns:
        float32 [N,C,D], and the probabilities float32 [N,C,h*w].
    """
    probabilities = logits.flatten(2).float().softmax(1)
    weights = probabilities / probabilities.sum(2, keepdim=True).clamp(min=1e-6)
    return weights @ features.flatten(2).transpose(1, 2).float(), probabilities


class ACFNet(EncodedNetwork):
    """Attentional class feature network: logits at the encoder's stride.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of its deepest features.
        dilations: of an ASPP on them, for output stride 8.
        width: channels of every branch, of the class centers and of the heads.

    Raises:
        UserError: a value that does not exist.

    Source: Zhang et al., 2019, ACFNet (arXiv:1909.09408), sections 3.2 and 3.3: the class center
    block (`class_centers`), the class attention block (its centers by each pixel's probabilities)
    and the coarse head that the probabilities come from, which is the auxiliary output here. There
    is no file of the authors. Deviations: the weight of the coarse loss is the 0.4 that auxiliary
    heads have; no third loss inside the encoder.
    """

    heads = ("out", "aux")
    aux_weight = 0.4

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet101",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 8,
        dilations: Annotated[tuple[int, ...], "of the ASPP's branches"] = (12, 24, 36),
        width: Annotated[Count, "channels of branches, centers and heads"] = 512,
    ):
        super().__init__(encoder, output_stride)
        dilations = require_positive("dilations", dilations)
        require_positive("width", [width])
        self.base = ASPP(self.channels[-1], width, dilations, dropout=0.1)
        self.coarse_head = nn.Sequential(
            conv_norm_relu(self.channels[-1], width, 3, "batch"),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes, 1),
        )
        self.reduce = conv_norm_relu(self.channels[-1], width, 1, "batch")
        self.refine = conv_norm_relu(width, width, 1, "batch")
        self.head = nn.Sequential(
            conv_norm_relu(2 * width, width, 3, "batch"),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the encoder's stride.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to return the coarse logits, which are computed in any case.

        Returns:
            "out" and "aux": float [N,C,h,w].
        """
        x = self.encoder.features(images)[-1]
        coarse = self.coarse_head(x)
        reduced = self.reduce(x)
        centers, probabilities = class_centers(reduced, coarse)
        attended = (centers.transpose(1, 2) @ probabilities).to(reduced.dtype)  # [N,D,h*w]
        attended = self.refine(attended.unflatten(2, reduced.shape[2:]))
        outputs = {"out": self.head(torch.cat([self.base(x), attended], dim=1))}
        return outputs | {"aux": coarse} if aux else outputs
