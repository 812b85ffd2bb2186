"""Which device a network runs on, and in which precision."""

import os

import torch

from engine import processes
from engine.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device `name` means: auto (cuda, else cpu), cpu, cuda, cuda:N or mps.

    Of several processes on a node, each takes the GPU of its own number for auto and cuda.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.world_size() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device is auto, cpu, cuda, cuda:N or mps, not {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine has no GPU of Apple's, or torch knows none")
    if device.type == "mps" and processes.world_size() > 1:
        raise UserError(f"--device {name}: several processes cannot share it; start one")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32 for auto, bf16 or fp32.

    auto is bf16 where the device multiplies bfloat16 in hardware, not where it is emulated: GPUs
    from Ampere on, CPUs with AVX512-BF16 or AMX.
    """
    if name != "auto":
        return name
    if device.type == "mps":
        return "fp32"  # nobody has measured the other there
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in `precision` (bf16 or fp32)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
