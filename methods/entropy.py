"""Sure predictions on the target: entropy minimisation and maximum squares."""

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


class MaxSquare(Method):
    """Maximise the squares of target probabilities, whose slope does not favour easy pixels.

    Source: Chen et al. 2019 (Domain Adaptation for Semantic Segmentation with Maximum Squares
    Loss), equation 5: -1/2 of the squares' sum, the mean over pixels. Deviations: without the
    image-wise class weights of its section 3.3; where it guides the auxiliary output by both, that
    output has a term of its own, weighted as in the network's own loss.
    """

    needs = frozenset({"target_out"})

    def __init__(
        self,
        setting: Setting,
        *,
        lambda_maxsquare: Annotated[Weight, "of its term"] = 0.1,
    ):
        super().__init__()
        self.heads, self.align_corners = setting.heads, setting.align_corners
        self.weight = lambda_maxsquare

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the term of each output, at the images' resolution."""
        size, terms = seen.target.image.shape[-2:], {}
        for head in self.heads:
            weight = self.weight * (1.0 if head == "out" else student.network.aux_weight)
            probs = resize(seen.target.outputs[head], size, self.align_corners).softmax(1)
            terms[f"maxsquare_{head}"] = -0.5 * weight * probs.square().sum(1).mean()
        return terms


METHODS = {"entropy": Entropy, "maxsquare": MaxSquare}
