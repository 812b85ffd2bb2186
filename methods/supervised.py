"""Cross-entropy on target images with labels: true ones, or what pseudo_label.py wrote."""

from typing import Annotated

from torch import Tensor

from engine.words import Weight
from methods.base import Method, Seen, Setting
from training.student import Student


class TargetSupervised(Method):
    """Train on labelled target images as on the source: semi-supervised adaptation.

    The loss is the source's own, its class weights included; with `target_labels` all and the
    source beside it, this is the oracle.
    """

    needs = frozenset({"labelled_out"})

    def __init__(self, _setting: Setting, *, lambda_target: Annotated[Weight, "of its term"] = 1.0):
        super().__init__()
        self.weight = lambda_target

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the cross-entropy on the labelled images."""
        terms = student.loss(seen.labelled.outputs, seen.labelled.label, "target_seg")
        return {name: self.weight * term for name, term in terms.items()}


class Pseudo(Method):
    """Train a student on the pseudo labels of an earlier network.

    The loss is over the pixels that have a label. With the labels' confidence as weights, the mean
    is over all pixels: what is unsure counts less.

    Source: self-training with offline labels: Zou et al. 2018 (CBST), section 3, for one round.
    """

    needs = frozenset({"pseudo_out"})

    def __init__(self, _setting: Setting, *, lambda_pseudo: Annotated[Weight, "of its term"] = 1.0):
        super().__init__()
        self.weight = lambda_pseudo

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the cross-entropy on the pseudo-labelled images."""
        pseudo = seen.pseudo
        terms = student.loss(pseudo.outputs, pseudo.label, "pseudo", pixel_weight=pseudo.weight)
        return {name: self.weight * term for name, term in terms.items()}


METHODS = {"target_supervised": TargetSupervised, "pseudo": Pseudo}
