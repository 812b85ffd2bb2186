"""Augmentation on the device: words, and what they make of the batches of each side.

Images are [N,3,H,W], 0 to 255. Every draw comes from torch's global generator, which the training
loops seed with the step.
"""

import argparse
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.errors import UserError
from engine.parsing import between
from engine.words import bind, grouped
from training.augment import (
    blur,
    colour,
    distortion,
    geometry,
    moves,
    noise,
    occlusion,
    pasting,
    policies,
    style,
    tone,
    weather,
)
from training.augment.row import Row
from training.batch import Batch

REQUIRED = inspect.Parameter.empty
# the target's are its labelled and pseudo-labelled images too; mixed ones are a method's
SIDES = ("source", "target", "mixed")

# in the order in which images go through them
FAMILIES = (moves, distortion, policies, pasting, style, colour, tone, blur, weather, noise)
FAMILIES += (occlusion,)
AUGMENTATIONS: dict[str, Row] = {
    name: row for family in FAMILIES for name, row in family.AUGMENTATIONS.items()
}


class Word(NamedTuple):
    """A word of --augment: how likely it changes an image, and its keys' values."""

    p: float | None
    values: dict[str, Any]

    def changes_nothing(self, row: Row) -> bool:
        """Return whether images stay what they are, to the bit."""
        still = row.still and all(self.values[key] == value for key, value in row.still.items())
        return self.p == 0 or bool(still)


# drawn where it is not asked for, at strength 0, so that what is drawn after it stays the same
ALWAYS = {"source": {"jitter": Word(1.0, {"strength": 0.0})}}


class Augment:
    """What --augment says is done to each side's batches, in the order of AUGMENTATIONS.

    Everything geometric is one sampling grid, and images and labels are sampled once.

    Args:
        words: [SIDE:]NAME[=VALUE], each followed by KEY=VALUE for its keys; without a side, of the
            source and the target.
        sides: that the run has.
        read_references: returns images of the target, uint8 [M,3,h,w], for the words of style.

    Raises:
        UserError: a side, name or value that does not exist; says which do.
    """

    def __init__(
        self,
        words: list[str],
        sides: tuple[str, ...] = SIDES,
        read_references: Callable[[], torch.Tensor] | None = None,
    ):
        self._references, self._read_references = None, read_references
        self.chosen = {side: dict(ALWAYS.get(side, {})) for side in sides}
        for group in grouped(words, AUGMENTATIONS):
            side, name, word = parse_augmentation(group)
            if side is not None and side not in sides:
                raise UserError(f"--augment {group}: this script has no {side}")
            if AUGMENTATIONS[name].stage == "style" and read_references is None:
                raise UserError(f"--augment {group}: there is no target to take the style from")
            for one in [x for x in sides if x != "mixed"] if side is None else [side]:
                self.chosen[one].pop(name, None)
                if name in ALWAYS.get(one, {}) or not word.changes_nothing(AUGMENTATIONS[name]):
                    self.chosen[one][name] = word

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
        maps = [batch[key] for key in ("label", "confidence") if key in batch]
        maps = torch.stack(maps, 1) if maps else None
        how = {key: batch.get(key) for key in ("rare_class", "extent")}
        images, maps = self.change(batch["image"], maps, side, **how)
        if maps is None:
            return Batch(images)
        label, *weight = maps.unbind(1)
        return Batch(images, label, weight[0] / 255 if weight else None)

    @torch.no_grad()
    def mixed(self, batch: Batch) -> Batch:
        """Change images that a method mixed, float, and their labels and weights along."""
        if not self.chosen["mixed"]:
            return batch
        # the maps' 255 outside becomes a weight of 0
        maps = [batch.label.float()] + ([] if batch.weight is None else [255 - batch.weight])
        images, maps = self.change(batch.image, torch.stack(maps, 1), "mixed")
        label, *weight = maps.unbind(1)
        return Batch(images, label.to(batch.label.dtype), 255 - weight[0] if weight else None)

    def change(self, images: torch.Tensor, maps: torch.Tensor | None, side: str, **how) -> tuple:
        """Change images [N,3,H,W] and maps [N,K,H,W]; `how`: see `geometry.warp`."""
        stages: dict[str, list[tuple[Row, Word]]] = {}
        for name, row in AUGMENTATIONS.items():
            if name in self.chosen[side]:
                stages.setdefault(row.stage, []).append((row, self.chosen[side][name]))
        for row, word in stages.get("warp", ()):
            how |= row.apply(word.p, **word.values)
        plans: list[policies.Plan] = []
        if stages.keys() & {"move", "bend", "policy"}:
            how["way"] = functools.partial(find_way, stages, plans)
        given = maps
        images, maps = geometry.warp(images, maps, **how)
        n = len(images)
        for row, word in stages.get("paste", ()):
            images, maps = row.apply(images, maps, draw(n, word.p), **word.values)
        if "style" in stages:
            references = self.references(images.device)
            for row, word in stages["style"]:
                change = functools.partial(row.apply, references=references, **word.values)
                on_some(change, images, word.p)
        for part in geometry.portions(images):
            for plan in plans:
                images[part] = policies.recolour(images[part], plan[part])
            if "linear" in stages:
                recolour(stages["linear"], images[part])
            for row, word in stages.get("image", ()):
                on_some(functools.partial(row.apply, **word.values), images[part], word.p)
            for row, word in stages.get("pair", ()):
                below = None if maps is None else maps[part]
                hidden = cover(row, word, images[part], below)
                if hidden is not None:  # the loader's own are never written to
                    maps = maps.clone() if maps is given else maps
                    maps[part] = hidden
        return images, maps

    def references(self, device: torch.device) -> torch.Tensor:
        """Return some images of the target, float [M,3,h,w]; they are read once."""
        if self._references is None:
            self._references = self._read_references().to(device).float()
        return self._references


def recolour(rows: list[tuple[Row, Word]], images: torch.Tensor) -> None:
    """Apply all linear colours as one matrix, and cut levels to 0..255, in place."""
    n, mean = len(images), images.mean((2, 3))
    matrix, added = torch.eye(3).repeat(n, 1, 1).to(mean), torch.zeros_like(mean)
    changed = torch.zeros(n, dtype=torch.bool)
    for row, word in rows:
        on = draw(n, word.p)
        changed |= on
        times, plus = row.apply(mean, **word.values)
        there = on.to(mean.device, non_blocking=True).view(n, 1, 1)
        times = torch.where(there, times, torch.eye(3).to(mean))
        plus = torch.where(there[:, 0], plus, 0.0)
        matrix, added, mean = (
            times @ matrix,
            (times @ added.unsqueeze(2)).squeeze(2) + plus,
            (times @ mean.unsqueeze(2)).squeeze(2) + plus,
        )
    which = changed.nonzero().flatten()
    if len(which) == 0:
        return
    which = slice(None) if len(which) == n else which.to(images.device, non_blocking=True)
    flat = torch.baddbmm(added[which].unsqueeze(2), matrix[which], images[which].flatten(2))
    images[which] = flat.clamp_(0, 255).view_as(images[which])


def cover(
    row: Row, word: Word, images: torch.Tensor, maps: torch.Tensor | None
) -> torch.Tensor | None:
    """Hide parts of some images, in place, and return their maps, None where they stay."""
    on = draw(len(images), word.p)
    if not on.any():
        return None
    if on.all():
        changed, below = row.apply(images, maps, **word.values)
        images.copy_(changed)
        return None if below is maps else below
    which = on.nonzero().flatten().to(images.device, non_blocking=True)
    some = None if maps is None else maps[which]
    changed, below = row.apply(images[which], some, **word.values)
    images[which] = changed
    return None if below is some else maps.index_copy(0, which, below)


def find_way(stages: dict, plans: list, n: int, size: tuple[int, int]) -> geometry.Way:
    """Draw the moves, bends and policies of a batch; the policies' plans are added to `plans`."""
    way = geometry.Way(torch.eye(3).repeat(n, 1, 1), torch.zeros(n, dtype=torch.bool))
    for row, word in stages.get("move", ()):
        on = draw(n, word.p)
        way.matrix = torch.where(
            on.view(n, 1, 1), way.matrix @ row.apply(n, size, **word.values), way.matrix
        )
        way.moved |= on
    for row, word in stages.get("policy", ()):
        drawn = zip(row.apply(n, **word.values), draw(n, word.p).tolist(), strict=True)
        plans.append([plan if on else [] for plan, on in drawn])
        for i, operations in enumerate(plans[-1]):
            moved = policies.matrix(operations, size)
            if moved is not None:
                way.matrix[i] = way.matrix[i] @ moved
                way.moved[i] = True
    for row, word in stages.get("bend", ()):
        on = draw(n, word.p)
        way.moved |= on
        bend = functools.partial(row.apply, size=size, **word.values)
        way.bends.insert(0, (bend, on))  # what comes last is looked through first
    return way


def draw(n: int, p: float) -> torch.Tensor:
    """Draw which of n images are changed, bool on the CPU; nothing is drawn where all are."""
    return torch.ones(n, dtype=torch.bool) if p == 1 else torch.rand(n) < p


def on_some(function: Callable, images: torch.Tensor, p: float) -> None:
    """Apply a function to each of some images with probability p, in place."""
    on = draw(len(images), p)
    if on.all():
        images.copy_(function(images))
    elif on.any():
        which = on.nonzero().flatten().to(images.device, non_blocking=True)
        images[which] = function(images[which])


def parse_augmentation(group: str) -> tuple[str | None, str, Word]:
    """Return side, None for all, name, and what is said of it, of a word of --augment and its keys.

    Raises:
        UserError: see `Augment`.
    """
    word, *pairs = group.split()
    side, colon, rest = word.rpartition(":")
    if colon and side not in SIDES:
        raise UserError(f"--augment {word}: before the colon stands one of {', '.join(SIDES)}")
    name, equals, text = rest.partition("=")
    if name not in AUGMENTATIONS:
        there = ", ".join(AUGMENTATIONS)
        raise UserError(f"--augment {word}: no augmentation {name!r}; there are: {there}")
    row, what = AUGMENTATIONS[name], f"--augment {group}: {name}"
    given = [tuple(pair.split("=", 1)) for pair in pairs]
    if equals:
        given.insert(0, (next(iter(row.keys), "p"), text))
    p, values = row.p, {key: keyword.default for key, keyword in row.keys.items()}
    for key, value in given:
        if key == "p" and row.p is not None:
            try:
                p = between(0, 1)(value)
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{what}: p={value}: {error}") from None
        else:
            values |= bind(what, row.apply, [(key, value)])
    if missing := [key for key, value in values.items() if value is REQUIRED]:
        raise UserError(f"{what} needs a value: {name}={missing[0].upper()}")
    return side if colon else None, name, Word(p, values)
