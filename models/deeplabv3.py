"""DeepLabv3: a dilated encoder, and an ASPP that also looks at the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count, Share
from models.fcn import TwoLevelNetwork
from models.layers import (
    DepthwiseConv2d,
    PooledBatchNorm2d,
    choose,
    conv_norm_relu,
    norm,
    require_positive,
)

STYLES = ("torchvision", "smp")
# Names in the files of segmentation_models_pytorch -> torchvision's, which are ours
SMP = {
    "decoder.aspp.": "classifier.0.",
    "decoder.conv.": "classifier.1.",
    "decoder.bn.": "classifier.2.",
    "segmentation_head.0.": "classifier.4.",
}


def separable_norm_relu(
    in_channels: int, channels: int, kind: str, dilation: int = 1
) -> nn.Sequential:
    """Build a 3x3 convolution of each channel and a 1x1 of all, normalisation and ReLU."""
    separable = nn.Sequential(
        DepthwiseConv2d(in_channels, 3, dilation=dilation),
        nn.Conv2d(in_channels, channels, 1, bias=False),
    )
    return nn.Sequential(separable, norm(kind, channels), nn.ReLU(inplace=True))


class ASPP(nn.Module):
    """Look at several distances at once: 1x1, dilated 3x3 and whole-image branches, then 1x1.

    Args:
        in_channels: of the features.
        width: channels of each branch and of the result.
        dilations: of the 3x3 branches.
        separable: whether those are separable.
        dropout: share of the result's values that a training step leaves out.
        kind: see `layers.norm`.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        dilations: Sequence[int],
        *,
        separable: bool = False,
        dropout: float = 0.5,
        kind: str = "batch",
    ):
        super().__init__()
        self.convs = nn.ModuleList([conv_norm_relu(in_channels, width, 1, kind)])
        for dilation in dilations:
            self.convs.append(
                separable_norm_relu(in_channels, width, kind, dilation)
                if separable
                else conv_norm_relu(in_channels, width, 3, kind, dilation=dilation)
            )
        image = conv_norm_relu(in_channels, width, 1, kind)
        if kind == "batch":
            image[1] = PooledBatchNorm2d(width)
        self.convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *image))
        self.project = conv_norm_relu((2 + len(dilations)) * width, width, 1, kind)
        self.project.append(nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        *branches, image = (branch(x) for branch in self.convs)
        return self.project(torch.cat([*branches, image.expand_as(branches[0])], dim=1))


class DeepLabV3(TwoLevelNetwork):
    """DeepLabv3: logits at the encoder's stride.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of its deepest features.
        dilations: of the ASPP's 3x3 branches; those given are for output stride 8.
        width: channels of the ASPP.
        dropout: share of the ASPP's values that a training step leaves out.
        multi_level: an auxiliary FCN head on the encoder's third stage.
        style: "torchvision", or "smp": logits are resized with corners aligned, and the
            encoder's stages are dilated from their first convolution on (`dilated_stages`).

    Raises:
        UserError: a value that does not exist; when loading, a file of the other style.

    Source: Chen et al., 2017, Rethinking Atrous Convolution, figure 5, in the forms of torchvision
    0.28 (models/segmentation/deeplabv3.py) and segmentation_models_pytorch 0.6.0
    (decoders/deeplabv3/decoder.py); the files of both load. Deviation: one image alone is
    normalised by running statistics where it has been averaged to one value a channel.
    """

    aux_weight = 0.5

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet50",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 8,
        dilations: Annotated[tuple[int, ...], "of the ASPP's branches"] = (12, 24, 36),
        width: Annotated[Count, "channels of the ASPP"] = 256,
        dropout: Annotated[Share, "of the ASPP's values, in training"] = 0.5,
        multi_level: Annotated[bool, "an auxiliary head on the third stage"] = False,
        style: Annotated[Literal["torchvision", "smp"], "whose details"] = "torchvision",
    ):
        choose("style of deeplabv3", style, STYLES)
        super().__init__(encoder, output_stride, dilate_first=style == "smp")
        self.align_corners = style == "smp"
        dilations = require_positive("dilations", dilations)
        require_positive("width", [width])
        self.classifier = nn.Sequential(
            ASPP(self.channels[-1], width, dilations, dropout=dropout),
            *conv_norm_relu(width, width, 3, "batch"),
            nn.Conv2d(width, num_classes, 1),
        )
        if multi_level:
            self.add_auxiliary(self.channels[-2], num_classes)

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring torchvision's and smp's names to these; a classification network's too."""
        state, skipped = super().convert_weights(state)
        if "decoder.aspp.project.0.weight" not in state:
            return state, skipped
        if self.arch["style"] != "smp":
            raise UserError(
                "these weights are of segmentation_models_pytorch, and give its output with "
                "--model deeplabv3 style=smp alone"
            )
        return renamed(state, SMP), skipped


def renamed(state: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Return weights whose names begin differently: with the values instead of the keys."""
    converted = {}
    for name, tensor in state.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        converted[prefixes.get(old, "") + name.removeprefix(old)] = tensor
    return converted
