"""Command-line options that more than one script takes, each written once.

A script builds its parser with `parser(__doc__)`, adds the groups it needs, its own flags, and
parses with `parse`. Nothing here imports torch: ``--help`` must be instant.
"""

import argparse
import os
import sys

from engine.errors import UserError
from engine.parsing import at_least, key_value, numbers, scale_range, width_height
from engine.recipes import RECIPES

# what belongs to one model and not to another
MODEL_OPTIONS = (
    *("backbone", "multi_level", "aspp_dilations", "style", "norm", "width", "output_stride"),
    "weights",
)
BOOLEAN = argparse.BooleanOptionalAction  # --flag and --no-flag


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as every error of the project."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


def parser(description: str) -> Parser:
    """Return an empty parser that prints the script's docstring as it stands."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse(parser: Parser, argv: list[str] | None, default_recipe: str | None = None):
    """Parse the command line, the recipe's values standing in for what was not given.

    Options of the recipe's model are left out when another --model is given. A script that trains
    on one dataset trains on the recipe's target: the oracle, unless --dataset says otherwise.

    Args:
        parser: with `add_recipe` among its groups.
        argv: the words of the command line, None for the process's own.
        default_recipe: the recipe when none is named and no data is given.
    """
    argv = sys.argv[1:] if argv is None else argv
    named = parser.parse_args(argv)
    recipe = named.recipe
    if recipe is None and default_recipe and named.data_dir is None:
        recipe = default_recipe
    if recipe is None:
        return named
    values = dict(RECIPES[recipe])
    values["dataset"] = values["target"]
    parser.set_defaults(model=None)
    if parser.parse_args(argv).model not in (None, values["model"]):
        for key in MODEL_OPTIONS:
            values.pop(key, None)
    values = {key: value for key, value in values.items() if key in vars(named)}
    # Every value that was given wins over the recipe, so the recipe only moves the defaults; the
    # default of a repeatable flag would be appended to.
    repeated = {"source", "source_set"} & values.keys()
    parser.set_defaults(recipe=recipe, **{k: values[k] for k in values.keys() - repeated})
    named = parser.parse_args(argv)
    for key in repeated:
        if getattr(named, key) is None:
            setattr(named, key, values[key])
    words = (_flag(key, getattr(named, key)) for key in values)
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":  # once for a run
        print(f"recipe {recipe}: {' '.join(filter(None, words))}", flush=True)
    return named


def _flag(key: str, value: object) -> str:
    """Return an option as it is given on the command line, nothing for None."""
    name = key.replace("_", "-")
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return f"--{name} {','.join(map(str, value))}"
    if key in ("source", "source_set"):
        return " ".join(f"--{name} {one}" for one in value)
    return f"--{name} {' '.join(value) if isinstance(value, list) else value}"


def add_model(parser: Parser, default: str | None = "deeplabv2") -> None:
    """Add what describes a network. Options left out take the model's own default."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=default, help="deeplabv2, deeplabv3plus, pidnet or compact"
    )
    group.add_argument("--backbone", help="resnet18 ... resnet101, efficientnet_lite0 ... 4")
    group.add_argument(
        "--multi-level",
        action=BOOLEAN,
        help="an auxiliary head (deeplabv2, deeplabv3plus, pidnet)",
    )
    group.add_argument("--aspp-dilations", type=numbers(int), metavar="D,D,...")
    group.add_argument("--style", help="deeplabv2: caffe (AdaptSegNet's) or torchvision")
    group.add_argument("--norm", help="compact, deeplabv3plus: group or batch")
    group.add_argument("--width", type=at_least(1), help="channels of the head or network")
    group.add_argument("--output-stride", type=at_least(1), help="deeplabv3plus: 16 or 8")


def model_options(args: argparse.Namespace) -> dict:
    """Return the options of `models.build_model` that were given."""
    given = {
        "backbone": args.backbone,
        "multi_level": args.multi_level,
        "aspp_dilations": args.aspp_dilations,
        "style": args.style,
        "norm": args.norm,
        "width": args.width,
        "output_stride": args.output_stride,
    }
    return {key: value for key, value in given.items() if value is not None}


def architecture(args: argparse.Namespace) -> dict | None:
    """Return what `models.build_model` takes beside the class count, None without --model.

    Raises:
        UserError: options of a network without --model: a checkpoint of ours has its own.
    """
    given = model_options(args)
    if args.model is not None:
        return {"name": args.model, **given}
    if given:
        flag = f"--{next(iter(given)).replace('_', '-')}"
        raise UserError(f"{flag} goes with --model, for the weights of other projects")
    return None


def add_device(parser: Parser) -> None:
    """Add where and in which precision the network runs, and the loader's settings."""
    group = parser.add_argument_group("device and loading")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto", help="default %(default)s"
    )
    group.add_argument("--num-workers", type=at_least(0), default=2, help="loader processes")
    group.add_argument(
        "--loader-timeout",
        type=at_least(0),
        default=300,
        metavar="SECONDS",
        help="a read that takes longer is an error (with workers; 0 waits for ever)",
    )
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="keep decoded images and labels there, for later epochs, runs and processes",
    )


def add_recipe(parser: Parser) -> None:
    """Add --recipe."""
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), help="published option values, printed at the start"
    )


def add_training(parser: Parser) -> None:
    """Add what both training scripts take: steps, optimiser, augmentation, folder."""
    group = parser.add_argument_group("training")
    group.add_argument("--snapshot-dir", required=True, metavar="DIR")
    group.add_argument(
        "--weights", default="none", help="initial weights: imagenet, none or a file"
    )
    group.add_argument("--restore-from", metavar="FILE", help="start from this checkpoint's model")
    group.add_argument("--batch-size", type=at_least(1), default=1)
    group.add_argument("--iter-size", type=at_least(1), default=1, help="batches a step")
    group.add_argument("--num-steps", type=at_least(1), default=250_000, help="of the schedule")
    group.add_argument("--num-steps-stop", type=at_least(1), help="stop earlier than --num-steps")
    group.add_argument("--save-pred-every", type=at_least(1), default=5000, metavar="STEPS")
    group.add_argument(
        "--save-every-minutes",
        type=at_least(0, float),
        default=30,
        metavar="M",
        help="how much a killed run may lose, beside --save-pred-every; 0: only that one",
    )
    group.add_argument(
        "--keep-last", type=at_least(1), metavar="K", help="SOURCE_STEP.pth files; default: all"
    )
    group.add_argument("--print-every", type=at_least(1), default=50, metavar="STEPS")
    group.add_argument("--random-seed", type=at_least(0), default=1234)
    group.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    group.add_argument("--learning-rate", type=at_least(0, float), default=2.5e-4)
    group.add_argument("--momentum", type=at_least(0, float), default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=at_least(0, float), default=5e-4)
    group.add_argument("--power", type=at_least(0, float), default=0.9, help="of the poly schedule")
    group.add_argument("--warmup-steps", type=at_least(0), default=0)
    group.add_argument(
        "--lambda-seg", type=at_least(0, float), default=0.1, help="weight of the auxiliary head"
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
        default=False,
        help="how logits are resized; kept in the checkpoint",
    )
    group.add_argument("--tensorboard", action="store_true")
    group.add_argument(
        "--compile", action="store_true", help="the network, by torch.compile; other rounding"
    )
    group.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the backbone's activations again in backward: less memory, more time",
    )
    group.add_argument(
        "--sync-bn",
        action="store_true",
        help="batch norm over the images of all processes; not with --compile",
    )

    group = parser.add_argument_group("augmentation, on the device")
    group.add_argument("--crop-size", type=width_height, metavar="W,H", help="default: no crop")
    group.add_argument("--random-mirror", action=BOOLEAN, default=False)
    group.add_argument(
        "--random-scale",
        nargs="?",
        type=scale_range,
        const=(0.5, 1.5),
        default=(1.0, 1.0),
        metavar="LOW,HIGH",
    )
    group.add_argument(
        "--color-jitter",
        type=at_least(0, float),
        default=0.0,
        metavar="S",
        help="brightness, contrast, saturation within 1 -+ S, hue within -+ S/4 turns",
    )
    group.add_argument(
        "--auto-augment",
        nargs="?",
        choices=["source", "target", "both"],
        const="both",
        help="AutoAugment's ImageNet policy, labels moved along; alone: both",
    )


def add_validation(parser: Parser) -> None:
    """Add the labelled images that choose the best checkpoint."""
    group = parser.add_argument_group("validation")
    group.add_argument("--val-set", default="val", help="split; default %(default)s")
    group.add_argument("--val-list", metavar="FILE", help="list of `image label` lines")


def add_data(parser: Parser, split: str | None = None) -> None:
    """Add the one dataset that a network is run on; what is left out, the checkpoint may know."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", metavar="NAME", help="default: the checkpoint's")
    group.add_argument("--data-dir", metavar="DIR")
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


def data_values(args: argparse.Namespace) -> dict:
    """Return what `inference.open_dataset` takes of the options of `add_data`."""
    return {
        "dataset": args.dataset,
        "data_dir": args.data_dir,
        "split": args.set,
        "list_file": args.data_list,
        "input_size": args.input_size,
        "data_options": dict(args.data_option),
        "cache_dir": args.cache,
    }


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
        help="how logits are resized; default: the checkpoint's, else no",
    )


def view_values(args: argparse.Namespace) -> dict:
    """Return what `inference.restore` takes of the options of `add_views`."""
    return {
        "scales": args.scales,
        "flip": args.flip,
        "slide": args.slide,
        "align_corners": args.align_corners,
    }
