"""U-Net on any encoder: double what is deepest, lay the encoder's map beside it, convolve twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoded import FullSizeNetwork, initialise
from models.layers import choose, conv_norm_relu, require_positive

CHANNELS = (256, 128, 64, 32, 16)  # of the decoder's blocks, the deepest first
ATTENTIONS = ("none", "scse")
REDUCTION = 16  # of the channels inside the attention


class ChannelAndSpatialAttention(nn.Module):
    """Weigh channels by what the whole image holds, pixels by their own values; add the two.

    Source: Roy et al., 2018, Concurrent Spatial and Channel Squeeze and Excitation, section 2.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // REDUCTION, 1)
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


def attend(kind: str, channels: int) -> nn.Module:
    """Build the attention of that kind, named as in smp's files."""
    if kind == "none":
        return nn.Identity()
    return nn.Sequential(OrderedDict(attention=ChannelAndSpatialAttention(channels)))


class DecoderBlock(nn.Module):
    """Enlarge by nearest neighbours, concatenate the skip, convolve twice.

    Without a skip the first attention is not used, though it is in smp's files.
    """

    def __init__(self, in_channels: int, skip_channels: int | None, channels: int, attention: str):
        super().__init__()
        together = in_channels + (skip_channels or 0)
        self.attention1 = attend(attention, together)
        self.conv1 = conv_norm_relu(together, channels, 3, "batch")
        self.conv2 = conv_norm_relu(channels, channels, 3, "batch")
        self.attention2 = attend(attention, channels)
        self.attention1.requires_grad_(skip_channels is not None)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, size=size, mode="nearest")
        if skip is not None:
            x = self.attention1(torch.cat([x, skip], dim=1))
        return self.attention2(self.conv2(self.conv1(x)))


class Decoder(nn.Module):
    """A block for each map of the encoder but the deepest, and one more for the image's size.

    Args:
        encoder_channels: of its five maps, the finest first.
        channels: of the five blocks, the deepest first.
        attention: "none" or "scse", before and after the convolutions of every block.
        center: convolve the deepest map twice first.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        channels: Sequence[int],
        attention: str,
        center: bool,
    ):
        super().__init__()
        *skips, deepest = encoder_channels
        self.center = nn.Identity()
        if center:
            self.center = nn.Sequential(
                *(conv_norm_relu(deepest, deepest, 3, "batch") for _ in range(2))
            )
        inputs, skips = (deepest, *channels), (*reversed(skips), None)
        self.blocks = nn.ModuleList(
            DecoderBlock(inputs[i], skips[i], channels[i], attention) for i in range(len(channels))
        )

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor:
        *skips, x = features
        x = self.center(x)
        for block, skip in zip(self.blocks, reversed(skips), strict=False):
            x = block(x, skip.shape[-2:], skip)
        return self.blocks[-1](x, size)


class UNet(FullSizeNetwork):
    """U-Net: logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`. One without a map of stride 2 has no skip
            there; a VGG gets two more convolutions on its deepest map.
        attention: "scse" puts channel and spatial attention around each pair of convolutions.
        output_stride: of the encoder's deepest features.
        decoder_channels: of the five blocks, the deepest first.

    Raises:
        UserError: a value that does not exist, or other than five widths.

    Source: Ronneberger et al., 2015, U-Net, figure 1, in the form of segmentation_models_pytorch
    0.6.0 (decoders/unet/decoder.py), whose files load. Deviation: an image of any size is taken,
    as maps are enlarged to the size of the skip; theirs must be a multiple of 32.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
        attention: Annotated[Literal["none", "scse"], "in the decoder's blocks"] = "none",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        decoder_channels: Annotated[tuple[int, ...], "of the five blocks"] = CHANNELS,
    ):
        super().__init__(encoder, output_stride)
        choose("attention of unet", attention, ATTENTIONS)
        widths = require_positive("decoder_channels", decoder_channels, len(CHANNELS))
        self.decoder = Decoder(self.channels, widths, attention, encoder.startswith("vgg"))
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], num_classes, 3, padding=1))
        initialise(self.decoder, self.segmentation_head)
