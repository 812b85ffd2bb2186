"""Several processes as one run: torchrun, srun or plain python; gloo on CPUs, NCCL on GPUs.

In a single process every function is its own trivial case, so that no caller asks. Gradients are
averaged by `engine.gradients`.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import UserError


def start() -> None:
    """Join the other processes, if torchrun (RANK) or srun (SLURM_STEP_NUM_TASKS) started several.

    SLURM_NTASKS says nothing: a batch script that starts a single python has it too.
    """
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
    if int(env.get("WORLD_SIZE", 1)) == 1:
        return
    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in env]
    if missing:
        raise UserError(f"WORLD_SIZE is set, {', '.join(missing)} not: start with torchrun or srun")
    # with both, a tensor takes the backend of its device: flags on the CPU never wait for a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave together, in order: gloo's threads would else abort a Python that is ending."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number; process 0 alone prints and writes what all share."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(length: int) -> range:
    """Return which of so many items are this process's: all of them are somebody's, once."""
    return range(rank(), length, world_size())


def largest(*flags: int) -> list[int]:
    """Return the largest value of each flag over all processes."""
    return add_up(torch.tensor(flags), dist.ReduceOp.MAX).tolist()


def add_up(values: Tensor, how: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum (or what `how` says) over all processes of a tensor, in place."""
    if dist.is_initialized():
        dist.all_reduce(values, how)
    return values


def gather(value: Any) -> list:
    """Return what each process gave, plain values."""
    values = [value]
    if dist.is_initialized():
        values *= world_size()
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    largest(0)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Average a module's floating-point buffers (running statistics) over all processes."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers or not dist.is_initialized():
        return
    flat = add_up(torch.cat([buffer.flatten().float() for buffer in buffers])) / world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
