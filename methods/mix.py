"""Mixed images: ClassMix and CutMix, with a mean teacher's labels or true ones."""

import argparse
from collections.abc import Callable

import torch

import kernels
from engine.errors import UserError
from engine.parsing import at_least, between
from methods.base import Method, Watch
from training import losses
from training.augment import geometry


class Mix(Method):
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

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the flags of mixing."""
        group.add_argument("--mix", choices=["class", "box"], default="class")
        group.add_argument(
            "--mix-from",
            choices=["source", "target"],
            default="source",
            help="whose parts are pasted onto target images; default %(default)s",
        )
        group.add_argument(
            "--mix-labels",
            choices=["teacher", "true"],
            default="teacher",
            help="of target images; true mixes those of --target-labels; default %(default)s",
        )
        group.add_argument(
            "--mix-weight",
            choices=["share", "pixel"],
            default="share",
            help="of the teacher's labels: the share of confident pixels, or 1 where confident",
        )
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
        num_classes: int,
        align_corners: bool,
        lambda_seg: float,
        mix: str,
        mix_from: str,
        mix_labels: str,
        mix_weight: str,
        lambda_mix: float,
        mix_threshold: float,
        mix_jitter: float,
        mix_hue: float,
        mix_blur: float,
    ):
        super().__init__()
        self.align_corners, self.lambda_seg = align_corners, lambda_seg
        self.kind, self.paste, self.per_pixel = mix, mix_from, mix_weight == "pixel"
        self.weight, self.threshold = lambda_mix, mix_threshold
        self.jitter, self.hue, self.blur = mix_jitter, mix_hue, mix_blur
        self.true_labels = mix_labels == "true"
        self.needs = frozenset({"labelled" if self.true_labels else "teacher_out"})
        self.watch = Watch("mix", num_classes)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the cross-entropy on the mixed images."""
        below = self._labelled(batch) if self.true_labels else self._by_teacher(batch)
        image, label, *weight = self._pasted(below, batch)
        image = geometry.color_jitter(image, self.jitter, self.hue, probability=0.8)
        image = geometry.gaussian_blur(image, self.blur)
        out = student(image)
        how = {"pixel_weight": weight[0] if weight else None, "align_corners": self.align_corners}
        terms = losses.segmentation(out, label, self.lambda_seg, "mix", **how)
        return {name: self.weight * term for name, term in terms.items()}

    @staticmethod
    def _labelled(batch: dict) -> list[torch.Tensor]:
        return [batch["labelled_image"], batch["labelled_label"]]

    def _by_teacher(self, batch: dict) -> list[torch.Tensor]:
        """Return the target images, the teacher's labels of them, and their pixels' weights."""
        target = batch["target_image"]
        pseudo, confidence = kernels.argmax_upsample(
            batch["teacher_out"]["out"], target.shape[-2:], self.align_corners, True
        )
        sure = confidence >= self.threshold
        self.watch.count(pseudo, sure, batch["source_label"])
        weight = sure.float() if self.per_pixel else sure.float().mean().expand_as(confidence)
        return [target, pseudo, weight]

    def _pasted(self, below: list[torch.Tensor], batch: dict) -> list[torch.Tensor]:
        """Return the maps `below` with parts of source images, or of one another, on top."""
        target = below[0]
        if self.paste == "source":
            above = [batch["source_image"], batch["source_label"]]
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
            return kernels.classmix(below, above, label, geometry.half_of_classes(label))
        boxes = geometry.half_area_boxes(len(image), *image.shape[-2:])
        return kernels.cutmix(below, above, boxes.to(image.device, non_blocking=True))

    def diagnose(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return how sure the teacher was."""
        return self.watch.read()
