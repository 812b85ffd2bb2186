"""HRNet (V2): four resolutions side by side, which tell each other what they see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, Stage, dilated_stages
from models.encoders.resnet import BasicBlock, Bottleneck
from models.layers import choose, in_float32

STEM_CHANNELS, FIRST_CHANNELS = 64, 256
MODULES = (1, 4, 3)  # of the stages with two, three and four branches
BLOCKS = 4  # of a branch, and of the first stage
RESIZING = ("bilinear", "aligned", "nearest")


PLAIN = Stage(1, 1, 1)


def conv_norm(inplanes: int, planes: int, stage: Stage = PLAIN, relu: bool = True) -> nn.Sequential:
    """Build a 3x3 convolution, batch norm and ReLU."""
    conv = nn.Conv2d(inplanes, planes, 3, stage.stride, stage.first, stage.first, bias=False)
    layers = [conv, nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[: 3 if relu else 2])


class HRModule(nn.Module):
    """Blocks on each branch, then each branch becomes the sum of all.

    Args:
        channels: of each branch.
        stages: of each branch, how it comes from the one before; see `dilated_stages`.
        resize: how a coarse branch is brought to the size of a finer one; see `HRNet`.
    """

    def __init__(self, channels: Sequence[int], stages: Sequence[Stage], resize: str):
        super().__init__()
        self.how = {"mode": "nearest" if resize == "nearest" else "bilinear"}
        if resize != "nearest":
            self.how["align_corners"] = resize == "aligned"
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, c, (1, 1), (stage.dilation,) * 2) for _ in range(BLOCKS)))
            for c, stage in zip(channels, stages, strict=True)
        )
        # rows: the branch that is made; columns: those it is made of, but itself
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict(
                {str(j): self._path(channels, stages, j, i) for j in range(len(channels)) if j != i}
            )
            for i in range(len(channels))
        )

    @staticmethod
    def _path(channels: Sequence[int], stages: Sequence[Stage], j: int, i: int) -> nn.Sequential:
        """Return the layers from branch j to branch i: 1x1, or a 3x3 for each halving."""
        if j > i:
            conv = nn.Conv2d(channels[j], channels[i], 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels[i]))
        path = nn.Sequential()
        for level in range(j + 1, i + 1):
            last = level == i
            planes = channels[i] if last else channels[j]
            path.append(conv_norm(channels[j], planes, stages[level], relu=not last))
        return path

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return as many float [N,C,h,w] as there were, of the same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            total = None
            for j, x in enumerate(maps):
                if j != i:
                    x = row[str(j)](x)
                if j > i and x.shape[-2:] != maps[i].shape[-2:]:
                    x = F.interpolate(x, maps[i].shape[-2:], **self.how)
                total = x if total is None else total + x
            fused.append(F.relu(total, inplace=True))
        return fused


class HRNet(Encoder):
    """HRNet without its classifier: the four branches at its end, and the stem's map of stride 2.

    Args:
        width: channels of the finest branch; each coarser one has twice as many.
        output_stride: 8, 16 or 32; a branch that would be coarser is dilated instead.
        dilate_first: see `dilated_stages`.
        resize: how a coarse branch is brought to the size of a finer one: "bilinear" as the authors
            do for HRNet, "aligned" (corners) as they do for OCR, "nearest" as they do on ImageNet
            and timm always.

    Raises:
        UserError: a value that does not exist.

    Source: Wang et al., 2020, Deep High-Resolution Representation Learning, section 3;
    HRNet/HRNet-Semantic-Segmentation lib/models/seg_hrnet.py for the key names.
    """

    classifier = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    timms = False  # its maps have been through the modules before the classifier

    def __init__(
        self,
        *,
        width: int,
        output_stride: int,
        dilate_first: bool = False,
        resize: str = "bilinear",
    ):
        super().__init__()
        choose("resize", resize, RESIZING)
        stages = (PLAIN, *dilated_stages(output_stride, dilate_first))
        channels = [width * 2**i for i in range(4)]
        self.channels = [STEM_CHANNELS, *channels]
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        first = [Bottleneck(STEM_CHANNELS, 64, (1, 1), (1, 1))]
        first += [Bottleneck(FIRST_CHANNELS, 64, (1, 1), (1, 1)) for _ in range(BLOCKS - 1)]
        self.layer1 = nn.Sequential(*first)
        for i, count in enumerate(MODULES, 1):
            # the branch that is added comes from the coarsest one, at first from layer1
            before = FIRST_CHANNELS if i == 1 else channels[i - 1]
            new = {str(i): nn.Sequential(conv_norm(before, channels[i], stages[i]))}
            if i == 1:
                new = {"0": conv_norm(before, channels[0])} | new
            self.add_module(f"transition{i}", nn.ModuleDict(new))
            modules = (HRModule(channels[: i + 1], stages[: i + 1], resize) for _ in range(count))
            self.add_module(f"stage{i + 1}", nn.Sequential(*modules))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of the first convolution, and those of the four branches.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        x = F.relu(self.bn1(in_float32(self.conv1, images)), inplace=True)
        yield x
        x = self.layer1(F.relu(self.bn2(self.conv2(x)), inplace=True))
        maps = [self.transition1["0"](x), self.transition1["1"](x)]
        maps = self.stage2(maps)
        maps = self.stage3([*maps, self.transition2["2"](maps[-1])])
        yield from self.stage4([*maps, self.transition3["3"](maps[-1])])


ENCODERS = {
    "hrnet_w18": Row(HRNet, {"width": 18}, "torchvision"),
    "hrnet_w32": Row(HRNet, {"width": 32}, "torchvision"),
    "hrnet_w48": Row(HRNet, {"width": 48}, "torchvision"),
}
