"""Xception of 41 layers, and the aligned one of 65 that DeepLabv3+ was published with."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, Stage, dilated_stages
from models.layers import DepthwiseConv2d, in_float32
from models.transforms import Block

PLAIN = Stage(1, 1, 1)

# ------------------------------------------------------------------ 41 layers


class SeparableConv2d(nn.Module):
    """A 3x3 filter per channel, then 1x1, without anything between."""

    def __init__(self, inplanes: int, planes: int, dilation: int):
        super().__init__()
        self.conv1 = DepthwiseConv2d(inplanes, 3, 1, dilation)
        self.pointwise = nn.Conv2d(inplanes, planes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.conv1(x))


class MaxPool(nn.MaxPool2d):
    """Pool 3x3 pixels, `dilation` apart, around each pixel or every second."""

    def __init__(self, stride: int, dilation: int):
        super().__init__(3, stride, 0, dilation)

    def forward(self, x: Tensor) -> Tensor:
        # its own padding cannot be more than half a window
        return super().forward(F.pad(x, (self.dilation,) * 4, value=-math.inf))


class XceptionBlock(Block):
    """Separable convolutions, each after a ReLU and before a batch norm, beside a shortcut.

    Args:
        widths: channels before the first convolution, between them and after the last.
        dilation: of the convolutions.
        pool: stride and dilation of the 3x3 max pooling at its end; None for none.
        relu: whether the first convolution has a ReLU before it too.
    """

    def __init__(
        self,
        widths: Sequence[int],
        dilation: int,
        pool: tuple[int, int] | None = None,
        relu: bool = True,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(len(widths) - 1):
            # the first ReLU must leave the block's input alone
            layers += [nn.ReLU(inplace=i > 0)] if relu or i else []
            layers += [SeparableConv2d(widths[i], widths[i + 1], dilation)]
            layers += [nn.BatchNorm2d(widths[i + 1])]
        self.skip = None
        if pool is not None:
            stride, apart = pool
            layers.append(MaxPool(stride, apart))
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.rep(x) + (x if self.skip is None else self.skipbn(self.skip(x)))


class Xception(Encoder):
    """Xception without its classifier, 41 layers.

    Args:
        output_stride: 8, 16 or 32; where it is not strided, the pooling keeps the size and what
            follows is dilated.
        dilate_first: see `dilated_stages`.

    Raises:
        UserError: a value that does not exist.

    Source: Chollet, 2017, Xception, figure 5; Cadene's pretrained-models.pytorch xception.py for
    the key names; segmentation_models_pytorch for the padding of the first two convolutions, which
    have none there, and for where the maps are taken.
    """

    classifier = ("fc.", "last_linear.")

    def __init__(self, *, output_stride: int, dilate_first: bool = False):
        super().__init__()
        s8, s16, s32 = dilated_stages(output_stride, dilate_first)
        self.channels = [64, 128, 256, 728, 2048]
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        self.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = XceptionBlock((64, 128, 128), 1, (2, 1), relu=False)
        self.block2 = XceptionBlock((128, 256, 256), 1, (s8.stride, s8.first))
        self.block3 = XceptionBlock((256, 728, 728), s8.dilation, (s16.stride, s16.first))
        for i in range(4, 12):
            self.add_module(f"block{i}", XceptionBlock((728,) * 4, s16.dilation))
        self.block12 = XceptionBlock((728, 728, 1024), s16.dilation, (s32.stride, s32.first))
        self.conv3 = SeparableConv2d(1024, 1536, s32.dilation)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv2d(1536, 2048, s32.dilation)
        self.bn4 = nn.BatchNorm2d(2048)
        _initialise(self)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the stem's output, those of blocks 1, 2 and 11, and the last norm's.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels; the first is
            after a ReLU.
        """
        x = F.relu(self.bn1(in_float32(self.conv1, images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        yield x
        for i in range(1, 12):
            x = getattr(self, f"block{i}")(x)
            if i in (1, 2, 11):
                yield x
        x = F.relu(self.bn3(self.conv3(self.block12(x))), inplace=True)
        yield self.bn4(self.conv4(x))


# ------------------------------------------------------------------ 65 layers


def conv_norm(inplanes: int, planes: int, size: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution and batch norm, named as in timm."""
    conv = nn.Conv2d(inplanes, planes, size, stride, size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=batch_norm(planes)))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Build batch norm with TensorFlow's constant."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class NormedSeparableConv2d(nn.Module):
    """A 3x3 filter per channel and 1x1, a batch norm after each, and a ReLU if it is asked for."""

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, relu: bool):
        super().__init__()
        self.relu = relu
        self.conv_dw = DepthwiseConv2d(inplanes, 3, stride, dilation, before=1)
        self.bn_dw = batch_norm(inplanes)
        self.conv_pw = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn_pw = batch_norm(planes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_dw(self.conv_dw(x))
        x = self.bn_pw(self.conv_pw(F.relu(x, inplace=True) if self.relu else x))
        return F.relu(x, inplace=True) if self.relu else x


class AlignedBlock(Block):
    """Three separable convolutions, the last with the stride, beside a shortcut.

    Args:
        widths: channels before the first convolution, between them and after the last.
        dilation: of the first two convolutions.
        stage: of the last one.
        exit: the network's last block: without a shortcut, its ReLUs inside the convolutions.
    """

    def __init__(
        self, widths: Sequence[int], dilation: int, stage: Stage = PLAIN, exit: bool = False
    ):
        super().__init__()
        self.exit, self.shortcut = exit, None
        if not exit and (stage is not PLAIN or widths[0] != widths[-1]):
            self.shortcut = conv_norm(widths[0], widths[-1], 1, stage.stride)
        hows = [(1, dilation), (1, dilation)]
        hows.append((1, dilation) if stage is PLAIN else (stage.stride, stage.first))
        self.stack = nn.ModuleDict(
            {
                f"conv{i + 1}": NormedSeparableConv2d(widths[i], widths[i + 1], *how, exit)
                for i, how in enumerate(hows)
            }
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and what its last convolution reads: the map before the stride."""
        y = x
        for name in ("conv1", "conv2"):
            y = self.stack[name](y if self.exit else F.relu(y))
        last = y if self.exit else F.relu(y)
        y = self.stack["conv3"](last)
        if self.exit:
            return y, last
        return y + (x if self.shortcut is None else self.shortcut(x)), last


class AlignedXception(Encoder):
    """Modified Aligned Xception-65 without its classifier.

    Args:
        output_stride: 8, 16 or 32; what is not strided is dilated.
        dilate_first: see `dilated_stages`.

    Raises:
        UserError: a value that does not exist.

    Source: Chen et al., 2018, Encoder-Decoder with Atrous Separable Convolution, figure 4; the maps
    of strides 2 to 16 are what each strided block has before its stride, as the paper's decoder
    takes them; timm models/xception_aligned.py for the key names. Deviation: padding on both sides
    alike, as timm has it.
    """

    classifier = ("head.",)

    def __init__(self, *, output_stride: int, dilate_first: bool = False):
        super().__init__()
        s8, s16, s32 = dilated_stages(output_stride, dilate_first)
        self.channels = [128, 256, 728, 1024, 2048]
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3))
        self.blocks = nn.ModuleList(
            [
                AlignedBlock((64, 128, 128, 128), 1, Stage(2, 1, 1)),
                AlignedBlock((128, 256, 256, 256), 1, s8),
                AlignedBlock((256, 728, 728, 728), s8.dilation, s16),
                *(AlignedBlock((728,) * 4, s16.dilation) for _ in range(16)),
                AlignedBlock((728, 728, 1024, 1024), s16.dilation, s32),
                AlignedBlock((1024, 1536, 1536, 2048), s32.dilation, exit=True),
            ]
        )
        _initialise(self)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield what the four strided blocks have before their stride, and the last output.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels, after ReLU.
        """
        (conv, norm), second = self.stem
        x = F.relu(norm(in_float32(conv, images)), inplace=True)
        x = F.relu(second(x), inplace=True)
        for i, block in enumerate(self.blocks):
            x, before = block(x)
            if i in (0, 1, 2, len(self.blocks) - 2):
                yield before
        yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename `blocks_19` of timm's `features_only` to `blocks.19`."""
        return {re.sub(r"^(stem|blocks)_(\d)", r"\1.\2", n): t for n, t in state.items()}


def _initialise(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


ENCODERS = {
    "xception": Row(Xception, {}, "half"),
    "xception65": Row(AlignedXception, {}, "half"),
}
