"""LinkNet: add the encoder's maps instead of laying them beside, and stay narrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from models.encoded import FullSizeNetwork, initialise
from models.layers import conv_norm_relu

LAST = 32  # channels before the classifier


class DecoderBlock(nn.Module):
    """A quarter of the channels, twice the size by a transposed convolution, the channels asked."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        inner = in_channels // 4
        enlarge = nn.Sequential(
            nn.ConvTranspose2d(inner, inner, 4, stride=2, padding=1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        narrow = conv_norm_relu(in_channels, inner, 1, "batch")
        self.block = nn.Sequential(narrow, enlarge, conv_norm_relu(inner, channels, 1, "batch"))

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        h, w = size
        return self.block(x)[:, :, :h, :w]


class Decoder(nn.Module):
    """A block for each map of the encoder, the deepest first; the next map is added to its output.

    Args:
        encoder_channels: of its five maps, the finest first.
    """

    def __init__(self, encoder_channels: Sequence[int]):
        super().__init__()
        widths = [*reversed(encoder_channels), LAST]
        self.blocks = nn.ModuleList(
            DecoderBlock(widths[i], widths[i + 1]) for i in range(len(widths) - 1)
        )

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor:
        *skips, x = features
        for block, skip in zip(self.blocks, reversed(skips), strict=False):
            x = block(x, skip.shape[-2:]) + skip
        return self.blocks[-1](x, size)


class LinkNet(FullSizeNetwork):
    """LinkNet: logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS` that has a map of stride 2.

    Raises:
        UserError: an encoder that does not exist or begins at stride 4.

    Source: Chaurasia and Culurciello, 2017, LinkNet, figure 2, in the form of
    segmentation_models_pytorch 0.6.0 (decoders/linknet/decoder.py), whose files load. Deviation:
    an image of any size is taken: what a block makes too large is cut off at the right and below.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
    ):
        super().__init__(encoder)
        self.require_stride_2("linknet", encoder)
        self.decoder = Decoder(self.channels)
        self.segmentation_head = nn.Sequential(nn.Conv2d(LAST, num_classes, 1))
        initialise(self.decoder, self.segmentation_head)
