"""The network in training: built, loaded, and run on images of 0 to 255."""

from collections.abc import Callable

import torch

import models
from engine import processes
from engine.device import autocast
from engine.errors import UserError
from engine.seeds import seed_everything


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
    if sync_bn and processes.world_size() > 1 and not models.sync_batchnorm(model):
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
