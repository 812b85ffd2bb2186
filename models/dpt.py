"""DPT: maps at four sizes made of tokens, fused from the coarsest to the finest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from models.tokens import TokenNetwork

# channels of a token -> of the head, and of its four maps: UniMatch V2's
WIDTHS = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
}
WIDEST = (384, (1536, 1536, 1536, 1536))


class ResidualUnit(nn.Module):
    """Two convolutions beside the input, a ReLU before each."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """A map added to what comes from the coarser ones, and enlarged to the next one's size.

    The coarsest map has nothing to be added to: there `resConfUnit1` is a part that the authors'
    files hold and nobody uses, and it is not trained.
    """

    def __init__(self, width: int, coarsest: bool):
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = ResidualUnit(width), ResidualUnit(width)
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1.requires_grad_(not coarsest)

    def forward(self, x: Tensor | None, own: Tensor, size: tuple[int, int]) -> Tensor:
        x = own if x is None else x + self.resConfUnit1(own)
        x = F.interpolate(self.resConfUnit2(x), size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Head(nn.Module):
    """DPT's head; its parts are named as in the authors' files.

    Args:
        channels: of a token.
        num_classes: C, classes predicted.
        width: channels in which maps are fused.
        own: channels of the four maps before, the finest first.
    """

    def __init__(self, channels: int, num_classes: int, width: int, own: Sequence[int]):
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(channels, count, 1) for count in own)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(own[0], own[0], 4, 4),
                nn.ConvTranspose2d(own[1], own[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(own[3], own[3], 3, 2, 1),
            ]
        )
        scratch = {
            f"layer{i}_rn": nn.Conv2d(count, width, 3, padding=1, bias=False)
            for i, count in enumerate(own, 1)
        }
        scratch |= {f"refinenet{i}": Fusion(width, i == len(own)) for i in range(1, 5)}
        scratch["output_conv"] = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1)
        )
        self.scratch = nn.ModuleDict(scratch)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return logits at eight times the size of the four maps of tokens."""
        layers = zip(self.projects, self.resize_layers, tokens, strict=True)
        maps = [
            self.scratch[f"layer{i}_rn"](resize(project(x)))
            for i, (project, resize, x) in enumerate(layers, 1)
        ]
        h, w = maps[0].shape[-2:]
        sizes = [(2 * h, 2 * w), *(tuple(x.shape[-2:]) for x in maps)]
        x = None
        for i in (4, 3, 2, 1):
            x = self.scratch[f"refinenet{i}"](x, maps[i - 1], sizes[i - 1])
        return self.scratch["output_conv"](x)


class DPT(TokenNetwork):
    """DPT on a foundation model, as UniMatch V2 segments: logits at eight times the patches' size.

    Args:
        num_classes: C, classes predicted.
        encoder: dinov2_* or dinov3_*.

    Raises:
        UserError: an encoder without tokens.

    Source: Ranftl et al. 2021, Vision Transformers for Dense Prediction, section 3; LiheYoung/
    UniMatch-V2 for the widths and names. Deviations from the first: no token is read out into the
    patches, no batch norm.
    """

    align_corners = True

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "dinov2_* or dinov3_*"] = "dinov2_vits14",
    ):
        super().__init__("dpt", encoder)
        channels = self.encoder.channels[-1]
        self.head = Head(channels, num_classes, *WIDTHS.get(channels, WIDEST))

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,8*h,8*w] for h rows and w columns of patches.
        """
        return {"out": self.head(self.encoder.tokens(images, self.encoder.taps))}
