"""Command-line options that name images and labels: one domain, several domains, validation."""

import argparse
from collections.abc import Mapping

from engine.command_line import Parser, refuse_idle
from engine.errors import UserError
from engine.parsing import (
    at_least,
    count_or_all,
    image_size,
    key_value,
    named_images,
    split_named,
)
from engine.values import Images, Validation


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
    add_val(group, "scored now and then; the first choose the best checkpoint")


def add_val(group: argparse._ArgumentGroup, what: str) -> None:
    """Add the flag that names several sets of labelled images, each of a dataset of its own."""
    group.add_argument(
        "--val",
        nargs="+",
        type=named_images,
        default=[],
        metavar="DATASET:SPLIT:FOLDER:KEY=VALUE",
        help=f"labelled images of any datasets of these classes, {what}; FOLDER, where it is "
        "not that of the run's own, and options, for instance "
        "acdc:val:data/ACDC:condition=night; default: the one set of the other options",
    )


def validation(args: argparse.Namespace) -> Validation:
    """Return which images are validated on.

    Raises:
        UserError: --val beside flags of the one set.
    """
    if args.val:
        refuse_idle(args, {"val_set", "val_list", "val_on"}, "one set of images, not with --val")
    size = getattr(args, "input_size_target", None) or args.input_size
    sets = val_sets(args, size, args.random_seed)
    return Validation(split=args.val_set, list_file=args.val_list, sets=sets)


def val_sets(
    args: argparse.Namespace, size: tuple[int, int] | int | None, seed: int = 0
) -> dict[str, Images]:
    """Return the images of --val by name: what was written, without the folder.

    Without a folder they lie where the run's own images of that dataset do.

    Raises:
        UserError: one is there twice.
    """
    sets = {}
    for text in args.val:
        dataset, split, folder, own = split_named(text)
        name = ":".join([dataset, split, *(f"{key}={value}" for key, value in own.items())])
        if args.val.count(text) > 1:
            raise UserError(f"--val {text} is given twice")
        sets[text if name in sets else name] = Images(
            dataset=dataset,
            root=folder or _folders(args).get(dataset),
            split=split,
            size=size,
            seed=seed,
            cache_dir=args.cache,
            options=_own(dataset, "target", list(own.items())),
        )
    return sets


def _folders(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the folder of each dataset that a run names, whatever the script."""
    if hasattr(args, "source"):
        return {images.dataset: images.root for images in [*sources(args), target(args)]}
    return {args.dataset: args.data_dir}


# ------------------------------------------------------------------ images


def add_data(
    parser: Parser, datasets: Mapping[str, type], split: str | None = None
) -> argparse._ArgumentGroup:
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
    return group


def add_labelled(parser: Parser, datasets: Mapping[str, type]) -> None:
    """Add the labelled images that a tool reads at their own size."""
    group = data_group(parser, datasets)
    flag = group.add_argument
    flag("data_dir", metavar="DIR", help="the data folder")
    flag("--dataset", default="folder", metavar="NAME", help="default %(default)s")
    flag("--set", default="train", metavar="SPLIT", help="default %(default)s")
    flag("--data-list", metavar="FILE", help="list of `image label` lines instead of a split")
    add_data_option(group, "--data-option")


def labelled(args: argparse.Namespace) -> Images:
    """Return the images of `add_labelled`."""
    return Images(
        dataset=args.dataset,
        root=args.data_dir,
        split=args.set,
        list_file=args.data_list,
        options=dict(args.data_option),
    )


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
