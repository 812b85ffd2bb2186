"""Time one step of adversarial adaptation, the multi-level one of AdaptSegNet."""

import argparse
import copy
import functools
import math
import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import methods
import models
from engine import options, training_options
from engine.device import autocast, pick_precision
from engine.seeds import seed_everything
from methods import Adapting, Seen, Setting
from tools.benchmark import scenes
from tools.benchmark.classifier import plain_copy
from tools.benchmark.timing import alternate, compare, exact_convolutions
from training.augment import AUGMENTATIONS, Augment
from training.losses import LOSSES
from training.schedule import SCHEDULES
from training.student import Student

RECIPE = "adaptsegnet-multi"


def run(
    machine: dict,
    device: torch.device,
    *,
    size: tuple[int, int],
    batch_size: int,
    backbone: str,
    repeats: int,
) -> Iterator[tuple[dict, str]]:
    """Yield one row, the time of a step, and a remark.

    A step in fp32 is first compared with the plain one: every loss, and where the weights go.

    Args:
        machine: the matrix rates are read.
        device: where the networks run.
        size: W, H of source and target images in pixels.
        batch_size: images of each.
        backbone: of DeepLabv2.
        repeats: rounds.
    """
    precision = pick_precision("auto", device)
    args = recipe_options(backbone)
    images, label = (part.to(device) for part in scenes.batch(size, batch_size, 0))
    target = scenes.batch(size, batch_size, 1)[0].to(device)

    exact = Step(args, device, "fp32")
    plain = PlainStep(exact)
    # the plain way normalises while it loads, which is not part of the step
    plain_images = models.normalise(images, exact.model.normalisation)
    plain_target = models.normalise(target, exact.model.normalisation)
    start = [parameter.detach().clone() for parameter in plain.model.parameters()]
    with exact_convolutions(), FlopCounterMode(display=False) as counter:
        expected = plain(plain_images, label, plain_target)
    with exact_convolutions():
        check_losses(exact(images, label, target), expected)
    alike = cosine_of_updates(exact.model, plain.model, start)
    assert alike > 0.95, f"ours moves the weights elsewhere: cosine {alike}"
    del exact

    ours = Step(args, device, precision)
    seconds = alternate(
        [
            lambda: ours(images, label, target),
            lambda: plain(plain_images, label, plain_target),
        ],
        device,
        repeats,
    )
    row = {"precision": precision, "gflop_per_step": counter.get_total_flops() / 1e9}
    row["update_cosine_fp32"] = alike
    rate = machine[f"{precision}_gflop_per_s"]
    row["of_matrix_rate"] = row["gflop_per_step"] / statistics.median(seconds[0]) / rate
    shown = "train {} {}x{} batch {}".format(backbone, *size, batch_size)
    row |= memory(ours, (images, label, target), device)
    remark = f"{row['gflop_per_step']:.0f} GFLOP at {row['of_matrix_rate']:.0%} of the {precision}"
    remark += f" matrix rate; {row['memory_mb']:.0f} MB, with --checkpoint-activations"
    yield {"name": shown, **compare(*seconds), **row}, f"{remark} {row['recomputing_mb']:.0f} MB"


def recipe_options(backbone: str) -> argparse.Namespace:
    """Return the options of train_da.py under AdaptSegNet's recipe."""
    parser = options.parser("the options a step needs")
    options.add_recipe(parser)
    options.add_model(parser, models.MODELS)
    training_options.add_training(parser, LOSSES, SCHEDULES)
    training_options.add_augmentation(parser, AUGMENTATIONS)
    methods.add_options(parser)
    words = f"--recipe {RECIPE} --backbone {backbone} --weights none --snapshot-dir none".split()
    return options.parse(parser, words)


def check_losses(terms: dict[str, Tensor], expected: dict[str, float]) -> None:
    """Stop unless every loss is the plain one within the rounding of fp32."""
    for name, value in expected.items():
        error = abs(terms[name].item() - value)
        assert error <= 1e-4 * abs(value), f"{name} is {terms[name].item()}, the plain way {value}"


def cosine_of_updates(ours: nn.Module, plain: nn.Module, start: list[Tensor]) -> float:
    """Return the cosine between the ways that two copies of a network went from `start`.

    It is not quite 1: through an untrained network, fp32 gradients of either memory format are some
    percent off those of float64.
    """
    dot = squares = own_squares = 0.0
    for a, b, origin in zip(ours.parameters(), plain.parameters(), start, strict=True):
        own, other = (a.detach() - origin).double(), (b.detach() - origin).double()
        dot += (own * other).sum().item()
        own_squares += own.square().sum().item()
        squares += other.square().sum().item()
    return dot / math.sqrt(own_squares * squares)


def bytes_for_backward(network: nn.Module, forward: Callable[[], object]) -> int:
    """Return the size of what autograd keeps of a forward pass, without the weights, in bytes.

    Args:
        network: whose weights do not count.
        forward: runs it, with gradients.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    del graph  # until here no storage was freed, whose address another would then have taken
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def memory(step: "Step", batch: tuple[Tensor, ...], device: torch.device) -> dict[str, float]:
    """Return the megabytes of a step as it is, then of one that computes activations again.

    On a GPU the peak of what was allocated; elsewhere what autograd keeps of the source's forward
    pass, as a process's memory says little about one step.

    Args:
        step: changed for good: it computes activations again afterwards.
        batch: what it is called with.
        device: of the step.
    """
    needed = {}
    for name in ("memory_mb", "recomputing_mb"):
        if name == "recomputing_mb":
            models.checkpoint_activations(step.model)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step(*batch)
            size = torch.cuda.max_memory_allocated(device)
        else:
            size = bytes_for_backward(step.model, lambda: step.student(batch[0]))
        needed[name] = size / 1e6
    return needed


class Step:
    """One step of train_da.py, by its parts in its order, without data and records.

    Args:
        args: of `recipe_options`.
        device, precision: see `engine.device.autocast`.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device, precision: str) -> None:
        self.args = args
        self.student = Student(
            training_options.training(args, precision), scenes.NUM_CLASSES, device
        )
        self.model = self.student.network
        seed_everything(args.random_seed, "methods")
        setting = Setting(
            num_classes=scenes.NUM_CLASSES,
            heads=self.model.heads,
            align_corners=self.model.align_corners,
            autocast=functools.partial(autocast, precision, device),
        )
        self.adapting = Adapting(args.method, setting, vars(args)).to(device)
        self.augment = Augment(args.augment)

    def __call__(self, images: Tensor, label: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Train on one batch of each domain; images uint8 [N,3,H,W], label uint8 [N,H,W]."""
        student, rate = self.student, self.student.rate_at(0)
        student.begin(rate)
        source = self.augment({"image": images, "label": label}, "source")
        source.outputs = student(source.image)
        terms = student.loss(source.outputs, source.label)
        student.backward(terms)
        source.outputs = {key: value.detach() for key, value in source.outputs.items()}
        seen = Seen(0, source, target=self.augment({"image": target}, "target"))
        seen.target.outputs = student(seen.target.image)
        added = self.adapting(seen, student)
        student.backward(added)
        student.end()
        terms = {name: value.detach() for name, value in (terms | added).items()}
        return terms | self.adapting.after_step(rate)


class PlainStep:
    """The same step in fp32 and NCHW, as AdaptSegNet's train_gta2cityscapes_multi.py does it.

    Source and target pass the discriminators at the images' size, softmaxes are computed again for
    the discriminators' own losses, and every loss is read at once.

    Args:
        step: networks and option values are copied from it.
    """

    def __init__(self, step: Step) -> None:
        args = self.args = step.args
        self.model = plain_copy(step.model)
        self.discriminators = copy.deepcopy(step.adapting["adversarial"].discriminators)
        self.discriminators.requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            self.model.param_groups(args.learning_rate),
            momentum=args.momentum,
            weight_decay=args.weight_decay,
        )
        self.optimizer_D = torch.optim.Adam(
            self.discriminators.parameters(), lr=args.learning_rate_D, betas=(0.9, 0.99)
        )
        self.weights = {"out": args.lambda_adv_target2, "aux": args.lambda_adv_target1}

    def __call__(self, images: Tensor, label: Tensor, target: Tensor) -> dict[str, float]:
        """Train on one batch of each domain; images normalised, label uint8 [N,H,W]."""
        self.optimizer.zero_grad()
        self.optimizer_D.zero_grad()
        self.discriminators.requires_grad_(False)
        source_out = self.maps(images)
        seg, seg_aux = (
            F.cross_entropy(source_out[key], label.long(), ignore_index=scenes.IGNORE)
            for key in ("out", "aux")
        )
        seg_aux = self.args.lambda_seg * seg_aux
        (seg + seg_aux).backward()
        terms = {"seg": seg.item(), "seg_aux": seg_aux.item()}

        target_out = self.maps(target)
        fooled = {
            key: weight * self.judge(key, target_out[key], 0.0)
            for key, weight in self.weights.items()
        }
        sum(fooled.values()).backward()
        terms |= {f"adv_{key}": loss.item() for key, loss in fooled.items()}

        self.discriminators.requires_grad_(True)
        for key in self.weights:
            on_source = self.judge(key, source_out[key].detach(), 0.0) / 2
            on_source.backward()
            on_target = self.judge(key, target_out[key].detach(), 1.0) / 2
            on_target.backward()
            terms[f"D_adv_{key}"] = on_source.item() + on_target.item()
        self.optimizer.step()
        self.optimizer_D.step()
        return terms

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of both levels at the images' size."""
        resize = functools.partial(F.interpolate, mode="bilinear", align_corners=True)
        outputs = self.model(images)
        return {key: resize(value, size=images.shape[-2:]) for key, value in outputs.items()}

    def judge(self, key: str, logits: Tensor, domain: float) -> Tensor:
        """Return how far the discriminator's decision on these logits is from `domain`."""
        decision = self.discriminators[key](logits.softmax(1))
        return F.binary_cross_entropy_with_logits(decision, torch.full_like(decision, domain))
