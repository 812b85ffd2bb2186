"""Mixed images with a mean teacher: ClassMix and CutMix."""

import argparse
from collections.abc import Callable

import torch

import augment
import losses
from errors import UserError
from methods.base import Method
from options import at_least, between


class Mix(Method):
    """Paste parts of source images into target images labelled by the teacher, and train on them.

    Source: Tranheden et al. 2021 (DACS), section 3, trainUDA.py: half the classes of a source
    label (ClassMix) or a box of half the area (CutMix, French et al. 2020) go onto the target;
    target pixels weigh the share of the batch's pixels that the teacher is sure of, source pixels
    1; the mean is over all pixels. Deviations: the ignore value is never among the pasted classes;
    any batch size; the teacher is updated before a step, DACS updates it after (the ramp is one
    step later). DACS's hue jitter is 0.25 turns (kornia), set by its recipe; our default is less.
    """

    needs = frozenset({"teacher_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the flags of mixing."""
        group.add_argument("--mix", choices=["class", "box"], default="class")
        weight, share = at_least(0, float), between(0, 1)
        group.add_argument("--lambda-mix", type=weight, default=1.0)
        group.add_argument("--mix-threshold", type=share, default=0.968, help="confidence")
        group.add_argument("--mix-jitter", type=share, default=0.25, help="colour jitter, p = 0.8")
        group.add_argument(
            "--mix-hue", type=between(0, 0.5), default=0.0625, help="its hue, in turns"
        )
        group.add_argument("--mix-blur", type=share, default=0.5, help="probability of blurring")

    def __init__(
        self,
        *,
        align_corners: bool,
        lambda_seg: float,
        mix: str,
        lambda_mix: float,
        mix_threshold: float,
        mix_jitter: float,
        mix_hue: float,
        mix_blur: float,
    ):
        super().__init__()
        self.align_corners, self.lambda_seg = align_corners, lambda_seg
        self.kind, self.weight, self.threshold = mix, lambda_mix, mix_threshold
        self.jitter, self.hue, self.blur = mix_jitter, mix_hue, mix_blur

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the cross-entropy on the mixed images."""
        import kernels  # compiles on first import, which belongs after the command line is parsed

        target, source = batch["target_image"], batch["source_image"]
        if target.shape != source.shape:
            raise UserError(
                f"--method mix pastes source into target images of one size, not "
                f"{tuple(source.shape)} into {tuple(target.shape)}: give --crop-size"
            )
        pseudo, confidence = kernels.argmax_upsample(
            batch["teacher_out"]["out"], target.shape[-2:], self.align_corners, True
        )
        sure = (confidence >= self.threshold).float().mean()
        below = [target, pseudo, sure.expand_as(confidence)]
        above = [source, batch["source_label"], torch.ones_like(confidence)]
        if self.kind == "class":
            classes = augment.half_of_classes(batch["source_label"])
            image, label, weight = kernels.classmix(below, above, batch["source_label"], classes)
        else:
            boxes = augment.half_area_boxes(len(source), *source.shape[-2:])
            boxes = boxes.to(source.device, non_blocking=True)
            image, label, weight = kernels.cutmix(below, above, boxes)
        image = augment.color_jitter(image, self.jitter, self.hue, probability=0.8)
        image = augment.gaussian_blur(image, self.blur)
        out = student(image)
        how = {"pixel_weight": weight, "align_corners": self.align_corners}
        terms = losses.segmentation(out, label, self.lambda_seg, "mix", **how)
        return {name: self.weight * term for name, term in terms.items()}
