"""VGG-11 to 19, with and without batch norm: the convolutions alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from models.encoders.base import Encoder, Row, dilated_stages, move
from models.layers import PairPool, in_float32

CHANNELS = (64, 128, 256, 512, 512)
# Convolutions of the five blocks
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(Encoder):
    """VGG without its classifier: five blocks of 3x3 convolutions, each followed by pooling.

    The maps are what blocks 2 to 5 make, of strides 2 to 16, and the last pooling, of 32. Where a
    stage dilates, its pooling keeps the size, and the convolutions after it are dilated.

    Args:
        layers: 11, 13, 16 or 19, as the paper counts.
        norm: whether a batch norm follows each convolution.
        output_stride: 8, 16 or 32.
        dilate_first: changes nothing, no convolution has a stride.

    Raises:
        UserError: a value that does not exist.

    Source: Simonyan and Zisserman, 2015, Very Deep Convolutional Networks, table 1;
    torchvision/models/vgg.py for the key names, `features.*` there, and the initialisation.
    Deviation: pooling rounds sizes up, where torchvision leaves out an odd last pixel.
    """

    classifier = ("classifier.", "pre_logits.", "head.")

    def __init__(self, *, layers: int, norm: bool, output_stride: int, dilate_first: bool = False):
        super().__init__()
        stages = dilated_stages(output_stride)
        self.channels = [*CHANNELS[1:], CHANNELS[-1]]
        self.strides = [2, 4, 8, min(16, output_stride), output_stride]
        poolings = [(2, 1), (2, 1), *((stage.stride, stage.first) for stage in stages)]
        dilations = [1, 1, 1, stages[0].dilation, stages[1].dilation]
        self.body = nn.Sequential()
        inplanes = 3
        for planes, count, dilation, pooling in zip(
            CHANNELS, CONVOLUTIONS[layers], dilations, poolings, strict=True
        ):
            for _ in range(count):
                self.body.append(nn.Conv2d(inplanes, planes, 3, 1, dilation, dilation))
                if norm:
                    self.body.append(nn.BatchNorm2d(planes))
                self.body.append(nn.ReLU(inplace=True))
                inplanes = planes
            self.body.append(PairPool("max", *pooling))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the inputs of the last four poolings, and the output of the last.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Five tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        first, *others = self.body
        x = in_float32(first, images)
        for layer in others:
            if isinstance(layer, PairPool) and x.shape[1] > CHANNELS[0]:
                yield x
            x = layer(x)
        yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename torchvision's `features.*`, which here is a method, to `body.*`."""
        return move(state, "features.", "body.")


FILES = {
    "vgg11": "8a719046",
    "vgg11_bn": "6002323d",
    "vgg13": "19584684",
    "vgg13_bn": "abd245e5",
    "vgg16": "397923af",
    "vgg16_bn": "6c64b313",
    "vgg19": "dcbb9e9d",
    "vgg19_bn": "c79401a0",
}
ENCODERS = {
    name: Row(
        VGG,
        {"layers": int(name[3:5]), "norm": name.endswith("_bn")},
        "torchvision",
        f"https://download.pytorch.org/models/{name}-{digest}.pth",
    )
    for name, digest in FILES.items()
}
