"""Encoders by name: one family a file, with its table at the foot."""

from __future__ import annotations

from engine.errors import UserError
from models.encoders import (
    beit,
    convnext,
    densenet,
    dino,
    efficientnet,
    hrnet,
    mit,
    mobilenet,
    resnet,
    swin,
    vgg,
    xception,
)
from models.encoders.base import Encoder, Row
from models.encoders.timm_any import PREFIX, timm_row

__all__ = ["ENCODERS", "Encoder", "Row", "build_encoder", "encoder_row"]

FAMILIES = (
    resnet,
    vgg,
    mobilenet,
    efficientnet,
    densenet,
    convnext,
    mit,
    hrnet,
    xception,
    beit,
    swin,
    dino,
)
ENCODERS: dict[str, Row] = {name: row for f in FAMILIES for name, row in f.ENCODERS.items()}


def encoder_row(name: str) -> Row:
    """Return an encoder's row.

    Raises:
        UserError: a name that does not exist; the message lists what does.
    """
    if name.startswith(PREFIX):
        return timm_row(name)
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"encoder is {name!r}, must be one of {known}, or {PREFIX}NAME of timm")
    return ENCODERS[name]


def build_encoder(name: str, output_stride: int, **how: object) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: of ENCODERS, or timm:NAME.
        output_stride: of its deepest features; what is not strided is dilated.
        **how: further arguments of its class, or other ones than the row's.

    Raises:
        UserError: a name or stride that does not exist.
    """
    row = encoder_row(name)
    try:
        return row.build(**{**row.arguments, "output_stride": output_stride, **how})
    except UserError as error:
        raise UserError(f"encoder {name}: {error}") from None
