"""Output-space adversarial adaptation: AdaptSegNet and AdvEnt."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.gradients import GradientAverage
from engine.words import Count, Weight
from methods.base import Method, Seen, Setting
from models.discriminator import FCDiscriminator
from models.outputs import resize
from training import losses
from training.schedule import set_rate
from training.student import Student


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

    def __init__(
        self,
        setting: Setting,
        *,
        gan: Annotated[Literal["Vanilla", "LS"], "log-likelihood or least squares"] = "Vanilla",
        lambda_adv_target1: Annotated[Weight, "of the auxiliary output"] = 0.0002,
        lambda_adv_target2: Annotated[Weight, "of the main output"] = 0.001,
        learning_rate_D: Annotated[Weight, "of the discriminators' Adam"] = 1e-4,
        discriminator_width: Annotated[Count, "channels of its first layer"] = 64,
        discriminator_at: Annotated[
            Literal["input", "output"],
            "resolution of the maps it sees: the images' (published) or the network's own",
        ] = "input",
    ):
        super().__init__()
        self.autocast, self.iter_size = setting.autocast, setting.iter_size
        self.gan, self.at, self.align_corners = gan, discriminator_at, setting.align_corners
        weights = {"out": lambda_adv_target2, "aux": lambda_adv_target1}
        self.weights = {head: weights[head] for head in setting.heads}
        width, classes = discriminator_width, setting.num_classes
        self.discriminators = nn.ModuleDict(
            {head: FCDiscriminator(classes, width) for head in setting.heads}
        )
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=learning_rate_D, betas=(0.9, 0.99)
        )
        self._gradients, self._passes = GradientAverage(self.discriminators), 0
        self._logged: dict[str, Tensor] = {}

    def _maps(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what the discriminator looks at: the class probabilities."""
        if self.at == "input":
            logits = resize(logits, size, self.align_corners)
        if min(logits.shape[-2:]) < 32:  # five strides of 2
            shape = "x".join(map(str, logits.shape[:-3:-1]))
            raise UserError(f"the discriminator needs maps of 32x32 or more, not {shape}")
        return logits.float().softmax(1)

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Ask the discriminators to take the target outputs for source outputs."""
        terms = {}
        for head, weight in self.weights.items():
            with torch.no_grad():
                source = self._maps(seen.source.outputs[head], seen.source.image.shape[-2:])
            target = self._maps(seen.target.outputs[head], seen.target.image.shape[-2:])
            self.requires_grad_(False)  # the network's term must not train the discriminators
            terms[f"{self.term}_{head}"] = weight * self._judge(head, target, 0.0)
            self.requires_grad_(True)
            self._teach(head, source, target.detach())
        self._passes += 1
        if self._passes == self.iter_size:
            self._gradients.send()  # while the network's backward pass computes
        return terms

    def _judge(self, head: str, maps: Tensor, domain: float) -> Tensor:
        """Return how far a discriminator's decision is from `domain`."""
        with self.autocast():
            decision = self.discriminators[head](maps)
        return losses.gan(decision, domain, self.gan)

    def _teach(self, head: str, source: Tensor, target: Tensor) -> None:
        """Add the gradients of a discriminator's own loss to those of the step's other batches."""
        loss = self._judge(head, source, 0.0) / 2 + self._judge(head, target, 1.0) / 2
        loss = loss / self.iter_size
        loss.backward()
        name = f"D_{self.term}_{head}"
        self._logged[name] = self._logged.get(name, 0.0) + loss.detach()

    def after_step(self, rate: float) -> dict[str, Tensor]:
        """Apply the gradients that the discriminators have gathered since the last step."""
        self._gradients.wait()
        self._passes = 0
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

    def _maps(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return losses.weighted_information(super()._maps(logits, size))


METHODS = {"adversarial": Adversarial, "advent": Advent}
