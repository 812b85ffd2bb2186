"""VFM-UDA's network: a foundation model, and a head that enlarges its tokens four times."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Weight
from models.layers import ChannelNorm
from models.tokens import TokenNetwork

EPS = 1e-6


class VFM(TokenNetwork):
    """The tokens of a foundation model, enlarged twice by two; logits at about stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: dinov2_* or dinov3_*.
        scale: images are resized by it, down to whole patches, before they are looked at.

    Raises:
        UserError: an encoder without tokens; a scale of 0.

    Source: Englert et al. 2024, section 3; tue-mps/vfm-uda models/vit_variants/
    vit_lightweight_head.py, whose names these are. There 1024 pixels become 1120, which is a scale
    of 1.1 and patches of 14.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "dinov2_* or dinov3_*"] = "dinov2_vitb14",
        scale: Annotated[Weight, "of the images, before they are looked at"] = 1.1,
    ):
        super().__init__("vfm", encoder)
        if scale <= 0:
            raise UserError(f"scale of vfm is {scale}, must be above 0")
        self.scale = scale
        channels = self.encoder.channels[-1]
        half, quarter = channels // 2, channels // 4
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, 2, bias=False),
            ChannelNorm(half, EPS),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2, bias=False),
            ChannelNorm(quarter, EPS),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            ChannelNorm(quarter, EPS),
        )
        self.out = nn.Conv2d(quarter, num_classes, 1, bias=False)
        nn.init.normal_(self.out.weight, std=0.1)

    def forward(
        self, images: Tensor, aux: bool = True, hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict logits at four times the patches' size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.
            hidden: bool [N,h*w], patches that are not shown; see `grid`.

        Returns:
            "out": float [N,C,4*h,4*w] for h rows and w columns of patches.
        """
        patch = self.encoder.patch
        size = tuple(side * patch for side in self.grid(images.shape[-2:]))
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        (x,) = self.encoder.tokens(images, hidden=hidden)
        return {"out": self.out(self.upscale(x))}

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of H, W pixels."""
        rows, columns = (max(1, int(side * self.scale) // self.encoder.patch) for side in size)
        return rows, columns

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Leave out the second name that their files have for the token of what is hidden."""
        name = "token_masking.mask_token"
        converted, skipped = super().convert_weights({n: t for n, t in state.items() if n != name})
        return converted, skipped | ({name: "encoder.mask_token again"} if name in state else {})
