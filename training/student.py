"""The network in training: built, loaded, run on images of 0 to 255, and stepped."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from engine import processes
from engine.device import autocast
from engine.errors import UserError
from engine.gradients import GradientAverage
from engine.seeds import seed_everything
from engine.values import Training
from models.pretrained import published_file
from training.average import WeightAverage
from training.losses import PixelLoss, parse_loss
from training.schedule import (
    make_optimizer,
    parameter_groups,
    parse_schedule,
    rate_at,
    set_rate,
)

# what torch's batch norm says in training
ONE_VALUE = "Expected more than 1 value per channel"


class Student:
    """A network as it trains: called on images, and stepped once its gradients are there.

    Args:
        training: how it is built and trained. What was loaded, skipped and missing of its weights
            is printed; the same seed gives the same random ones.
        num_classes: C.
        device: where it trains.
        class_weight: float [C] of its loss, or None.

    Raises:
        UserError: an architecture, loss or file that cannot be; `sync_bn` for a network without
            batch norm, or compiled.
    """

    def __init__(
        self,
        training: Training,
        num_classes: int,
        device: torch.device,
        class_weight: Tensor | None = None,
    ):
        self.training, self.device = training, device
        self.network = network = build_network(training, num_classes).to(
            device, memory_format=torch.channels_last
        )
        if training.sync_bn and processes.world_size() > 1 and not models.sync_batchnorm(network):
            raise UserError("--sync-bn: this network has no batch norm")
        self.optimizer = make_optimizer(
            training.optimizer,
            parameter_groups(network, training),
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov,
        )
        self._schedule = parse_schedule(list(training.schedule))
        self.average = None
        if training.average is not None:
            self.average = WeightAverage(network, training.average)
        if class_weight is not None:
            class_weight = class_weight.to(device)
        terms = parse_loss(training.loss or list(network.default_loss))
        self.pixel_loss = PixelLoss(terms, class_weight, network.align_corners)
        self._gradients = GradientAverage(network)
        self._forward = make_forward(network, training, device)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the network's outputs for images, float [N,3,H,W], 0 to 255.

        Raises:
            UserError: a batch norm would have a single value a channel, which has no variance.
        """
        try:
            return self._forward(images)
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            n, _, height, width = images.shape
            raise UserError(
                f"batch norm has a single value a channel with {n} image of {width}x{height}: give "
                "--batch-size 2 or more, or larger images (--input-size, --augment crop=W,H)"
            ) from error

    def loss(
        self, outputs: dict[str, Tensor], label: Tensor, name: str = "seg", **how
    ) -> dict[str, Tensor]:
        """Return the weighted terms that the network's outputs are trained on, by name.

        Args:
            outputs: of a call.
            label: uint8 [N,H,W], 255 = ignore.
            name: of the main output's term; the others are NAME_OUTPUT.
            **how: of `PixelLoss`: pixel_weight and balanced.
        """

        def pixel_loss(logits: Tensor, label: Tensor, kind: str | None = None) -> Tensor:
            return self.pixel_loss(logits, label, kind, **how)

        weights = {
            "class_weight": self.pixel_loss.class_weight if how.get("balanced", True) else None,
            "pixel_weight": how.get("pixel_weight"),
        }
        terms = self.network.loss(outputs, label, pixel_loss, **weights)
        return {name if key == "out" else f"{name}_{key}": term for key, term in terms.items()}

    def line(self) -> str:
        """Return what this is, for people."""
        how = self.training
        words = " ".join(str(v) if k == "name" else f"{k}={v}" for k, v in how.architecture.items())
        size = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        several = processes.world_size()
        where = f"{self.device}" + (f" in {several} processes" if several > 1 else "")
        return f"{words}, {size:.1f} M parameters, on {where} in {how.precision}"

    @property
    def published(self) -> models.Network:
        """The network that is scored and published: the average of the weights, if one is kept."""
        return self.network if self.average is None else self.average.network

    @property
    def state(self) -> dict:
        """What a run saves of this, by name."""
        averages = {} if self.average is None else {"average": self.average}
        return {"model": self.network, "optimizer": self.optimizer, **averages}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group of parameters, as it is now."""
        return self.optimizer.param_groups[0]["lr"]

    def rate_at(self, step: int) -> float:
        """Return the schedule's factor of the learning rate, `step` steps being done."""
        how = self.training
        return rate_at(step, how.num_steps, self._schedule, how.warmup_steps)

    def begin(self, rate: float) -> None:
        """Begin a step: forget the gradients, and set the learning rate to `rate` times its own."""
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, terms: dict[str, Tensor], weight: float = 1.0, last: bool = False) -> None:
        """Add the gradients of a batch's terms to those of the step; no terms have none.

        Args:
            terms: scalars, by name.
            weight: of their sum.
            last: whether no other pass of the step follows: gradients are sent as they come.
        """
        if last:
            self._gradients.begin_last()
        if terms:
            (weight * sum(terms.values()) / self.training.iter_size).backward()

    def end(self) -> None:
        """Step, by the gradients of all processes together."""
        self._gradients.wait()
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip_norm)
        self.optimizer.step()
        processes.average_buffers(self.network)
        if self.average is not None:
            self.average.follow(self.network)


def build_network(training: Training, num_classes: int) -> models.Network:
    """Return a network in training mode, its weights loaded, with what the options say of it."""
    torch.backends.cudnn.benchmark = True  # sizes do not change from step to step
    seed_everything(training.seed, "model")
    network = models.build_model(num_classes=num_classes, **training.architecture)
    if training.align_corners is not None:
        network.align_corners = training.align_corners
    if training.aux_weight is not None:
        network.aux_weight = training.aux_weight
    sources = [_published_if_there(network) if s == "auto" else s for s in training.weights]
    sources = [source for source in sources if source not in (None, "none")]
    if training.weights_entry and not sources:
        raise UserError("--weights-entry goes with --restore-from or --weights")
    for source in sources:
        how = {"entry": training.weights_entry} if source == sources[-1] else {}
        report = models.load_weights(network, source, classes=training.classes, **how)
        print(report, flush=True)
    if training.recompute:
        models.checkpoint_activations(network)
    return network.train()


def _published_if_there(network: models.Network) -> Path | None:
    """Return the file with published weights, if this machine has it; say that it has not."""
    try:
        return published_file(network, download=False)
    except UserError as error:
        print(f"weights: none, training starts from random ones ({error})", flush=True)
        return None


def make_forward(network: nn.Module, training: Training, device: torch.device) -> Callable:
    """Return the function that runs a network in training: images of 0 to 255 -> its outputs.

    Args:
        network: with `normalisation`.
        training: its precision, and whether it is compiled: by torch.compile, once for each size
            of images. The network itself stays as it is: its checkpoints have the same keys, and
            validation runs it uncompiled.
        device: of the network.

    Raises:
        UserError: compiled and synchronised batch norms; by the function's first call, where
            this machine cannot compile.
    """

    def forward(images: Tensor, **how) -> dict[str, Tensor]:
        with autocast(training.precision, device):
            return network(models.normalise(images, network.normalisation), **how)

    if not training.compiled:
        return forward
    synchronised = (models.SyncBatchNorm2d, nn.SyncBatchNorm)
    if any(isinstance(module, synchronised) for module in network.modules()):
        raise UserError("--compile does not go with --sync-bn")
    from torch._dynamo.exc import BackendCompilerFailed  # seconds to import

    compiled_forward = torch.compile(forward, dynamic=False)

    def checked_forward(images: Tensor, **how) -> dict[str, Tensor]:
        try:
            return compiled_forward(images, **how)
        except BackendCompilerFailed as error:
            wanted = "Triton" if device.type == "cuda" else "a C++ compiler"
            cause = str(error.inner_exception).splitlines()[0]
            raise UserError(f"--compile needs {wanted} that works: {cause}") from error

    return checked_forward
