"""Draw the curves of training runs on one page that opens from disk.

    python -m tools.curves snapshots/entropy snapshots/control --output curves.html
    python -m tools.curves snapshots/long --watch 30        # written anew while it runs

A run is a folder with the log.jsonl of train_da.py or train_seg.py. The page has a chart for each
loss, the learning rate, val mIoU, each class, images per second, and GPU memory. Of more than 1 500
points in a row the means of neighbours are drawn.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import command_line, start
from engine.errors import UserError
from engine.files import read_regular, write_text
from engine.parsing import at_least
from engine.shapes import misfit, parse_json
from inference.page import MARK, assemble
from inference.page.reporting import short_names

POINTS = 1500
LINE = {"step": int, ...: object}
SCRIPTS, STYLES = ("common.js", "curves.js"), ("common.css", "curves.css")
Curves = dict[str, list[tuple[int, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = command_line.parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with a log.jsonl")
    parser.add_argument("--output", metavar="FILE", help="default: curves.html in the first run")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs, in order")
    parser.add_argument(
        "--watch",
        type=at_least(1),
        metavar="SECONDS",
        help="write the page anew this often, until Ctrl-C; it reads itself again as often",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the page, once or again and again."""
    names = args.names or short_names(args.runs)
    if len(names) != len(args.runs):
        raise UserError(f"--names has {len(names)} for {len(args.runs)} runs")
    output = Path(args.output or Path(args.runs[0], "curves.html"))
    check_ours(output)
    said: set[str] = set()
    while True:
        runs = []
        for name, folder in zip(names, args.runs, strict=True):
            curves, damage = read_log(Path(folder, "log.jsonl"))
            if damage is not None and damage not in said:
                print(damage, flush=True)
                said.add(damage)
            thinned = {key: thin(points) for key, points in curves.items() if points}
            runs.append({"name": name, "curves": thinned})
        data = {"runs": runs, "watch": args.watch}
        write_text(output, assemble("segshift: training", STYLES, SCRIPTS, data))
        if "written" not in said:
            print(f"to look at: {output}", flush=True)
            said.add("written")
        if args.watch is None:
            return
        try:
            time.sleep(args.watch)
        except KeyboardInterrupt:
            return


def check_ours(path: Path) -> None:
    """Refuse to replace a file that is no page of ours.

    Raises:
        UserError: names it.
    """
    if path.exists() and MARK.encode() not in read_regular(path):
        raise UserError(f"{path} is no page of ours: give another --output")


def read_log(path: Path) -> tuple[Curves, str | None]:
    """Return the numbers of a log by name, each with its steps, and what is to be said of damage.

    Raises:
        UserError: there is no log, or no line of one in it.
    """
    if not path.exists():
        raise UserError(f"{path.parent}: no log.jsonl: no run of train_da.py or train_seg.py")
    curves: Curves = {}
    torn = []
    lines = read_regular(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line) if line.strip() else {"step": 0}
        except ValueError:
            entry = None
        if misfit(entry, LINE) is not None:
            torn.append(number)
            continue
        step = entry.pop("step")
        for key, value in flat(entry):
            curves.setdefault(key, []).append((step, value))
    if "steps_per_second" in curves and "images_per_step" in curves:
        each = dict(curves.pop("images_per_step"))
        curves["images_per_second"] = [
            (step, value * each[step])
            for step, value in curves.pop("steps_per_second")
            if step in each
        ]
    if not curves:
        raise UserError(f"{path}: no line of a training run in it")
    last = len(lines) - (not lines[-1].strip())
    if torn == [last]:
        return curves, f"{path}: the last line is torn, as of a run that writes or was killed"
    shown = ", ".join(map(str, torn[:3])) + (", ..." if len(torn) > 3 else "")
    return curves, f"{path}: {len(torn)} torn lines are left out ({shown})" if torn else None


def flat(entry: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the numbers of a line by name, those of classes as "IoU of NAME"."""
    found = {**entry}
    for key, said in (("val_also", "val mIoU on"), ("val_iou", "IoU of")):
        if isinstance(inner := found.pop(key, None), dict):
            found |= {f"{said} {name}": value for name, value in inner.items()}
    return [
        (key, float(value))
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]


def thin(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """Return at most so many points: of each group of neighbours the last step and the mean."""
    size = max(1, -(-len(points) // most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (group[-1][0], float(f"{sum(value for _, value in group) / len(group):.6g}"))
        for group in groups
    ]


if __name__ == "__main__":
    start.run(main, parse_args)
