"""Batch-norm statistics of the target."""

from collections.abc import Iterable

import torch
from torch import nn

from engine.errors import UserError
from methods.base import Method


class AdaBN(Method):
    """Estimate the batch-norm statistics anew on target images, once, after training.

    Source: Li et al. 2016 (AdaBN). Statistics are the plain mean over all batches. No label, no
    gradient; the baseline that any gain of another method should be held against.
    """

    def check(self, model: nn.Module) -> None:
        """Raise UserError for a model without batch normalisation."""
        if not self._norms(model):
            raise UserError("--method adabn: this model has no batch normalisation")

    @staticmethod
    def _norms(model: nn.Module) -> list[nn.Module]:
        return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def finish(self, model: nn.Module, batches: Iterable[torch.Tensor]) -> bool:
        """Replace the running statistics."""
        norms = self._norms(model)
        kept = [norm.momentum for norm in norms]
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.train()
        for images in batches:
            model(images)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
        model.eval()
        return True
