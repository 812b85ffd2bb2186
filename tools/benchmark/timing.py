"""Clocks, and what the machine itself can do."""

import contextlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

import kernels
from engine.device import pick_precision


def alternate(calls: list[Callable], device: torch.device, repeats: int) -> list[list[float]]:
    """Return the seconds of each call in each round; they take turns and so share the weather.

    Args:
        calls: without arguments.
        device: waited for at the end of a call.
        repeats: rounds after the one that warms up.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            result = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat > 0:
                times.append(time.perf_counter() - started)
            del result  # outside the clock
    return seconds


def compare(ours: list[float], plain: list[float], count: int = 1) -> dict:
    """Return medians of one item, their ratio and the ratio of every round.

    Args:
        ours, plain: seconds of the same rounds.
        count: items handled in a round.
    """
    ours_ms, plain_ms = (statistics.median(side) / count * 1e3 for side in (ours, plain))
    rounds = [theirs / own for own, theirs in zip(ours, plain, strict=True)]
    return {
        "ours_ms": ours_ms,
        "plain_ms": plain_ms,
        "ratio": plain_ms / ours_ms,
        "round_ratios": rounds,
    }


def exact_convolutions() -> contextlib.AbstractContextManager:
    """Return the context in which cuDNN computes float32 in full, without TF32, for comparisons."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class NetworkClock:
    """Measure every forward pass of a network while something else runs it."""

    def __init__(self, network: nn.Module) -> None:
        self.on_gpu = next(network.parameters()).is_cuda
        self._marks: list = []
        network.register_forward_pre_hook(lambda *_: self._mark())
        network.register_forward_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self.on_gpu:  # read later: nothing waits for the GPU here
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds of each forward pass, in order; the GPU must have finished."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if self.on_gpu:
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]
        return [end - start for start, end in pairs]


# ---- the machine -------------------------------------------------------------------------------


def describe_machine(device: torch.device, repeats: int) -> dict:
    """Return what a result depends on: hardware, versions, commit, date, and measured rates."""
    fast_bf16 = pick_precision("auto", device) == "bf16"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": cores,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        # PyTorch's default for convolutions on CUDA; NVIDIA_TF32_OVERRIDE=0 turns it off
        "tf32": device.type == "cuda"
        and torch.backends.cudnn.allow_tf32
        and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0",
        "threads": torch.get_num_threads(),
        "kernels": kernels.backend(device),
        "copy_gb_per_s": copy_rate(device, repeats),
        "fp32_gflop_per_s": matrix_rate(device, torch.float32, repeats),
        # where it is emulated, the measurement would take minutes and say nothing
        "bf16_gflop_per_s": matrix_rate(device, torch.bfloat16, repeats) if fast_bf16 else None,
    }


def commit() -> str:
    """Return the short name of the commit, with + when tracked files differ from it."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        name, changed = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
        return name + "+" * bool(changed)
    return "unknown"


def cpu_name() -> str:
    """Return the processor's model, its architecture where the system does not tell."""
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def copy_rate(device: torch.device, repeats: int) -> float:
    """Measure the gigabytes read plus written in a second of copying 256 MiB."""
    source = torch.randint(1, 255, (1 << 28,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (seconds,) = alternate([lambda: target.copy_(source)], device, repeats)
    return 2 * source.numel() / statistics.median(seconds) / 1e9


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Measure the arithmetic of a matrix product, in 10^9 operations a second."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    (seconds,) = alternate([lambda: a @ a], device, repeats)
    return 2 * side**3 / statistics.median(seconds) / 1e9
