"""Attention U-Net: the way up decides which pixels of each skip it looks at."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count
from models.base import Network
from models.layers import in_float32, require_positive

DEPTH = 5  # sizes, the image's own included


class Convolutions(nn.Module):
    """3x3 convolution, batch norm and ReLU, twice."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Enlarge(nn.Module):
    """To a skip's size by nearest neighbours, then 3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.up = nn.Sequential(
            nn.Identity(), conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.up(F.interpolate(x, size=skip.shape[2:], mode="nearest"))


class Gate(nn.Module):
    """Weigh each pixel of a skip by what the way up and the skip hold there (equations 1 and 2)."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.W_x = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        return skip * self.psi(F.relu(self.W_g(gate) + self.W_x(skip)))


class AttentionUNet(Network):
    """Attention U-Net without an encoder of its own kind: logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        width: channels of the finest level; each coarser one has twice as many.

    Raises:
        UserError: a width below 2.

    Source: Oktay et al., 2018, Attention U-Net (arXiv:1804.03999), section 2.1, in the form of
    LeeJunHyun's Image_Segmentation (network.py, AttU_Net), whose files load: gate and skip have the
    same size. Deviation: an image of any size is taken: poolings keep a last odd row and column,
    and maps are enlarged to the size of the skip; theirs must be a multiple of 16.
    """

    def __init__(
        self, num_classes: int, *, width: Annotated[Count, "channels of the finest level"] = 64
    ):
        super().__init__("torchvision")
        require_positive("half the width", [width // 2])
        widths = [width * 2**level for level in range(DEPTH)]
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        for i, channels in enumerate(widths, 1):
            before = widths[i - 2] if i > 1 else 3
            self.add_module(f"Conv{i}", Convolutions(before, channels))
        for i in range(DEPTH, 1, -1):
            channels = widths[i - 2]
            self.add_module(f"Up{i}", Enlarge(2 * channels, channels))
            self.add_module(f"Att{i}", Gate(channels, channels // 2))
            self.add_module(f"Up_conv{i}", Convolutions(2 * channels, channels))
        self.Conv_1x1 = nn.Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the image's size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,H,W].
        """
        first, *others = self.Conv1.conv
        x = in_float32(first, images)
        for layer in others:
            x = layer(x)
        maps = [x]
        for i in range(2, DEPTH + 1):
            maps.append(self.get_submodule(f"Conv{i}")(self.pool(maps[-1])))
        x = maps.pop()
        for i in range(DEPTH, 1, -1):
            skip = maps.pop()
            x = self.get_submodule(f"Up{i}")(x, skip)
            skip = self.get_submodule(f"Att{i}")(x, skip)
            x = self.get_submodule(f"Up_conv{i}")(torch.cat([skip, x], dim=1))
        return {"out": self.Conv_1x1(x)}
