"""Batch-norm statistics of the target."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from engine.errors import UserError
from methods.base import Method, Setting


class AdaBN(Method):
    """Estimate the batch-norm statistics anew on target images, once, after training.

    Source: Li et al. 2016 (AdaBN). Statistics are the plain mean over all batches. No label, no
    gradient; the baseline that any gain of another method should be held against.
    """

    def __init__(self, _setting: Setting):
        super().__init__()

    def check(self, network: nn.Module) -> None:
        """Raise UserError for a network without batch normalisation."""
        if not self._norms(network):
            raise UserError("--method adabn: this model has no batch normalisation")

    @staticmethod
    def _norms(network: nn.Module) -> list[nn.Module]:
        return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def finish(self, network: nn.Module, target: Callable[[], Iterable[Tensor]]) -> bool:
        """Replace the running statistics."""
        norms = self._norms(network)
        kept = [norm.momentum for norm in norms]
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.train()
        for images in target():
            network(images)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
        network.eval()
        return True


METHODS = {"adabn": AdaBN}
