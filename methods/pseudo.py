"""Cross-entropy on target images that pseudo_label.py labelled."""

import argparse
from collections.abc import Callable

import torch

import losses
from methods.base import Method
from parsing import at_least


class Pseudo(Method):
    """Train a student on the pseudo labels of an earlier network.

    The loss is the source's own, its class weights included, over the pixels that have a label.
    With the labels' confidence as weights, the mean is over all pixels: what is unsure counts less.

    Source: self-training with offline labels: Zou et al. 2018 (CBST), section 3, for one round.
    """

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
        super().__init__()
        self.align_corners, self.lambda_seg, self.weight = align_corners, lambda_seg, lambda_pseudo
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the cross-entropy on the pseudo-labelled images."""
        how = {
            "class_weight": self.class_weight,
            "pixel_weight": batch["pseudo_weight"],
            "align_corners": self.align_corners,
        }
        terms = losses.segmentation(
            batch["pseudo_out"], batch["pseudo_label"], self.lambda_seg, "pseudo", **how
        )
        return {name: self.weight * term for name, term in terms.items()}
