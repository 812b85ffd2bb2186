"""Command-line options that more than one script takes, each written once.

A script builds its parser with `parser(__doc__)`, adds the groups it needs and its own flags, and
parses with `parse`; see `command_line`. Nothing here imports torch.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from engine import words
from engine.command_line import Parser, parse, parser, plain, refuse_idle
from engine.errors import UserError
from engine.parsing import at_least, count_or_all, key_value, numbers, scale_range, width_height
from engine.recipes import RECIPES
from engine.values import Images, Loading, Saving, Training, Views

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
    described = (f"{name} ({', '.join(words.keywords(models[name]))})" for name in models)
    group.add_argument(
        "--model",
        nargs="+",
        default=default,
        metavar=("NAME", "KEY=VALUE"),
        help=f"a network and its options: {'; '.join(described)}",
    )
    group.add_argument("--backbone", help="the same as the word encoder=NAME, and so below")
    group.add_argument("--multi-level", action=BOOLEAN, help="an auxiliary head")
    group.add_argument("--aspp-dilations", type=numbers(int), metavar="D,D,...")
    group.add_argument("--style", help="deeplabv2: caffe (AdaptSegNet's) or torchvision")
    group.add_argument("--norm", help="compact, deeplabv3plus: group or batch")
    group.add_argument("--width", type=at_least(1), help="channels of the head or network")
    group.add_argument("--output-stride", type=at_least(1), help="deeplabv3plus: 16, 8 or 32")


def add_device(parser: Parser) -> None:
    """Add where and in which precision the network runs, and the loader's settings."""
    group = parser.add_argument_group("device and loading")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N").free = True
    group.add_argument(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto", help="default %(default)s"
    )
    group.add_argument(
        "--num-workers", type=at_least(0), default=2, help="loader processes"
    ).free = True
    group.add_argument(
        "--loader-timeout",
        type=at_least(0),
        default=300,
        metavar="SECONDS",
        help="a read that takes longer is an error (with workers; 0 waits for ever)",
    ).free = True
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="keep decoded images and labels there, for later epochs, runs and processes",
    ).free = True


def loading(args: argparse.Namespace) -> Loading:
    """Return the loader's settings."""
    return Loading(args.num_workers, args.loader_timeout)


def add_training(parser: Parser) -> None:
    """Add what both training scripts take: steps, optimiser, loss, folder."""
    group = parser.add_argument_group("training")
    group.add_argument("--snapshot-dir", required=True, metavar="DIR").free = True
    group.add_argument(
        "--weights", default="none", help="initial weights: imagenet, none or a file"
    )
    group.add_argument("--restore-from", metavar="FILE", help="start from this checkpoint's model")
    group.add_argument("--batch-size", type=at_least(1), default=1)
    group.add_argument("--iter-size", type=at_least(1), default=1, help="batches a step")
    group.add_argument("--num-steps", type=at_least(1), default=250_000, help="of the schedule")
    group.add_argument(
        "--num-steps-stop", type=at_least(1), help="stop earlier than --num-steps"
    ).free = True
    group.add_argument("--random-seed", type=at_least(0), default=1234)
    group.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    group.add_argument("--learning-rate", type=at_least(0, float), default=2.5e-4)
    group.add_argument("--momentum", type=at_least(0, float), default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=at_least(0, float), default=5e-4)
    group.add_argument("--power", type=at_least(0, float), default=0.9, help="of the poly schedule")
    group.add_argument("--warmup-steps", type=at_least(0), default=0)
    group.add_argument(
        "--loss",
        nargs="+",
        metavar="[WEIGHT*]NAME",
        help="for instance 0.8*ce 0.2*ohem threshold=0.7; default: the network's own, mostly ce",
    )
    group.add_argument(
        "--lambda-seg",
        type=at_least(0, float),
        help="weight of the auxiliary head; default: the network's own, mostly 0.1",
    )
    group.add_argument(
        "--class-balance",
        action=BOOLEAN,
        default=False,
        help="weight classes by sqrt(median frequency / frequency), within 0.3 to 4",
    )
    group.add_argument(
        "--rare-class-sampling",
        nargs="?",
        type=at_least(1e-4, float),
        const=0.01,
        metavar="T",
        help="draw labelled images by their rare classes (DAFormer's); temperature %(const)s",
    )
    group.add_argument(
        "--align-corners",
        action=BOOLEAN,
        help="how logits are resized; kept in the checkpoint; default: the network's own",
    )
    group.add_argument(
        "--compile", action="store_true", help="the network, by torch.compile; other rounding"
    )
    group.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the backbone's activations again in backward: less memory, more time",
    ).free = True
    group.add_argument(
        "--sync-bn",
        action="store_true",
        help="batch norm over the images of all processes; not with --compile",
    )


def training(args: argparse.Namespace, precision: str) -> Training:
    """Return how the network is built and trained, in the precision that suits the device."""
    return Training(
        architecture=args.model,
        weights=(args.weights, args.restore_from),
        seed=args.random_seed,
        loss=args.loss,
        aux_weight=args.lambda_seg,
        align_corners=args.align_corners,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        num_steps=args.num_steps,
        power=args.power,
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
    for action in (
        group.add_argument(
            "--save-pred-every",
            type=at_least(1),
            default=5000,
            metavar="STEPS",
            help="score and publish; default %(default)s",
        ),
        group.add_argument(
            "--save-every-minutes",
            type=at_least(0, float),
            default=30,
            metavar="M",
            help="how much a killed run may lose, beside --save-pred-every; 0: only that one",
        ),
        group.add_argument(
            "--keep-last",
            type=at_least(1),
            metavar="K",
            help="SOURCE_STEP.pth files; default: all",
        ),
        group.add_argument("--print-every", type=at_least(1), default=50, metavar="STEPS"),
        group.add_argument("--tensorboard", action="store_true"),
    ):
        action.free = True


def saving(args: argparse.Namespace) -> Saving:
    """Return what a run writes, and how often."""
    return Saving(
        print_every=args.print_every,
        score_every=args.save_pred_every,
        every_minutes=args.save_every_minutes,
        keep_last=args.keep_last,
        tensorboard=args.tensorboard,
    )


def add_augmentation(parser: Parser, names: Mapping[str, Any]) -> None:
    """Add --augment and the earlier flags for some of its words.

    Args:
        parser: of `parser`.
        names: what may be named.
    """
    group = parser.add_argument_group("augmentation, on the device")
    group.add_argument(
        "--augment",
        nargs="+",
        metavar="[SIDE:]NAME[=VALUE]",
        help=f"any of {', '.join(names)}; source: or target: says whose images",
    )
    group.add_argument("--crop-size", type=width_height, metavar="W,H", help="the word crop=W,H")
    group.add_argument("--random-mirror", action=BOOLEAN, help="the word hflip")
    group.add_argument(
        "--random-scale",
        nargs="?",
        type=scale_range,
        const=(0.5, 1.5),
        metavar="LOW,HIGH",
        help="the word scale=LOW,HIGH; alone: 0.5,1.5",
    )
    group.add_argument(
        "--color-jitter", type=at_least(0, float), metavar="S", help="the word source:jitter=S"
    )
    group.add_argument(
        "--auto-augment",
        nargs="?",
        choices=["source", "target", "both"],
        const="both",
        help="the word auto, source:auto or target:auto; alone: both",
    )


def add_validation(parser: Parser) -> None:
    """Add the labelled images that choose the best checkpoint."""
    group = parser.add_argument_group("validation")
    group.add_argument("--val-set", default="val", help="split; default %(default)s")
    group.add_argument("--val-list", metavar="FILE", help="list of `image label` lines")


# ------------------------------------------------------------------ images


def add_data(parser: Parser, split: str | None = None) -> None:
    """Add the one dataset that a network is run on; what is left out, the checkpoint may know."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", metavar="NAME", help="default: the checkpoint's")
    group.add_argument("--data-dir", metavar="DIR").free = True
    group.add_argument("--data-list", metavar="FILE", help="list of `image label` lines")
    group.add_argument(
        "--set", default=split, help=f"split; default: {split or 'the one validated on, else val'}"
    )
    add_data_option(group, "--data-option")
    group.add_argument(
        "--input-size",
        type=width_height,
        metavar="W,H",
        help="images are resized to it; default: the checkpoint's, else the files' own",
    )
    group.add_argument("--batch-size", type=at_least(1), default=1)


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


def add_domains(parser: Parser) -> None:
    """Add the flags that say which images are the source's and which the target's."""
    group = parser.add_argument_group("data")
    group.add_argument("--source", action="append", metavar="NAME", help="repeat to mix several")
    group.add_argument(
        "--data-dir", action="append", metavar="DIR", help="one for each --source"
    ).free = True
    group.add_argument("--data-list", action="append", metavar="FILE", help="one for each, or none")
    group.add_argument("--source-set", action="append", metavar="SPLIT", help="default: train")
    add_data_option(group, "--source-option")
    group.add_argument("--target", default="cityscapes", metavar="NAME")
    group.add_argument(
        "--data-dir-target", metavar="DIR", help="default: the first --data-dir"
    ).free = True
    group.add_argument("--data-list-target", metavar="FILE")
    group.add_argument("--set", default="train", help="the target's split; default %(default)s")
    add_data_option(group, "--target-option")
    group.add_argument("--num-images", type=at_least(1), help="of the target, at random")
    group.add_argument(
        "--target-labels",
        type=count_or_all,
        metavar="N|all",
        help="target images whose labels may be used: the first N that --num-images takes",
    )
    group.add_argument("--pseudo-labels", metavar="DIR", help="what pseudo_label.py wrote")
    group.add_argument(
        "--pseudo-confidence", action="store_true", help="weigh pseudo labels by DIR/confidence"
    )
    group.add_argument("--input-size", type=width_height, default=(1280, 720), metavar="W,H")
    group.add_argument(
        "--input-size-target", type=width_height, metavar="W,H", help="default: the same"
    )


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
    group.add_argument(
        "--scales",
        type=numbers(float),
        default=(1.0,),
        metavar="S,S,...",
        help="average over these factors of the input size, for instance 0.75,1,1.25",
    )
    group.add_argument("--flip", action="store_true", help="average with the mirrored image")
    group.add_argument(
        "--slide",
        type=width_height,
        metavar="W,H",
        help="predict in windows that overlap by half; multiples of 32",
    )
    group.add_argument(
        "--align-corners",
        action=BOOLEAN,
        help="how logits are resized; default: the checkpoint's, else the network's own",
    )


def views(args: argparse.Namespace) -> Views:
    """Return how an image is shown to a network."""
    return Views(args.scales, args.flip, args.slide)
