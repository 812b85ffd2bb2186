"""Cross-entropy on target images with labels: true ones, or what pseudo_label.py wrote."""

import argparse
from collections.abc import Callable

import torch

from engine.parsing import at_least
from methods.base import Method
from training import losses


class TargetSupervised(Method):
    """Train on labelled target images as on the source: semi-supervised adaptation.

    The loss is the source's own, its class weights included; with `target_labels` all and the
    source beside it, this is the oracle.
    """

    domain, term = "labelled", "target_seg"
    needs = frozenset({"labelled_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the weight."""
        group.add_argument("--lambda-target", type=at_least(0, float), default=1.0)

    def __init__(
        self,
        *,
        align_corners: bool,
        lambda_seg: float,
        lambda_target: float,
        class_weight: torch.Tensor | None = None,
    ):
        super().__init__()
        self.align_corners, self.lambda_seg, self.weight = align_corners, lambda_seg, lambda_target
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the cross-entropy on the labelled images."""
        out, label, weight = (batch[f"{self.domain}_{key}"] for key in ("out", "label", "weight"))
        how = {"class_weight": self.class_weight, "align_corners": self.align_corners}
        terms = losses.segmentation(
            out, label, self.lambda_seg, self.term, pixel_weight=weight, **how
        )
        return {name: self.weight * term for name, term in terms.items()}


class Pseudo(TargetSupervised):
    """Train a student on the pseudo labels of an earlier network.

    The loss is over the pixels that have a label. With the labels' confidence as weights, the mean
    is over all pixels: what is unsure counts less.

    Source: self-training with offline labels: Zou et al. 2018 (CBST), section 3, for one round.
    """

    domain, term = "pseudo", "pseudo"
    needs = frozenset({"pseudo_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the weight."""
        group.add_argument("--lambda-pseudo", type=at_least(0, float), default=1.0)

    def __init__(
        self,
        *,
        align_corners: bool,
        lambda_seg: float,
        lambda_pseudo: float,
        class_weight: torch.Tensor | None = None,
    ):
        super().__init__(
            align_corners=align_corners,
            lambda_seg=lambda_seg,
            lambda_target=lambda_pseudo,
            class_weight=class_weight,
        )
