"""PSPNet: what the whole image, its quarters, ninths and so on hold, beside each pixel."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count, Share
from models.encoded import freeze_unreached, initialise
from models.fcn import TwoLevelNetwork
from models.layers import choose, conv_norm_relu, require_positive

SIZES = (1, 2, 3, 6)  # of the pyramid's grids
DEPTHS = (3, 4, 5)


class Pool(nn.Module):
    """Average over the cells of a grid, convolve 1x1, and bring that to the size it came from."""

    def __init__(self, in_channels: int, channels: int, size: int):
        super().__init__()
        if size == 1:  # without normalisation: one value per channel and image has no statistics
            conv = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True))
        else:
            conv = conv_norm_relu(in_channels, channels, 1, "batch")
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(size), conv)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.pool(x), size=x.shape[2:], mode="bilinear", align_corners=True)


class Pyramid(nn.Module):
    """A pool for each grid, and the features that they were made of."""

    def __init__(self, in_channels: int):
        super().__init__()
        width = in_channels // len(SIZES)
        self.blocks = nn.ModuleList(Pool(in_channels, width, size) for size in SIZES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(block(x) for block in self.blocks), x], dim=1)


class Decoder(nn.Module):
    """The pyramid and a 1x1 convolution.

    Args:
        in_channels: of the features; a multiple of 4.
        width: channels of the result.
        dropout: share of them that a training step leaves out.
    """

    def __init__(self, in_channels: int, width: int, dropout: float):
        super().__init__()
        self.psp = Pyramid(in_channels)
        self.conv = conv_norm_relu(2 * in_channels, width, 1, "batch")
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv(self.psp(x)))


class PSPNet(TwoLevelNetwork):
    """Pyramid scene parsing network: logits at the stride of the map it looks at.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        depth: which of the encoder's maps: 3, that of stride 8, as smp has it (what is deeper stays
            in the file and is not computed), or 5, the deepest, as in the paper.
        output_stride: of the deepest features; 8 in the paper.
        width: channels before the classifier.
        dropout: share of them that a training step leaves out.
        multi_level: the paper's auxiliary head, on the map before.

    Raises:
        UserError: a value that does not exist.

    Source: Zhao et al., 2017, Pyramid Scene Parsing Network, figure 3 and section 4, in the form of
    segmentation_models_pytorch 0.6.0 (decoders/pspnet/decoder.py), whose files load; logits are
    resized with corners aligned, as there.
    """

    align_corners = True
    aux_weight = 0.4

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
        depth: Annotated[int, "which of the encoder's maps: 3, 4 or 5"] = 3,
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        width: Annotated[Count, "channels before the classifier"] = 512,
        dropout: Annotated[Share, "of those channels, in training"] = 0.2,
        multi_level: Annotated[bool, "an auxiliary head on the map before"] = False,
    ):
        super().__init__(encoder, output_stride)
        choose("depth of pspnet", depth, DEPTHS)
        require_positive("width", [width])
        self.count = depth - self.channels.count(0)  # of the encoder's maps
        freeze_unreached(self.encoder, self.count)
        self.decoder = Decoder(self.channels[depth - 1], width, dropout)
        self.segmentation_head = nn.Sequential(nn.Conv2d(width, num_classes, 3, padding=1))
        initialise(self.decoder, self.segmentation_head)
        if multi_level:
            self.add_auxiliary(self.channels[depth - 2], num_classes)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the stride of the encoder's map.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to compute the auxiliary logits, where the network has them.

        Returns:
            "out" and, with two levels, "aux": float [N,C,h,w], of the same size.
        """
        *_, before, deepest = islice(self.encoder.maps(images), self.count)
        return self.outputs(self.segmentation_head(self.decoder(deepest)), before, aux)
