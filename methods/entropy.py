"""Entropy minimisation."""

from typing import Annotated

from torch import Tensor

from engine.words import Weight
from methods.base import Method, Seen, Setting
from models.outputs import resize
from training import losses
from training.student import Student


class Entropy(Method):
    """Minimise the entropy of target predictions (MinEnt).

    Source: Vu et al. 2019 (ADVENT), equation 3, weights of its minent configuration.
    """

    needs = frozenset({"target_out"})

    def __init__(
        self,
        setting: Setting,
        *,
        lambda_entropy: Annotated[Weight, "of the main output"] = 0.001,
        lambda_entropy_aux: Annotated[Weight, "of the auxiliary output"] = 0.0002,
    ):
        super().__init__()
        self.align_corners = setting.align_corners
        weights = {"out": lambda_entropy, "aux": lambda_entropy_aux}
        self.weights = {head: weights[head] for head in setting.heads}

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the normalised entropy of each output, at the images' resolution."""
        size, terms = seen.target.image.shape[-2:], {}
        for head, weight in self.weights.items():
            logits = resize(seen.target.outputs[head], size, self.align_corners)
            terms[f"entropy_{head}"] = weight * losses.entropy(logits)
        return terms


METHODS = {"entropy": Entropy}
