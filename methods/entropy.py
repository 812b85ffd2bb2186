"""Entropy minimisation."""

import argparse
from collections.abc import Callable

import torch

from engine.parsing import at_least
from methods.base import Method
from models.outputs import resize
from training import losses


class Entropy(Method):
    """Minimise the entropy of target predictions (MinEnt).

    Source: Vu et al. 2019 (ADVENT), equation 3, weights of its minent configuration.
    """

    needs = frozenset({"target_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the two weights."""
        weight = at_least(0, float)
        group.add_argument("--lambda-entropy", type=weight, default=0.001, help="main output")
        group.add_argument("--lambda-entropy-aux", type=weight, default=0.0002, help="aux output")

    def __init__(
        self,
        *,
        multi_level: bool,
        align_corners: bool,
        lambda_entropy: float,
        lambda_entropy_aux: float,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.weights = {"out": lambda_entropy}
        if multi_level:
            self.weights["aux"] = lambda_entropy_aux

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the normalised entropy of each output level, at the images' resolution."""
        size = batch["target_image"].shape[-2:]
        return {
            f"entropy_{level}": weight
            * losses.entropy(resize(batch["target_out"][level], size, self.align_corners))
            for level, weight in self.weights.items()
        }
