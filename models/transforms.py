"""What is done to a built network: activations recomputed, batch norms synchronised or folded."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ------------------------------------------------------------------ less memory


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


# ------------------------------------------------------------------ several processes


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
        var_of, mean_of = _AllGather.apply(local).unbind(1)  # [processes,C] each
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


class _AllGather(torch.autograd.Function):
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
    """Synchronise every BatchNorm2d of a network, in place; return how many.

    On GPUs it becomes torch's own SyncBatchNorm, elsewhere a `SyncBatchNorm2d`: same keys.
    """
    changed = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                kind = nn.SyncBatchNorm if child.weight.is_cuda else SyncBatchNorm2d
                sync = kind(child.num_features, child.eps, child.momentum)
                sync.weight, sync.bias = child.weight, child.bias  # frozen ones stay frozen
                sync.load_state_dict(child.state_dict())
                setattr(parent, name, sync.train(child.training))
                changed += 1
    return changed


# ------------------------------------------------------------------ inference


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Copy a model for inference with every batch norm folded into the convolution before it.

    The convention of models/: a BatchNorm2d registered right after a Conv2d in the same module is
    applied right after it. The scale is computed in float64, so the outputs differ from the
    original's in evaluation mode by float32 rounding only. Under bfloat16 other weights are rounded
    than before, which costs no more than rounding them does, given `in_float32`.

    Args:
        model: any model of this folder; left as it is.

    Returns:
        A copy in evaluation mode, without gradients.

    Source: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, section 3.2 (the same fold, here without quantisation).
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in folded.modules():
        children = list(module.named_children())
        for (_, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                _fold(conv, bn)
                setattr(module, bn_name, nn.Identity())
    return folded


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shift = bn.bias.double() + (bias - bn.running_mean.double()) * scale
    weight = conv.weight
    conv.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
    conv.bias = nn.Parameter(shift.to(weight.dtype))
    conv.requires_grad_(False)
