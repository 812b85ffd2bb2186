"""SegNet: what is pooled remembers where the maximum stood, and goes back there on the way up."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count
from models.base import Network
from models.layers import in_float32, require_positive

# Channels of VGG-16's convolutions by stage, in units of the first one's
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class Unit(nn.Module):
    """3x3 convolution, and batch norm and ReLU unless it is a classifier."""

    def __init__(self, in_channels: int, channels: int, classifies: bool = False):
        super().__init__()
        self.cbr_unit = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1))
        if not classifies:
            self.cbr_unit.extend([nn.BatchNorm2d(channels), nn.ReLU(inplace=True)])

    def forward(self, x: Tensor) -> Tensor:
        return self.cbr_unit(x)


class Stage(nn.Module):
    """Units one after the other, from the first of these widths to the last."""

    def __init__(self, widths: list[int], classifies: bool = False):
        super().__init__()
        for i, (before, after) in enumerate(pairwise(widths), 1):
            last = classifies and i == len(widths) - 1
            self.add_module(f"conv{i}", Unit(before, after, last))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.children():
            x = unit(x)
        return x


class SegNet(Network):
    """SegNet on VGG-16's convolutions: logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        width: channels of the first convolutions; VGG-16 has 64.
        clipped: batch norm and ReLU on the logits too, which are never negative then: for the files
            of pytorch-semseg, which was trained so.

    Raises:
        UserError: a width that is not positive; when loading, pytorch-semseg's file without
            `clipped`.

    Source: Badrinarayanan et al., 2017, SegNet, figure 2 and section 3; the authors' Caffe network
    (SegNet-Tutorial Models/segnet_train.prototxt), whose last convolution stands alone; the names
    of meetps' pytorch-semseg (ptsemseg/models/segnet.py). Deviation: poolings keep a last odd row
    and column, so that an image of any size is taken.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: Annotated[Count, "channels of the first convolutions"] = 64,
        clipped: Annotated[bool, "logits through batch norm and ReLU, as ptsemseg's"] = False,
    ):
        super().__init__("torchvision")
        require_positive("width", [width])
        stages = [[width * factor for factor in stage] for stage in STAGES]
        for i, stage in enumerate(stages, 1):
            before = stages[i - 2][-1] if i > 1 else 3
            self.add_module(f"down{i}", Stage([before, *stage]))
        for i in range(len(stages), 0, -1):
            after = stages[i - 2][-1] if i > 1 else num_classes
            stage = [*stages[i - 1], after]
            self.add_module(f"up{i}", Stage(stage, classifies=i == 1 and not clipped))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the image's size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,H,W].
        """
        first, *others = self.down1.conv1.cbr_unit
        x = in_float32(first, images)
        for layer in (*others, self.down1.conv2):
            x = layer(x)
        seen = []  # where the maxima stood, and the size before
        for i in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"down{i}")(x) if i > 1 else x
            size = x.shape[2:]
            x, where = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            seen.append((where, size))
        for i in range(len(STAGES), 0, -1):
            where, size = seen.pop()
            x = self.get_submodule(f"up{i}")(F.max_unpool2d(x, where, 2, 2, output_size=size))
        return {"out": x}

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Refuse a file whose logits go through batch norm and ReLU where these do not."""
        if "up1.conv2.cbr_unit.1.weight" in state and not self.arch["clipped"]:
            raise UserError(
                "these weights were trained with batch norm and ReLU on the logits (pytorch-"
                "semseg), and give its output with --model segnet clipped=yes alone"
            )
        return state, {}
