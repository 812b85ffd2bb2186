"""SegFormer: an encoder that looks far already, and a decoder of one layer a map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count, Share
from models.encoded import EncodedNetwork, initialise
from models.layers import choose, conv_norm_relu, require_positive, upsample_to

STYLES = ("nvlabs", "smp")
NARROW = ("mit_b0", "mit_b1")  # the authors' encoders with a decoder of 256 channels


class Projection(nn.Module):
    """The same linear layer for every pixel of a map."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Every map brought to one width and to stride 4; fused, and classified.

    Args:
        channels: of the encoder's maps, the finest first; linear_c1 and on.
        num_classes: C, classes predicted.
        width: channels that every map is brought to.
        dropout: share of the fused channels that a training step leaves out.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int, dropout: float):
        super().__init__()
        for i, count in enumerate(channels, 1):
            self.add_module(f"linear_c{i}", Projection(count, width))
        conv, norm, _ = conv_norm_relu(len(channels) * width, width, 1, "batch")
        self.linear_fuse = nn.Sequential()
        for name, layer in (("conv", conv), ("bn", norm), ("relu", nn.ReLU(inplace=True))):
            self.linear_fuse.add_module(name, layer)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        finest = features[-4]  # of stride 4
        maps = []
        for i, x in reversed(list(enumerate(features, 1))):  # the deepest first
            maps.append(upsample_to(self.get_submodule(f"linear_c{i}")(x), finest))
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(maps, dim=1))))


class SegFormer(EncodedNetwork):
    """SegFormer: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`; mit_b0 to mit_b5 are the paper's. Others give
            the decoder all their maps, that of stride 2 too.
        style: "smp" resizes logits with corners aligned, "nvlabs" (transformers too) without; None
            is "nvlabs" on the paper's encoders.
        output_stride: of the encoder's deepest features.
        width: channels that every map is brought to; None for 768 in the style of NVlabs on mit_b2
            and larger, 256 otherwise.
        dropout: share of the channels before the classifier that a training step leaves out.

    Raises:
        UserError: a value that does not exist; when loading, a file of the other style.

    Source: Xie et al., 2021, SegFormer, section 3.2. The files of NVlabs/SegFormer
    (segformer_head.py, whose names these are, its unused conv_seg left out), of transformers and of
    segmentation_models_pytorch 0.6.0 load.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "mit_b0",
        style: Annotated[Literal["nvlabs", "smp"] | None, "whose details"] = None,
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        width: Annotated[Count | None, "channels that every map is brought to"] = None,
        dropout: Annotated[Share, "of the channels before the classifier"] = 0.1,
    ):
        super().__init__(encoder, output_stride)
        own = encoder.startswith("mit_")
        style = style or ("nvlabs" if own else "smp")
        choose("style of segformer", style, STYLES)
        self.align_corners = style == "smp"
        if width is None:
            width = 768 if own and style == "nvlabs" and encoder not in NARROW else 256
        require_positive("width", [width])
        self.decode_head = Decoder(self.encoder.channels, num_classes, width, dropout)
        initialise(self.decode_head, self.decode_head.linear_pred)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,ceil(H/4),ceil(W/4)].
        """
        return {"out": self.decode_head(self.encoder.features(images))}

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring the names of smp and transformers to NVlabs'; a classifier's to the encoder."""
        state, skipped = super().convert_weights(state)
        of_smp = "decoder.fuse_stage.0.weight" in state
        if of_smp and not self.align_corners:
            raise UserError(
                "these weights are of segmentation_models_pytorch, and give its output with "
                "--model segformer style=smp alone"
            )
        count, converted = len(self.encoder.channels), {}
        for name, tensor in state.items():
            if name.startswith("decode_head.conv_seg."):
                skipped[name] = "in the file, used by nobody"
            else:
                converted[_to_nvlabs(name, count)] = tensor
        return converted, skipped


def _to_nvlabs(name: str, count: int) -> str:
    """Return NVlabs' name of a tensor of a decoder for `count` maps."""
    theirs = re.fullmatch(r"decoder\.mlp_stage\.(\d)\.linear\.(.*)", name)
    if theirs:  # smp counts from the deepest
        return f"decode_head.linear_c{count - int(theirs[1])}.proj.{theirs[2]}"
    theirs = re.fullmatch(r"decode_head\.linear_(?:c|projections)\.(\d)\.(.*)", name)
    if theirs:  # transformers, in its files or in memory since version 5
        return f"decode_head.linear_c{int(theirs[1]) + 1}.{theirs[2]}"
    if name == "decode_head.linear_fuse.weight":
        return "decode_head.linear_fuse.conv.weight"
    for prefix, ours in OTHERS.items():
        if name.startswith(prefix):
            return f"decode_head.{ours}.{name.removeprefix(prefix)}"
    return name


# What smp, and then transformers, call the rest of the decoder
OTHERS = {
    "decoder.fuse_stage.0.": "linear_fuse.conv",
    "decoder.fuse_stage.1.": "linear_fuse.bn",
    "segmentation_head.0.": "linear_pred",
    "decode_head.batch_norm.": "linear_fuse.bn",
    "decode_head.classifier.": "linear_pred",
}
