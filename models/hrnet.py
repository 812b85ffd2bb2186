"""HRNet: the branches of every resolution, side by side at the finest, and two 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoded import EncodedNetwork


def together(features: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Bring the last four maps to the finest one's size, bilinearly, and concatenate them."""
    finest, *coarser = features[-4:]
    how = {"size": finest.shape[2:], "mode": "bilinear", "align_corners": align_corners}
    return torch.cat([finest, *(F.interpolate(x, **how) for x in coarser)], dim=1)


def pixel_head(channels: int, num_classes: int) -> nn.Sequential:
    """Build a 1x1 convolution of as many channels, batch norm and ReLU, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, num_classes, 1),
    )


class HRNet(EncodedNetwork):
    """HRNetV2 for segmentation: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: hrnet_w18, hrnet_w32 or hrnet_w48; the last four maps of another serve as well.

    Raises:
        UserError: an encoder that does not exist.

    Source: Wang et al., 2020, Deep High-Resolution Representation Learning, section 3.3;
    HRNet-Semantic-Segmentation lib/models/seg_hrnet.py with corners not aligned, as its Cityscapes
    configurations have it, whose files load.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "hrnet_w18",
    ):
        super().__init__(encoder, resize="bilinear")
        self.last_layer = pixel_head(sum(self.channels[-4:]), num_classes)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,ceil(H/4),ceil(W/4)].
        """
        features = self.encoder.features(images)
        return {"out": self.last_layer(together(features, self.align_corners))}
