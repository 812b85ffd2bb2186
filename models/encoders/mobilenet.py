"""MobileNetV2 without the classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn

from models.encoders.base import Encoder, Row, Stage, dilated_stages, move
from models.layers import DepthwiseConv2d, in_float32
from models.transforms import Block

STEM_CHANNELS, LAST_CHANNELS = 32, 1280
# Expansion, channels, blocks and stride of the seven stages
STAGES = (
    (1, 16, 1, 2),
    (6, 24, 2, 4),
    (6, 32, 3, 8),
    (6, 64, 4, 16),
    (6, 96, 3, 16),
    (6, 160, 3, 32),
    (6, 320, 1, 32),
)


def conv_norm(conv: nn.Conv2d) -> nn.Sequential:
    """Follow a convolution by batch norm and ReLU6."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(Block):
    """Expand, filter each channel, project; add the input where the shapes allow it."""

    def __init__(self, inplanes: int, planes: int, expansion: int, stride: int, dilation: int):
        super().__init__()
        hidden = inplanes * expansion
        self.shortcut = stride == 1 and inplanes == planes
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(conv_norm(nn.Conv2d(inplanes, hidden, 1, bias=False)))
        self.conv.append(conv_norm(DepthwiseConv2d(hidden, 3, stride, dilation, before=1)))
        self.conv.append(nn.Conv2d(hidden, planes, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(Encoder):
    """MobileNetV2 without its classifier, its last 1x1 convolution to 1280 channels included.

    Args:
        output_stride: 8, 16 or 32; what is not strided is dilated.
        dilate_first: see `dilated_stages`.

    Raises:
        UserError: a value that does not exist.

    Source: Sandler et al., 2018, MobileNetV2, table 2; torchvision/models/mobilenetv2.py for the
    key names, `features.*` there, and the initialisation.
    """

    classifier = ("classifier.",)

    def __init__(self, *, output_stride: int, dilate_first: bool = False):
        super().__init__()
        stages = dilated_stages(output_stride, dilate_first)
        of_stride = {2: Stage(1, 1, 1), 4: Stage(2, 1, 1)} | dict(
            zip((8, 16, 32), stages, strict=True)
        )
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        self.body = nn.Sequential(conv_norm(nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False)))
        inplanes, last = STEM_CHANNELS, OrderedDict()  # stride -> index of its last block
        for i, (expansion, planes, count, stride) in enumerate(STAGES):
            stage = of_stride[stride]
            begins = i == 0 or STAGES[i - 1][3] != stride
            for repeat in range(count):
                how = (stage.stride, stage.first) if begins and repeat == 0 else (1, stage.dilation)
                self.body.append(InvertedResidual(inplanes, planes, expansion, *how))
                inplanes = planes
            last[stride] = len(self.body) - 1, planes
        self.body.append(conv_norm(nn.Conv2d(inplanes, LAST_CHANNELS, 1, bias=False)))
        last[32] = len(self.body) - 1, LAST_CHANNELS
        self.taps, self.channels = (list(values) for values in zip(*last.values(), strict=True))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the last outputs of each stride.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        stem, *blocks = self.body
        conv, *others = stem
        x = in_float32(conv, images)
        for layer in others:
            x = layer(x)
        for i, block in enumerate(blocks, 1):
            x = block(x)
            if i in self.taps:
                yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename torchvision's `features.*`, which here is a method, to `body.*`."""
        return move(state, "features.", "body.")


ENCODERS = {
    "mobilenet_v2": Row(
        MobileNetV2,
        {},
        "torchvision",
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    ),
}
