"""Mixed images: ClassMix and CutMix, with a mean teacher's labels or true ones."""

from typing import Annotated, Literal

import torch
from torch import Tensor

import kernels
from engine.errors import UserError
from engine.words import HueTurns, Share, Weight
from methods.base import Consistency, Seen, Setting
from training.augment import blur, colour, pasting
from training.batch import Batch
from training.student import Student


class Mix(Consistency):
    """Paste parts of images into target images that a teacher labels, and train on them.

    Source: Tranheden et al. 2021 (DACS), section 3, trainUDA.py: half the classes of a source
    label (ClassMix) or a box of half the area (CutMix, French et al. 2020) go onto the target;
    target pixels weigh the share of the batch's pixels that the teacher is sure of, source pixels
    1; the mean is over all pixels. Deviations: the ignore value is never among the pasted classes;
    any batch size; the teacher is updated before a step, DACS updates it after (the ramp is one
    step later). DACS's hue jitter is 0.25 turns (kornia), set by its recipe; our default is less.

    `mix_from` target pastes the next image of the target batch instead, as the semi-supervised
    originals do (French et al.; ClassMix: Olsson et al. 2021). `mix_weight` pixel weighs a target
    pixel 1 where the teacher is sure and 0 elsewhere. `mix_labels` true needs no teacher: target
    images with their own labels are mixed, and the mean is over the labelled pixels.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        mix: Annotated[
            Literal["class", "box"], "what is pasted: half of the classes, or a box"
        ] = "class",
        mix_from: Annotated[
            Literal["source", "target"], "whose parts are pasted onto target images"
        ] = "source",
        mix_labels: Annotated[
            Literal["teacher", "true"], "of target images; true mixes those of --target-labels"
        ] = "teacher",
        mix_weight: Annotated[
            Literal["share", "pixel"],
            "of the teacher's labels: the share of confident pixels, or 1 where confident",
        ] = "share",
        lambda_mix: Annotated[Weight, "of its term"] = 1.0,
        mix_threshold: Annotated[Share, "confidence that counts as sure"] = 0.968,
        mix_jitter: Annotated[Share, "colour jitter of mixed images, p = 0.8"] = 0.25,
        mix_hue: Annotated[HueTurns, "its hue, in turns"] = 0.0625,
        mix_blur: Annotated[Share, "probability of blurring mixed images"] = 0.5,
    ):
        super().__init__("mix", setting, lambda_mix, mix_threshold)
        self.kind, self.paste, self.per_pixel = mix, mix_from, mix_weight == "pixel"
        self.jitter, self.hue, self.blur = mix_jitter, mix_hue, mix_blur
        self.true_labels = mix_labels == "true"
        self.needs = frozenset({"labelled" if self.true_labels else "teacher_out"})

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the cross-entropy on the mixed images."""
        below = self._labelled(seen) if self.true_labels else self._by_teacher(seen)
        image, label, *weight = self._pasted(below, seen)
        image = colour.color_jitter(image, self.jitter, self.hue, probability=0.8)
        image = blur.gaussian_blur(image, self.blur)
        return self.term(self.augment(Batch(image, label, *weight)), student)

    @staticmethod
    def _labelled(seen: Seen) -> list[Tensor]:
        return [seen.labelled.image, seen.labelled.label]

    def _by_teacher(self, seen: Seen) -> list[Tensor]:
        """Return the target images, the teacher's labels of them, and their pixels' weights."""
        label, sure = self.labels_of(seen.teacher, seen)
        weight = sure.float() if self.per_pixel else sure.float().mean().expand(sure.shape)
        return [seen.target.image, label, weight]

    def _pasted(self, below: list[Tensor], seen: Seen) -> list[Tensor]:
        """Return the maps `below` with parts of source images, or of one another, on top."""
        target = below[0]
        if self.paste == "source":
            above = [seen.source.image, seen.source.label]
            above += [torch.ones_like(weight) for weight in below[2:]]
        elif len(target) == 1:
            raise UserError("--mix-from target pastes within a batch: give --batch-size 2 or more")
        else:
            above = [one.roll(1, 0) for one in below]
        image, label = above[:2]
        if target.shape != image.shape:
            raise UserError(
                f"--method mix pastes source into target images of one size, not "
                f"{tuple(image.shape)} into {tuple(target.shape)}: give --crop-size"
            )
        if self.kind == "class":
            return kernels.classmix(below, above, label, pasting.half_of_classes(label))
        boxes = pasting.half_area_boxes(len(image), *image.shape[-2:])
        return kernels.cutmix(below, above, boxes.to(image.device, non_blocking=True))


METHODS = {"mix": Mix}
