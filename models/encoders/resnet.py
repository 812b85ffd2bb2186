"""ResNets with dilation: plain, wide, ResNeXt and with squeeze-excitation."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from models.encoders.base import Encoder, Row, Stage, dilated_stages, move, renamed
from models.layers import choose, excite, in_float32
from models.transforms import Block

WIDTH = 64  # channels of the stem; published weights have no other
STYLES = ("caffe", "torchvision")
REDUCTION = 16  # of the channels between the two layers of squeeze-excitation
Pair = tuple[int, int]  # of conv1 and conv2


class BasicBlock(Block):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

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
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (ResNet-50 and larger, all ResNeXts)."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        strides: Pair,
        dilations: Pair,
        groups: int = 1,
        width_per_group: int = 64,
        squeeze: bool = False,
    ):
        super().__init__()
        (stride1, stride2), (_, dilation) = strides, dilations
        width = planes * width_per_group // 64 * groups
        self.conv1 = nn.Conv2d(inplanes, width, 1, stride1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride2, dilation, dilation, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.se_module = SqueezeExcitation(4 * planes) if squeeze else None
        self.downsample = _shortcut(inplanes, 4 * planes, stride1 * stride2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.se_module is not None:
            y = self.se_module(y)
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class SqueezeExcitation(nn.Module):
    """Weigh each channel by what all of them hold on average (Hu et al., 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return excite(x, self.fc1, self.fc2, F.relu)


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
        groups, width_per_group: of a bottleneck's 3x3 convolution; with 64 channels in one group,
            it has as many channels as the block is named by.
        output_stride: 8, 16 or 32; what is not strided is dilated.
        style: "torchvision", or "caffe": stride in the 1x1 convolution of a bottleneck, pooling
            that rounds sizes up, and dilation from the first block of a stage on (there the
            stride came before the 3x3 convolution; in "torchvision" it came with it, so the first
            block of a stage keeps the dilation of the stage before).
        dilate_first: see `dilated_stages`; always so in the Caffe style.

    Raises:
        UserError: a value that does not exist.

    Source: He et al., 2016, Deep Residual Learning; Xie et al., 2017, Aggregated Residual
    Transformations (ResNeXt); Zagoruyko and Komodakis, 2016 (wide); torchvision/models/resnet.py
    for the key names and the initialisation; AdaptSegNet model/deeplab_multi.py for the Caffe
    style.
    Deviation: torchvision does not dilate ResNet-18 and -34; here they are, by the same rule.
    """

    squeeze = False

    classifier = ("fc.", "last_linear.")

    def __init__(
        self,
        *,
        bottleneck: bool,
        blocks: tuple[int, ...],
        output_stride: int,
        groups: int = 1,
        width_per_group: int = 64,
        style: str = "torchvision",
        dilate_first: bool = False,
    ):
        super().__init__()
        choose("style", style, STYLES)
        stages = dilated_stages(output_stride, dilate_first or style == "caffe")
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        block = BasicBlock
        if bottleneck:
            shape = {"groups": groups, "width_per_group": width_per_group}
            block = partial(Bottleneck, **shape, squeeze=self.squeeze)

        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=style == "caffe")
        inplanes = WIDTH
        self.channels = [WIDTH]
        for i, (count, stage) in enumerate(zip(blocks, (Stage(1, 1, 1), *stages), strict=True)):
            stride, first, dilation = stage
            planes = WIDTH * 2**i
            if bottleneck:  # the same names in both styles, different maths
                strides = (stride, 1) if style == "caffe" else (1, stride)
                dilations = (1, first)
            else:
                strides, dilations = (stride, 1), (first, dilation)
            layer = [block(inplanes, planes, strides, dilations)]
            inplanes = planes * (4 if bottleneck else 1)
            for _ in range(1, count):
                layer.append(block(inplanes, planes, (1, 1), (dilation, dilation)))
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
            self.channels.append(inplanes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of the stem, before its pooling, and of layer1 to layer4.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels; the first has stride 2, the last
            `output_stride`.
        """
        x = self.stem(images)  # 1/2
        yield x
        x = self.maxpool(x)  # 1/4
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            yield x

    def stem(self, images: Tensor) -> Tensor:
        """Return float [N,64,ceil(H/2),ceil(W/2)]."""
        return F.relu(self.bn1(in_float32(self.conv1, images)), inplace=True)

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names of transformers and of detectron2 to torchvision's."""
        return {
            renamed(_from_transformers(name), DETECTRON2): tensor for name, tensor in state.items()
        }


# Names of transformers: the stem, or the place of a layer and what it is there
THEIRS = re.compile(
    r"(?:resnet\.)?(?:embedder\.embedder|encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)"
    r"\.(?:shortcut|layer\.(?P<layer>\d)))\.(?P<kind>convolution|normalization)\.(?P<rest>\w+)"
)


def _from_transformers(name: str) -> str:
    match = THEIRS.fullmatch(name)
    if match is None:
        return name
    norm = match["kind"] == "normalization"
    number = int(match["layer"] or 0) + 1
    layer = f"{'bn' if norm else 'conv'}{number}"
    if match["stage"] is None:
        return f"{layer}.{match['rest']}"
    if match["layer"] is None:
        layer = f"downsample.{int(norm)}"
    return f"layer{int(match['stage']) + 1}.{match['block']}.{layer}.{match['rest']}"


# Of detectron2: its stages are counted from the stem, and a norm belongs to its convolution
DETECTRON2 = {
    r"^stem\.conv1\.": "conv1.",
    r"^res(\d)\.": lambda found: f"layer{int(found[1]) - 1}.",
    r"(^|\.)conv(\d)\.norm\.": r"\1bn\2.",
    r"\.shortcut\.norm\.": ".downsample.1.",
    r"\.shortcut\.weight$": ".downsample.0.weight",
}


class SEResNeXt(ResNet):
    """ResNeXt whose blocks weigh their channels before the shortcut is added.

    Args:
        padded: whether the stem's pooling has padding, as timm's and every other ResNet's; without
            it windows begin at the first pixel.
        **options: of `ResNet`.

    Source: Hu et al., 2018, Squeeze-and-Excitation Networks; Cadene's pretrained-models.pytorch
    senet.py for the key names (segmentation_models_pytorch has the same) and the pooling without
    padding. Deviation: where its size is odd, that pooling has a window for the last pixel, so that
    sizes are rounded up as in every other encoder.
    """

    squeeze = True

    def __init__(self, *, padded: bool = False, **options):
        super().__init__(bottleneck=True, **options)
        self.layer0 = nn.Sequential(OrderedDict(conv1=self.conv1, bn1=self.bn1))
        del self.conv1, self.bn1
        self.padded = padded
        if not padded:
            self.maxpool = PoolFromTheFirst(3, 2, ceil_mode=True)

    def stem(self, images: Tensor) -> Tensor:
        """Return float [N,64,ceil(H/2),ceil(W/2)]."""
        return F.relu(self.layer0.bn1(in_float32(self.layer0.conv1, images)), inplace=True)

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring timm's names to Cadene's.

        Raises:
            UserError: the file is timm's and this network is not, which pool differently.
        """
        timms = "layer1.0.se.fc1.weight" in state
        if timms and not self.padded:
            raise UserError("these are timm's weights: take encoder seresnext50_32x4d")
        if not timms:
            return state
        state = move(move(state, "conv1.", "layer0.conv1."), "bn1.", "layer0.bn1.")
        return {name.replace(".se.", ".se_module."): tensor for name, tensor in state.items()}


class PoolFromTheFirst(nn.MaxPool2d):
    """Pool windows of 3 that begin at every second pixel, the last one too; input is after ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        return super().forward(F.pad(x, (0, w % 2, 0, h % 2)) if h % 2 or w % 2 else x)


BLOCKS_50 = {"bottleneck": True, "blocks": (3, 4, 6, 3)}
BLOCKS_101 = {"bottleneck": True, "blocks": (3, 4, 23, 3)}
SE_50 = {"blocks": (3, 4, 6, 3), "groups": 32, "width_per_group": 4}
TORCHVISION = "https://download.pytorch.org/models/"
# Published weights: the first of each (IMAGENET1K_V1).
ENCODERS = {
    "resnet18": Row(
        ResNet,
        {"bottleneck": False, "blocks": (2, 2, 2, 2)},
        "torchvision",
        f"{TORCHVISION}resnet18-f37072fd.pth",
    ),
    "resnet34": Row(
        ResNet,
        {"bottleneck": False, "blocks": (3, 4, 6, 3)},
        "torchvision",
        f"{TORCHVISION}resnet34-b627a593.pth",
    ),
    "resnet50": Row(ResNet, BLOCKS_50, "torchvision", f"{TORCHVISION}resnet50-0676ba61.pth"),
    "resnet101": Row(ResNet, BLOCKS_101, "torchvision", f"{TORCHVISION}resnet101-63fe2227.pth"),
    "resnet152": Row(
        ResNet,
        {"bottleneck": True, "blocks": (3, 8, 36, 3)},
        "torchvision",
        f"{TORCHVISION}resnet152-394f9c45.pth",
    ),
    "resnext50_32x4d": Row(
        ResNet,
        {**BLOCKS_50, "groups": 32, "width_per_group": 4},
        "torchvision",
        f"{TORCHVISION}resnext50_32x4d-7cdf4587.pth",
    ),
    "resnext101_32x8d": Row(
        ResNet,
        {**BLOCKS_101, "groups": 32, "width_per_group": 8},
        "torchvision",
        f"{TORCHVISION}resnext101_32x8d-8ba56ff5.pth",
    ),
    "wide_resnet50": Row(
        ResNet,
        {**BLOCKS_50, "width_per_group": 128},
        "torchvision",
        f"{TORCHVISION}wide_resnet50_2-95faca4d.pth",
    ),
    # Cadene's and segmentation_models_pytorch's, then timm's
    "se_resnext50_32x4d": Row(SEResNeXt, SE_50, "torchvision"),
    "seresnext50_32x4d": Row(SEResNeXt, {**SE_50, "padded": True}, "torchvision"),
}
