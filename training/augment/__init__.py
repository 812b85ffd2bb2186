"""Augmentation on the device: words, and what they make of the batches of each side.

Images are [N,3,H,W], 0 to 255. Every draw comes from torch's global generator, which the training
loops seed with the step.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.errors import UserError
from engine.parsing import at_least, scale_range, width_height
from training.augment import colour, geometry, policies
from training.batch import Batch

SIDES = ("source", "target")  # the target's are its labelled and pseudo-labelled images too


class Row(NamedTuple):
    """An augmentation.

    Attributes:
        stage: warp, an argument of `geometry.warp`; both, what changes images and the maps over
            them; colour, what changes images alone.
        apply: warp: the argument's name; else (images, maps, value) or (images, value) -> the same.
        parse: of the text after =; None for an augmentation without a value.
        default: the value of the word alone; None where a value must be given.
    """

    stage: str
    apply: str | Callable
    parse: Callable[[str], Any] | None = None
    default: Any = None


AUGMENTATIONS = {
    "hflip": Row("warp", "mirror", None, True),
    "scale": Row("warp", "scale", scale_range, (0.5, 1.5)),
    "crop": Row("warp", "crop_size", width_height),
    "auto": Row("both", lambda images, maps, _: policies.auto_augment(images, maps), None, True),
    "jitter": Row(
        "colour", lambda images, s: colour.color_jitter(images, s, s / 4), at_least(0, float)
    ),
}
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
                uint8 like the label, if that has one; `rare_class`, int64 [N], if drawn for one.
            side: whose it is.

        Raises:
            UserError: a crop larger than the images.
        """
        chosen = self.chosen[side]
        by_stage: dict[str, dict[str, Any]] = {"warp": {}, "both": {}, "colour": {}}
        for name, row in AUGMENTATIONS.items():
            if name in chosen:
                by_stage[row.stage][name] = chosen[name]
        maps = [batch[key] for key in ("label", "confidence") if key in batch]
        images, maps = geometry.warp(
            batch["image"],
            torch.stack(maps, 1) if maps else None,
            rare_class=batch.get("rare_class"),
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
