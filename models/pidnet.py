"""PIDNet: three branches for detail, context and boundaries, fast enough for video."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count
from models.base import Network, PixelLoss
from models.layers import PooledBatchNorm2d, choose, in_float32, require_positive, upsample_to
from models.transforms import Block

EDGE_BORDER, EDGE_WIDTH = 6, 4  # pixels without edges at the sides of a label; width of an edge


class Size(NamedTuple):
    """What differs between the published networks; channels."""

    detail_blocks: int  # of layer1, layer2, layer3_, layer4_
    context_blocks: int  # of layer3, layer4
    width: int  # of the stem
    pyramid: int
    head: int
    large: bool  # the context pyramid, boundary branch and fusion of PIDNet-L


SIZES = {
    "s": Size(2, 3, 32, 96, 128, large=False),
    "m": Size(2, 3, 64, 96, 128, large=False),
    "l": Size(3, 4, 64, 112, 256, large=True),
}


def _conv_bn(inplanes: int, planes: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inplanes, planes, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes))


def _bn_relu_conv(inplanes: int, planes: int, size: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inplanes, planes, size, 1, size // 2, groups=groups, bias=False)
    return [PooledBatchNorm2d(inplanes), nn.ReLU(inplace=True), conv]


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
    """Build `count` blocks; neither the last one nor a Bottleneck that begins ends in a ReLU."""
    blocks = [block(inplanes, planes, stride, relu=block is BasicBlock)]
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


def _pooled_scales(inplanes: int, branch: int) -> list[nn.Module]:
    """Build the five scales that both pyramids begin with: as it is, three windows, everything."""
    pools = [nn.AvgPool2d(size, stride, stride) for size, stride in ((5, 2), (9, 4), (17, 8))]
    return [
        nn.Sequential(*pool, *_bn_relu_conv(inplanes, branch))
        for pool in ([], *([pool] for pool in pools), [nn.AdaptiveAvgPool2d(1)])
    ]


class ParallelPyramid(nn.Module):
    """Average over four window sizes, side by side (PAPPM, of PIDNet-S and -M)."""

    def __init__(self, inplanes: int, branch: int, outplanes: int):
        super().__init__()
        for i, scale in enumerate(_pooled_scales(inplanes, branch)):
            self.add_module(f"scale{i}", scale)
        self.scale_process = nn.Sequential(*_bn_relu_conv(4 * branch, 4 * branch, 3, groups=4))
        self.compression = nn.Sequential(*_bn_relu_conv(5 * branch, outplanes))
        self.shortcut = nn.Sequential(*_bn_relu_conv(inplanes, outplanes))

    def forward(self, x: Tensor) -> Tensor:
        own = self.scale0(x)
        scales = (self.scale1, self.scale2, self.scale3, self.scale4)
        pooled = torch.cat([upsample_to(scale(x), own) + own for scale in scales], 1)
        together = torch.cat([own, self.scale_process(pooled)], 1)
        return self.compression(together) + self.shortcut(x)


class SerialPyramid(nn.Module):
    """Average over four window sizes, each upon the one before (DAPPM, of PIDNet-L)."""

    def __init__(self, inplanes: int, branch: int, outplanes: int):
        super().__init__()
        for i, scale in enumerate(_pooled_scales(inplanes, branch)):
            self.add_module(f"scale{i}", scale)
        for i in range(1, 5):
            self.add_module(f"process{i}", nn.Sequential(*_bn_relu_conv(branch, branch, 3)))
        self.compression = nn.Sequential(*_bn_relu_conv(5 * branch, outplanes))
        self.shortcut = nn.Sequential(*_bn_relu_conv(inplanes, outplanes))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.scale0(x)]
        for scale, process in (
            (self.scale1, self.process1),
            (self.scale2, self.process2),
            (self.scale3, self.process3),
            (self.scale4, self.process4),
        ):
            maps.append(process(upsample_to(scale(x), maps[0]) + maps[-1]))
        return self.compression(torch.cat(maps, 1)) + self.shortcut(x)


class Bag(nn.Module):
    """Boundary attention: detail at boundaries, context elsewhere, then one convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(*_bn_relu_conv(channels, channels, 3))

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = torch.sigmoid(boundary)
        return self.conv(edge * detail + (1 - edge) * context)


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


def edge_map(label: Tensor) -> Tensor:
    """Return where ids change, float32 [N,H,W] of 0 and 1, as lines of `EDGE_WIDTH` pixels.

    Args:
        label: uint8 [N,H,W]; 255 is an id like the others.

    Source: PIDNet datasets/base_dataset.py, where Canny looks at the ids of the whole image, its
    border is cleared and the lines are dilated, all before the crop. Deviations: a pixel is on a
    line whose right or lower neighbour has another id (on CamVid's labels the two agree to an IoU
    of 0.91), and the crop is looked at, on its device; so an image that a random scale made
    smaller than the crop has a line at its own border.
    """
    edge = torch.zeros(label.shape, device=label.device)
    edge[:, :, :-1] += label[:, :, 1:] != label[:, :, :-1]
    edge[:, :-1] += label[:, 1:] != label[:, :-1]
    inside = (..., *[slice(EDGE_BORDER, size - EDGE_BORDER) for size in label.shape[1:]])
    cleared = torch.zeros_like(edge)
    cleared[inside] = edge[inside].clamp(max=1)
    before = EDGE_WIDTH // 2
    padded = F.pad(cleared, (before, EDGE_WIDTH - 1 - before) * 2)
    return F.max_pool2d(padded[:, None], EDGE_WIDTH, 1)[:, 0]


def balanced_bce(logits: Tensor, edge: Tensor) -> Tensor:
    """Return the binary cross-entropy of edges, to which the few weigh as much as the many.

    Args:
        logits: float32 [N,H,W].
        edge: float32 [N,H,W] of 0 and 1.

    Source: PIDNet utils/criterion.py: edges weigh the share of the others in the whole batch, the
    others that of the edges; the mean is over all pixels.
    """
    share = edge.mean()
    weight = torch.where(edge == 1, 1 - share, share)
    return F.binary_cross_entropy_with_logits(logits, edge, weight)


class PIDNet(Network):
    """PIDNet-S, -M and -L.

    Args:
        num_classes: C, classes predicted.
        size: of the published networks.
        multi_level: an auxiliary classifier on the detail branch after its first mixing.
        boundary: as published for training: that classifier and a boundary head.
        width: channels of the stem; None for the size's. Pyramid and heads grow along.

    Raises:
        UserError: a width that is not positive.

    Source: Xu et al. 2023, PIDNet (arXiv:2206.02066), figure 4 and section 3.4, and
    models/pidnet.py and utils/criterion.py of its repository: names of the layers, so that its
    files load, and losses. Deviation: one image alone is normalised by running statistics where it
    has been averaged to one value a channel, which theirs does not train on.
    """

    align_corners = True
    aux_weight = 0.4
    boundary_weight = 20.0
    boundary_above = 0.8  # probability from which a pixel counts for the boundary-aware term
    default_loss: ClassVar[tuple[str, ...]] = ("ohem",)

    def __init__(
        self,
        num_classes: int,
        *,
        size: Annotated[Literal["s", "m", "l"], "of the published networks"] = "s",
        multi_level: Annotated[bool, "an auxiliary classifier"] = False,
        boundary: Annotated[bool, "that classifier and a boundary head, as published"] = False,
        width: Annotated[Count | None, "channels of the stem"] = None,
    ):
        super().__init__("torchvision")
        choose("size of pidnet", size, SIZES)
        m, n, planes, pyramid, head, large = SIZES[size]
        w = planes if width is None else width
        require_positive("width", [w])
        pyramid, head = pyramid * w // planes, head * w // planes
        edge = 2 * w if large else w  # channels of the boundary branch at its beginning
        if multi_level or boundary:
            self.heads = ("out", "aux")
        self.conv1 = nn.Sequential(
            *(nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(inplace=True)),
            *(nn.Conv2d(w, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(inplace=True)),
        )
        self.layer1 = _stage(BasicBlock, w, w, m)
        self.layer2 = _stage(BasicBlock, w, 2 * w, m, 2)
        # I: context, down to 1/64
        self.layer3 = _stage(BasicBlock, 2 * w, 4 * w, n, 2)
        self.layer4 = _stage(BasicBlock, 4 * w, 8 * w, n, 2)
        self.layer5 = _stage(Bottleneck, 8 * w, 8 * w, 2, 2)
        self.spp = (SerialPyramid if large else ParallelPyramid)(16 * w, pyramid, 4 * w)
        # P: detail, at 1/8
        self.compression3, self.compression4 = _conv_bn(4 * w, 2 * w), _conv_bn(8 * w, 2 * w)
        self.pag3, self.pag4 = Pag(2 * w, w), Pag(2 * w, w)
        self.layer3_ = _stage(BasicBlock, 2 * w, 2 * w, m)
        self.layer4_ = _stage(BasicBlock, 2 * w, 2 * w, m)
        self.layer5_ = _stage(Bottleneck, 2 * w, 2 * w, 1)
        # D: boundaries, at 1/8
        self.layer3_d = BasicBlock(2 * w, edge, 1, relu=False)
        if large:
            self.layer4_d = BasicBlock(edge, edge, 1, relu=False)
        else:
            self.layer4_d = _stage(Bottleneck, edge, edge, 1)
        self.diff3, self.diff4 = _conv_bn(4 * w, edge, 3), _conv_bn(8 * w, 2 * w, 3)
        self.layer5_d = _stage(Bottleneck, 2 * w, 2 * w, 1)
        self.dfm = (Bag if large else LightBag)(4 * w)
        self.final_layer = Head(4 * w, head, num_classes)
        if "aux" in self.heads:
            self.seghead_p = Head(2 * w, head, num_classes)
        if boundary:
            self.seghead_d = Head(2 * w, w, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at an eighth of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: also run the auxiliary classifier and the boundary head, where there are any.

        Returns:
            "out": float [N,C,ceil(H/8),ceil(W/8)]; "aux" of the same shape; "boundary" with one
            channel.
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
        boundary = edges
        detail, edges = self.layer5_(F.relu(detail)), self.layer5_d(F.relu(edges))
        context = upsample_to(self.spp(self.layer5(x)), detail)  # from 1/64
        outputs = {"out": self.final_layer(self.dfm(detail, context, edges))}
        if aux and hasattr(self, "seghead_p"):
            outputs["aux"] = self.seghead_p(between)
        if aux and hasattr(self, "seghead_d"):
            outputs["boundary"] = self.seghead_d(boundary)
        return outputs

    def loss(
        self, outputs: dict[str, Tensor], label: Tensor, pixel_loss: PixelLoss, **_weights
    ) -> dict[str, Tensor]:
        """Return the terms of section 3.4: main, auxiliary, boundaries, and main at boundaries.

        The auxiliary output is held to its label by cross-entropy whatever the run's loss is.
        """
        terms = {"out": pixel_loss(outputs["out"], label)}
        if "aux" in outputs:
            terms["aux"] = self.aux_weight * pixel_loss(outputs["aux"], label, "ce")
        if "boundary" in outputs:
            logits = self.resize(outputs["boundary"], label.shape[-2:])[:, 0]
            terms["boundary"] = self.boundary_weight * balanced_bce(logits, edge_map(label))
            near = logits.detach().sigmoid() > self.boundary_above
            terms["at_boundary"] = pixel_loss(outputs["out"], label.masked_fill(~near, 255))
        return terms

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Leave out the training heads of a file that this network has not."""
        cures = {"seghead_p.": "multi_level=yes", "seghead_d.": "boundary=yes"}
        skipped = {
            name: f"training head, this network has none: {cure}"
            for head, cure in cures.items()
            for name in state
            if name.startswith(head) and not hasattr(self, head[:-1])
        }
        return {name: t for name, t in state.items() if name not in skipped}, skipped
