"""DeepLabv3+ on ResNets and EfficientNet-Lite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count, Share, Weight
from models.base import trainable
from models.deeplabv3 import ASPP as SeparableASPP
from models.deeplabv3 import renamed, separable_norm_relu
from models.encoded import EncodedNetwork
from models.layers import choose, conv_norm_relu, require_positive, upsample_to

HEADS = ("plain", "separable")
# Names in the files of segmentation_models_pytorch -> those of the separable head here
SMP = {"decoder.": "head.", "segmentation_head.0.": "head.classifier."}
LIGHT_BELOW = 512  # channels of the deepest features that a full head is made for


class ASPP(nn.Module):
    """Look at several distances at once: 1x1, dilated 3x3 and whole-image branches, then 1x1."""

    def __init__(self, in_channels: int, width: int, dilations: Sequence[int], norm: str):
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, width, 1, norm)])
        for dilation in dilations:
            self.branches.append(conv_norm_relu(in_channels, width, 3, norm, dilation=dilation))
        # Without normalisation: one value per channel and image has no statistics.
        self.image = nn.Conv2d(in_channels, width, 1)
        self.project = conv_norm_relu((2 + len(dilations)) * width, width, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        image = F.relu(self.image(x.mean((2, 3), keepdim=True)))  # [N, width, 1, 1]
        outputs = [branch(x) for branch in self.branches]
        outputs.append(image.expand_as(outputs[0]))
        return self.project(torch.cat(outputs, dim=1))


class Head(nn.Module):
    """ASPP on the deepest features, refined once with those of stride 4.

    The light head narrows the input of the ASPP, takes the skip as it is and refines with one
    convolution instead of two.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int,
        dilations: Sequence[int],
        norm: str,
        light: bool,
        dropout: float,
    ):
        super().__init__()
        self.dropout = dropout
        skip_channels, deep_channels = channels[-4], channels[-1]
        if light:
            self.reduce = conv_norm_relu(deep_channels, 2 * width, 1, norm)
            self.skip = nn.Identity()
            deep_channels = 2 * width
        else:
            self.reduce = nn.Identity()
            self.skip = conv_norm_relu(skip_channels, 48, 1, norm)
            skip_channels = 48
        self.aspp = ASPP(deep_channels, width, dilations, norm)
        self.refine = nn.Sequential(conv_norm_relu(width + skip_channels, width, 3, norm))
        if not light:
            self.refine.append(conv_norm_relu(width, width, 3, norm))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        skip = self.skip(features[-4])  # [N, c, H/4, W/4]
        x = self.aspp(self.reduce(features[-1]))  # [N, width, H/stride, W/stride]
        if self.dropout:
            x = F.dropout2d(x, self.dropout, self.training)
        x = torch.cat([upsample_to(x, skip), skip], dim=1)
        return self.classifier(self.refine(x))


class SeparableHead(nn.Module):
    """The paper's head of separable convolutions, in the form of smp.

    Its files hold `aspp.0` (the ASPP), `aspp.1` and `.2` (refined once), `block1` (the skip) and
    `block2` (both refined). What is enlarged has its corners aligned.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: int,
        dilations: Sequence[int],
        norm: str,
        dropout: float,
    ):
        super().__init__()
        aspp = SeparableASPP(
            channels[-1], width, dilations, separable=True, dropout=dropout, kind=norm
        )
        self.aspp = nn.Sequential(aspp, *separable_norm_relu(width, width, norm))
        self.block1 = conv_norm_relu(channels[-4], 48, 1, norm)
        self.block2 = separable_norm_relu(width + 48, width, norm)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        skip = self.block1(features[-4])  # [N, 48, H/4, W/4]
        x = self.aspp(features[-1])
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
        return self.classifier(self.block2(torch.cat([x, skip], dim=1)))


class AuxiliaryHead(nn.Sequential):
    """Classify the encoder's third stage: one 3x3 convolution, then 1x1."""

    def __init__(self, in_channels: int, num_classes: int, width: int, norm: str):
        refine = conv_norm_relu(in_channels, width, 3, norm)
        super().__init__(refine, nn.Conv2d(width, num_classes, 1))


class DeepLabV3Plus(EncodedNetwork):
    """DeepLabv3+: dilated encoder, ASPP with image pooling, decoder at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`. One of fewer than 512 channels at its end
            gets a light head.
        output_stride: 16, 8 or 32; of the encoder's deepest features.
        dilations: of the ASPP's 3x3 branches; None for the head's: (6, 12, 18), twice that
            at stride 8, and (3, 6) for the light head.
        width: channels of ASPP and decoder; None for the head's: 256, light head 64.
        norm: "group" or "batch" in the head; None for "group", and "batch" in the separable head.
            Group norm trains at batch size 1 and keeps the statistics of the domains apart.
        multi_level: add an auxiliary head on the encoder's third features: of stride 16, or 8 at
            output stride 8.
        head_lr_factor: learning rate of the heads over that of the encoder, in `param_groups`.
        dropout: share of the ASPP's output channels that a training step leaves out.
        head: "plain", or "separable": the paper's separable convolutions in the form of smp, whose
            files load; logits are resized with corners aligned, the encoder's stages are dilated
            from their first convolution on, and dilations are (12, 24, 36), as there.

    Raises:
        UserError: a value that does not exist; when loading, smp's file for the plain head.

    Source: Chen et al., 2018, Encoder-Decoder with Atrous Separable Convolution, section 3.
    Deviations of the plain head: plain convolutions where it has separable ones, group norm by
    default, no normalisation of the image pooling, no dropout by default; the light one is ours.
    The separable head: segmentation_models_pytorch 0.6.0 (decoders/deeplabv3/decoder.py). The
    auxiliary head is that of Zhao et al., 2017, Pyramid Scene Parsing Network, section 4, without
    its dropout.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet50",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 16,
        dilations: Annotated[tuple[int, ...] | None, "of the ASPP's branches"] = None,
        width: Annotated[Count | None, "channels of ASPP and decoder"] = None,
        norm: Annotated[Literal["group", "batch"] | None, "normalisation of the head"] = None,
        multi_level: Annotated[bool, "an auxiliary head on the third features"] = False,
        head_lr_factor: Annotated[Weight, "learning rate of the heads over the encoder's"] = 3.0,
        dropout: Annotated[Share, "of the ASPP's channels, in training"] = 0.0,
        head: Annotated[Literal["plain", "separable"], "ours, or the paper's as in smp"] = "plain",
    ):
        choose("head of deeplabv3plus", head, HEADS)
        separable = head == "separable"
        super().__init__(encoder, output_stride, dilate_first=separable)
        light = self.channels[-1] < LIGHT_BELOW and not separable
        if dilations is None:
            scale = 2 if output_stride == 8 or separable else 1
            dilations = [scale * dilation for dilation in ((3, 6) if light else (6, 12, 18))]
        dilations = require_positive("dilations", dilations)
        if width is None:
            width = 64 if light else 256
        norm = norm or ("batch" if separable else "group")
        require_positive("width", [width])
        self.head_lr_factor = head_lr_factor
        if separable:
            self.align_corners = True
            self.head = SeparableHead(self.channels, num_classes, width, dilations, norm, dropout)
        else:
            self.head = Head(self.channels, num_classes, width, dilations, norm, light, dropout)
        self.aux_head = None
        if multi_level:
            self.heads = ("out", "aux")
            self.aux_head = AuxiliaryHead(self.channels[-2], num_classes, width, norm)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to compute the auxiliary logits, where the network has them.

        Returns:
            "out" and, with two levels, "aux": float [N,C,ceil(H/4),ceil(W/4)]. The auxiliary logits
            are brought to the size of the main ones, so that discriminators and losses that
            compare the two see maps of one resolution.
        """
        features = self.encoder.features(images)
        outputs = {"out": self.head(features)}
        if aux and self.aux_head is not None:
            outputs["aux"] = upsample_to(self.aux_head(features[-2]), outputs["out"])
        return outputs

    def param_groups(self, lr: float) -> list[dict]:
        """Split the trainable parameters: the encoder at `lr`, the heads at a multiple of it."""
        heads = [head for head in (self.head, self.aux_head) if head is not None]
        return [{"params": trainable(self.encoder), "lr": lr}] + [
            {"params": trainable(head), "lr": self.head_lr_factor * lr} for head in heads
        ]

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring a classification network, smp's DeepLabv3+, or torchvision's DeepLabv3 to this one.

        Args:
            state: weights by name; of torchvision's DeepLabv3 the encoder is taken.

        Returns:
            The weights renamed, and those left out by name, with the reason.
        """
        skipped = {}
        if any(name.startswith("backbone.") for name in state):
            head = [name for name in state if not name.startswith("backbone.")]
            skipped = dict.fromkeys(head, "head of another design")
            state = {n: t for n, t in state.items() if n not in skipped}
        if "decoder.block1.0.weight" in state:
            if self.arch["head"] != "separable":
                raise UserError(
                    "these weights are of segmentation_models_pytorch, and give its output with "
                    "--model deeplabv3plus head=separable alone"
                )
            state = renamed(state, SMP)
        state, unwanted = super().convert_weights(state)
        return state, skipped | unwanted
