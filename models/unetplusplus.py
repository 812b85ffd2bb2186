"""UNet++: U-Nets of every depth in one, each node fed by all nodes of its own level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from models.encoded import FullSizeNetwork, initialise
from models.layers import choose, require_positive
from models.unet import ATTENTIONS, CHANNELS, DecoderBlock


class Decoder(nn.Module):
    """Nodes x_S_L: the way up that starts at the encoder's map S, 0 the deepest, at level L >= S.

    Level L has the size of the encoder's map L + 1. A node enlarges the one below it on its own
    way up and sees the nodes of its level on the shorter ways, and the encoder's map. Only the
    longest way has the decoder's widths, the others those of the encoder; it alone goes on to the
    image's size.
    """

    def __init__(self, encoder_channels: Sequence[int], channels: Sequence[int], attention: str):
        super().__init__()
        deep = list(reversed(encoder_channels))
        self.levels = len(deep) - 1
        self.blocks = nn.ModuleDict()
        for level in range(self.levels):
            skip = deep[level + 1]
            for start in range(level + 1):
                if start == level:
                    below = deep[level]
                else:
                    below = deep[level] if start else channels[level - 1]
                seen = skip * (level - start + 1)
                width = skip if start else channels[level]
                block = DecoderBlock(below, seen, width, attention)
                self.blocks[f"x_{start}_{level}"] = block
        last = DecoderBlock(channels[-2], None, channels[-1], attention)
        self.blocks[f"x_0_{self.levels}"] = last

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor:
        deep = features[::-1]
        below: list[Tensor] = []  # of the level below, by the start of their ways
        for level in range(self.levels):
            skip, nodes = deep[level + 1], []  # the shortest way first
            for start in range(level, -1, -1):
                x = deep[level] if start == level else below[start]
                seen = torch.cat([*nodes, skip], dim=1)
                nodes.insert(0, self.blocks[f"x_{start}_{level}"](x, skip.shape[-2:], seen))
            below = nodes
        return self.blocks[f"x_0_{self.levels}"](below[0], size)


class UNetPlusPlus(FullSizeNetwork):
    """UNet++: logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS` that has a map of stride 2.
        attention: "scse" puts channel and spatial attention around each pair of convolutions.
        output_stride: of the encoder's deepest features.
        decoder_channels: of the five blocks on the longest way up, the deepest first.

    Raises:
        UserError: a value that does not exist, or other than five widths.

    Source: Zhou et al., 2018, UNet++, figure 1, in the form of segmentation_models_pytorch 0.6.0
    (decoders/unetplusplus/decoder.py), whose files load: without the paper's deep supervision.
    Deviation: an image of any size is taken.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet34",
        attention: Annotated[Literal["none", "scse"], "in the decoder's blocks"] = "none",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        decoder_channels: Annotated[tuple[int, ...], "of the longest way up"] = CHANNELS,
    ):
        super().__init__(encoder, output_stride)
        self.require_stride_2("unetplusplus", encoder)
        choose("attention of unetplusplus", attention, ATTENTIONS)
        widths = require_positive("decoder_channels", decoder_channels, len(CHANNELS))
        self.decoder = Decoder(self.channels, widths, attention)
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], num_classes, 3, padding=1))
        initialise(self.decoder, self.segmentation_head)

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Leave out what smp puts into its files on a VGG and does not run."""
        state, skipped = super().convert_weights(state)
        center = [name for name in state if name.startswith("decoder.center.")]
        skipped |= dict.fromkeys(center, "in the file, used by nobody")
        return {name: t for name, t in state.items() if name not in skipped}, skipped
