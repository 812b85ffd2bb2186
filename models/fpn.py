"""FPN for segmentation: a pyramid of one width, every level brought to stride 4 and added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count, Share
from models.encoded import EncodedNetwork, initialise
from models.layers import require_positive

GROUPS = 32  # of group norm


class Merge(nn.Module):
    """The coarser level, enlarged by nearest neighbours, and the encoder's map through 1x1."""

    def __init__(self, skip_channels: int, width: int):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, width, 1)

    def forward(self, coarser: Tensor, skip: Tensor) -> Tensor:
        return F.interpolate(coarser, size=skip.shape[-2:]) + self.skip_conv(skip)


class ConvNorm(nn.Module):
    """3x3 convolution, group norm and ReLU."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.block = nn.Sequential(conv, nn.GroupNorm(GROUPS, channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Ascent(nn.Module):
    """Convolve and double, once for each of the sizes on the way to stride 4.

    Args:
        in_channels, channels: before, and after the first convolution.
        count: convolutions, at least one.
    """

    def __init__(self, in_channels: int, channels: int, count: int):
        super().__init__()
        widths = [in_channels] + [channels] * count
        self.block = nn.Sequential(*(ConvNorm(widths[i], widths[i + 1]) for i in range(count)))

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        for i, layer in enumerate(self.block):
            x = layer(x)
            if i < len(sizes):
                x = F.interpolate(x, size=sizes[i], mode="bilinear", align_corners=True)
        return x


class Decoder(nn.Module):
    """The pyramid p5 to p2 from the encoder's last four maps, and the sum of its ascents.

    Args:
        encoder_channels: of its five maps, the finest first.
        pyramid, width: channels of the pyramid, and of what is added.
        dropout: share of the sum's channels that a training step leaves out.
    """

    def __init__(self, encoder_channels: Sequence[int], pyramid: int, width: int, dropout: float):
        super().__init__()
        c2, c3, c4, c5 = encoder_channels[-4:]
        self.p5 = nn.Conv2d(c5, pyramid, 1)
        self.p4, self.p3, self.p2 = Merge(c4, pyramid), Merge(c3, pyramid), Merge(c2, pyramid)
        self.seg_blocks = nn.ModuleList(Ascent(pyramid, width, n) for n in (3, 2, 1, 1))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        c2, c3, c4, c5 = features[-4:]
        p5 = self.p5(c5)
        p4 = self.p4(p5, c4)
        p3 = self.p3(p4, c3)
        p2 = self.p2(p3, c2)
        sizes = [level.shape[-2:] for level in (p4, p3, p2)]
        ascents = [
            block(p, sizes[i:])
            for i, (block, p) in enumerate(zip(self.seg_blocks, (p5, p4, p3, p2), strict=True))
        ]
        return self.dropout(sum(ascents))


class FPN(EncodedNetwork):
    """Feature pyramid network with its segmentation branch: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of the encoder's deepest features.
        pyramid_channels: of the pyramid's levels.
        width: channels of the sum that is classified; a multiple of 32.
        dropout: share of its channels that a training step leaves out.

    Raises:
        UserError: a value that does not exist.

    Source: Kirillov et al., 2019, Panoptic Feature Pyramid Networks, figure 3, in the form of
    segmentation_models_pytorch 0.6.0 (decoders/fpn/decoder.py), whose files load; logits are
    resized with corners aligned, as there. Deviation: an image of any size is taken.
    """

    align_corners = True

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        pyramid_channels: Annotated[Count, "of the pyramid's levels"] = 256,
        width: Annotated[Count, "channels that are classified, a multiple of 32"] = 128,
        dropout: Annotated[Share, "of those channels, in training"] = 0.2,
    ):
        super().__init__(encoder, output_stride)
        require_positive("pyramid_channels and width", (pyramid_channels, width))
        if width % GROUPS:
            raise UserError(f"width of fpn is {width}, must be a multiple of {GROUPS}")
        self.decoder = Decoder(self.channels, pyramid_channels, width, dropout)
        self.segmentation_head = nn.Sequential(nn.Conv2d(width, num_classes, 1))
        initialise(self.decoder, self.segmentation_head)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,ceil(H/4),ceil(W/4)].
        """
        return {"out": self.segmentation_head(self.decoder(self.encoder.features(images)))}
