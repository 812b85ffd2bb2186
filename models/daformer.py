"""DAFormer: maps brought to one width, looked at over several distances at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count, Share
from models.encoded import EncodedNetwork
from models.layers import require_positive, upsample_to
from models.segformer import Projection

DILATIONS = (1, 6, 12, 18)


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and ReLU; parts named as in mmsegmentation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **conv: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **conv)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Separable(nn.Module):
    """A dilated 3x3 filter per channel, then a layer per pixel."""

    def __init__(self, channels: int, width: int, dilation: int):
        super().__init__()
        how = {"padding": dilation, "dilation": dilation, "groups": channels}
        self.depthwise_conv = ConvNorm(channels, channels, 3, **how)
        self.pointwise_conv = ConvNorm(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Context(nn.Module):
    """Separable convolutions of several dilations side by side; without the image's mean."""

    def __init__(self, channels: int, width: int, dilations: Sequence[int]):
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvNorm(channels, width, 1) if dilation == 1 else Separable(channels, width, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvNorm(len(dilations) * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], 1))


class Decoder(nn.Module):
    """Maps at one width and stride 4, their context, and a classifier."""

    def __init__(self, channels: Sequence[int], num_classes: int, width: int, dropout: float):
        super().__init__()
        self.embed_layers = nn.ModuleList(Projection(count, width) for count in channels)
        self.fuse_layer = Context(len(channels) * width, width, DILATIONS)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        finest = features[0]
        layers = zip(self.embed_layers, features, strict=True)
        maps = [upsample_to(embed(x), finest) for embed, x in layers]
        return self.conv_seg(self.dropout(self.fuse_layer(torch.cat(maps, 1))))


class DAFormer(EncodedNetwork):
    """DAFormer: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`; mit_b5 is the paper's.
        output_stride: of the encoder's deepest features.
        width: channels that every map is brought to.
        dropout: share of the channels before the classifier that a training step leaves out.

    Raises:
        UserError: a width of 0.

    Source: Hoyer et al. 2022, DAFormer, section 3.2; lhoyer/MIC mmseg/models/decode_heads/
    daformer_head.py, whose names these are.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "mit_b5",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        width: Annotated[Count, "channels that every map is brought to"] = 256,
        dropout: Annotated[Share, "of the channels before the classifier"] = 0.1,
    ):
        super().__init__(encoder, output_stride)
        require_positive("width", [width])
        self.decode_head = Decoder(self.encoder.channels[-4:], num_classes, width, dropout)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,ceil(H/4),ceil(W/4)].
        """
        return {"out": self.decode_head(self.encoder.features(images)[-4:])}
