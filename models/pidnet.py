"""PIDNet: three branches for detail, context and boundaries, fast enough for video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import in_float32, require_positive, upsample_to
from models.normalisation import NORMALISATIONS
from models.recompute import Block


def _conv_bn(inplanes: int, planes: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inplanes, planes, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes))


def _bn_relu_conv(inplanes: int, planes: int, size: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inplanes, planes, size, 1, size // 2, groups=groups, bias=False)
    return [nn.BatchNorm2d(inplanes), nn.ReLU(inplace=True), conv]


class BasicBlock(Block):
    """Two 3x3 convolutions beside the identity."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, relu: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = _conv_bn(inplanes, planes, 1, stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y) if self.relu else y


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions beside the identity, twice the channels out."""

    expansion = 2

    def __init__(self, inplanes: int, planes: int, stride: int, relu: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 2 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * planes)
        self.downsample = None
        if stride != 1 or inplanes != 2 * planes:
            self.downsample = _conv_bn(inplanes, 2 * planes, 1, stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y) if self.relu else y


def _stage(block: type, inplanes: int, planes: int, count: int, stride: int = 1) -> nn.Sequential:
    """Build `count` blocks; the last one does not end in a ReLU."""
    blocks = [block(inplanes, planes, stride, relu=count > 1)]
    for i in range(1, count):
        blocks.append(block(planes * block.expansion, planes, 1, relu=i < count - 1))
    return nn.Sequential(*blocks)


class Pag(nn.Module):
    """Pixel-attention guidance: mix context into detail where both agree."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.f_x, self.f_y = _conv_bn(channels, inner), _conv_bn(channels, inner)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        query = upsample_to(self.f_y(context), detail)
        share = torch.sigmoid((self.f_x(detail) * query).sum(1, keepdim=True))
        return (1 - share) * detail + share * upsample_to(context, detail)


class ContextPyramid(nn.Module):
    """Average over four window sizes, side by side (PAPPM)."""

    def __init__(self, inplanes: int, branch: int, outplanes: int):
        super().__init__()
        self.scale0 = nn.Sequential(*_bn_relu_conv(inplanes, branch))
        pools = [nn.AvgPool2d(size, stride, stride) for size, stride in ((5, 2), (9, 4), (17, 8))]
        for i, pool in enumerate([*pools, nn.AdaptiveAvgPool2d(1)], 1):
            self.add_module(f"scale{i}", nn.Sequential(pool, *_bn_relu_conv(inplanes, branch)))
        self.scale_process = nn.Sequential(*_bn_relu_conv(4 * branch, 4 * branch, 3, groups=4))
        self.compression = nn.Sequential(*_bn_relu_conv(5 * branch, outplanes))
        self.shortcut = nn.Sequential(*_bn_relu_conv(inplanes, outplanes))

    def forward(self, x: Tensor) -> Tensor:
        own = self.scale0(x)
        scales = (self.scale1, self.scale2, self.scale3, self.scale4)
        pooled = torch.cat([upsample_to(scale(x), own) + own for scale in scales], 1)
        together = torch.cat([own, self.scale_process(pooled)], 1)
        return self.compression(together) + self.shortcut(x)


class LightBag(nn.Module):
    """Boundary attention: detail counts at boundaries, context elsewhere."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_p, self.conv_i = _conv_bn(channels, channels), _conv_bn(channels, channels)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = torch.sigmoid(boundary)
        return self.conv_p((1 - edge) * context + detail) + self.conv_i(context + edge * detail)


class Head(nn.Module):
    """Norm, ReLU and convolution, twice."""

    def __init__(self, inplanes: int, inner: int, outplanes: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, inner, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outplanes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class PIDNet(nn.Module):
    """PIDNet-S.

    Args:
        num_classes: C, classes predicted.
        multi_level: an auxiliary classifier on the detail branch after its second mixing.
        width: channels of the stem; the published network has 32, the pyramid 3 times and the
            head 4 times as many.

    Raises:
        UserError: a width that is not positive.

    Source: Xu et al. 2023, PIDNet (arXiv:2206.02066), figure 4, and models/pidnet.py of its
    repository for the names of the layers, so that its files load. Deviation: the boundary head
    and its two losses are left out; the auxiliary head has the weight that the script gives it
    (0.4 there).
    """

    def __init__(self, num_classes: int, *, multi_level: bool = False, width: int = 32):
        super().__init__()
        require_positive("width", [width])
        self.arch = {"name": "pidnet", "num_classes": num_classes, "multi_level": multi_level}
        self.arch["width"] = width
        self.normalisation = dict(NORMALISATIONS["torchvision"])
        w = width
        self.conv1 = nn.Sequential(
            *(nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(inplace=True)),
            *(nn.Conv2d(w, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(inplace=True)),
        )
        self.layer1 = _stage(BasicBlock, w, w, 2)
        self.layer2 = _stage(BasicBlock, w, 2 * w, 2, 2)
        # I: context, down to 1/64
        self.layer3 = _stage(BasicBlock, 2 * w, 4 * w, 3, 2)
        self.layer4 = _stage(BasicBlock, 4 * w, 8 * w, 3, 2)
        self.layer5 = _stage(Bottleneck, 8 * w, 8 * w, 2, 2)
        self.spp = ContextPyramid(16 * w, 3 * w, 4 * w)
        # P: detail, at 1/8
        self.compression3, self.compression4 = _conv_bn(4 * w, 2 * w), _conv_bn(8 * w, 2 * w)
        self.pag3, self.pag4 = Pag(2 * w, w), Pag(2 * w, w)
        self.layer3_ = _stage(BasicBlock, 2 * w, 2 * w, 2)
        self.layer4_ = _stage(BasicBlock, 2 * w, 2 * w, 2)
        self.layer5_ = _stage(Bottleneck, 2 * w, 2 * w, 1)
        # D: boundaries, at 1/8
        self.layer3_d = BasicBlock(2 * w, w, 1, relu=False)
        self.layer4_d = _stage(Bottleneck, w, w, 1)
        self.diff3, self.diff4 = _conv_bn(4 * w, w, 3), _conv_bn(8 * w, 2 * w, 3)
        self.layer5_d = _stage(Bottleneck, 2 * w, 2 * w, 1)
        self.dfm = LightBag(4 * w)
        self.final_layer = Head(4 * w, 4 * w, num_classes)
        if multi_level:
            self.seghead_p = Head(2 * w, 4 * w, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at an eighth of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: also run the auxiliary classifier, if there is one.

        Returns:
            "out": float [N,C,ceil(H/8),ceil(W/8)]; "aux" of the same shape.
        """
        x = self.conv1[1:](in_float32(self.conv1[0], images))  # 1/4
        x = self.layer1(x)
        x = F.relu(self.layer2(F.relu(x)))  # 1/8
        detail, edges = self.layer3_(x), self.layer3_d(x)
        x = F.relu(self.layer3(x))  # 1/16
        detail = self.pag3(detail, self.compression3(x))
        edges = edges + upsample_to(self.diff3(x), edges)
        between = detail
        x = F.relu(self.layer4(x))  # 1/32
        detail, edges = self.layer4_(F.relu(detail)), self.layer4_d(F.relu(edges))
        detail = self.pag4(detail, self.compression4(x))
        edges = edges + upsample_to(self.diff4(x), edges)
        detail, edges = self.layer5_(F.relu(detail)), self.layer5_d(F.relu(edges))
        context = upsample_to(self.spp(self.layer5(x)), detail)  # from 1/64
        outputs = {"out": self.final_layer(self.dfm(detail, context, edges))}
        if aux and hasattr(self, "seghead_p"):
            outputs["aux"] = self.seghead_p(between)
        return outputs

    def param_groups(self, lr: float) -> list[dict]:
        """Return all trainable parameters as one group, as its authors train it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]
