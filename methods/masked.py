"""Masked images: what lies in hidden blocks is to be told from what lies around them."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from engine.words import Count, HueTurns, Share, Weight
from methods.base import Consistency, Seen, Setting
from training.augment import blur, colour
from training.augment.occlusion import random_blocks
from training.batch import Batch
from training.student import Student


class Masked(Consistency):
    """Predict, on target images with hidden blocks, what a mean teacher sees in the whole ones.

    Source: Hoyer et al. 2023 (MIC), section 3.2, equations 4 to 8: blocks are hidden each by
    chance, the hidden pixels take the mean colour (0 after normalisation), the colours of the rest
    are jittered and blurred, and all pixels weigh the share of the batch's pixels that the teacher
    is sure of; the mean is over all pixels. Deviations: the weight is the batch's, not the image's,
    as in DACS; the teacher is updated before a step.
    """

    needs = frozenset({"teacher_out"})

    def __init__(
        self,
        setting: Setting,
        *,
        lambda_masked: Annotated[Weight, "of its term"] = 1.0,
        masked_ratio: Annotated[Share, "of the blocks, each hidden by chance"] = 0.7,
        masked_block: Annotated[Count, "pixels a side of a block"] = 64,
        masked_threshold: Annotated[Share, "confidence that counts as sure"] = 0.968,
        masked_jitter: Annotated[Share, "colour jitter of masked images, p = 0.8"] = 0.2,
        masked_hue: Annotated[HueTurns, "its hue, in turns"] = 0.2,
        masked_blur: Annotated[Share, "probability of blurring masked images"] = 0.5,
    ):
        super().__init__("masked", setting, lambda_masked, masked_threshold)
        self.ratio, self.block = masked_ratio, masked_block
        self.jitter, self.hue, self.blur = masked_jitter, masked_hue, masked_blur
        mean = torch.tensor(setting.mean).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the cross-entropy on the masked images."""
        label, sure = self.labels_of(seen.teacher, seen)
        weight = sure.float().mean().expand(sure.shape)
        image = colour.color_jitter(seen.target.image, self.jitter, self.hue, probability=0.8)
        image = blur.gaussian_blur(image, self.blur)
        batch = self.augment(Batch(image, label, weight))
        hidden = random_blocks(batch.image, (self.ratio, self.ratio), (self.block, self.block))
        image = torch.where(hidden.unsqueeze(1), self.mean, batch.image)
        return self.term(replace(batch, image=image), student)


METHODS = {"masked": Masked}
