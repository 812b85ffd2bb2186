"""What the networks that decode a foundation model's tokens share."""

from __future__ import annotations

from torch import Tensor

from engine.errors import UserError
from models.encoded import EncodedNetwork
from models.encoders.dino import Dino


class TokenNetwork(EncodedNetwork):
    """A network whose head reads the tokens of a foundation model.

    Args:
        network: its name, for the error.
        encoder: dinov2_* or dinov3_*.

    Raises:
        UserError: an encoder without tokens.
    """

    def __init__(self, network: str, encoder: str):
        super().__init__(encoder)
        if not isinstance(self.encoder, Dino):
            raise UserError(f"{network} decodes tokens: take encoder dinov2_* or dinov3_*")

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring the encoder's published names to these, behind a prefix or not."""
        if any(name.startswith("embeddings.") for name in state):
            # transformers' of an encoder alone, where `encoder.` is no prefix of all names
            state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
        return super().convert_weights(state)
