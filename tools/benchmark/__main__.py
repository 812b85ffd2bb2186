"""Time segshift beside the plain PyTorch and NumPy way, in one process.

    python -m tools.benchmark kernels                      the compiled operations
    python -m tools.benchmark scaling --plot scaling.png   how their cost grows, by itself
    python -m tools.benchmark evaluate --images 8          files -> network -> confusion matrix
    python -m tools.benchmark train --batch-size 2         one step of adversarial adaptation
    python -m tools.benchmark classifier                   DeepLabv2's, beside convolutions
    python -m tools.benchmark losses --batch-size 4        Lovasz, beside a sort per class
    python -m tools.benchmark augment                      batches, beside albumentations
    python -m tools.benchmark loader --json loader.json    files -> samples
    python -m tools.benchmark vote --repeats 1             five submission files -> one
    python -m tools.benchmark sass                         what the CUDA code lets an H100 do
    python -m tools.benchmark models --model unet encoder=mit_b0 --model pidnet --plot costs.png
                                                           parameters, FLOPs, time, memory

Both sides take turns on the same inputs and our results are first compared with the plain ones or
with the reference. Times are medians in milliseconds, `ratio` is that of the medians. The machine's
own rates are measured in the same run. Threads: OMP_NUM_THREADS.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from engine import options, parsing, start
from engine.device import pick_device
from engine.files import write_text
from inference.outputs import writable_folder
from tools.benchmark import (
    augmentation,
    classifier,
    evaluation,
    loading,
    losses,
    networks,
    operations,
    sass,
    scaling,
    timing,
    training,
    votes,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    subjects = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    add_subject(subjects, "kernels", "the compiled operations", (2048, 1024), 15)
    sub = add_subject(subjects, "scaling", "how the operations' cost grows", (512, 256), 7)
    add_plot(sub)
    sub = add_subject(subjects, "evaluate", "files to confusion matrix", (2048, 1024), 5)
    add_images(sub, 8)
    add_backbone(sub)
    add_batch_size(sub, "of ours; the plain way has 1")
    sub.add_argument("--num-workers", type=parsing.at_least(0), default=1, help="of both sides")
    sub = add_subject(subjects, "train", "one step of adaptation", (640, 360), 5)
    add_backbone(sub)
    add_batch_size(sub, "of each domain")
    sub = add_subject(subjects, "classifier", "DeepLabv2's classifier", (640, 360), 5)
    add_batch_size(sub, "images")
    sub = add_subject(subjects, "losses", "the Lovasz loss", (512, 256), 3)
    add_batch_size(sub, "images")
    sub = add_subject(subjects, "augment", "augmentation of a batch", (1024, 512), 5)
    add_batch_size(sub, "images")
    sub.set_defaults(batch_size=8)
    sub = add_subject(subjects, "loader", "files to samples", None, 3)
    add_images(sub, 32)
    sub = add_subject(subjects, "vote", "submission files to their vote", (256, 256), 3)
    add_images(sub, 3000)
    sub.add_argument(
        "--plain-images", type=parsing.at_least(1), default=300, help="that the plain way does"
    )
    sub = add_subject(subjects, "models", "what networks cost, one image each", (512, 512), 5)
    text = "a network and its options, as often as you like; default: every network as it is"
    metavar = ("NAME", "KEY=VALUE")
    sub.add_argument("--model", nargs="+", action="append", metavar=metavar, help=text)
    sub.add_argument("--classes", type=parsing.at_least(1), default=19, help="default %(default)s")
    add_plot(sub)
    sub = subjects.add_parser("sass", help=sass.__doc__, description=sass.__doc__)
    sub.add_argument("--architecture", default="sm_90", metavar="sm_NN", help="default %(default)s")
    return parser.parse_args(argv)


def add_subject(subjects, name: str, text: str, size: tuple | None, repeats: int) -> options.Parser:
    """Add a subject with the options that all of them have."""
    sub = subjects.add_parser(name, help=text, description=text)
    shown = "{},{}".format(*size) if size else "those of GTA5 and Cityscapes"
    sub.add_argument(
        "--size",
        type=parsing.width_height,
        default=size,
        metavar="W,H",
        help=f"of the {'files' if name in ('evaluate', 'loader') else 'images'}; default {shown}",
    )
    sub.add_argument(
        "--repeats", type=parsing.at_least(1), default=repeats, help="rounds; default %(default)s"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default %(default)s")
    sub.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return sub


def add_plot(sub: options.Parser) -> None:
    """Add a file for a picture of the numbers."""
    sub.add_argument("--plot", metavar="FILE.png", help="also draw the numbers, with matplotlib")


def add_images(sub: options.Parser, default: int) -> None:
    """Add how many images a round handles."""
    sub.add_argument(
        "--images", type=parsing.at_least(1), default=default, help="a round; default %(default)s"
    )


def add_backbone(sub: options.Parser) -> None:
    """Add DeepLabv2's backbone."""
    sub.add_argument("--backbone", choices=["resnet50", "resnet101"], default="resnet101")


def add_batch_size(sub: options.Parser, text: str) -> None:
    """Add the batch size."""
    sub.add_argument("--batch-size", type=parsing.at_least(1), default=1, help=text)


def main(args: argparse.Namespace) -> None:
    """Describe the machine, time, print, and write the numbers."""
    if args.what == "sass":
        sass.show(args.architecture)
        return
    for file in (args.json, getattr(args, "plot", None)):
        if file:
            writable_folder(Path(file).parent)
    device = pick_device(args.device)
    machine = timing.describe_machine(device, args.repeats)
    for name, value in machine.items():
        print(f"{name:18} {value:.0f}" if isinstance(value, float) else f"{name:18} {value}")
    if args.what == "scaling":
        rows = show_growth(args, device)
    elif args.what == "models":
        rows = show_costs(args, device)
    else:
        rows = show_ratios(time_subject(args, machine, device))
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("what", "json")}
        report = {"settings": settings, "machine": machine, args.what: rows}
        write_text(args.json, json.dumps(report, indent=1) + "\n")


def show_ratios(timed: Iterator[tuple[dict, str]]) -> list[dict]:
    """Print the rows of a subject as they come."""
    rows = []
    for row, remark in timed:
        if not rows:
            print(f"\n{'':50} {'ours':>9} {'plain':>9} {'ratio':>7}")
        rows.append(row)
        times = f"{row['ours_ms']:9.3f} {row['plain_ms']:9.3f} {row['ratio']:6.1f}x"
        print(f"{row['name']:50} {times}  {remark}", flush=True)
    return rows


def show_growth(args: argparse.Namespace, device) -> list[dict]:
    """Print a Markdown table for every quantity that grows, in milliseconds, and draw them."""
    rows = []
    for row in scaling.run(device, size=args.size, repeats=args.repeats):
        rows.append(row)
        print(f"\n{scaling.table(row)}", flush=True)
    if args.plot:
        chart(functools.partial(scaling.draw, rows, args.size, args.plot))
    return rows


def chart(draw: Callable[[], None]) -> None:
    """Draw, or say what that needs."""
    try:
        draw()
    except ImportError:
        print("\nno chart: it needs matplotlib (pip install matplotlib)", file=sys.stderr)


def show_costs(args: argparse.Namespace, device) -> list[dict]:
    """Print a row a network: a multiplication and an addition are two operations."""
    common = {"size": args.size, "repeats": args.repeats, "classes": args.classes}
    rows = []
    for row in networks.run(device, **common, models=args.model):
        if not rows:
            heads = ("parameters", "GFLOP", "mean ms", "+-", "MB")
            print("\n" + " " * 40 + " ".join(f"{head:>11}" for head in heads))
        rows.append(row)
        numbers = [row[key] for key in ("gflop", "mean_ms", "deviation_ms", "memory_mb")]
        shown = " ".join(f"{number:11.1f}" for number in numbers)
        print(f"{row['name']:40} {row['parameters']:11,} {shown}", flush=True)
    if args.plot:
        chart(functools.partial(networks.draw, rows, args.plot))
    return rows


def time_subject(args: argparse.Namespace, machine: dict, device) -> Iterator[tuple[dict, str]]:
    """Yield the rows of the subject named, each with a remark to print."""
    common = {"size": args.size, "repeats": args.repeats}
    if args.what == "kernels":
        return operations.run(machine, device, **common)
    if args.what == "loader":
        return loading.run(device, **common, images=args.images)
    if args.what == "vote":
        return votes.run(**common, images=args.images, plain_images=args.plain_images)
    common |= {"batch_size": args.batch_size}
    if args.what == "classifier":
        return classifier.run(device, **common)
    if args.what == "augment":
        return augmentation.run(device, **common)
    if args.what == "losses":
        return losses.run(device, **common)
    common |= {"backbone": args.backbone}
    if args.what == "train":
        return training.run(machine, device, **common)
    return evaluation.run(
        machine, device, **common, images=args.images, num_workers=args.num_workers
    )


if __name__ == "__main__":
    start.run(main, parse_args)
