"""What every script shares: errors, devices, seeds, models and schedules."""

import hashlib
import os
import random
import sys
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch

import distributed
import models
from errors import UserError

# A loader worker that died or hangs, or another process that ended, is no bug of ours.
_MACHINE_FAULTS = ("DataLoader worker", "DataLoader timed out", "/gloo/")


def run(main: Callable, parse_args: Callable) -> None:
    """Parse, run, and turn a user's mistake into one line and exit status 2.

    A `UserError` raised inside a loader worker arrives wrapped in the worker's traceback; its own
    line is the last one.
    """
    args = parse_args()
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        print(
            f"warning: torch {torch.__version__} has known holes in loading checkpoints safely; "
            "2.10 or newer has not",
            file=sys.stderr,
        )
    try:
        distributed.start()
        if distributed.rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- process 0 speaks for all
        main(args)
        distributed.stop()
    except UserError as error:
        _fail(str(error).strip().splitlines()[-1].removeprefix("errors.UserError: "))
    except OSError as error:
        _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except RuntimeError as error:
        if not any(fault in str(error) for fault in _MACHINE_FAULTS):
            raise
        _fail(str(error).splitlines()[0])
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(line: str) -> NoReturn:
    """Print one line and exit with status 2."""
    if distributed.world_size() == 1:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    print(f"error: {line} (process {distributed.rank()})", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)  # at once: `distributed.stop` would wait for processes that may never come


# ------------------------------------------------------------------ device and precision


def pick_device(name: str) -> torch.device:
    """Return the device `name` means: auto, cpu, cuda or cuda:N.

    Of several processes on a node, each takes the GPU of its own number for auto and cuda.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.world_size() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is auto, cpu, cuda or cuda:N, not {name!r}")
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
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in `precision` (bf16 or fp32)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# ------------------------------------------------------------------ randomness


def seed_for(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed Python, NumPy and torch (all devices) from `parts`.

    The training loops call this with (seed, step) at the start of every step. Whatever a step
    draws then depends on nothing that happened before, so that a resumed run, a run with more
    validations or a run beside its control draws the same numbers and no generator state needs
    to be stored.
    """
    seed = seed_for(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- other people's code may draw from it
    torch.manual_seed(seed)


# ------------------------------------------------------------------ optimisation


def make_optimizer(
    name: str, groups: list[dict], *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD with momentum or AdamW over parameter groups that carry their own `lr`.

    Args:
        name: sgd or adamw.
        groups: of `model.param_groups(learning_rate)`.
        learning_rate: of a group without one.
        momentum: of SGD; AdamW keeps its betas of 0.9 and 0.999.
        weight_decay: L2 of SGD, decoupled in AdamW.
    """
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def poly_rate(step: int, num_steps: int, power: float, warmup_steps: int = 0) -> float:
    """Return the factor of the initial learning rate, 0 to 1: linear warm-up times poly.

    Args:
        step: steps done.
        num_steps: at which the rate reaches 0.
        power: of the polynomial.
        warmup_steps: over which it rises; 0 for none.

    Source: (1 - step / num_steps) ** power, DeepLab (Chen et al. 2017, section 3.1).
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * (1 - min(step, num_steps) / num_steps) ** power


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times its initial one, kept in the group."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate


@torch.no_grad()
def update_teacher(teacher: torch.nn.Module, student: torch.nn.Module, momentum: float, step: int):
    """Move the teacher to the student: t <- a t + (1 - a) s, a = min(1 - 1 / (step + 1), momentum).

    Args:
        teacher: network of the student's architecture; changed in place, buffers included.
        student: the network in training.
        momentum: the largest a, 0 to 1.
        step: updates done before; at 0 the teacher becomes a copy.

    Source: Tarvainen and Valpola 2017 (mean teacher), with the ramp of DACS. Deviation from DACS:
    floating-point buffers (batch-norm statistics) are averaged too, integer ones copied; DACS
    leaves the teacher's buffers to its own forward passes.
    """
    momentum = min(1 - 1 / (step + 1), momentum)
    student_state = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(student_state[name], 1 - momentum)
        else:
            value.copy_(student_state[name])


def make_model(
    name: str,
    num_classes: int,
    model_options: dict,
    *,
    seed: int,
    device: torch.device,
    weights: tuple[str | None, ...] = (),
    recompute: bool = False,
    sync_bn: bool = False,
) -> torch.nn.Module:
    """Build a network for training, the same random weights for the same seed.

    Args:
        recompute: the backbone's activations in backward; see `models.checkpoint_activations`.
        sync_bn: of several processes, let batch norms see the images of all.
        weights: what to load, one after the other: files, "imagenet", or None and "none" for
            nothing. What was loaded, skipped and missing is printed.

    Raises:
        UserError: `sync_bn` for a network without batch norm.
    """
    torch.backends.cudnn.benchmark = True  # sizes do not change from step to step
    seed_everything(seed, "model")
    model = models.build_model(name, num_classes, **model_options)
    for source in weights:
        if source not in (None, "none"):
            print(models.load_weights(model, source), flush=True)
    if recompute:
        models.checkpoint_activations(model)
    if sync_bn and distributed.world_size() > 1 and not models.sync_batchnorm(model):
        raise UserError("--sync-bn: this network has no batch norm")
    return model.to(device, memory_format=torch.channels_last).train()


def make_forward(
    model: torch.nn.Module, precision: str, device: torch.device, *, compiled: bool = False
) -> Callable:
    """Return the function that runs a network in training: images of 0 to 255 -> its outputs.

    Args:
        precision: bf16 or fp32; see `autocast`.
        compiled: by torch.compile, once for each size of images. The network itself stays as it
            is: its checkpoints have the same keys, and validation runs it uncompiled.

    Raises:
        UserError: `compiled` and synchronised batch norms; by the function's first call, where
            this machine cannot compile.
    """

    def forward(images: torch.Tensor, **how) -> dict[str, torch.Tensor]:
        with autocast(precision, device):
            return model(models.normalise(images, model.normalisation), **how)

    if not compiled:
        return forward
    if any(isinstance(module, models.SyncBatchNorm2d) for module in model.modules()):
        raise UserError("--compile does not go with --sync-bn")
    from torch._dynamo.exc import BackendCompilerFailed  # seconds to import

    compiled_forward = torch.compile(forward, dynamic=False)

    def checked_forward(images: torch.Tensor, **how) -> dict[str, torch.Tensor]:
        try:
            return compiled_forward(images, **how)
        except BackendCompilerFailed as error:
            wanted = "Triton" if device.type == "cuda" else "a C++ compiler"
            cause = str(error.inner_exception).splitlines()[0]
            raise UserError(f"--compile needs {wanted} that works: {cause}") from error

    return checked_forward
