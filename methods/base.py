"""The interface of an adaptation method."""

import argparse
from collections.abc import Callable, Iterable

import torch
from torch import nn


class Method(nn.Module):
    """What a method does when it does nothing."""

    needs: frozenset[str] = frozenset()

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the method's flags to the script's parser."""

    def check(self, model: nn.Module) -> None:
        """Raise UserError where the method cannot work on a network, before any step."""

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the weighted loss terms of one batch."""
        return {}

    def after_step(self, rate: float) -> dict[str, torch.Tensor]:
        """Train what is the method's own; `rate` is the schedule's factor. Return losses to log."""
        return {}

    def finish(self, model: nn.Module, batches: Iterable[torch.Tensor]) -> bool:
        """Change the trained model once, at the end, given normalised target images."""
        return False
