"""A small encoder-decoder that learns from random weights within a minute on two CPU cores."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count
from models.base import Network
from models.layers import conv_norm_relu, in_float32, norm, require_positive, upsample_to
from models.transforms import Block


class ResidualBlock(Block):
    """Two 3x3 convolutions, the first dilated, beside the identity."""

    def __init__(self, channels: int, dilation: int, kind: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.norm1 = norm(kind, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(kind, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(y)), inplace=True)


class Compact(Network):
    """Encode to stride 8, look around, decode to stride 2 with two skips.

    Args:
        num_classes: C, classes predicted.
        width: channels at strides 2 and 4; stride 8 has twice as many.
        norm: "group" (no statistics shared between images or domains, so that a gap between
            domains is not one of batch statistics) or "batch".

    Raises:
        UserError: unknown norm, or a width that is no multiple of 8.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: Annotated[Count, "channels at strides 2 and 4"] = 32,
        norm: Annotated[Literal["group", "batch"], "normalisation"] = "group",
    ):
        super().__init__("lite")
        require_positive("width", [width])
        deep = 2 * width
        self.stem2 = conv_norm_relu(3, width, 3, norm, stride=2)
        self.stem4 = conv_norm_relu(width, width, 3, norm, stride=2)
        self.stem8 = conv_norm_relu(width, deep, 3, norm, stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(deep, d, norm) for d in (1, 2, 4)))
        self.context = nn.Conv2d(deep, deep, 1)
        self.decode4 = conv_norm_relu(deep + width, width, 3, norm)
        self.decode2 = conv_norm_relu(width + width, width, 3, norm)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at half the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: taken for the contract's sake; this network has no auxiliary output.

        Returns:
            "out": float [N,C,ceil(H/2),ceil(W/2)].
        """
        x2 = in_float32(self.stem2, images)  # [N, width, H/2, W/2]
        x4 = self.stem4(x2)
        x = self.blocks(self.stem8(x4))  # [N, 2 width, H/8, W/8]
        x = F.relu(x + self.context(x.mean((2, 3), keepdim=True)))
        x = self.decode4(torch.cat([upsample_to(x, x4), x4], dim=1))
        x = self.decode2(torch.cat([upsample_to(x, x2), x2], dim=1))
        return {"out": self.classifier(x)}
