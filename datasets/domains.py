"""The images of an adaptation: source, target, its labelled or pseudo-labelled part, validation."""

import argparse

from datasets import build_dataset, build_pseudo_labelled
from datasets.loading import join_datasets
from datasets.statistics import class_statistics
from engine import options, parsing
from engine.errors import UserError


def add_options(parser: options.Parser) -> None:
    """Add the flags that say which images are the source's and which the target's."""
    group = parser.add_argument_group("data")
    group.add_argument("--source", action="append", metavar="NAME", help="repeat to mix several")
    group.add_argument("--data-dir", action="append", metavar="DIR", help="one for each --source")
    group.add_argument("--data-list", action="append", metavar="FILE", help="one for each, or none")
    group.add_argument("--source-set", action="append", metavar="SPLIT", help="default: train")
    options.add_data_option(group, "--source-option")
    group.add_argument("--target", default="cityscapes", metavar="NAME")
    group.add_argument("--data-dir-target", metavar="DIR", help="default: the first --data-dir")
    group.add_argument("--data-list-target", metavar="FILE")
    group.add_argument("--set", default="train", help="the target's split; default %(default)s")
    options.add_data_option(group, "--target-option")
    group.add_argument("--num-images", type=parsing.at_least(1), help="of the target, at random")
    group.add_argument(
        "--target-labels",
        type=parsing.count_or_all,
        metavar="N|all",
        help="target images whose labels may be used: the first N that --num-images takes",
    )
    group.add_argument("--pseudo-labels", metavar="DIR", help="what pseudo_label.py wrote")
    group.add_argument(
        "--pseudo-confidence", action="store_true", help="weigh pseudo labels by DIR/confidence"
    )
    size = parsing.width_height
    group.add_argument("--input-size", type=size, default=(1280, 720), metavar="W,H")
    group.add_argument("--input-size-target", type=size, metavar="W,H", help="default: the same")


def open_data(args: argparse.Namespace) -> dict:
    """Open what `add_options` names, and count the source's classes where that was asked for.

    Returns:
        The datasets "source", "target" (images alone), "labelled" and "pseudo" (of the target, or
        None) and "val"; "class_weight" and "rare_classes" of the source, see `class_statistics`.

    Raises:
        UserError: datasets that cannot be opened, or that differ in their classes.
    """
    source = _open_sources(args)
    folder = args.data_dir_target or (args.data_dir or [None])[0]
    folder = None if args.target == "streets" else folder
    how = {"size": args.input_size_target or args.input_size, "seed": args.random_seed}
    how |= {"cache_dir": args.cache, **_own_options(args.target, "target", args.target_option)}
    train = {"split": args.set, "list_file": args.data_list_target, **how}
    target = build_dataset(args.target, folder, labelled=False, num_images=args.num_images, **train)
    val = build_dataset(
        args.target, folder, split=args.val_set, list_file=args.val_list, resize_label=False, **how
    )
    if source.class_names != val.class_names:
        raise UserError(f"{source.name} and {val.name} have different classes")
    labelled = pseudo = None
    if args.target_labels:
        count = args.num_images if args.target_labels == "all" else args.target_labels
        labelled = build_dataset(args.target, folder, num_images=count, **train)
    if args.pseudo_labels:
        pseudo = build_pseudo_labelled(
            args.target, folder, args.pseudo_labels, args.pseudo_confidence, split=args.set, **how
        )
    elif args.pseudo_confidence:
        raise UserError("--pseudo-confidence goes with --pseudo-labels")
    class_weight, rare_classes = class_statistics(
        source,
        args.cache or args.snapshot_dir,
        args.input_size,
        balance=args.class_balance,
        temperature=args.rare_class_sampling,
        num_workers=args.num_workers,
        timeout_seconds=args.loader_timeout,
    )
    return {
        "source": source,
        "target": target,
        "labelled": labelled,
        "pseudo": pseudo,
        "val": val,
        "class_weight": class_weight,
        "rare_classes": rare_classes,
    }


def _open_sources(args: argparse.Namespace):
    """Return every --source as one dataset."""
    names = args.source or ["gta5"]
    each = [args.data_dir or [None], args.data_list or [None], args.source_set or ["train"]]
    each = [one * len(names) if len(one) == 1 else one for one in each]
    if any(len(one) != len(names) for one in each):
        raise UserError(
            f"{len(names)} --source need as many --data-dir, --data-list and --source-set, or one"
        )
    return join_datasets(
        [
            build_dataset(
                name,
                None if name == "streets" else folder,
                split=split,
                list_file=listed,
                size=args.input_size,
                seed=args.random_seed,
                cache_dir=args.cache,
                **_own_options(name, "source", args.source_option),
            )
            for name, folder, listed, split in zip(names, *each, strict=True)
        ]
    )


def _own_options(name: str, domain: str, given: list[tuple]) -> dict:
    """Return the options of a dataset's own; the streets have a style for either domain."""
    return {**({"style": domain} if name == "streets" else {}), **dict(given)}
