"""DeepLab-LargeFOV: VGG-16 with holes, and a convolution that reaches far."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from engine.words import Count
from models.base import Network
from models.layers import in_float32, require_positive

# Convolutions of VGG-16's stages: count, channels in units of the first one's, dilation, and the
# stride of the pooling after them
STAGES = ((2, 1, 1, 2), (2, 2, 1, 2), (3, 4, 1, 2), (3, 8, 1, 1), (3, 8, 2, 1))
REACH = 12  # dilation of fc6


class DeepLabV1(Network):
    """DeepLab-LargeFOV on VGG-16: logits at stride 8.

    Args:
        num_classes: C, classes predicted.
        width: channels of the first convolutions; VGG-16 has 64.

    Raises:
        UserError: a width that is not positive.

    Source: Chen et al., 2015, Semantic Image Segmentation with Deep Convolutional Nets, sections
    3.1 and 3.2, without the CRF, in the form of wangleihitcs' DeepLab-V1-PyTorch (nets/vgg.py),
    whose files load. Up to `features.28` the names are torchvision's VGG-16, whose file loads too.
    Logits are resized with corners aligned: the poolings keep the first pixel at its place.
    """

    align_corners = True

    def __init__(
        self,
        num_classes: int,
        *,
        width: Annotated[Count, "channels of the first convolutions"] = 64,
    ):
        super().__init__("torchvision")
        require_positive("width", [width])
        layers, before = [], 3
        for count, factor, dilation, stride in STAGES:
            for _ in range(count):
                conv = nn.Conv2d(before, factor * width, 3, 1, dilation, dilation)
                layers += [conv, nn.ReLU(inplace=True)]
                before = factor * width
            layers.append(nn.MaxPool2d(3, stride, 1))
        layers.append(nn.AvgPool2d(3, 1, 1))
        inner = 16 * width
        for conv in (nn.Conv2d(before, inner, 3, 1, REACH, REACH), nn.Conv2d(inner, inner, 1)):
            layers += [conv, nn.ReLU(inplace=True), nn.Dropout2d(0.5)]
        self.features = nn.Sequential(*layers, nn.Conv2d(inner, num_classes, 1))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.features[-1].weight, std=0.01)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at an eighth of the size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,ceil(H/8),ceil(W/8)].
        """
        first, *others = self.features
        x = in_float32(first, images)
        for layer in others:
            x = layer(x)
        return {"out": x}

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Leave out the classifier of VGG-16's file."""
        skipped = {n: "of the classifier of images" for n in state if n.startswith("classifier.")}
        return {n: t for n, t in state.items() if n not in skipped}, skipped
