"""The adaptation methods, one class each. They compose: train_da.py adds up their terms.

A method is an nn.Module, so that one state_dict holds its networks and, as extra state, its
optimiser. What train_da.py relies on:

    add_options(group)         its command-line flags; each flag is a keyword of __init__
    needs                      what the loop must put into the batch: target_out, teacher_out;
                               a method that needs nothing only has `finish` called
    check(model)               before any step; raises UserError where it cannot work
    forward(batch, student)    -> {name: weighted loss}; the loop calls backward on their sum
    after_step(rate)           -> {name: loss to log}; after the student's optimiser has stepped
    finish(model, batches)     once at the end; True if it changed the model

`batch` holds source_image and target_image (float [N,3,H,W], 0 to 255), source_label (uint8
[N,H,W]), source_out (detached logits), and what `needs` names; outputs are dicts of logits
[N,C,h,w] under "out" and, for multi-level networks, "aux". `student(images)` runs the network.
"""

import argparse
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn

import augment
import losses
from engine import set_rate
from errors import UserError
from models.discriminator import FCDiscriminator
from options import at_least, between


class Method(nn.Module):
    """What a method does when it does nothing."""

    needs: frozenset[str] = frozenset()

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the method's flags to the script's parser."""

    def check(self, model: nn.Module) -> None:
        """Raise UserError where the method cannot work on a network, before any step."""

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the weighted loss terms of one batch."""
        return {}

    def after_step(self, rate: float) -> dict[str, torch.Tensor]:
        """Train what is the method's own; `rate` is the schedule's factor. Return losses to log."""
        return {}

    def finish(self, model: nn.Module, batches: Iterable[torch.Tensor]) -> bool:
        """Change the trained model once, at the end, given normalised target images."""
        return False


class Adversarial(Method):
    """Make target predictions look like source predictions to a discriminator.

    Source: Tsai et al. 2018 (AdaptSegNet), section 4; train_gta2cityscapes_multi.py. One
    discriminator per output level; source is 0 and target 1; the network's term asks for 0 on the
    target; each discriminator loss counts half. Deviation: the discriminators see the maps of the
    step just done once its gradients are applied, not before (the same maps, the same losses).
    """

    needs = frozenset({"target_out"})
    term = "adv"

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the discriminators' flags; advent shares them."""
        group.add_argument("--gan", choices=["Vanilla", "LS"], default="Vanilla")
        weight, count = at_least(0, float), at_least(1)
        group.add_argument("--lambda-adv-target1", type=weight, default=0.0002, help="aux output")
        group.add_argument("--lambda-adv-target2", type=weight, default=0.001, help="main output")
        group.add_argument("--learning-rate-D", type=weight, default=1e-4, help="Adam's")
        group.add_argument(
            "--discriminator-width", type=count, default=64, help="channels of its first layer"
        )
        group.add_argument(
            "--discriminator-at",
            choices=["input", "output"],
            default="input",
            help="resolution of the maps it sees: the images' (published) or the network's own",
        )

    def __init__(
        self,
        *,
        num_classes: int,
        multi_level: bool,
        align_corners: bool,
        gan: str,
        lambda_adv_target1: float,
        lambda_adv_target2: float,
        learning_rate_D: float,
        discriminator_width: int,
        discriminator_at: str,
        autocast: Callable,
    ):
        super().__init__()
        self.autocast = autocast
        self.gan, self.at, self.align_corners = gan, discriminator_at, align_corners
        self.weights = {"out": lambda_adv_target2}
        if multi_level:
            self.weights["aux"] = lambda_adv_target1
        self.discriminators = nn.ModuleDict(
            {level: FCDiscriminator(num_classes, discriminator_width) for level in self.weights}
        )
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=learning_rate_D, betas=(0.9, 0.99)
        )
        self._seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def _maps(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return what the discriminator looks at: the class probabilities."""
        if self.at == "input":
            logits = losses.resize(logits, size, self.align_corners)
        if min(logits.shape[-2:]) < 32:  # five strides of 2
            shape = "x".join(map(str, logits.shape[:-3:-1]))
            raise UserError(f"the discriminator needs maps of 32x32 or more, not {shape}")
        return logits.float().softmax(1)

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Ask the discriminators to take the target outputs for source outputs."""
        self.requires_grad_(False)  # the network's term must not train the discriminators
        terms = {}
        for level, weight in self.weights.items():
            with torch.no_grad():
                source = self._maps(batch["source_out"][level], batch["source_image"].shape[-2:])
            target = self._maps(batch["target_out"][level], batch["target_image"].shape[-2:])
            with self.autocast():
                decision = self.discriminators[level](target)
            terms[f"{self.term}_{level}"] = weight * losses.gan(decision, 0.0, self.gan)
            self._seen.append((level, source, target.detach()))
        return terms

    def after_step(self, rate: float) -> dict[str, torch.Tensor]:
        """Train the discriminators on the maps that `forward` saw since the last step."""
        self.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        logged = {}
        batches = len(self._seen) // len(self.weights)
        for level, source, target in self._seen:
            with self.autocast():
                on_source = self.discriminators[level](source)
                on_target = self.discriminators[level](target)
            loss = losses.gan(on_source, 0.0, self.gan) / 2
            loss = loss + losses.gan(on_target, 1.0, self.gan) / 2
            (loss / batches).backward()
            logged[f"D_{self.term}_{level}"] = loss.detach()
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self._seen.clear()
        return logged

    def get_extra_state(self) -> dict:
        """Return the optimiser's state, which belongs into the run's checkpoint."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        """Restore the optimiser."""
        self.optimizer.load_state_dict(state)


class Advent(Adversarial):
    """The same game on weighted self-information maps instead of probabilities.

    Source: Vu et al. 2019 (ADVENT), section 3.2; advent/domain_adaptation/train_UDA.py.
    """

    term = "advent"

    def _maps(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return losses.weighted_information(super()._maps(logits, size))


class Entropy(Method):
    """Minimise the entropy of target predictions (MinEnt).

    Source: Vu et al. 2019 (ADVENT), equation 3, weights of its minent configuration.
    """

    needs = frozenset({"target_out"})

    @staticmethod
    def add_options(group: argparse._ArgumentGroup) -> None:
        """Add the two weights."""
        weight = at_least(0, float)
        group.add_argument("--lambda-entropy", type=weight, default=0.001, help="main output")
        group.add_argument("--lambda-entropy-aux", type=weight, default=0.0002, help="aux output")

    def __init__(
        self,
        *,
        multi_level: bool,
        align_corners: bool,
        lambda_entropy: float,
        lambda_entropy_aux: float,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.weights = {"out": lambda_entropy}
        if multi_level:
            self.weights["aux"] = lambda_entropy_aux

    def forward(self, batch: dict, student: Callable) -> dict[str, torch.Tensor]:
        """Return the normalised entropy of each output level, at the images' resolution."""
        size = batch["target_image"].shape[-2:]
        return {
            f"entropy_{level}": weight
            * losses.entropy(losses.resize(batch["target_out"][level], size, self.align_corners))
            for level, weight in self.weights.items()
        }


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


class AdaBN(Method):
    """Estimate the batch-norm statistics anew on target images, once, after training.

    Source: Li et al. 2016 (AdaBN). Statistics are the plain mean over all batches. No label, no
    gradient; the baseline that any gain of another method should be held against.
    """

    def check(self, model: nn.Module) -> None:
        """Raise UserError for a model without batch normalisation."""
        if not self._norms(model):
            raise UserError("--method adabn: this model has no batch normalisation")

    @staticmethod
    def _norms(model: nn.Module) -> list[nn.Module]:
        return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def finish(self, model: nn.Module, batches: Iterable[torch.Tensor]) -> bool:
        """Replace the running statistics."""
        norms = self._norms(model)
        kept = [norm.momentum for norm in norms]
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.train()
        for images in batches:
            model(images)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
        model.eval()
        return True


METHODS = {
    "adversarial": Adversarial,
    "advent": Advent,
    "entropy": Entropy,
    "mix": Mix,
    "adabn": AdaBN,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --method and every method's own flags."""
    parser.add_argument(
        "--method",
        nargs="+",
        choices=[*METHODS, "none"],
        default=["adversarial"],
        metavar="NAME",
        help=f"one or several of {', '.join(METHODS)}; or none",
    )
    for name, method in METHODS.items():
        if "add_options" in vars(method):
            method.add_options(parser.add_argument_group(f"method {name}"))


def build_methods(names: list[str], values: dict) -> nn.ModuleDict:
    """Build the methods, each with the values its constructor names.

    Raises:
        UserError: a name twice, or none beside others.
    """
    if len(set(names)) != len(names) or ("none" in names and len(names) > 1):
        raise UserError(f"--method {' '.join(names)}: each name once, none alone")
    built = nn.ModuleDict()
    for name in names:
        if name != "none":
            wanted = list(inspect.signature(METHODS[name]).parameters)
            wanted = [key for key in wanted if key in values]
            built[name] = METHODS[name](**{key: values[key] for key in wanted})
    return built
