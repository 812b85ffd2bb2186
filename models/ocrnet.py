"""OCRNet: each pixel looks at what the regions of the classes hold, found by a coarse head."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.words import Count
from models.encoded import EncodedNetwork
from models.hrnet import pixel_head, together
from models.layers import require_positive

KEYS = 2  # channels of the features over those of queries, keys and values


def norm_relu(channels: int) -> nn.Sequential:
    """Build batch norm and ReLU under a name of their own, as in the authors' files."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def point(in_channels: int, channels: int) -> list[nn.Module]:
    """Build a 1x1 convolution, batch norm and ReLU."""
    return [nn.Conv2d(in_channels, channels, 1, bias=False), norm_relu(channels)]


def regions(features: Tensor, logits: Tensor) -> Tensor:
    """Return what each class's region holds: the mean over pixels by the softmax of its logits.

    Args:
        features: float [N,D,h,w].
        logits: float [N,C,h,w]; the softmax is over pixels (equation 2).

    Returns:
        float [N,D,C,1].
    """
    share = logits.flatten(2).float().softmax(2).to(features.dtype)  # [N,C,h*w]
    return (share @ features.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)


class ObjectAttention(nn.Module):
    """Attend from pixels (queries) to regions (keys and values)."""

    def __init__(self, width: int):
        super().__init__()
        inner = width // KEYS
        self.f_pixel = nn.Sequential(*point(width, inner), *point(inner, inner))
        self.f_object = nn.Sequential(*point(width, inner), *point(inner, inner))
        self.f_down = nn.Sequential(*point(width, inner))
        self.f_up = nn.Sequential(*point(inner, width))

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        query = self.f_pixel(x).flatten(2).transpose(1, 2)  # [N,h*w,D]
        key, value = (
            f(objects).flatten(2).transpose(1, 2) for f in (self.f_object, self.f_down)
        )  # [N,C,D]
        context = F.scaled_dot_product_attention(query, key, value)
        return self.f_up(context.transpose(1, 2).unflatten(2, x.shape[2:]))


class Distribute(nn.Module):
    """Lay the regions' context beside the features and convolve 1x1."""

    def __init__(self, width: int):
        super().__init__()
        self.object_context_block = ObjectAttention(width)
        self.conv_bn_dropout = nn.Sequential(*point(2 * width, width), nn.Dropout2d(0.05))

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        context = self.object_context_block(x, objects)
        return self.conv_bn_dropout(torch.cat([context, x], dim=1))


class OCRNet(EncodedNetwork):
    """HRNet with object-contextual representations: logits at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: hrnet_w18, hrnet_w32 or hrnet_w48; the last four maps of another serve as well.
        width: channels of the features that attend to regions; an even number.

    Raises:
        UserError: a value that does not exist.

    Source: Yuan et al., 2020, Object-Contextual Representations, section 3.2;
    HRNet-Semantic-Segmentation lib/models/seg_hrnet_ocr.py with corners aligned everywhere, as its
    defaults have it, whose files load. The coarse head that finds the regions is the auxiliary
    output, of weight 0.4.
    """

    heads = ("out", "aux")
    align_corners = True
    aux_weight = 0.4

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "hrnet_w18",
        width: Annotated[Count, "channels of the features that attend to regions"] = 512,
    ):
        super().__init__(encoder, resize="aligned")
        require_positive("half the width", [width // KEYS])
        channels = sum(self.channels[-4:])
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.ocr_distri_head = Distribute(width)
        self.cls_head = nn.Conv2d(width, num_classes, 1)
        self.aux_head = pixel_head(channels, num_classes)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at a quarter of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to return the coarse logits, which are computed in any case.

        Returns:
            "out" and "aux": float [N,C,ceil(H/4),ceil(W/4)].
        """
        x = together(self.encoder.features(images), self.align_corners)
        coarse = self.aux_head(x)
        x = self.conv3x3_ocr(x)
        x = self.ocr_distri_head(x, regions(x, coarse))
        outputs = {"out": self.cls_head(x)}
        return outputs | {"aux": coarse} if aux else outputs
