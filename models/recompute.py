"""Activation checkpointing: less memory for a training step, for about a third more arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A block of a network whose activations need not be kept from forward to backward.

    With `recompute`, training keeps the block's input alone, and backward runs the block again.
    The numbers are the same to the last bit: a block draws nothing at random, and its buffers
    (batch norm's running statistics) are updated by the first run only.
    """

    recompute = False

    def __call__(self, x: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return super().__call__(x)
        how = {"use_reentrant": False, "preserve_rng_state": False}
        if not torch.compiler.is_compiling():  # a compiler moves every update into the first run
            how["context_fn"] = lambda: (contextlib.nullcontext(), _copied_buffers(self))
        return checkpoint(super().__call__, x, **how)


@contextlib.contextmanager
def _copied_buffers(block: nn.Module) -> Iterator[None]:
    """Let a block update copies of its buffers, which are then thrown away."""
    own = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in own:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            setattr(module, name, buffer)


def checkpoint_activations(model: nn.Module) -> None:
    """Make every `Block` of a network compute its activations again in backward.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, section 4.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = True
