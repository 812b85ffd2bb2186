"""What every network is that decodes the maps of an encoder by name."""

from __future__ import annotations

import inspect
from itertools import islice

import torch
from torch import Tensor, nn

from engine.errors import UserError
from models.base import Network, trainable
from models.encoders import Encoder, build_encoder, encoder_row

# What the files of whole networks put before the encoder; the first is smp's of an encoder of timm
PREFIXES = ("encoder.model.", "encoder.", "backbone.")


class EncodedNetwork(Network):
    """A network with an `encoder`; the rest of it is its decoder and heads.

    Args:
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of its deepest features.
        **wishes: further arguments of the encoder's class, left out where it has none of that name.

    Attributes:
        channels: of the encoder's maps at strides 2, 4 and so on, five numbers; 0 at stride 2 where
            the encoder has no such map.
        head_lr_factor: learning rate of all but the encoder over the encoder's.
    """

    head_lr_factor: float = 1.0

    def __init__(self, encoder: str, output_stride: int = 32, **wishes: object):
        row = encoder_row(encoder)
        super().__init__(row.normalisation)
        classes = inspect.getmro(row.build) if inspect.isclass(row.build) else [row.build]
        takes = {name for one in classes for name in inspect.signature(one).parameters}
        wishes = {"norms": False} | wishes  # maps as timm and smp have them
        known = {name: value for name, value in wishes.items() if name in takes}
        self.encoder = build_encoder(encoder, output_stride, **known)
        self.channels = [0] * (5 - len(self.encoder.channels)) + list(self.encoder.channels)

    def require_stride_2(self, network: str, encoder: str) -> None:
        """Raise UserError unless the encoder has a map at stride 2."""
        if not self.channels[0]:
            raise UserError(
                f"{network} decodes from stride 2, encoder {encoder} begins at stride 4: take "
                f"another encoder, or unet, which does without"
            )

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's five maps, the finest first.

        Args:
            images: float [N,3,H,W], normalised.

        Returns:
            float [N,channels[i],h,w]; without channels where the encoder has no map of stride 2.
        """
        maps = self.encoder.features(images)
        if not self.channels[0]:
            n, _, h, w = images.shape
            maps = [maps[0].new_empty(n, 0, -(-h // 2), -(-w // 2)), *maps]
        return maps

    def param_groups(self, lr: float) -> list[dict]:
        """Split the trainable parameters: the encoder's at `lr`, the others at a multiple of it."""
        inside = {id(p) for p in self.encoder.parameters()}
        others = [p for p in trainable(self) if id(p) not in inside]
        return [
            {"params": trainable(self.encoder), "lr": lr},
            {"params": others, "lr": self.head_lr_factor * lr},
        ]

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring the encoder's published names to this network's, behind a prefix or not.

        Args:
            state: weights by name: of a classification network, or of a whole one.

        Returns:
            The weights renamed, and those left out by name, with the reason.

        Raises:
            UserError: smp's of an encoder of timm that is another one here.
        """
        before = next((p for p in PREFIXES if any(n.startswith(p) for n in state)), "")
        if before == PREFIXES[0] and not self.encoder.timms:
            name = self.arch["encoder"]
            raise UserError(f"these are smp's of tu-{name}: take encoder timm:{name} (needs timm)")
        inside = {n.removeprefix(before): t for n, t in state.items() if n.startswith(before)}
        own, converted, skipped = self.state_dict(), {}, {}
        for name, tensor in self.encoder.convert_weights(inside).items():
            known = f"encoder.{name}" in own
            if not known and name.startswith(self.encoder.classifier):
                skipped[before + name] = "of the classifier of images"
            else:
                converted[f"encoder.{name}" if before or known else name] = tensor
        rest = {n: t for n, t in state.items() if not n.startswith(before)}
        return converted | rest, skipped


class FullSizeNetwork(EncodedNetwork):
    """A network whose `decoder` enlarges the encoder's maps to the size of the image.

    Attributes:
        decoder: called with the five maps and the image's height and width.
        segmentation_head: makes logits of what it returns.
    """

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits at the image's size.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,H,W].
        """
        decoded = self.decoder(self.features(images), images.shape[-2:])
        return {"out": self.segmentation_head(decoded)}


def initialise(decoder: nn.Module, head: nn.Module) -> None:
    """Draw a decoder's convolutions as He et al. and its last one as Glorot and Bengio do."""
    for module in decoder.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def freeze_unreached(encoder: Encoder, count: int) -> None:
    """Train only what an encoder's first `count` maps depend on: processes wait for gradients."""
    parameters = trainable(encoder)
    training = encoder.training
    device = parameters[0].device
    images = torch.zeros(1, 3, 64, 64, device=device)
    with torch.enable_grad():
        total = sum(one.sum() for one in islice(encoder.eval().maps(images), count))
    reached = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, reached, strict=True):
        parameter.requires_grad_(gradient is not None)
    encoder.train(training)
