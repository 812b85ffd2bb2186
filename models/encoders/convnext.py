"""ConvNeXt without the classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, Stage, dilated_stages, move
from models.layers import ChannelNorm, DepthwiseConv2d, in_float32
from models.transforms import Block

EPS = 1e-6


class ConvNeXtBlock(Block):
    """A 7x7 filter per channel, then two layers per pixel, scaled, beside the input."""

    def __init__(self, channels: int, dilation: int, layer_scale: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.dwconv = DepthwiseConv2d(channels, 7, 1, dilation, bias=True)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class Patches(nn.Conv2d):
    """Convolve patches beside each other, the last ones filled with zeros.

    Where `stride` is less than the patch, its pixels are `dilation` apart and the size is kept.
    """

    def __init__(self, inplanes: int, planes: int, size: int, stride: int, dilation: int = 1):
        super().__init__(inplanes, planes, size, stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        reach, stride = self.dilation[0] * (self.kernel_size[0] - 1), self.stride[0]
        bottom, right = (
            (-(-size // stride) - 1) * stride + reach + 1 - size for size in x.shape[-2:]
        )
        return super().forward(F.pad(x, (0, right, 0, bottom)) if bottom or right else x)


class ConvNeXt(Encoder):
    """ConvNeXt without its classifier; its finest map has stride 4.

    Args:
        channels: of the four stages.
        blocks: of the four stages.
        output_stride: 8, 16 or 32; what is not strided is dilated, the 7x7 filters too.
        dilate_first: see `dilated_stages`.
        norms: normalise each map, as the authors' segmentation networks do; without it the maps
            are the stages' sums, as timm's are.
        layer_scale: what a block's output is multiplied by at first; the authors' segmentation
            networks start from 1.

    Raises:
        UserError: a value that does not exist.

    Source: Liu et al., 2022, A ConvNet for the 2020s; facebookresearch/ConvNeXt for the key names.
    Deviations: an image whose size is no multiple of a patch is filled with zeros, where theirs
    leaves the last pixels out; no stochastic depth.
    """

    classifier = ("norm.", "head.")

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        output_stride: int,
        dilate_first: bool = False,
        norms: bool = True,
        layer_scale: float = 1e-6,
    ):
        super().__init__()
        stages = dilated_stages(output_stride, dilate_first)
        self.channels = list(channels)
        self.strides = [4, 8, min(16, output_stride), output_stride]
        stem = nn.Sequential(Patches(3, channels[0], 4, 4), ChannelNorm(channels[0], EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for before, planes, stage in zip(channels[:-1], channels[1:], stages, strict=True):
            halve = Patches(before, planes, 2, stage.stride, stage.first)
            self.downsample_layers.append(nn.Sequential(ChannelNorm(before, EPS), halve))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(ConvNeXtBlock(planes, stage.dilation, layer_scale) for _ in range(count))
            )
            for planes, count, stage in zip(
                channels, blocks, (Stage(1, 1, 1), *stages), strict=True
            )
        )
        self.norms = norms
        if norms:
            for i, planes in enumerate(channels):
                self.add_module(f"norm{i}", ChannelNorm(planes, EPS))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of the four stages.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Four tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        x = images
        for i, (halve, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = halve[1](in_float32(halve[0], x)) if i == 0 else halve(x)
            x = stage(x)
            yield getattr(self, f"norm{i}")(x) if self.norms else x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names of timm (smp's `tu-` too) and those of torchvision to the authors'."""
        state = move(state, "model.", "")
        if "stem.0.weight" in state or "stem_0.weight" in state:
            return {_from_timm(name): tensor for name, tensor in state.items()}
        if "features.0.0.weight" in state:
            return {
                _from_torchvision(name): tensor.flatten() if "layer_scale" in name else tensor
                for name, tensor in state.items()
            }
        return state


TORCHVISION_LAYERS = {
    "layer_scale": "gamma",
    "block.0": "dwconv",
    "block.2": "norm",
    "block.3": "pwconv1",
    "block.5": "pwconv2",
}
TIMM_LAYERS = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}


def _from_timm(name: str) -> str:
    name = re.sub(r"^(stem|stages)_", r"\1.", name)  # of `features_only`
    name = re.sub(r"^stem\.", "downsample_layers.0.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
    name = re.sub(r"^(stages\.\d)\.blocks\.", r"\1.", name)
    for theirs, ours in TIMM_LAYERS.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return re.sub(r"^head\.norm\.", "norm.", name)


def _from_torchvision(name: str) -> str:
    match = re.fullmatch(r"features\.(\d)\.(\d+)\.(.+)", name)
    if match is None:  # the classifier
        return re.sub(r"^classifier\.(\d)", lambda m: "norm" if m[1] == "0" else "head", name)
    layer, index, rest = int(match[1]), match[2], match[3]
    if layer % 2 == 0:
        return f"downsample_layers.{layer // 2}.{index}.{rest}"
    for theirs, ours in TORCHVISION_LAYERS.items():
        rest = re.sub(rf"^{theirs}", ours, rest)
    return f"stages.{layer // 2}.{index}.{rest}"


def _row(width: int, deep: bool, file: str) -> Row:
    arguments = {
        "channels": tuple(width * 2**i for i in range(4)),
        "blocks": (3, 3, 27 if deep else 9, 3),
    }
    address = f"https://download.pytorch.org/models/convnext_{file}.pth"
    return Row(ConvNeXt, arguments, "torchvision", address)


ENCODERS = {
    "convnext_tiny": _row(96, False, "tiny-983f1562"),
    "convnext_small": _row(96, True, "small-0c510722"),
    "convnext_base": _row(128, True, "base-6075fbad"),
    "convnext_large": _row(192, True, "large-ea097f82"),
}
