"""Gradients averaged over all processes while the last backward pass of a step still computes."""

import functools

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 25 * 2**20  # bytes of fp32, as torch's own reducer has it


class GradientAverage:
    """The mean of a module's gradients over all processes; nothing in a single one.

    A step may have several backward passes, each reaching other parameters. `begin_last` says that
    the next pass is the last: from then on a bucket of parameters is sent as soon as the pass has
    reached all of them, the last layers first. `wait` sends what the pass did not reach. All
    processes send the same buckets in the same order, whatever each has reached.

    A process that did not reach a parameter counts as 0; where none did, it keeps no gradient.

    Args:
        module: on its device, its frozen parameters frozen.

    Source: Li et al. 2020, PyTorch Distributed, section 3.2. Deviations from
    DistributedDataParallel: passes before the last are added up rather than refused, and need no
    `no_sync`; what is reached is not searched for in the graph.
    """

    def __init__(self, module: nn.Module):
        self._buckets: list[list[nn.Parameter]] = []
        self._sent: list[tuple[Tensor, dist.Work]] = []
        self._missing: list[int] | None = None  # parameters a bucket waits for, in the last pass
        if not dist.is_initialized():
            return
        size = BUCKET
        for parameter in reversed([p for p in module.parameters() if p.requires_grad]):
            if size >= BUCKET:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(parameter)
            size += 4 * parameter.numel()
            reached = functools.partial(self._reached, len(self._buckets) - 1)
            parameter.register_post_accumulate_grad_hook(reached)

    def begin_last(self) -> None:
        """Say that the next backward pass is the step's last one."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def _reached(self, bucket: int, _parameter: Tensor) -> None:
        if self._missing is None:
            return
        self._missing[bucket] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send_next()

    @torch.no_grad()
    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        reached = torch.tensor([float(p.grad is not None) for p in bucket])
        flat = torch.cat([part.flatten().float() for part in parts] + [reached.to(parts[0].device)])
        self._sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def send(self) -> None:
        """Send the gradients as they are; no pass of the step reaches them any more."""
        while len(self._sent) < len(self._buckets):
            self._send_next()

    @torch.no_grad()
    def wait(self) -> None:
        """Put the means in the gradients' place, once after a step's last pass."""
        self.send()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            flat /= dist.get_world_size()
            *means, reached = flat.split([p.numel() for p in bucket] + [len(bucket)])
            for parameter, mean, anywhere in zip(bucket, means, reached, strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(mean.view_as(parameter))
                elif anywhere > 0:  # a GPU is waited for in this case alone
                    parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))
        self._sent.clear()
        self._missing = None
