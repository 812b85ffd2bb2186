"""DeepLabv2 as AdaptSegNet and ADVENT use it: the field's baseline network for adaptation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Network
from models.encoders import encoder_row
from models.encoders.resnet import ResNet
from models.layers import choose, require_positive
from models.normalisation import NORMALISATIONS

ENCODERS = ("resnet50", "resnet101")
# Names in the files of kazuto1011 -> AdaptSegNet's, which are ours
LAYERS = {"reduce": "1", "conv3x3": "2", "increase": "3"}


class DilatedSum(nn.Module):
    """Classify by the sum of dilated 3x3 convolutions (DeepLabv2's ASPP).

    One product of matrices makes what every tap of every kernel contributes, and col2im moves each
    contribution to its pixel and adds it there: equal to the convolutions but for rounding (fp32
    after the product). With few outputs and wide dilations those run at a fraction of a product's
    speed, above all backward: with it this is 4 to 5 times as fast on CPUs (docs/performance.md).
    """

    def __init__(self, in_channels: int, num_classes: int, dilations: Sequence[int]):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=d, dilation=d) for d in dilations
        )
        for conv in self.conv2d_list:
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        # flipped, as col2im sends each product to where a convolution would have fetched it from
        kernels = torch.stack([conv.weight for conv in self.conv2d_list]).flip(3, 4)
        taps = kernels.permute(0, 1, 3, 4, 2).flatten(0, 3)  # [branches * C * 9, in_channels]
        products = (taps @ x.flatten(2)).float().chunk(len(kernels), dim=1)
        logits = sum(conv.bias for conv in self.conv2d_list)[:, None, None]
        for conv, product in zip(self.conv2d_list, products, strict=True):
            where = {"dilation": conv.dilation, "padding": conv.padding}
            logits = logits + F.fold(product, x.shape[2:], conv.kernel_size, **where)
        return logits


class DeepLabV2(ResNet, Network):
    """Stride-8 ResNet with one or two ASPP classifiers.

    It is a ResNet rather than having one, so that the parameters are named as in AdaptSegNet and
    ADVENT: conv1, layer1..4; with one level the classifier is layer5, with two levels layer5 is
    the auxiliary one on layer3 and layer6 the main one.

    Args:
        num_classes: C, classes predicted.
        encoder: "resnet50" or "resnet101".
        multi_level: add the auxiliary classifier on layer3.
        aspp_dilations: dilations summed by each classifier. (6, 12, 18, 24) is the paper's and
            ADVENT's; (6, 12) is what AdaptSegNet and DACS published: a return statement inside
            their loop leaves the other two branches unused and untrained.
        style: "caffe" (AdaptSegNet's weights, BGR images) or "torchvision"; see `ResNet`.
        freeze_bn_affine: keep scale and shift of batch norm fixed. Their running statistics are
            still updated in training mode, as in every descendant of AdaptSegNet.

    Raises:
        UserError: a value that does not exist.

    Source: Chen et al., 2017, DeepLab, section 3; Tsai et al., 2018, Learning to Adapt Structured
    Output Space, section 4; AdaptSegNet model/deeplab_multi.py and deeplab.py, ADVENT
    advent/model/deeplabv2.py, kazuto1011/deeplab-pytorch@4219467 libs/models/deeplabv2.py.
    Deviations: the backbone starts from He's initialisation where theirs draws N(0, 0.01), which
    matters only without pretrained weights; `param_groups` names each weight once, where their
    generator yields those of layer1 to layer4 three or four times, so that the optimizer stepped
    them as often.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[Literal["resnet50", "resnet101"], "the ResNet"] = "resnet101",
        multi_level: Annotated[bool, "an auxiliary classifier on layer3"] = False,
        aspp_dilations: Annotated[tuple[int, ...], "of the classifiers"] = (6, 12, 18, 24),
        style: Annotated[Literal["caffe", "torchvision"], "of the ResNet"] = "caffe",
        freeze_bn_affine: Annotated[bool, "keep batch norms' scale and shift"] = True,
    ):
        choose("encoder of deeplabv2", encoder, ENCODERS)
        super().__init__(**encoder_row(encoder).arguments, output_stride=8, style=style)
        aspp_dilations = require_positive("aspp_dilations", aspp_dilations)
        self.normalisation = dict(NORMALISATIONS[style])
        self.heads = ("out", "aux") if multi_level else ("out",)
        in_channels = self.channels[-2:] if multi_level else self.channels[-1:]
        for i, channels in enumerate(in_channels):
            self.add_module(f"layer{5 + i}", DilatedSum(channels, num_classes, aspp_dilations))
        if freeze_bn_affine:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at an eighth of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to compute the auxiliary logits, where the network has them.

        Returns:
            "out" and, with two levels, "aux": float [N,C,h,w].
        """
        layer3, layer4 = self.features(images)[-2:]
        if "aux" not in self.heads:
            return {"out": self.layer5(layer4)}
        outputs = {"out": self.layer6(layer4)}
        if aux:
            outputs["aux"] = self.layer5(layer3)
        return outputs

    def param_groups(self, lr: float) -> list[dict]:
        """Split the trainable parameters: the backbone at `lr`, the classifiers at ten times it."""
        backbone, heads = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (heads if name.startswith(("layer5", "layer6")) else backbone).append(parameter)
        return [{"params": backbone, "lr": lr}, {"params": heads, "lr": 10 * lr}]

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring kazuto1011's names to AdaptSegNet's, and everybody's classifiers to these levels.

        Args:
            state: weights by name. `layer5` is the main classifier in a file without `layer6`,
                and the auxiliary one in a file with it. In AdaptSegNet's initial weights
                (`Scale.*`) it is left out, as there.

        Returns:
            The weights renamed, and those left out by name, with the reason.
        """
        skipped = {}
        if "layer2.block1.reduce.conv.weight" in state:
            state = {_from_kazuto(name): tensor for name, tensor in state.items()}
            skipped = {name: "of the classifier of images" for name in state if name[:3] == "fc."}
            state = {name: tensor for name, tensor in state.items() if name not in skipped}
        if any(name.startswith("Scale.") for name in state):
            state = {name.removeprefix("Scale."): tensor for name, tensor in state.items()}
            skipped = {name: "COCO's classes" for name in state if name.startswith("layer5.")}
            state = {name: tensor for name, tensor in state.items() if name not in skipped}
        two_levels = any(name.startswith("layer6.") for name in state)
        main_in_file = "layer6." if two_levels else "layer5."
        main_here = "layer6." if "aux" in self.heads else "layer5."
        converted = {}
        for name, tensor in state.items():
            if name.startswith(main_in_file):
                converted[main_here + name.removeprefix(main_in_file)] = tensor
            elif name.startswith("layer5.") and "aux" not in self.heads:
                skipped[name] = "auxiliary classifier, this network has one level"
            else:
                converted[name] = tensor
        own = self.state_dict()
        for name in [name for name in converted if ".conv2d_list." in name and name not in own]:
            del converted[name]
            skipped[name] = f"aspp_dilations {self.arch['aspp_dilations']} has no such branch"
        return converted, skipped


def _from_kazuto(name: str) -> str:
    """Return AdaptSegNet's name of a tensor."""
    stem = re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", name)
    if stem:
        return f"{stem[1]}1.{stem[2]}"
    block = re.fullmatch(r"layer(\d)\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", name)
    if block is None:
        return re.sub(r"^aspp\.c(\d)", r"layer5.conv2d_list.\1", name)
    stage, index, part, kind, leaf = block.groups()
    layer = kind + LAYERS[part] if part in LAYERS else f"downsample.{int(kind == 'bn')}"
    return f"layer{int(stage) - 1}.{int(index) - 1}.{layer}.{leaf}"
