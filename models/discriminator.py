"""The fully convolutional discriminator of output-space adversarial adaptation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FCDiscriminator(nn.Module):
    """Tell source from target, patch by patch, from class probability or entropy maps.

    Args:
        num_classes: channels of its input.
        width: channels after the first convolution.

    Source: Tsai et al., 2018, section 4.2; AdaptSegNet model/discriminator.py (the names of the
    parameters); ADVENT advent/model/discriminator.py is the same network.
    """

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, width, 4, 2, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 4, 2, 1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 4, 2, 1)
        self.classifier = nn.Conv2d(8 * width, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit per patch.

        Args:
            x: float [N,C,H,W], H and W at least 32.

        Returns:
            float [N,1,H//32,W//32], one logit per patch of 32 pixels a side.
        """
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(conv(x), 0.2, inplace=True)
        return self.classifier(x)

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Rename the weights of ADVENT's nn.Sequential (0, 2, 4, 6, 8); see DeepLabV2."""
        names = {"0": "conv1", "2": "conv2", "4": "conv3", "6": "conv4", "8": "classifier"}
        converted = {}
        for name, tensor in state.items():
            layer, _, rest = name.partition(".")
            converted[f"{names[layer]}.{rest}" if layer in names else name] = tensor
        return converted, {}
