"""One linear layer on the tokens of a foundation model: the plainest network there is."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from engine.words import Share
from models.tokens import TokenNetwork


class Linear(TokenNetwork):
    """One linear layer from each patch's token to the classes; logits at the patches' size.

    Args:
        num_classes: C, classes predicted.
        encoder: dinov2_* or dinov3_*.
        batch_norm: whether tokens are normalised over the batch first, as DINOv3's authors do.
        dropout: share of the channels that a training step leaves out.

    Raises:
        UserError: an encoder without tokens.

    Source: Englert et al. 2024, Exploring the Benefits of Vision Foundation Models for Unsupervised
    Domain Adaptation, and tue-mps/benchmark-vfm-ss (whose names these are); with `batch_norm` and
    `dropout` of 0.1, facebookresearch/dinov3 dinov3/eval/segmentation/models/heads/linear_head.py,
    whose files load. Deviation from the first: patches keep the encoder's size, 14 for DINOv2.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "dinov2_* or dinov3_*"] = "dinov2_vits14",
        batch_norm: Annotated[bool, "of the tokens, before the layer"] = False,
        dropout: Annotated[Share, "of the tokens' channels"] = 0.0,
    ):
        super().__init__("linear", encoder)
        channels = self.encoder.channels[-1]
        self.dropout = nn.Dropout2d(dropout)
        self.batch_norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.head = nn.Linear(channels, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict logits of the patches.

        Args:
            images: float [N,3,H,W], normalised.
            aux: there are none.

        Returns:
            "out": float [N,C,h,w], a pixel for each patch.
        """
        (x,) = self.encoder.tokens(images)
        x = self.batch_norm(self.dropout(x)).permute(0, 2, 3, 1)
        return {"out": self.head(x).permute(0, 3, 1, 2)}

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring the names of DINOv3's head to these; see `TokenNetwork` for the encoder's."""
        state = dict(state)
        for name in [n for n in state if n.startswith("segmentation_model.1.")]:
            _, _, part, kind = name.rsplit(".", 3)
            tensor = state.pop(name)
            if part == "conv":
                state[f"head.{kind}"] = tensor.flatten(1) if kind == "weight" else tensor
            else:
                state[f"batch_norm.{kind}"] = tensor
        return super().convert_weights(state)
