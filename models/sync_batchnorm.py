"""Batch norm over the images of all processes of a run, on CPUs and GPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose statistics, in training, are those of every process's images together.

    All processes must run it in the same order on inputs of one size. Same parameters, buffers and
    keys as `nn.BatchNorm2d`; in evaluation it is one.

    Source: Zhang et al. 2018 (EncNet), section 3. Deviation from torch.nn.SyncBatchNorm, which runs
    on GPUs alone: plain operations, so slower; one exchange forward and one backward, as there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float [N,C,H,W], arithmetic in float32; returns the input's dtype."""
        if not self.training:
            return super().forward(x)
        local = torch.stack(torch.var_mean(x.float(), dim=(0, 2, 3), correction=0))
        var_of, mean_of = _Everyones.apply(local).unbind(1)  # [processes,C] each
        mean = mean_of.mean(0)
        # of all pixels: the mean of the variances, and the variance of the means
        var = (var_of + (mean_of - mean).square()).mean(0)
        self._track(mean.detach(), var.detach(), x.numel() // x.shape[1] * len(mean_of))
        mean, scale, shift = (
            values[:, None, None]
            for values in (mean, self.weight * (var + self.eps).rsqrt(), self.bias)
        )
        return ((x - mean) * scale + shift).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics as nn.BatchNorm2d does: the variance there is unbiased."""
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (count / (count - 1)), share)


class _Everyones(torch.autograd.Function):
    """One tensor of every process, stacked; its gradient is the sum of what each made of it."""

    @staticmethod
    def forward(_ctx, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(_ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def sync_batchnorm(model: nn.Module) -> int:
    """Turn every BatchNorm2d of a network into a SyncBatchNorm2d, in place; return how many."""
    changed = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                sync = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                sync.weight, sync.bias = child.weight, child.bias  # frozen ones stay frozen
                sync.load_state_dict(child.state_dict())
                setattr(parent, name, sync.train(child.training))
                changed += 1
    return changed
