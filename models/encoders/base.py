"""What every encoder is: features at falling resolution, and a row in its family's table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.layers import choose

OUTPUT_STRIDES = (8, 16, 32)


class Row(NamedTuple):
    """An encoder in the table at the foot of its family's file.

    Attributes:
        build: (**arguments, output_stride) -> `Encoder`.
        arguments: what makes it this one of its family.
        normalisation: key of `models.NORMALISATIONS`, or such a value: what its published weights
            expect.
        weights: the address of its ImageNet weights, the start of the SHA-256 in the file's name;
            or the pip package that holds them; None where there are none.
        output_strides: that it can be built with.
    """

    build: Callable[..., Encoder]
    arguments: dict
    normalisation: str | dict
    weights: str | None = None
    output_strides: tuple[int, ...] = OUTPUT_STRIDES


class Stage(NamedTuple):
    """How a stage halves the size, or keeps it.

    Attributes:
        stride: 2, or 1 where the stage dilates instead.
        first: dilation of the convolution that had the stride.
        dilation: of those after it.
    """

    stride: int
    first: int
    dilation: int


def dilated_stages(output_stride: int, dilate_first: bool = False) -> tuple[Stage, Stage, Stage]:
    """Return the stages of strides 8, 16 and 32.

    Args:
        output_stride: 8, 16 or 32, of the last.
        dilate_first: whether the convolution that lost its stride has the dilation of its own stage
            (segmentation_models_pytorch) or that of the stage before, whose neighbours it looked at
            when it had its stride, so that every second pixel is what it was (torchvision, timm).

    Raises:
        UserError: another output stride.
    """
    choose("output_stride", output_stride, OUTPUT_STRIDES)
    stages, stride, dilation = [], 4, 1
    for _ in range(3):
        if stride < output_stride:
            stride *= 2
            stages.append(Stage(2, dilation, dilation))
        else:
            before, dilation = dilation, 2 * dilation
            stages.append(Stage(1, dilation if dilate_first else before, dilation))
    return tuple(stages)


class Encoder(nn.Module):
    """A classification network without its classifier.

    A family defines `features`, or `maps` if it can stop before the deepest one.

    Attributes:
        channels: of each map that `features` returns.
        strides: of each, of the image's pixels: 2 (where the family has a map of that size), then
            always four of 4, 8, 16 and 32, the last ones less where the output stride is.
        classifier: how the names begin, after `convert_weights`, of what published files hold
            beside the encoder.
        timms: whether it computes what timm's network of its name does, for smp's `tu-` files.
    """

    classifier: ClassVar[tuple[str, ...]] = ()
    timms: ClassVar[bool] = True

    channels: list[int]
    strides: list[int]

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps [N,channels[i],ceil(H/strides[i]),ceil(W/strides[i])], the finest first.

        Args:
            images: float [N,3,H,W], normalised.
        """
        return list(self.maps(images))

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield what `features` returns, each map when it is computed."""
        yield from self.features(images)

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names in published files to this family's; what is unknown stays."""
        return state


def move(state: dict[str, Tensor], before: str, after: str) -> dict[str, Tensor]:
    """Rename what begins with `before` to begin with `after`; the rest stays."""
    return {
        after + name.removeprefix(before) if name.startswith(before) else name: tensor
        for name, tensor in state.items()
    }


def renamed(name: str, patterns: Mapping[str, str | Callable]) -> str:
    """Return a name after each pattern, in their order, was replaced by what it stands before."""
    for theirs, ours in patterns.items():
        name = re.sub(theirs, ours, name)
    return name


def join_qkv(state: dict[str, Tensor], query: str, joined: str) -> None:
    """Put three layers of one block into the one that makes queries, keys and values, in place.

    Args:
        state: what lacks one of the three stays.
        query: in the names of the query's, `q` standing where the others have `k` and `v`.
        joined: in its place.
    """
    for name in [name for name in state if query in name]:
        parts = [name.replace(query, query.replace("q", kind)) for kind in "qkv"]
        if all(part in state for part in parts):
            state[name.replace(query, joined)] = torch.cat([state.pop(part) for part in parts])
