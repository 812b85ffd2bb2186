"""Output-space adversarial adaptation: AdaptSegNet and AdvEnt."""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from engine import processes
from engine.errors import UserError
from engine.parsing import at_least
from methods.base import Method
from models.discriminator import FCDiscriminator
from models.outputs import resize
from training import losses
from training.schedule import set_rate


class Adversarial(Method):
    """Make target predictions look like source predictions to a discriminator.

    Source: Tsai et al. 2018 (AdaptSegNet), section 4; train_gta2cityscapes_multi.py. One
    discriminator per output level; source is 0 and target 1; the network's term asks for 0 on the
    target; each discriminator loss counts half. Deviation: the discriminators' gradients are
    computed beside the network's term, so that no map outlives its batch (the same gradients: both
    losses see the discriminators as they were before the step).
    """

    needs = frozenset({"target_out"})
    term = "adv"

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the discriminators' flags; advent shares them."""
        group.add_argument("--gan", choices=["Vanilla", "LS"], default="Vanilla")
        weight, count = at_least(0, float), at_least(1)
        group.add_argument("--lambda-adv-target1", type=weight, default=0.0002, help="aux output")
        group.add_argument("--lambda-adv-target2", type=weight, default=0.001, help="main output")
        group.add_argument("--learning-rate-D", type=weight, default=1e-4, help="Adam's")
        group.add_argument(
            "--discriminator-width", type=count, default=64, help="channels of its first layer"
        )
        group.add_argument(
            "--discriminator-at",
            choices=["input", "output"],
            default="input",
            help="resolution of the maps it sees: the images' (published) or the network's own",
        )

    def __init__(
        self,
        *,
        num_classes: int,
        multi_level: bool,
        align_corners: bool,
        gan: str,
        lambda_adv_target1: float,
        lambda_adv_target2: float,
        learning_rate_D: float,
        discriminator_width: int,
        discriminator_at: str,
        autocast: Callable,
        iter_size: int = 1,
    ):
        super().__init__()
        self.autocast, self.iter_size = autocast, iter_size
        self.gan, self.at, self.align_corners = gan, discriminator_at, align_corners
        self.weights = {"out": lambda_adv_target2}
        if multi_level:
            self.weights["aux"] = lambda_adv_target1
        self.discriminators = nn.ModuleDict(
            {level: FCDiscriminator(num_classes, discriminator_width) for level in self.weights}
        )
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=learning_rate_D, betas=(0.9, 0.99)
        )
        self._logged: dict[str, torch.Tensor] = {}

    def _maps(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return what the discriminator looks at: the class probabilities."""
        if self.at == "input":
            logits = resize(logits, size, self.align_corners)
        if min(logits.shape[-2:]) < 32:  # five strides of 2
            shape = "x".join(map(str, logits.shape[:-3:-1]))
            raise UserError(f"the discriminator needs maps of 32x32 or more, not {shape}")
        return logits.float().softmax(1)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Ask the discriminators to take the target outputs for source outputs."""
        terms = {}
        for level, weight in self.weights.items():
            with torch.no_grad():
                source = self._maps(batch["source_out"][level], batch["source_image"].shape[-2:])
            target = self._maps(batch["target_out"][level], batch["target_image"].shape[-2:])
            self.requires_grad_(False)  # the network's term must not train the discriminators
            terms[f"{self.term}_{level}"] = weight * self._judge(level, target, 0.0)
            self.requires_grad_(True)
            self._teach(level, source, target.detach())
        return terms

    def _judge(self, level: str, maps: torch.Tensor, domain: float) -> torch.Tensor:
        """Return how far a discriminator's decision is from `domain`."""
        with self.autocast():
            decision = self.discriminators[level](maps)
        return losses.gan(decision, domain, self.gan)

    def _teach(self, level: str, source: torch.Tensor, target: torch.Tensor) -> None:
        """Add the gradients of a discriminator's own loss to those of the step's other batches."""
        loss = self._judge(level, source, 0.0) / 2 + self._judge(level, target, 1.0) / 2
        loss = loss / self.iter_size
        loss.backward()
        name = f"D_{self.term}_{level}"
        self._logged[name] = self._logged.get(name, 0.0) + loss.detach()

    def after_step(self, rate: float) -> dict[str, torch.Tensor]:
        """Apply the gradients that the discriminators have gathered since the last step."""
        processes.average(self, of="gradients")
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        logged, self._logged = self._logged, {}
        return logged

    def get_extra_state(self) -> dict:
        """Return the optimiser's state, which belongs into the run's checkpoint."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        """Restore the optimiser."""
        self.optimizer.load_state_dict(state)


class Advent(Adversarial):
    """The same game on weighted self-information maps instead of probabilities.

    Source: Vu et al. 2019 (ADVENT), section 3.2; advent/domain_adaptation/train_UDA.py.
    """

    term = "advent"

    def _maps(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return losses.weighted_information(super()._maps(logits, size))
