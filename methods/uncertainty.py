"""What two heads of one network disagree on: memory regularisation and rectified labels."""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import UserError
from engine.parsing import at_least
from methods.base import Method
from models.outputs import divergence, resize


class _TwoHeads(Method):
    """A method that needs the auxiliary logits too, both at the images' resolution."""

    name = ""

    def check(self, model: nn.Module) -> None:
        """Raise UserError for a network with one head."""
        if not model.arch.get("multi_level"):
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

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the weight and when it begins."""
        group.add_argument("--lambda-memory", type=at_least(0, float), default=0.1)
        group.add_argument(
            "--memory-from",
            type=at_least(0),
            default=0,
            metavar="STEP",
            help="the weight is 0 before, as the heads know little; default %(default)s",
        )

    def __init__(self, *, align_corners: bool, lambda_memory: float, memory_from: int):
        super().__init__()
        self.align_corners, self.weight, self.start = align_corners, lambda_memory, memory_from

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the divergence of the two heads from their common prediction."""
        size = batch["target_image"].shape[-2:]
        main, aux = (
            resize(batch["target_out"][level], size, self.align_corners) for level in ("out", "aux")
        )
        common = F.log_softmax(0.5 * aux + main, dim=1).detach()
        weight = self.weight if batch["step"] >= self.start else 0.0
        return {
            name: weight * divergence(common, F.log_softmax(head, dim=1)).mean()
            for name, head in (("memory", main), ("memory_aux", aux))
        }


class Rectify(_TwoHeads):
    """Trust a pseudo label as far as the two heads agree on the pixel.

    For each head, with v = KL(other head || this head) of each pixel, the term is
    mean(exp(-v) * cross-entropy) + mean(v); the auxiliary head's is weighted by lambda_seg. The
    gradient of v reaches both heads. Pixels without a label have no cross-entropy but their v
    counts, and both means are over all pixels. With the labels' confidence (pseudo_weight), the
    cross-entropy is weighted by it too.

    Source: Zheng and Yang 2021 (Rectifying Pseudo Label Learning via Uncertainty Estimation),
    equations 7 and 12; Seg-Uncertainty's trainer_ms_variance.py. Deviations: class weights are the
    run's own, theirs are counted batch by batch; the labelled source is trained on beside the
    target, theirs is left out of the second stage.
    """

    name = "rectify"
    needs = frozenset({"pseudo_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the weight."""
        group.add_argument("--lambda-rectify", type=at_least(0, float), default=1.0)

    def __init__(
        self,
        *,
        align_corners: bool,
        lambda_seg: float,
        lambda_rectify: float,
        class_weight: torch.Tensor | None = None,
    ):
        super().__init__()
        self.align_corners, self.lambda_seg, self.weight = align_corners, lambda_seg, lambda_rectify
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the rectified cross-entropy of both heads on the pseudo-labelled images."""
        label, confidence = batch["pseudo_label"], batch["pseudo_weight"]
        main, aux = (
            F.log_softmax(
                resize(batch["pseudo_out"][level], label.shape[-2:], self.align_corners), 1
            )
            for level in ("out", "aux")
        )
        aux_weight = self.weight * self.lambda_seg
        return {
            "rectify": self.weight * self._term(main, aux, label, confidence),
            "rectify_aux": aux_weight * self._term(aux, main, label, confidence),
        }

    def _term(
        self,
        head: torch.Tensor,
        other: torch.Tensor,
        label: torch.Tensor,
        confidence: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return one head's term, given log-probabilities [N,C,H,W] and maps [N,H,W]."""
        wrong = F.nll_loss(
            head, label.long(), weight=self.class_weight, ignore_index=255, reduction="none"
        )
        if confidence is not None:
            wrong = wrong * confidence
        variance = divergence(other, head)
        return (wrong * (-variance).exp()).mean() + variance.mean()
