"""Command-line options that more than one script takes, each written once.

A script builds its parser with `parser(__doc__)`, adds the groups it needs and its own flags, and
parses with `parse`; see `command_line`. Nothing here imports torch.
"""

import argparse
from collections.abc import Callable, Mapping

from engine import words
from engine.command_line import Parser, parse, parser, plain, refuse_idle
from engine.parsing import at_least, numbers, width_height
from engine.recipes import RECIPES
from engine.values import Foreign, Loading, Views

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
        "--temperature",
        action="store_true",
        help="divide logits by the checkpoint's temperature, which tools.calibrate fitted",
    )
    flag(
        "--align-corners",
        action=BOOLEAN,
        help="how logits are resized; default: the checkpoint's, else the network's own",
    )


def views(args: argparse.Namespace) -> Views:
    """Return how an image is shown to a network."""
    return Views(args.scales, args.flip, args.slide, args.temperature)
