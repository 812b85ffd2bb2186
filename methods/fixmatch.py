"""Weak-to-strong consistency."""

import argparse
from collections.abc import Callable

import torch

import kernels
from engine.errors import UserError
from engine.parsing import at_least, between
from methods.base import Method, Watch
from training import losses
from training.augment import geometry


class FixMatch(Method):
    """Predict on strongly changed target images what the network is sure of on the plain ones.

    Source: Sohn et al. 2020 (FixMatch), equation 4, for segmentation as Yang et al. 2023 (UniMatch,
    section 3.1 and its dataset/transform.py): the network is its own teacher; pixels below the
    threshold count 0 and the mean is over all pixels; the strong view has jittered colours and is
    blurred, and a box of the batch's next image is pasted where `fixmatch_cutmix` asks for it.
    Deviations: no random greyscale; boxes have half the area; the plain view is forwarded in
    training mode, so that batch norm sees both.
    """

    needs = frozenset({"target_detached"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the weight, the threshold and what makes a view strong."""
        share = between(0, 1)
        group.add_argument("--lambda-fixmatch", type=at_least(0, float), default=1.0)
        group.add_argument("--fixmatch-threshold", type=share, default=0.95, help="confidence")
        group.add_argument("--fixmatch-jitter", type=share, default=0.5, help="colours, p = 0.8")
        group.add_argument(
            "--fixmatch-hue", type=between(0, 0.5), default=0.25, help="its hue, in turns"
        )
        group.add_argument("--fixmatch-blur", type=share, default=0.5, help="its probability")
        group.add_argument(
            "--fixmatch-cutmix",
            type=share,
            default=0.0,
            metavar="P",
            help="probability of pasting a box of another target image; default %(default)s",
        )

    def __init__(
        self,
        *,
        num_classes: int,
        align_corners: bool,
        lambda_seg: float,
        lambda_fixmatch: float,
        fixmatch_threshold: float,
        fixmatch_jitter: float,
        fixmatch_hue: float,
        fixmatch_blur: float,
        fixmatch_cutmix: float,
    ):
        super().__init__()
        self.align_corners, self.lambda_seg = align_corners, lambda_seg
        self.weight, self.threshold = lambda_fixmatch, fixmatch_threshold
        self.jitter, self.hue, self.blur = fixmatch_jitter, fixmatch_hue, fixmatch_blur
        self.cutmix = fixmatch_cutmix
        self.watch = Watch("fixmatch", num_classes)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the cross-entropy of the strong view's outputs, where the weak one's are sure."""
        image = batch["target_image"]
        label, confidence = kernels.argmax_upsample(
            batch["target_out"]["out"].detach(), image.shape[-2:], self.align_corners, True
        )
        sure = confidence >= self.threshold
        self.watch.count(label, sure, batch["source_label"])
        image = geometry.color_jitter(image, self.jitter, self.hue, probability=0.8)
        image = geometry.gaussian_blur(image, self.blur, sigma=(0.1, 2.0))
        weight = sure.float()
        if self.cutmix:
            n, _, height, width = image.shape
            if n == 1:
                raise UserError("--fixmatch-cutmix mixes a batch: give --batch-size 2 or more")
            boxes = geometry.half_area_boxes(n, height, width)
            boxes[torch.rand(n) >= self.cutmix] = 0
            boxes = boxes.to(image.device, non_blocking=True)
            below = [image, label, weight]
            image, label, weight = kernels.cutmix(below, [one.roll(1, 0) for one in below], boxes)
        how = {"pixel_weight": weight, "align_corners": self.align_corners}
        terms = losses.segmentation(student(image), label, self.lambda_seg, "fixmatch", **how)
        return {name: self.weight * term for name, term in terms.items()}

    def diagnose(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return how sure the network was of the plain images."""
        return self.watch.read()
