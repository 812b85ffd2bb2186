"""Several processes as one run: torchrun, srun or plain python; gloo on CPUs, NCCL on GPUs.

In a single process every function is its own trivial case, so that no caller asks. Gradients are
averaged by `engine.gradients`.
"""

import datetime
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

# imported after a group is made, this one's default arguments would keep the group, and with it
# gloo's threads, beyond `stop`
import torch.distributed.nn.functional
from torch import Tensor, nn

from engine.errors import UserError

PATIENCE = datetime.timedelta(minutes=10)  # for all processes to be there
SILENCE = 8.0  # seconds before a process says that it waits
MESSAGE = 64 * 2**20  # bytes that a process may send another


def is_first() -> bool:
    """Return whether this process is to speak for all, before they have joined."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def start() -> None:
    """Join the other processes, if torchrun (RANK) or srun (SLURM_STEP_NUM_TASKS) started several.

    SLURM_NTASKS says nothing: a batch script that starts a single python has it too.

    Raises:
        UserError: the others are not there in time, or the master's port is taken.
    """
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
    if env.get("WORLD_SIZE", "1") == "1":
        return
    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in env]
    if missing:
        raise UserError(f"WORLD_SIZE is set, {', '.join(missing)} not: start with torchrun or srun")
    for key in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not (env[key].isdecimal() and int(env[key]) < 65536):
            raise UserError(f"{key} is {env[key]!r}, not a number below 65536")
    here, where = f"process {env['RANK']}", f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    waits = f"{here} waits at {where} for all {env['WORLD_SIZE']}, at most {PATIENCE}"
    saying = threading.Timer(SILENCE, lambda: print(waits, file=sys.stderr, flush=True))
    saying.daemon = True
    saying.start()
    try:
        _join()
    except (dist.DistError, OSError) as error:
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if "EADDRINUSE" in cause:
            cause = f"port {env['MASTER_PORT']} is taken here: give another MASTER_PORT"
        elif "imed out" in cause:
            cause = f"not all {env['WORLD_SIZE']} are there after {PATIENCE}"
        raise UserError(f"{here} cannot join the others at {where}: {cause}") from error
    finally:
        saying.cancel()


def _join() -> None:
    """Make the process group that the environment describes."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + PATIENCE.total_seconds()
    socket.getaddrinfo(host, port)  # a name that nobody knows is no matter of patience
    # torch would wait twice as long, and print its stack, for a master that is not there
    while os.environ["RANK"] != "0":
        try:
            socket.create_connection((host, port), timeout=10).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=PATIENCE))
    # with both, a tensor takes the backend of its device: flags on the CPU never wait for a GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def stop() -> None:
    """Leave together, in order: gloo's threads would else abort a Python that is ending.

    The threads end with the last reference to the group.
    """
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
    """Return what each process gave, plain values as JSON has them.

    As bytes of JSON: torch's own gathering of objects unpickles whatever comes.

    Raises:
        UserError: a process sends more than 64 MiB, or no JSON.
    """
    if not dist.is_initialized():
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[rank()] = len(own)
    longest = max(add_up(sizes).tolist())
    if longest > MESSAGE:
        raise UserError(f"a process sends {longest} bytes; at most {MESSAGE} are taken")
    padded = torch.full((longest,), ord(" "), dtype=torch.uint8)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    try:
        return [json.loads(part.numpy().tobytes()) for part in parts]
    except ValueError as error:
        raise UserError(f"what another process sent is no JSON: {error}") from error


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
