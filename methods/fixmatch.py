"""Weak-to-strong consistency."""

from typing import Annotated

import torch
from torch import Tensor

import kernels
from engine.errors import UserError
from engine.words import HueTurns, Share, Weight
from methods.base import Consistency, Seen, Setting
from training.augment import blur, colour, pasting
from training.batch import Batch
from training.student import Student


class FixMatch(Consistency):
    """Predict on strongly changed target images what the network is sure of on the plain ones.

    Source: Sohn et al. 2020 (FixMatch), equation 4, for segmentation as Yang et al. 2023 (UniMatch,
    section 3.1 and its dataset/transform.py): the network is its own teacher; pixels below the
    threshold count 0 and the mean is over all pixels; the strong view has jittered colours and is
    blurred, and a box of the batch's next image is pasted where `fixmatch_cutmix` asks for it.
    Deviations: no random greyscale; boxes have half the area; the plain view is forwarded in
    training mode, so that batch norm sees both.
    """

    needs = frozenset({"target_detached"})

    def __init__(
        self,
        setting: Setting,
        *,
        lambda_fixmatch: Annotated[Weight, "of its term"] = 1.0,
        fixmatch_threshold: Annotated[Share, "confidence from which a pixel counts"] = 0.95,
        fixmatch_jitter: Annotated[Share, "colour jitter of the strong view, p = 0.8"] = 0.5,
        fixmatch_hue: Annotated[HueTurns, "its hue, in turns"] = 0.25,
        fixmatch_blur: Annotated[Share, "probability of blurring the strong view"] = 0.5,
        fixmatch_cutmix: Annotated[
            Share, "probability of pasting a box of another target image"
        ] = 0.0,
    ):
        super().__init__("fixmatch", setting, lambda_fixmatch, fixmatch_threshold)
        self.jitter, self.hue, self.blur = fixmatch_jitter, fixmatch_hue, fixmatch_blur
        self.cutmix = fixmatch_cutmix

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the cross-entropy of the strong view's outputs, where the weak one's are sure."""
        image = seen.target.image
        plain = {"out": seen.target.outputs["out"].detach()}
        label, sure = self.labels_of(plain, seen)
        image = colour.color_jitter(image, self.jitter, self.hue, probability=0.8)
        image = blur.gaussian_blur(image, self.blur, sigma=(0.1, 2.0))
        weight = sure.float()
        if self.cutmix:
            n, _, height, width = image.shape
            if n == 1:
                raise UserError("--fixmatch-cutmix mixes a batch: give --batch-size 2 or more")
            boxes = pasting.half_area_boxes(n, height, width)
            boxes[torch.rand(n) >= self.cutmix] = 0
            boxes = boxes.to(image.device, non_blocking=True)
            below = [image, label, weight]
            image, label, weight = kernels.cutmix(below, [one.roll(1, 0) for one in below], boxes)
        return self.term(self.augment(Batch(image, label, weight)), student)


METHODS = {"fixmatch": FixMatch}
