"""A batch of one domain, as the losses and the methods see it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """Augmented images of one domain, what lies over them, and what the student makes of them.

    Attributes:
        image: float [N,3,H,W], 0 to 255, RGB.
        label: uint8 [N,H,W], train ids, 255 = ignore; None for an unlabelled domain.
        weight: float [N,H,W], 0 to 1, how much each pixel's label is to be trusted; None for all.
        outputs: the student's, logits [N,C,h,w] by head; None where nobody needs them.
    """

    image: Tensor
    label: Tensor | None = None
    weight: Tensor | None = None
    outputs: dict[str, Tensor] | None = None
