"""What an augmentation is: a row in the table at the foot of its family's file."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """An augmentation of --augment.

    Attributes:
        stage: when it comes, and what `apply` is:
            warp: the name of an argument of `geometry.warp`;
            move: (n, value) -> float [N,3,3], from where in the warped image its pixels come, in
                grid_sample's coordinates; all of a batch are one grid with the warp's;
            both: (images, maps, value) -> (images, maps);
            colour: (images, value) -> images.
        apply: see `stage`.
        parse: of the text after =; None for an augmentation without a value.
        default: the value of the word alone; None where a value must be given.
    """

    stage: str
    apply: str | Callable
    parse: Callable[[str], Any] | None = None
    default: Any = None
