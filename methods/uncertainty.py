"""What two heads of one network disagree on: memory regularisation and rectified labels."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Steps, Weight
from methods.base import Method, Seen, Setting
from models.outputs import divergence, resize
from training.student import Student


class _TwoHeads(Method):
    """A method that needs the auxiliary logits too, both at the images' resolution."""

    name = ""

    def check(self, network: nn.Module) -> None:
        """Raise UserError for a network with one head."""
        if "aux" not in network.heads:
            raise UserError(
                f"--method {self.name} compares two heads: give --multi-level "
                "(deeplabv2, deeplabv3plus, pidnet)"
            )


class Memory(_TwoHeads):
    """Hold each head of the network to what both predict together on the target.

    The memory is the network's own: p = softmax(0.5 aux + main), without gradient. The terms are
    KL(p || main) and KL(p || aux), each the mean over pixels.

    Source: Zheng and Yang 2020 (Unsupervised Scene Adaptation with Memory Regularization in vivo),
    in the form of Seg-Uncertainty's trainer_ms.py; the weight there is 0.1 from step 15 000 on.
    """

    name = "memory"
    needs = frozenset({"target_out"})

    def __init__(
        self,
        setting: Setting,
        *,
        lambda_memory: Annotated[Weight, "of its terms"] = 0.1,
        memory_from: Annotated[Steps, "step before which the weight is 0: heads know little"] = 0,
    ):
        super().__init__()
        self.align_corners = setting.align_corners
        self.weight, self.start = lambda_memory, memory_from

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the divergence of the two heads from their common prediction."""
        size = seen.target.image.shape[-2:]
        main, aux = (
            resize(seen.target.outputs[head], size, self.align_corners) for head in ("out", "aux")
        )
        common = F.log_softmax(0.5 * aux + main, dim=1).detach()
        weight = self.weight if seen.step >= self.start else 0.0
        return {
            name: weight * divergence(common, F.log_softmax(head, dim=1)).mean()
            for name, head in (("memory", main), ("memory_aux", aux))
        }


class Rectify(_TwoHeads):
    """Trust a pseudo label as far as the two heads agree on the pixel.

    For each head, with v = KL(other head || this head) of each pixel, the term is
    mean(exp(-v) * cross-entropy) + mean(v); the auxiliary head's is weighted as in the network's
    own loss. The gradient of v reaches both heads. Pixels without a label have no cross-entropy but
    their v counts, and both means are over all pixels. With the labels' confidence, the
    cross-entropy is weighted by it too.

    Source: Zheng and Yang 2021 (Rectifying Pseudo Label Learning via Uncertainty Estimation),
    equations 7 and 12; Seg-Uncertainty's trainer_ms_variance.py. Deviations: class weights are the
    run's own, theirs are counted batch by batch; the labelled source is trained on beside the
    target, theirs is left out of the second stage.
    """

    name = "rectify"
    needs = frozenset({"pseudo_out"})

    def __init__(
        self, setting: Setting, *, lambda_rectify: Annotated[Weight, "of its terms"] = 1.0
    ):
        super().__init__()
        self.align_corners, self.weight = setting.align_corners, lambda_rectify
        self.register_buffer("class_weight", setting.class_weight, persistent=False)

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the rectified cross-entropy of both heads on the pseudo-labelled images."""
        label, confidence = seen.pseudo.label, seen.pseudo.weight
        outputs, size = seen.pseudo.outputs, label.shape[-2:]
        main, aux = (
            F.log_softmax(resize(outputs[head], size, self.align_corners), 1)
            for head in ("out", "aux")
        )
        aux_weight = self.weight * student.network.aux_weight
        return {
            "rectify": self.weight * self._term(main, aux, label, confidence),
            "rectify_aux": aux_weight * self._term(aux, main, label, confidence),
        }

    def _term(
        self,
        head: Tensor,
        other: Tensor,
        label: Tensor,
        confidence: Tensor | None,
    ) -> Tensor:
        """Return one head's term, given log-probabilities [N,C,H,W] and maps [N,H,W]."""
        wrong = F.nll_loss(
            head, label.long(), weight=self.class_weight, ignore_index=255, reduction="none"
        )
        if confidence is not None:
            wrong = wrong * confidence
        variance = divergence(other, head)
        return (wrong * (-variance).exp()).mean() + variance.mean()


METHODS = {"memory": Memory, "rectify": Rectify}
