"""What every network is, beside its layers: the defaults, each once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from models.normalisation import NORMALISATIONS
from models.outputs import resize

# logits and label -> scalar; a third argument names a loss in place of the run's
PixelLoss = Callable[..., Tensor]


class Network(nn.Module):
    """A segmentation network: `forward(images, aux=True)` returns logits by the name of their head.

    Attributes:
        arch: name, class count and options, from which `models.build_model` builds it again; set
            there, by binding the constructor's signature.
        normalisation: what it expects of pixel values; see `models.normalise`.
        heads: its maps of class logits, "out" and, with an auxiliary classifier, "aux".
        align_corners: how its logits are resized.
        aux_weight: weight of the auxiliary output's loss, 0.1 as in AdaptSegNet.
        default_loss: words of --loss where none are given; none for a network whose other terms
            are enough.
    """

    arch: dict[str, Any]
    heads: tuple[str, ...] = ("out",)
    align_corners: bool = False
    aux_weight: float = 0.1
    default_loss: ClassVar[tuple[str, ...]] = ("ce",)

    def __init__(self, normalisation: str | dict = "torchvision"):
        super().__init__()
        if isinstance(normalisation, str):
            normalisation = NORMALISATIONS[normalisation]
        self.normalisation = dict(normalisation)

    def param_groups(self, lr: float) -> list[dict]:
        """Return the trainable parameters, each once, for an optimizer.

        Where a network has a backbone, its group is the first of several; here there is one.
        """
        return [{"params": trainable(self), "lr": lr}]

    def loss(
        self,
        outputs: dict[str, Tensor],
        label: Tensor,
        pixel_loss: PixelLoss,
        *,
        class_weight: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms that the network is trained on, by the name of the output.

        Args:
            outputs: of `forward`.
            label: uint8 [N,H,W], 255 = ignore.
            pixel_loss: (logits, label) -> scalar; it knows the weights already.
            class_weight: float [C], for terms that are none of `pixel_loss`.
            pixel_weight: float [N,H,W], likewise.
        """
        terms = {"out": pixel_loss(outputs["out"], label)}
        if "aux" in outputs:
            terms["aux"] = self.aux_weight * pixel_loss(outputs["aux"], label)
        return terms

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits [N,C,h,w] to (H, W) as this network is trained and scored."""
        return resize(logits, size, self.align_corners)

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring other projects' names to this network's.

        Args:
            state: weights by name.

        Returns:
            The weights renamed, and those left out by name, with the reason.
        """
        return state, {}


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]
