"""DenseNets without the classifier."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, dilated_stages, move
from models.layers import PairPool, in_float32
from models.transforms import Block

BOTTLENECK = 4  # channels of a layer's 1x1 convolution, of its growth


class DenseLayer(Block):
    """Add `growth` channels, made of all that there are."""

    def __init__(self, inplanes: int, growth: int, dilation: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, 1, dilation, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        y = self.conv2(F.relu(self.norm2(y), inplace=True))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """Normalise (a map of its own), then halve channels and size; see `DenseNet.maps`."""

    def __init__(self, inplanes: int, pool: PairPool):
        super().__init__()
        self.norm = nn.BatchNorm2d(inplanes)
        self.conv = nn.Conv2d(inplanes, inplanes // 2, 1, bias=False)
        self.pool = pool


class DenseNet(Encoder):
    """DenseNet without its classifier.

    Where a stage dilates, its pooling keeps the size and the 3x3 convolutions after it are dilated.

    Args:
        growth: channels that a layer adds.
        blocks: layers of the four blocks.
        stem: channels of the first convolution.
        output_stride: 8, 16 or 32.
        dilate_first: changes nothing, no convolution of the blocks has a stride.

    Raises:
        UserError: a value that does not exist.

    Source: Huang et al., 2017, Densely Connected Convolutional Networks, table 1;
    torchvision/models/densenet.py for the key names, `features.*` there, and the initialisation;
    segmentation_models_pytorch for where the maps are taken. Deviation: pooling rounds sizes up,
    where torchvision leaves out an odd last pixel.
    """

    classifier = ("classifier.",)

    def __init__(
        self,
        *,
        growth: int,
        blocks: tuple[int, ...],
        stem: int,
        output_stride: int,
        dilate_first: bool = False,
    ):
        super().__init__()
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        stages = dilated_stages(output_stride)
        self.body = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, stem, 7, 2, 3, bias=False),
                norm0=nn.BatchNorm2d(stem),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, 2, 1),
            )
        )
        planes, dilation = stem, 1
        self.channels = [stem]
        for i, count in enumerate(blocks, 1):
            block = nn.Sequential()
            for j in range(1, count + 1):
                block.add_module(f"denselayer{j}", DenseLayer(planes, growth, dilation))
                planes += growth
            self.body.add_module(f"denseblock{i}", block)
            self.channels.append(planes)
            if i <= len(stages):
                stage = stages[i - 1]
                pool = PairPool("mean", stage.stride, stage.first)
                self.body.add_module(f"transition{i}", Transition(planes, pool))
                planes, dilation = planes // 2, stage.dilation
        self.body.add_module("norm5", nn.BatchNorm2d(planes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the stem's output, what the transitions normalise, and the last norm's output.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels; all but the
            last are after a ReLU.
        """
        body = self.body
        x = F.relu(body.norm0(in_float32(body.conv0, images)), inplace=True)
        yield x
        x = body.pool0(x)
        for name, layer in list(body.named_children())[4:]:
            if name.startswith("transition"):
                x = F.relu(layer.norm(x), inplace=True)
                yield x
                x = layer.pool(layer.conv(x))
            else:
                x = layer(x)
        yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename torchvision's `features.*`, and in its files `norm.1` to `norm1`."""
        state = move(state, "features.", "body.")
        pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        return {pattern.sub(r"\1\2", name): tensor for name, tensor in state.items()}


TORCHVISION = "https://download.pytorch.org/models/densenet"
ENCODERS = {
    "densenet121": Row(
        DenseNet,
        {"growth": 32, "blocks": (6, 12, 24, 16), "stem": 64},
        "torchvision",
        f"{TORCHVISION}121-a639ec97.pth",
    ),
    "densenet161": Row(
        DenseNet,
        {"growth": 48, "blocks": (6, 12, 36, 24), "stem": 96},
        "torchvision",
        f"{TORCHVISION}161-8d451a50.pth",
    ),
    "densenet169": Row(
        DenseNet,
        {"growth": 32, "blocks": (6, 12, 32, 32), "stem": 64},
        "torchvision",
        f"{TORCHVISION}169-b2777c0a.pth",
    ),
    "densenet201": Row(
        DenseNet,
        {"growth": 32, "blocks": (6, 12, 48, 32), "stem": 64},
        "torchvision",
        f"{TORCHVISION}201-c1103571.pth",
    ),
}
