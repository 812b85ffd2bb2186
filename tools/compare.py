"""Compare training runs: mean and deviation over seeds, and each method beside its control.

    python -m tools.compare snapshots/entropy_* snapshots/mix_*
    python -m tools.compare snapshots/*_[0-9] --against control --format markdown
    python -m tools.compare snapshots/*_[0-9] --against entropy=control mix=control_of_mix --classes

A run is a folder with the result.json of train_da.py or train_seg.py. Folders whose names differ in
a number at the end alone (entropy_0, entropy_1) are seeds of one row. Scores are mIoU in percent:
after the last step, after AdaBN where the run ended with it, and the best, which was chosen on the
validation images themselves. Differences are taken seed by seed, then averaged; a deviation is
that of a sample (n - 1).
"""

import argparse
import csv
import io
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datasets.text import read_json
from engine import command_line, start
from engine.errors import UserError
from engine.files import write_text
from engine.shapes import Either

SCORE = {"miou": float, "iou": {...: Either(float, None)}, ...: object}
KINDS = {"last": SCORE, "best": SCORE, "finished?": SCORE, ...: object}
TITLES = {"last": "last", "finished": "+ AdaBN", "best": "best"}
ESCAPED = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"}


class Row(NamedTuple):
    """The seeds of a run: seed -> which score ("last", "finished", "best") -> the score."""

    name: str
    seeds: dict[str, dict[str, dict[str, Any]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = command_line.parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with a result.json")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="ROW",
        help="the row that others are compared with, or ROW=CONTROL for some of them",
    )
    parser.add_argument("--classes", action="store_true", help="add the IoU of every class")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="of the table; default %(default)s",
    )
    parser.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read the runs and show their table."""
    rows = read_rows(args.runs)
    shown = FORMATS[args.format](tabled(rows, controls(args.against, rows), args.classes))
    if args.output:
        write_text(args.output, shown)
    else:
        print(shown, end="")


def read_rows(folders: Iterable[str]) -> list[Row]:
    """Return the rows of runs, in the order in which they were named.

    Raises:
        UserError: a folder without a result, a damaged one, a seed twice, or other classes.
    """
    rows: dict[str, Row] = {}
    classes: tuple[str, list[str]] | None = None
    for folder in dict.fromkeys(map(str, map(Path, folders))):
        for title, scores in read_run(Path(folder)).items():
            stem, seed = re.fullmatch(r"(.*?)(?:[_-](\d+))?", Path(folder).resolve().name).groups()
            name = stem + title
            row = rows.setdefault(name, Row(name, {}))
            if (seed or "") in row.seeds:
                raise UserError(f"{folder}: a second run called {name}, seed {seed or 'unknown'}")
            row.seeds[seed or ""] = scores
            names = list(scores["last"]["iou"])
            classes = classes or (folder, names)
            if classes[1] != names:
                raise UserError(f"{folder} and {classes[0]} were scored on different classes")
    return list(rows.values())


def read_run(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the scores of a run's networks, by what follows the run's name in a row's."""
    path = folder / "result.json"
    if not path.exists():
        raise UserError(f"{folder}: no result.json: no run of ours, or one that has not ended")
    shape = Either(KINDS, {"adapted": KINDS, "source_only?": KINDS, ...: object})
    result = read_json(path, shape, "result")
    if "adapted" not in result:
        return {"": result}
    alone = result.get("source_only")
    return {"": result["adapted"]} | ({} if alone is None else {" (source only)": alone})


def controls(words: list[str], rows: list[Row]) -> dict[str, Row]:
    """Return the row that each row is compared with, by name, from the words of --against."""
    known, of = {row.name: row for row in rows}, {}
    for word in words:
        name, _, control = word.rpartition("=")
        for one in filter(None, (name, control)):
            if one not in known:
                raise UserError(f"--against {word}: no row {one}; there are: {', '.join(known)}")
        for row in [name] if name else known:
            if row != control:
                of[row] = known[control]
    return of


def tabled(rows: list[Row], control_of: dict[str, Row], with_classes: bool) -> list[list]:
    """Return the cells of a table, its head first: texts, and `Values`.

    Columns in which no row has anything are left out.
    """
    compared = [kind for kind in TITLES if control_of and kind != "best"]
    classes = list(next(iter(rows[0].seeds.values()))["last"]["iou"]) if with_classes else []
    head = ["run", "seeds", *TITLES.values(), *(f"{TITLES[kind]} - control" for kind in compared)]
    table: list[list] = [head + classes]
    for row in rows:
        cells = [row.name, str(len(row.seeds)), *(Values(of(row, kind)) for kind in TITLES)]
        cells += [difference(row, control_of.get(row.name), kind) for kind in compared]
        final = "finished" if of(row, "finished") else "last"
        table.append(cells + [Values(of(row, final, name)) for name in classes])
    filled = [any(map(str, column[1:])) for column in zip(*table, strict=True)]
    return [[cell for cell, kept in zip(line, filled, strict=True) if kept] for line in table]


def of(row: Row, kind: str, class_name: str | None = None) -> dict[str, float]:
    """Return a score, or a class's IoU in it, of every seed that has it."""
    found = {
        seed: scores[kind]["miou"] if class_name is None else scores[kind]["iou"].get(class_name)
        for seed, scores in row.seeds.items()
        if scores.get(kind) is not None
    }
    return {seed: value for seed, value in found.items() if value is not None}


def difference(row: Row, control: Row | None, kind: str) -> "Values":
    """Return the gain over the control of the seeds that both have."""
    ours, theirs = of(row, kind), {} if control is None else of(control, kind)
    return Values({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}, "+")


class Values:
    """A value of each seed, shown as mean and deviation: the mean alone of one, nothing of none."""

    def __init__(self, found: dict[str, float], sign: str = ""):
        self.mean = self.deviation = ""
        if found:
            self.mean = f"{statistics.mean(found.values()):{sign}.1f}"
        if len(found) > 1:
            self.deviation = f"{statistics.stdev(found.values()):.1f}"

    def __str__(self) -> str:
        return " ± ".join(filter(None, (self.mean, self.deviation)))


# ------------------------------------------------------------------ how a table is written


def as_text(table: list[list]) -> str:
    """Return aligned columns."""
    written = [list(map(str, line)) for line in table]
    widths = [max(map(len, column)) for column in zip(*written, strict=True)]
    lines = []
    for name, *cells in written:
        numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *numbers]).rstrip() + "\n")
    return "".join(lines)


def as_markdown(table: list[list]) -> str:
    """Return a table of GitHub's Markdown."""
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in table]
    lines.insert(1, ["---"] * len(table[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(table: list[list]) -> str:
    """Return a tabular of LaTeX, for the package booktabs."""

    def cell(value: object) -> str:
        return "".join(ESCAPED.get(c, c) for c in str(value)).replace("±", r"$\pm$")

    head, *body = [" & ".join(map(cell, line)) + r" \\" for line in table]
    columns = "l" + "r" * (len(table[0]) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(table: list[list]) -> str:
    """Return comma-separated values; a mean and its deviation are two columns."""
    text, head = io.StringIO(), []
    for title, cell in zip(table[0], table[1], strict=True):
        head += [title, f"{title} deviation"] if isinstance(cell, Values) else [title]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in table[1:]:
        pairs = [
            (cell.mean, cell.deviation) if isinstance(cell, Values) else (cell,) for cell in line
        ]
        writer.writerow(part for pair in pairs for part in pair)
    return text.getvalue()


FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex, "csv": as_csv}


if __name__ == "__main__":
    start.run(main, parse_args)
