"""What an augmentation is: a row in the table at the foot of its family's file."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.words import Keyword, keywords

Range = tuple[float, float]


class Row(NamedTuple):
    """An augmentation of --augment. The keyword-only arguments of `apply` are the word's keys.

    Attributes:
        stage: what `apply` is, its keys left out:
            warp: (p) -> arguments of `geometry.warp`;
            move: (n, (w, h)) -> float [N,3,3], from where in the warped image its pixels come, in
                grid_sample's coordinates;
            bend: (x, y, on, (w, h)) -> x, y: the same for what is no matrix; coordinates [N,h,w] or
                what broadcasts to it, on: float [N], 1 or 0 for an image that is left out;
            policy: (n) -> for each image a list of (operation, value), see `policies`;
            pair: (images, maps) -> images, maps;
            style: (images, references) -> images;
            linear: (mean) -> float [N,3,3], [N,3]: of the channels' means [N,3], a matrix and what
                is added; all of a batch are one matrix;
            image: (images) -> images.
            Moves, bends and policies' geometry are one grid with the warp's, linears one matrix.
        apply: see `stage`. Images are float [N,3,H,W], 0 to 255, and are never written to; maps
            uint8 [N,K,H,W], the label first, or None.
        like: the namesake, whose values ours are.
        difference: from it.
        p: how likely an image is changed; None where every image is.
        still: values with which nothing changes: the word is then left out.
    """

    stage: str
    apply: Callable
    like: str
    difference: str
    p: float | None = 0.5
    still: dict[str, Any] = {}  # noqa: RUF012 -- of a NamedTuple, never written to

    @property
    def keys(self) -> dict[str, Keyword]:
        """The keys in their order; NAME=VALUE gives the first, p where there is none."""
        return keywords(self.apply)


def uniform(n: int, span: Range) -> torch.Tensor:
    """Return n numbers, uniform in a range, on the CPU."""
    return span[0] + torch.rand(n) * (span[1] - span[0])


def each(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return a number for each image as [N,1,1,1], where the images are and of their kind."""
    return values.to(images, non_blocking=True).view(-1, 1, 1, 1)
