"""FCN as torchvision has it: a dilated encoder, a 3x3 convolution and a classifier."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from models.encoded import EncodedNetwork
from models.layers import upsample_to


class FCNHead(nn.Sequential):
    """3x3 convolution to `width` (a quarter of) channels, batch norm, ReLU, dropout, classifier."""

    def __init__(self, in_channels: int, num_classes: int, width: int | None = None):
        inner = width or in_channels // 4
        super().__init__(
            nn.Conv2d(in_channels, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(inner, num_classes, 1),
        )


class TwoLevelNetwork(EncodedNetwork):
    """A `classifier` on an encoder's deepest map, and an auxiliary head on an earlier one if added.

    Attributes:
        aux_classifier: of the auxiliary logits, where `heads` has "aux".
    """

    def add_auxiliary(self, channels: int, num_classes: int, width: int | None = None) -> None:
        """Build the auxiliary head, on a map of so many channels; see `FCNHead`."""
        self.heads = ("out", "aux")
        self.aux_classifier = FCNHead(channels, num_classes, width)

    def outputs(self, out: Tensor, earlier: Tensor, aux: bool) -> dict[str, Tensor]:
        """Return the logits by head, those of the map `earlier` at the size of `out`."""
        outputs = {"out": out}
        if aux and "aux" in self.heads:
            outputs["aux"] = upsample_to(self.aux_classifier(earlier), out)
        return outputs

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the encoder's stride.

        Args:
            images: float [N,3,H,W], normalised.
            aux: whether to compute the auxiliary logits, where the network has them.

        Returns:
            "out" and, with two levels, "aux": float [N,C,h,w], of the same size.
        """
        *_, third, deepest = self.encoder.features(images)
        return self.outputs(self.classifier(deepest), third, aux)


class FCN(TwoLevelNetwork):
    """Fully convolutional network on a dilated encoder: logits at its stride.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of its deepest features.
        multi_level: an auxiliary head of the same form on its third stage.

    Raises:
        UserError: a value that does not exist.

    Source: Long et al., 2015, Fully Convolutional Networks, in the form of torchvision 0.28
    (models/segmentation/fcn.py), whose files load; weight of the auxiliary loss as in its
    references/segmentation/train.py. The networks of the paper are fcn8s, fcn16s and fcn32s.
    """

    aux_weight = 0.5

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet50",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 8,
        multi_level: Annotated[bool, "an auxiliary head on the third stage"] = False,
    ):
        super().__init__(encoder, output_stride)
        self.classifier = FCNHead(self.channels[-1], num_classes)
        if multi_level:
            self.add_auxiliary(self.channels[-2], num_classes)
