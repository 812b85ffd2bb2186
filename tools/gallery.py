"""Put what evaluate.py saw on one page: predictions, mistakes, several networks side by side.

    python -m tools.gallery snapshots/day/report snapshots/dusk/report --output both
    python -m tools.gallery snapshots/one/seen snapshots/two/seen --output seen --names one two

A folder is one of `evaluate.py --report`, or of its --save, whose images are read again from where
they were. All must be of the same images and classes. The page is OUTPUT/index.html: it opens from
disk, without a server.
"""

import argparse
import tempfile
from pathlib import Path

from engine import command_line, start
from engine.errors import UserError
from engine.files import UNFINISHED
from inference.page import predicted
from inference.page.placing import placed
from inference.page.report import Part, join
from inference.page.reporting import short_names


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = command_line.parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="of --report or --save")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the page goes")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the networks, in order")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read the folders and write the page."""
    with placed(args.output) as made, tempfile.TemporaryDirectory(prefix=UNFINISHED) as unfinished:
        parts, found = [], []
        for i, folder in enumerate(args.folders):
            if not Path(folder, "report.json").is_file() and Path(folder, predicted.NAME).is_file():
                predicted.gather(folder, Path(unfinished, str(i)))
                parts.append(Part.read(Path(unfinished, str(i))))
            else:
                parts.append(Part.read(folder))
            runs = parts[-1].report["runs"]
            found += [folder] if len(runs) == 1 else [f"{folder}/{run['name']}" for run in runs]
        if args.names and len(args.names) != len(found):
            raise UserError(f"--names has {len(args.names)} for {len(found)} networks")
        join(parts, made, args.names or short_names(found))
    print(f"to look at: {Path(args.output, 'index.html')}", flush=True)


if __name__ == "__main__":
    start.run(main, parse_args)
