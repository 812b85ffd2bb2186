"""FCN-32s, -16s and -8s: VGG-16 all of convolutions, its finer poolings scored and added."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count
from models.base import Network
from models.layers import in_float32, require_positive

# Convolutions of VGG-16's stages: count, channels in units of the first one's
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
BORDER = 100  # zeros around the image, so that fc6 fits on any


def bilinear(num_classes: int, factor: int) -> nn.ConvTranspose2d:
    """Build what enlarges every class alone, bilinearly and for good: it is not trained."""
    size = 2 * factor
    conv = nn.ConvTranspose2d(num_classes, num_classes, size, factor, bias=False)
    distance = (torch.arange(size) - (size - 1) / 2).abs()
    slope = 1 - distance / factor
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[range(num_classes), range(num_classes)] = slope[:, None] * slope
    return conv.requires_grad_(False)


def crop(x: Tensor, offset: int, size: torch.Size) -> Tensor:
    """Cut `size` (H, W) out of [N,C,h,w], `offset` pixels from the left and the top."""
    h, w = size
    return x[:, :, offset : offset + h, offset : offset + w]


class FCN32s(Network):
    """FCN-32s: the deepest map's scores, enlarged 32 times; logits of the image's own size.

    Args:
        num_classes: C, classes predicted.
        width: channels of the first convolutions; VGG-16 has 64.

    Raises:
        UserError: a width that is not positive.

    Source: Long et al., 2015, Fully Convolutional Networks, section 4, in the form of wkentaro's
    pytorch-fcn (torchfcn/models/), whose files load: BGR images less their mean, fixed bilinear
    enlargement. Deviation: scores begin near zero, theirs at zero.
    """

    # names of the scores, channels of what they score in units of the width
    skips: ClassVar[tuple[tuple[str, int], ...]] = ()
    # the last enlargement's name, its factor, and where the image begins in what it makes
    last: ClassVar[tuple[str, int, int]] = ("upscore", 32, 19)

    def __init__(
        self,
        num_classes: int,
        *,
        width: Annotated[Count, "channels of the first convolutions"] = 64,
    ):
        super().__init__("caffe")
        require_positive("width", [width])
        before = 3
        for i, (count, factor) in enumerate(STAGES, 1):
            for j in range(1, count + 1):
                padding = BORDER if i == j == 1 else 1
                conv = nn.Conv2d(before, factor * width, 3, padding=padding)
                self.add_module(f"conv{i}_{j}", conv)
                before = factor * width
        self.fc6 = nn.Conv2d(before, 64 * width, 7)
        self.fc7 = nn.Conv2d(64 * width, 64 * width, 1)
        for module in self.children():
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
        scores = {"score_fr": 64, **dict(self.skips)}
        for name, factor in scores.items():
            score = nn.Conv2d(factor * width, num_classes, 1)
            nn.init.normal_(score.weight, std=0.01)
            nn.init.zeros_(score.bias)
            self.add_module(name, score)
        for name in ("upscore2", "upscore_pool4")[: len(self.skips)]:
            self.add_module(name, bilinear(num_classes, 2))
        self.add_module(self.last[0], bilinear(num_classes, self.last[1]))

    def pools(self, images: Tensor) -> list[Tensor]:
        """Return the third, fourth and fifth pooling's output."""
        x, outputs = images, []
        for i, (count, _) in enumerate(STAGES, 1):
            for j in range(1, count + 1):
                conv = self.get_submodule(f"conv{i}_{j}")
                x = F.relu(in_float32(conv, x) if i == j == 1 else conv(x))
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            outputs.append(x)
        return outputs[2:]

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the image's size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,H,W].
        """
        pool3, pool4, x = self.pools(images)
        for layer in (self.fc6, self.fc7):
            x = F.dropout2d(F.relu(layer(x)), 0.5, self.training)
        scores = self.add_skips(self.score_fr(x), pool3, pool4)
        name, _, offset = self.last
        return {"out": crop(self.get_submodule(name)(scores), offset, images.shape[2:])}

    def add_skips(self, scores: Tensor, pool3: Tensor, pool4: Tensor) -> Tensor:
        """Add the scores of finer maps [N,C,h,w], enlarging in between."""
        return scores


class FCN16s(FCN32s):
    """FCN-16s: FCN-32s with the scores of the fourth pooling; see there."""

    skips = (("score_pool4", 8),)
    last = ("upscore16", 16, 27)

    def add_skips(self, scores: Tensor, pool3: Tensor, pool4: Tensor) -> Tensor:
        """Enlarge twice and add the fourth pooling's scores."""
        enlarged = self.upscore2(scores)
        return enlarged + crop(self.score_pool4(pool4), 5, enlarged.shape[2:])


class FCN8s(FCN16s):
    """FCN-8s: FCN-16s with the scores of the third pooling; see FCN-32s."""

    skips = (("score_pool4", 8), ("score_pool3", 4))
    last = ("upscore8", 8, 31)

    def add_skips(self, scores: Tensor, pool3: Tensor, pool4: Tensor) -> Tensor:
        """Do as FCN-16s, enlarge twice and add the third pooling's scores."""
        enlarged = self.upscore_pool4(super().add_skips(scores, pool3, pool4))
        return enlarged + crop(self.score_pool3(pool3), 9, enlarged.shape[2:])
