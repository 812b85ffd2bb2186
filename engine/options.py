"""Command-line options that more than one script takes, each written once.

A script builds its parser with `parser(__doc__)`, adds the groups it needs and its own flags, and
parses with `parse`; see `command_line`. Nothing here imports torch.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine import words
from engine.command_line import OnOff, Parser, parse, parser, plain, refuse_idle
from engine.errors import UserError
from engine.parsing import (
    at_least,
    between,
    count_or_all,
    image_size,
    key_value,
    numbers,
    scale_range,
    width_height,
)
from engine.recipes import RECIPES
from engine.values import Foreign, Images, Loading, Saving, Training, Validation, Views

__all__ = ["Parser", "parse", "parser", "plain", "refuse_idle"]

BOOLEAN = argparse.BooleanOptionalAction  # --flag and --no-flag


def add_recipe(parser: Parser) -> None:
    """Add --recipe."""
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), help="published option values, printed at the start"
    ).free = True


def add_model(
    parser: Parser, models: Mapping[str, Callable], default: str | None = "deeplabv2"
) -> None:
    """Add --model NAME KEY=VALUE ..., and the earlier flags for some of its keys.

    Args:
        parser: of `parser`.
        models: what may be named; the keys are the keyword-only arguments of each.
        default: name.
    """
    parser.models = models
    group = parser.add_argument_group("model")
    flag = group.add_argument
    described = (f"{name} ({', '.join(words.keywords(models[name]))})" for name in models)
    flag(
        "--model",
        nargs="+",
        default=default,
        metavar=("NAME", "KEY=VALUE"),
        help=f"a network and its options: {'; '.join(described)}",
    )
    flag("--backbone", help="the same as the word encoder=NAME, and so below")
    flag("--multi-level", action=BOOLEAN, help="an auxiliary head")
    flag("--aspp-dilations", type=numbers(int), metavar="D,D,...", help="of the head's branches")
    flag("--style", help="deeplabv2: caffe (AdaptSegNet's) or torchvision")
    flag("--norm", help="compact, deeplabv3plus: group or batch")
    flag("--width", type=at_least(1), help="channels of the head or network")
    flag("--output-stride", type=at_least(1), help="deeplabv3plus: 16, 8 or 32")


def add_device(parser: Parser) -> None:
    """Add where and in which precision the network runs, and the loader's settings."""
    group = parser.add_argument_group("device and loading")
    flag = group.add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps").free = True
    flag(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto", help="default %(default)s"
    )
    flag("--num-workers", type=at_least(0), default=2, help="loader processes").free = True
    flag(
        "--loader-timeout",
        type=at_least(0),
        default=300,
        metavar="SECONDS",
        help="a read that takes longer is an error (with workers; 0 waits for ever)",
    ).free = True
    flag(
        "--cache",
        metavar="DIR",
        help="keep decoded images and labels there, for later epochs, runs and processes",
    ).free = True


def loading(args: argparse.Namespace) -> Loading:
    """Return the loader's settings."""
    return Loading(args.num_workers, args.loader_timeout)


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
    add_weights_entry(group)
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
        action=BOOLEAN,
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
    flag("--norm-decay", action=BOOLEAN, default=True, help="weight decay of norms and biases too")
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


def add_weights_entry(group: argparse._ActionsContainer) -> None:
    """Add the choice among several networks in one file."""
    group.add_argument(
        "--weights-entry",
        metavar="NAME",
        help="which weights of a file that holds several, for instance ema; default: the first "
        "of model, state_dict and the like",
    )


def foreign(args: argparse.Namespace) -> Foreign | None:
    """Return what is said of weights of other projects; None where checkpoints say it themselves.

    Raises:
        UserError: an entry without --model: our checkpoints have one network.
    """
    if args.model is None:
        refuse_idle(args, {"weights_entry"}, "--model, for the weights of other projects")
        return None
    return Foreign(args.model, args.weights_entry)


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
        tensorboard=args.tensorboard,
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
        help=f"any of {', '.join(names)}; source: or target: says whose images, and the keys of "
        "each, p=PROBABILITY among them, follow it (docs/augment.md)",
    )
    flag("--crop-size", type=width_height, metavar="W,H", help="the word crop=W,H")
    flag("--random-mirror", action=BOOLEAN, help="the word hflip")
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


def add_validation(parser: Parser, domains: bool = False) -> None:
    """Add the labelled images that choose the best checkpoint, of one of two domains or of one."""
    group = parser.add_argument_group("validation")
    flag = group.add_argument
    if domains:
        flag(
            "--val-on",
            choices=["auto", "target", "source", "none"],
            default="auto",
            help="whose labelled images; auto: the target's, or none where it has no label; "
            "default %(default)s",
        )
    flag(
        "--val-set",
        metavar="SPLIT",
        help="default: val, or every tenth training image where there is no such split",
    )
    flag("--val-list", metavar="FILE", help="list of `image label` lines instead of --val-set")


def validation(args: argparse.Namespace) -> Validation:
    """Return which images are validated on."""
    return Validation(split=args.val_set, list_file=args.val_list)


# ------------------------------------------------------------------ images


def add_data(parser: Parser, datasets: Mapping[str, type], split: str | None = None) -> None:
    """Add the one dataset that a network is run on; what is left out, the checkpoint may know.

    Args:
        parser: of `parser`.
        datasets: that may be named.
        split: the default; None for what the checkpoint knows.
    """
    group = data_group(parser, datasets)
    flag = group.add_argument
    flag("--dataset", metavar="NAME", help="default: the checkpoint's")
    flag("--data-dir", metavar="DIR", help="default: the checkpoint's").free = True
    flag("--data-list", metavar="FILE", help="list of `image label` lines instead of a split")
    flag(
        "--set", default=split, help=f"split; default: {split or 'the one validated on, else val'}"
    )
    add_data_option(group, "--data-option")
    add_input_size(group, "--input-size", None, "the checkpoint's, else the files' own")
    flag("--batch-size", type=at_least(1), default=1, help="images at once, of one size")


def data_group(parser: Parser, datasets: Mapping[str, type]) -> argparse._ArgumentGroup:
    """Return a new group that lists the datasets and their splits."""
    listed = "; ".join(f"{name} ({', '.join(one.splits)})" for name, one in datasets.items())
    return parser.add_argument_group("data", f"datasets and their splits: {listed}")


def add_input_size(
    group: argparse._ArgumentGroup,
    flag: str,
    default: tuple[int, int] | None,
    said: str = "--input-size",
) -> None:
    """Add a flag for the size that images are resized to; `said` stands for a default of None."""
    group.add_argument(
        flag,
        type=image_size,
        default=default,
        metavar="W,H|N",
        help="images are resized to W,H, or to a longer side of N, their ratio kept; default: "
        + (said if default is None else "{},{}".format(*default)),
    )


def add_data_option(group: argparse._ArgumentGroup, flag: str) -> None:
    """Add a repeatable flag for the options that only one dataset has."""
    group.add_argument(
        flag,
        action="append",
        type=key_value,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the dataset's own, for instance domain=urban; repeatable",
    )


def images(args: argparse.Namespace) -> Images:
    """Return the images of `add_data`."""
    return Images(
        dataset=args.dataset,
        root=args.data_dir,
        split=args.set,
        list_file=args.data_list,
        size=args.input_size,
        cache_dir=args.cache,
        options=dict(args.data_option),
    )


def add_domains(parser: Parser, datasets: Mapping[str, type]) -> None:
    """Add the flags that say which images are the source's and which the target's."""
    group = data_group(parser, datasets)
    flag = group.add_argument
    flag(
        "--source",
        action="append",
        metavar="NAME",
        help="labelled dataset, repeated to mix several; default: gta5",
    )
    flag("--data-dir", action="append", metavar="DIR", help="one for each --source").free = True
    flag("--data-list", action="append", metavar="FILE", help="one for each, or none")
    flag("--source-set", action="append", metavar="SPLIT", help="default: train")
    add_data_option(group, "--source-option")
    flag("--target", default="cityscapes", metavar="NAME", help="dataset that is adapted to")
    flag("--data-dir-target", metavar="DIR", help="default: the first --data-dir").free = True
    flag("--data-list-target", metavar="FILE", help="list of images instead of --set")
    flag("--set", default="train", help="the target's split; default %(default)s")
    add_data_option(group, "--target-option")
    flag("--num-images", type=at_least(1), help="of the target, at random; default: all")
    flag(
        "--target-labels",
        type=count_or_all,
        metavar="N|all",
        help="target images whose labels may be used: the first N that --num-images takes",
    )
    flag("--pseudo-labels", metavar="DIR", help="what pseudo_label.py wrote")
    flag("--pseudo-confidence", action="store_true", help="weigh pseudo labels by DIR/confidence")
    add_input_size(group, "--input-size", (1280, 720))
    add_input_size(group, "--input-size-target", None)


def sources(args: argparse.Namespace) -> list[Images]:
    """Return the images of every --source.

    Raises:
        UserError: other numbers of folders, lists or splits than of sources.
    """
    names = args.source or ["gta5"]
    each = [args.data_dir or [None], args.data_list or [None], args.source_set or ["train"]]
    each = [one * len(names) if len(one) == 1 else one for one in each]
    if any(len(one) != len(names) for one in each):
        raise UserError(
            f"{len(names)} --source need as many --data-dir, --data-list and --source-set, or one"
        )
    return [
        Images(
            dataset=name,
            root=_root(name, folder),
            split=split,
            list_file=listed,
            size=args.input_size,
            seed=args.random_seed,
            cache_dir=args.cache,
            options=_own(name, "source", args.source_option),
        )
        for name, folder, listed, split in zip(names, *each, strict=True)
    ]


def target(args: argparse.Namespace) -> Images:
    """Return the images of --target."""
    folder = args.data_dir_target or (args.data_dir or [None])[0]
    return Images(
        dataset=args.target,
        root=_root(args.target, folder),
        split=args.set,
        list_file=args.data_list_target,
        size=args.input_size_target or args.input_size,
        num_images=args.num_images,
        seed=args.random_seed,
        cache_dir=args.cache,
        options=_own(args.target, "target", args.target_option),
    )


def _root(name: str, folder: str | None) -> str | None:
    return None if name == "streets" else folder  # which are drawn


def _own(name: str, domain: str, given: list[tuple]) -> dict:
    """Return the options of a dataset's own; the streets have a style for either domain."""
    return {**({"style": domain} if name == "streets" else {}), **dict(given)}


# ------------------------------------------------------------------ prediction


def add_views(parser: Parser) -> None:
    """Add how an image is shown to the network, and how its logits are resized."""
    group = parser.add_argument_group("prediction")
    flag = group.add_argument
    flag(
        "--scales",
        type=numbers(float),
        default=(1.0,),
        metavar="S,S,...",
        help="average over these factors of the input size, for instance 0.75,1,1.25",
    )
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag(
        "--slide",
        type=width_height,
        metavar="W,H",
        help="predict in windows that overlap by half; multiples of 32",
    )
    flag(
        "--align-corners",
        action=BOOLEAN,
        help="how logits are resized; default: the checkpoint's, else the network's own",
    )


def views(args: argparse.Namespace) -> Views:
    """Return how an image is shown to a network."""
    return Views(args.scales, args.flip, args.slide)
