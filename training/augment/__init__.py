"""Augmentation on the device: words, and what they make of the batches of each side.

Images are [N,3,H,W], 0 to 255. Every draw comes from torch's global generator, which the training
loops seed with the step.
"""

import argparse
from typing import Any

import torch

from engine.errors import UserError
from training.augment import colour, geometry, policies
from training.augment.row import Row
from training.batch import Batch

SIDES = ("source", "target")  # the target's are its labelled and pseudo-labelled images too

AUGMENTATIONS: dict[str, Row] = (
    geometry.AUGMENTATIONS | policies.AUGMENTATIONS | colour.AUGMENTATIONS
)
# drawn where it is not asked for, at strength 0, so that what is drawn after it stays the same
ALWAYS = {"source": {"jitter": 0.0}, "target": {}}


class Augment:
    """What --augment says is done to each side's batches.

    Everything geometric is one sampling grid; then come policies, then colours.

    Args:
        words: [SIDE:]NAME[=VALUE] each; without a side, of all sides.
        sides: that the run has.

    Raises:
        UserError: a side, name or value that does not exist; says which do.
    """

    def __init__(self, words: list[str], sides: tuple[str, ...] = SIDES):
        self.chosen = {side: dict(ALWAYS[side]) for side in sides}
        for word in words:
            side, name, value = parse_augmentation(word)
            if side is not None and side not in sides:
                raise UserError(f"--augment {word}: this script has no {side}")
            for one in sides if side is None else (side,):
                self.chosen[one][name] = value

    @torch.no_grad()
    def __call__(self, batch: dict, side: str) -> Batch:
        """Change the images of a loader's batch, and what lies over them along.

        Args:
            batch: `image`, uint8 [N,3,H,W]; `label`, uint8 [N,H,W], if labelled; `confidence`,
                uint8 like the label, if that has one; `rare_class`, int64 [N], if drawn for one;
                `extent`, int64 [N,2], if the images fill a part of theirs.
            side: whose it is.

        Raises:
            UserError: a crop larger than the images.
        """
        chosen = self.chosen[side]
        by_stage: dict[str, dict[str, Any]] = {"warp": {}, "move": {}, "both": {}, "colour": {}}
        for name, row in AUGMENTATIONS.items():
            if name in chosen:
                by_stage[row.stage][name] = chosen[name]
        maps = [batch[key] for key in ("label", "confidence") if key in batch]
        images, maps = geometry.warp(
            batch["image"],
            torch.stack(maps, 1) if maps else None,
            rare_class=batch.get("rare_class"),
            extent=batch.get("extent"),
            moves=[(AUGMENTATIONS[name].apply, v) for name, v in by_stage["move"].items()],
            **{AUGMENTATIONS[name].apply: value for name, value in by_stage["warp"].items()},
        )
        for name, value in by_stage["both"].items():
            images, maps = AUGMENTATIONS[name].apply(images, maps, value)
        for name, value in by_stage["colour"].items():
            images = AUGMENTATIONS[name].apply(images, value)
        if maps is None:
            return Batch(images)
        label, *weight = maps.unbind(1)
        return Batch(images, label, weight[0] / 255 if weight else None)


def parse_augmentation(word: str) -> tuple[str | None, str, Any]:
    """Return side, None for all, name and value of a word of --augment.

    Raises:
        UserError: see `Augment`.
    """
    side, colon, rest = word.rpartition(":")
    if colon and side not in SIDES:
        raise UserError(f"--augment {word}: before the colon stands one of {', '.join(SIDES)}")
    name, equals, text = rest.partition("=")
    if name not in AUGMENTATIONS:
        there = ", ".join(AUGMENTATIONS)
        raise UserError(f"--augment {word}: no augmentation {name!r}; there are: {there}")
    row = AUGMENTATIONS[name]
    if equals and row.parse is None:
        raise UserError(f"--augment {word}: {name} takes no value")
    if not equals and row.default is None:
        raise UserError(f"--augment {word}: {name} needs a value: {name}=...")
    try:
        value = row.parse(text) if equals else row.default
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"--augment {word}: {name}: {error}") from None
    return side if colon else None, name, value
