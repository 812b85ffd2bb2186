"""ResNet-18 to 152 with dilation, in the two styles whose weights share their names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row
from models.layers import choose, in_float32
from models.transforms import Block

WIDTH = 64  # channels of the stem; published weights have no other
STYLES = ("caffe", "torchvision")
Pair = tuple[int, int]  # of conv1 and conv2
# Output stride -> (stride, dilation) of layer1..4
STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


class BasicBlock(Block):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, strides: Pair, dilations: Pair):
        super().__init__()
        (stride1, stride2), (dilation1, dilation2) = strides, dilations
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride1, dilation1, dilation1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride2, dilation2, dilation2, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inplanes, planes, stride1 * stride2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, strides: Pair, dilations: Pair):
        super().__init__()
        (stride1, stride2), (_, dilation) = strides, dilations
        self.conv1 = nn.Conv2d(inplanes, planes, 1, stride1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride2, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = _shortcut(inplanes, 4 * planes, stride1 * stride2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


def _shortcut(inplanes: int, outplanes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == outplanes:
        return None
    conv = nn.Conv2d(inplanes, outplanes, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outplanes))


class ResNet(Encoder):
    """ResNet without its classifier.

    Args:
        bottleneck: 1x1, 3x3 and 1x1 convolutions a block, else two of 3x3.
        blocks: of layer1 to layer4.
        output_stride: 8, 16 or 32; what is not strided is dilated.
        style: "torchvision", or "caffe": stride in the 1x1 convolution of a bottleneck, pooling
            that rounds sizes up, and dilation from the first block of a stage on (there the
            stride came before the 3x3 convolution; in "torchvision" it came with it, so the first
            block of a stage keeps the dilation of the stage before).

    Raises:
        UserError: a value that does not exist.

    Source: He et al., 2016, Deep Residual Learning; torchvision/models/resnet.py for the key
    names and the initialisation; AdaptSegNet model/deeplab_multi.py for the Caffe style.
    Deviation: torchvision does not dilate ResNet-18 and -34; here they are, by the same rule.
    """

    def __init__(
        self,
        *,
        bottleneck: bool,
        blocks: tuple[int, ...],
        output_stride: int,
        style: str = "torchvision",
    ):
        super().__init__()
        choose("output_stride", output_stride, STAGES)
        choose("style", style, STYLES)
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        block = Bottleneck if bottleneck else BasicBlock

        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=style == "caffe")
        inplanes, previous_dilation = WIDTH, 1
        self.channels = [WIDTH]
        for i, (count, (stride, dilation)) in enumerate(
            zip(blocks, STAGES[output_stride], strict=True)
        ):
            planes = WIDTH * 2**i
            first = dilation if style == "caffe" else previous_dilation
            if bottleneck:  # the same names in both styles, different maths
                strides = (stride, 1) if style == "caffe" else (1, stride)
                dilations = (1, first)
            else:
                strides, dilations = (stride, 1), (first, dilation)
            layer = [block(inplanes, planes, strides, dilations)]
            inplanes, previous_dilation = planes * block.expansion, dilation
            for _ in range(1, count):
                layer.append(block(inplanes, planes, (1, 1), (dilation, dilation)))
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
            self.channels.append(inplanes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the stem, before its pooling, and of layer1 to layer4.

        Args:
            images: float [N,3,H,W], normalised.

        Returns:
            Five tensors of `self.channels` channels; the first has stride 2, the last
            `output_stride`.
        """
        x = F.relu(self.bn1(in_float32(self.conv1, images)), inplace=True)  # 1/2
        outputs = [x]
        x = self.maxpool(x)  # 1/4
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outputs.append(x)
        return outputs


# Published weights: the first of each (IMAGENET1K_V1).
ENCODERS = {
    "resnet18": Row(
        ResNet,
        {"bottleneck": False, "blocks": (2, 2, 2, 2)},
        "torchvision",
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ),
    "resnet34": Row(
        ResNet,
        {"bottleneck": False, "blocks": (3, 4, 6, 3)},
        "torchvision",
        "https://download.pytorch.org/models/resnet34-b627a593.pth",
    ),
    "resnet50": Row(
        ResNet,
        {"bottleneck": True, "blocks": (3, 4, 6, 3)},
        "torchvision",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ),
    "resnet101": Row(
        ResNet,
        {"bottleneck": True, "blocks": (3, 4, 23, 3)},
        "torchvision",
        "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    ),
    "resnet152": Row(
        ResNet,
        {"bottleneck": True, "blocks": (3, 8, 36, 3)},
        "torchvision",
        "https://download.pytorch.org/models/resnet152-394f9c45.pth",
    ),
}
