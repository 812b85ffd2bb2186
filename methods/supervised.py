"""Cross-entropy on target images whose labels are known."""

import argparse
from collections.abc import Callable

import torch

import losses
from methods.base import Method
from parsing import at_least


class TargetSupervised(Method):
    """Train on labelled target images as on the source: semi-supervised adaptation.

    The loss is the source's own, its class weights included; with `target_labels` all and the
    source beside it, this is the oracle.
    """

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
        """Return the cross-entropy on the labelled target images."""
        how = {"class_weight": self.class_weight, "align_corners": self.align_corners}
        terms = losses.segmentation(
            batch["labelled_out"], batch["labelled_label"], self.lambda_seg, "target_seg", **how
        )
        return {name: self.weight * term for name, term in terms.items()}
