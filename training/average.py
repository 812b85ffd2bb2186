"""The running average of a network's weights, which is validated and published in its place."""

import copy

import torch
from torch import nn


@torch.no_grad()
def move(average: nn.Module, network: nn.Module, updates: int, momentum: float) -> None:
    """Move an average of weights to a network's: t <- a t + (1 - a) s.

    a is min(1 - 1 / (updates + 1), momentum): at the first update t becomes a copy. Floating-point
    buffers are averaged too, integer ones copied.

    Args:
        average, network: of the same architecture.
        updates: that were done before.
        momentum: the largest a, 0 to 1.
    """
    momentum = min(1 - 1 / (updates + 1), momentum)
    theirs = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[name], 1 - momentum)
        else:
            value.copy_(theirs[name])


class WeightAverage:
    """A copy of a network that follows it, step by step; see `move`.

    Args:
        network: in training.
        momentum: the largest share that stays.

    Source: Polyak and Juditsky 1992, with the exponential weights and the ramp of mean teachers.
    """

    def __init__(self, network: nn.Module, momentum: float):
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.momentum, self.updates = momentum, 0

    def follow(self, network: nn.Module) -> None:
        """Move to the network."""
        move(self.network, network, self.updates, self.momentum)
        self.updates += 1

    def state_dict(self) -> dict:
        """Return the average, and how many updates it is of."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Restore both."""
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]
