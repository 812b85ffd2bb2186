"""Command-line options of both training scripts: steps, optimiser, losses, augmentation, saving."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine import options, words
from engine.command_line import OnOff, Parser, refuse_idle
from engine.parsing import at_least, between, scale_range, width_height
from engine.values import Saving, Training


def _described(table: Mapping[str, Callable]) -> str:
    """Return names, each with its keywords and their defaults."""
    texts = []
    for name, function in table.items():
        known = (f"{k.name}={_short(k.default)}" for k in words.keywords(function).values())
        texts.append(" ".join([name, *known]))
    return ", ".join(texts)


def _short(value: Any) -> str:
    return ",".join(f"{x:g}" for x in (value if isinstance(value, tuple) else (value,)))


def add_training(
    parser: Parser, losses: Mapping[str, Callable], schedules: Mapping[str, Callable]
) -> None:
    """Add what both training scripts take: steps, optimiser, loss, folder.

    Args:
        parser: of `parser`.
        losses, schedules: what may be named, with its keyword-only arguments.
    """
    group = parser.add_argument_group("training")
    flag = group.add_argument
    where = flag("--snapshot-dir", required=True, metavar="DIR", help="for all that a run writes")
    where.free = True
    flag(
        "--weights",
        default="none",
        help="initial weights: imagenet, auto (imagenet where that file is on this machine), none "
        "or a file; default %(default)s",
    )
    flag("--restore-from", metavar="FILE", help="start from this checkpoint's model")
    options.add_weights_entry(group)
    flag("--batch-size", type=at_least(1), default=1, help="images a batch, of each process")
    flag("--iter-size", type=at_least(1), default=1, help="batches a step")
    _add_length(group)
    flag("--random-seed", type=at_least(0), default=1234, help="of all that is drawn")
    optimizers = ["sgd", "adam", "adamw", "adamp"]
    flag("--optimizer", choices=optimizers, default="sgd", help="of the network")
    flag("--learning-rate", type=at_least(0, float), default=2.5e-4, help="where it begins")
    flag("--momentum", type=at_least(0, float), default=0.9, help="of SGD")
    flag("--weight-decay", type=at_least(0, float), default=5e-4, help="of the optimiser")
    _add_optimisation(flag, schedules)
    _add_losses(group, losses)
    flag(
        "--align-corners",
        action=options.BOOLEAN,
        help="how logits are resized; kept in the checkpoint; default: the network's own",
    )
    flag("--compile", action="store_true", help="the network, by torch.compile; other rounding")
    flag(
        "--checkpoint-activations",
        action="store_true",
        help="compute the backbone's activations again in backward: less memory, more time",
    ).free = True
    flag(
        "--sync-bn",
        action="store_true",
        help="batch norm over the images of all processes; not with --compile",
    )


def _add_length(group: argparse._ArgumentGroup) -> None:
    """Add how many steps a run has."""
    flag = group.add_argument
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--num-steps",
        type=at_least(1),
        default=250_000,
        help="of the schedule; default %(default)s",
    )
    length.add_argument(
        "--epochs",
        type=at_least(0, float),
        metavar="E",
        help="passes over the labelled images instead of --num-steps, with ten validations in all "
        "unless --save-pred-every is given",
    )
    flag(
        "--change-num-steps",
        action="store_true",
        help="resume with another --num-steps: the schedule is the new one's from there on",
    ).free = True
    flag("--num-steps-stop", type=at_least(1), help="stop earlier than --num-steps").free = True


def count_steps(args: argparse.Namespace, num_images: int, num_processes: int) -> None:
    """Turn --epochs into --num-steps, and say so.

    Args:
        args: of `parse`, whose num_steps and save_pred_every are set.
        num_images: of an epoch.
        num_processes: that divide them.
    """
    if args.epochs is None:
        return
    images = args.batch_size * args.iter_size * num_processes  # of a step
    args.num_steps = max(1, math.ceil(args.epochs * num_images / images))
    if "save_pred_every" not in args.given:
        args.save_pred_every = math.ceil(args.num_steps / 10)
    print(
        f"{args.epochs:g} epochs of {num_images} images, {images} a step: --num-steps "
        f"{args.num_steps} --save-pred-every {args.save_pred_every}",
        flush=True,
    )


def _add_losses(group: argparse._ArgumentGroup, losses: Mapping[str, Callable]) -> None:
    """Add what a network is held to its labels by, and how classes are balanced."""
    flag = group.add_argument
    flag(
        "--loss",
        nargs="+",
        metavar="[WEIGHT*]NAME",
        help="for instance 0.8*ce 0.2*ohem threshold=0.7; default: the network's own, mostly ce; "
        f"any of {_described(losses)}",
    )
    flag(
        "--lambda-seg",
        type=at_least(0, float),
        help="weight of the auxiliary head; default: the network's own, mostly 0.1",
    )
    flag(
        "--class-balance",
        "--no-class-balance",
        action=OnOff,
        choices=["root-median", "median", "inverse", "effective"],
        help="weight classes by their frequency: by sqrt(median / frequency), within 0.3 to 4 "
        "(root-median, what it means alone), or as published, without a root or bounds",
    )
    flag(
        "--allow-missing-classes",
        action="store_true",
        help="train on one's own data although a class of the table is in no label",
    ).free = True
    sampling = group.add_mutually_exclusive_group()
    sampling.add_argument(
        "--rare-class-sampling",
        nargs="?",
        type=at_least(1e-4, float),
        const=0.01,
        metavar="T",
        help="draw labelled images by their rare classes (DAFormer's); temperature %(const)s",
    )
    sampling.add_argument(
        "--class-balanced-sampling",
        action="store_true",
        help="draw a labelled image for every class in turn: batches hold them equally often",
    )


def _add_optimisation(flag: Callable, schedules: Mapping[str, Callable]) -> None:
    """Add what the optimiser does beside its step, and the learning rate from step to step."""
    flag("--nesterov", action="store_true", help="SGD looks ahead along its momentum")
    flag(
        "--norm-decay",
        action=options.BOOLEAN,
        default=True,
        help="weight decay of norms and biases too",
    )
    flag(
        "--backbone-rate",
        type=at_least(0, float),
        default=1.0,
        metavar="FACTOR",
        help="of the backbone's learning rate, for instance 0.1",
    )
    flag(
        "--layer-decay",
        type=between(0, 1),
        default=1.0,
        metavar="FACTOR",
        help="of the learning rate, from each block of the backbone to the one before it",
    )
    flag(
        "--clip-norm",
        type=at_least(1e-6, float),
        metavar="NORM",
        help="scale a step's gradients down to this norm",
    )
    flag(
        "--average-weights",
        nargs="?",
        type=between(0, 1),
        const=0.999,
        metavar="MOMENTUM",
        help="score and publish a running average of the weights; momentum %(const)s",
    )
    flag(
        "--schedule",
        nargs="+",
        default="poly",
        metavar=("NAME", "KEY=VALUE"),
        help=f"of the learning rate: {_described(schedules)}; default %(default)s",
    )
    flag("--power", type=at_least(0, float), default=0.9, help="of --schedule poly, its power=P")
    flag("--warmup-steps", type=at_least(0), default=0, help="in which the rate rises from 0")


def refuse_idle_training(args: argparse.Namespace) -> None:
    """Refuse flags of `add_training` that would do nothing beside others of it."""
    if args.optimizer != "sgd":
        refuse_idle(args, {"momentum"}, "--optimizer sgd")
    if args.num_workers == 0:
        refuse_idle(args, {"loader_timeout"}, "--num-workers of 1 or more")


def training(args: argparse.Namespace, precision: str, classes: Sequence[str] = ()) -> Training:
    """Return how a network of these classes is built and trained, in this precision."""
    schedule = [args.schedule] if isinstance(args.schedule, str) else args.schedule
    if schedule == ["poly"]:
        schedule = ["poly", f"power={args.power}"]
    else:
        refuse_idle(args, {"power"}, "--schedule poly, without a power of its own")
    return Training(
        architecture=args.model,
        classes=tuple(classes),
        weights=(args.weights, args.restore_from),
        weights_entry=args.weights_entry,
        seed=args.random_seed,
        loss=args.loss,
        aux_weight=args.lambda_seg,
        align_corners=args.align_corners,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        momentum=args.momentum,
        nesterov=args.nesterov,
        weight_decay=args.weight_decay,
        backbone_rate=args.backbone_rate,
        layer_decay=args.layer_decay,
        norm_decay=args.norm_decay,
        clip_norm=args.clip_norm,
        average=args.average_weights,
        num_steps=args.num_steps,
        schedule=tuple(schedule),
        warmup_steps=args.warmup_steps,
        iter_size=args.iter_size,
        precision=precision,
        compiled=args.compile,
        recompute=args.checkpoint_activations,
        sync_bn=args.sync_bn,
    )


def add_saving(parser: Parser) -> None:
    """Add what a run prints and writes, and how often."""
    group = parser.add_argument_group("what is written")
    flag = group.add_argument
    for action in (
        flag(
            "--save-pred-every",
            type=at_least(1),
            default=5000,
            metavar="STEPS",
            help="score and publish; default %(default)s",
        ),
        flag(
            "--save-every-minutes",
            type=at_least(0, float),
            default=30,
            metavar="M",
            help="how much a killed run may lose, beside --save-pred-every; 0: only that one",
        ),
        flag(
            "--keep-last", type=at_least(1), metavar="K", help="SOURCE_STEP.pth files; default: all"
        ),
        flag(
            "--save-format",
            choices=["pth", "safetensors"],
            default="pth",
            help="of published checkpoints; last.pth stays as it is; default %(default)s",
        ),
        flag("--print-every", type=at_least(1), default=50, metavar="STEPS", help="and log"),
        flag("--tensorboard", action="store_true", help="write events for it; needs its package"),
        flag("--wandb", action="store_true", help="a run of Weights & Biases; needs its package"),
    ):
        action.free = True


def saving(args: argparse.Namespace) -> Saving:
    """Return what a run writes, and how often."""
    return Saving(
        print_every=args.print_every,
        score_every=args.save_pred_every,
        every_minutes=args.save_every_minutes,
        keep_last=args.keep_last,
        format=args.save_format,
        boards=("tensorboard",) * args.tensorboard + ("wandb",) * args.wandb,
    )


def add_augmentation(parser: Parser, names: Mapping[str, Any]) -> None:
    """Add --augment and the earlier flags for some of its words.

    Args:
        parser: of `parser`.
        names: what may be named.
    """
    parser.augmentations = names
    group = parser.add_argument_group("augmentation, on the device")
    flag = group.add_argument
    flag(
        "--augment",
        nargs="+",
        metavar="[SIDE:]NAME[=VALUE] [KEY=VALUE]",
        help=f"any of {', '.join(names)}; source:, target: or mixed: (a method's own) says "
        "whose images, and the keys of each, p=PROBABILITY among them, follow it (docs/augment.md)",
    )
    flag("--crop-size", type=width_height, metavar="W,H", help="the word crop=W,H")
    flag("--random-mirror", action=options.BOOLEAN, help="the word hflip")
    flag(
        "--random-scale",
        nargs="?",
        type=scale_range,
        const=(0.5, 1.5),
        metavar="LOW,HIGH",
        help="the word scale=LOW,HIGH; alone: 0.5,1.5",
    )
    flag("--color-jitter", type=at_least(0, float), metavar="S", help="the word source:jitter=S")
    flag(
        "--auto-augment",
        nargs="?",
        choices=["source", "target", "both"],
        const="both",
        help="the word auto, source:auto or target:auto; alone: both",
    )
