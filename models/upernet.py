"""UPerNet: a pyramid of pools on the deepest map, a feature pyramid below, all levels fused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count, Share
from models.encoded import initialise
from models.fcn import TwoLevelNetwork
from models.layers import (
    ChannelNorm,
    PooledBatchNorm2d,
    choose,
    conv_norm_relu,
    require_positive,
    upsample_to,
)

SIZES = (1, 2, 3, 6)  # of the grids whose cells are averaged
STYLES = ("smp", "mmseg")
# Patterns in the files of mmsegmentation and ConvNeXt -> smp's names, which are ours
LEVELS = {"0": "2", "1": "1", "2": "0"}  # of the feature pyramid: theirs begin at the finest
MMSEG = (
    (r"^decode_head\.psp_modules\.", "decoder.psp.blocks."),
    (r"^decode_head\.bottleneck\.", "decoder.psp.out_conv."),
    (r"^decode_head\.lateral_convs\.(\d)", r"decoder.fpn_lateral_blocks.\1.conv_norm_relu"),
    (r"^decode_head\.fpn_convs\.", "decoder.fpn_conv_blocks."),
    (r"^decode_head\.fpn_bottleneck\.", "decoder.fusion_block."),
    (r"^decode_head\.conv_seg\.", "segmentation_head.0."),
    (r"^auxiliary_head\.convs\.0\.", "aux_classifier."),
    (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
)


class Pools(nn.Module):
    """Averages over the cells of grids beside what they were made of, then a 3x3 convolution."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.blocks = nn.ModuleList()
        for size in SIZES:
            conv = conv_norm_relu(in_channels, width, 1, "batch")
            conv[1] = PooledBatchNorm2d(width)
            self.blocks.append(nn.Sequential(nn.AdaptiveAvgPool2d(size), conv))
        self.out_conv = conv_norm_relu(in_channels + len(SIZES) * width, width, 3, "batch")

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(torch.cat([x, *(upsample_to(b(x), x) for b in self.blocks)], dim=1))


class Lateral(nn.Module):
    """The coarser level, enlarged, and the encoder's map through 1x1."""

    def __init__(self, skip_channels: int, width: int):
        super().__init__()
        self.conv_norm_relu = conv_norm_relu(skip_channels, width, 1, "batch")

    def forward(self, coarser: Tensor, skip: Tensor) -> Tensor:
        skip = self.conv_norm_relu(skip)
        return skip + upsample_to(coarser, skip)


class Decoder(nn.Module):
    """From the encoder's last four maps to one of stride 4.

    Args:
        encoder_channels: of its five maps, the finest first.
        width: channels of every level.
        dropout: share of the result's channels that a training step leaves out.
        normalise: whether each of the encoder's maps is layer-normalised first.
    """

    def __init__(
        self, encoder_channels: Sequence[int], width: int, dropout: float, normalise: bool
    ):
        super().__init__()
        *skips, deepest = encoder_channels[-4:]
        self.feature_norms = nn.ModuleList(
            ChannelNorm(c, eps=1e-6) if normalise else nn.Identity() for c in (*skips, deepest)
        )
        self.psp = Pools(deepest, width)
        self.fpn_lateral_blocks = nn.ModuleList(Lateral(c, width) for c in reversed(skips))
        self.fpn_conv_blocks = nn.ModuleList(
            conv_norm_relu(width, width, 3, "batch") for _ in skips
        )
        self.fusion_block = conv_norm_relu((1 + len(skips)) * width, width, 3, "batch")
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        normed = zip(self.feature_norms, features[-4:], strict=True)
        *skips, deepest = (norm(x) for norm, x in normed)
        levels = [self.psp(deepest)]
        for lateral, skip in zip(self.fpn_lateral_blocks, reversed(skips), strict=True):
            levels.append(lateral(levels[-1], skip))
        deepest, *finer = levels
        finer = [conv(x) for conv, x in zip(self.fpn_conv_blocks, finer, strict=True)]
        enlarged = [upsample_to(x, finer[-1]) for x in (*reversed(finer), deepest)]
        return self.dropout(self.fusion_block(torch.cat(enlarged, dim=1)))


class UPerNet(TwoLevelNetwork):
    """Unified perceptual parsing network: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        style: "smp" normalises the encoder's maps, has a width of 256 and resizes logits with
            corners aligned; "mmseg" (mmsegmentation and the authors of ConvNeXt and BEiT) takes
            them as the encoder has them (ConvNeXt's normalises its own there), with 512 channels
            and corners that are not aligned. None is "mmseg" for those two families.
        output_stride: of the encoder's deepest features.
        width: channels of every level; None for the style's (768 on BEiT, as its authors have it).
        dropout: share of the channels before the classifier that a training step leaves out.
        multi_level: an auxiliary FCN head on the encoder's third stage.
        image_size: side in pixels of the images that BEiT was trained on; None for 640.

    Raises:
        UserError: a value that does not exist; an image size for another encoder.

    Source: Xiao et al., 2018, Unified Perceptual Parsing, figure 4, in the forms of
    segmentation_models_pytorch 0.6.0 (decoders/upernet/decoder.py) and of mmsegmentation 0.x
    (uper_head.py) as ConvNeXt uses it (semantic_segmentation/): the files of both load. Deviation:
    one image alone is normalised by running statistics where it has been averaged to one value a
    channel.
    """

    aux_weight = 0.4

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
        style: Annotated[Literal["smp", "mmseg"] | None, "whose details"] = None,
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        width: Annotated[Count | None, "channels of every level"] = None,
        dropout: Annotated[Share, "of the channels before the classifier"] = 0.1,
        multi_level: Annotated[bool, "an auxiliary head on the third stage"] = False,
        image_size: Annotated[Count | None, "side that BEiT was trained on: 640"] = None,
    ):
        if style is None:
            style = "mmseg" if encoder.startswith(("convnext", "beit")) else "smp"
        choose("style of upernet", style, STYLES)
        wishes = {"norms": style == "mmseg", "layer_scale": 1.0}
        if image_size is not None:
            if not encoder.startswith("beit"):
                raise UserError(f"upernet: image_size is BEiT's alone, the encoder is {encoder}")
            wishes["image_size"] = image_size
        super().__init__(encoder, output_stride, **wishes)
        self.align_corners = style == "smp"
        if width is None:
            width = 256 if style == "smp" else 768 if encoder.startswith("beit") else 512
        require_positive("width", [width])
        self.decoder = Decoder(self.channels, width, dropout, normalise=style == "smp")
        self.segmentation_head = nn.Sequential(nn.Conv2d(width, num_classes, 1))
        initialise(self.decoder, self.segmentation_head)
        if multi_level:
            self.add_auxiliary(self.channels[-2], num_classes, width=256)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to compute the auxiliary logits, where the network has them.

        Returns:
            "out" and, with two levels, "aux": float [N,C,ceil(H/4),ceil(W/4)].
        """
        features = self.encoder.features(images)
        return self.outputs(self.segmentation_head(self.decoder(features)), features[-2], aux)

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring mmsegmentation's names to smp's, which are these; a classifier's to the encoder."""
        state, skipped = super().convert_weights(state)
        if "decode_head.conv_seg.weight" not in state:
            return state, skipped
        converted = {}
        for name, tensor in state.items():
            new = _from_mmseg(name)
            if new.startswith("aux_classifier.") and "aux" not in self.heads:
                skipped[name] = "auxiliary head, this network has none: multi_level=yes"
            else:
                converted[new] = tensor
        return converted, skipped


def _from_mmseg(name: str) -> str:
    """Return smp's name of a tensor."""
    for pattern, replacement in MMSEG:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    name = name.replace(".conv.", ".0.").replace(".bn.", ".1.") if found else name
    flip = re.match(r"(decoder\.fpn_(?:lateral|conv)_blocks\.)(\d)(.*)", name)
    return flip[1] + LEVELS[flip[2]] + flip[3] if found and flip else name
