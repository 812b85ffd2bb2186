"""What every encoder is: features at falling resolution, and a row in its family's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Row(NamedTuple):
    """An encoder in the table at the foot of its family's file.

    Attributes:
        build: (**arguments, output_stride) -> `Encoder`.
        arguments: what makes it this one of its family.
        normalisation: key of `models.NORMALISATIONS`, what its published weights expect.
        weights: the address of its ImageNet weights, the start of the SHA-256 in the file's name;
            or the pip package that holds them; None where there are none.
    """

    build: Callable[..., Encoder]
    arguments: dict
    normalisation: str
    weights: str | None = None


class Encoder(nn.Module):
    """A classification network without its classifier.

    Attributes:
        channels: of each map that `features` returns.
        strides: of each, of the image's pixels: 2 (where the family has a map of that size), then
            always four of 4, 8, 16 and 32, the last ones less where the output stride is.
    """

    channels: list[int]
    strides: list[int]

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps [N,channels[i],ceil(H/strides[i]),ceil(W/strides[i])], the finest first.

        Args:
            images: float [N,3,H,W], normalised.
        """
        raise NotImplementedError

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names in published files to this family's; what is unknown stays."""
        return state
