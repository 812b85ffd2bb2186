"""Write the table of augmentations into docs/augment.md: words, keys, and how they differ.

    python -m tools.augment_table              print it
    python -m tools.augment_table --write      put it between the marks in docs/augment.md

Every cell is read off the rows of training/augment/.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

from engine import options, start
from engine.files import write_text
from training.augment import FAMILIES
from training.augment.row import Row

PAGE = Path(__file__).parents[1] / "docs" / "augment.md"
BEGIN, END = "<!-- python -m tools.augment_table --write -->\n", "<!-- end -->\n"
HEAD = "| word | keys and defaults | p | namesake | difference |\n|---|---|---|---|---|"


def shown(value: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(value, tuple):
        value = value[:1] if value[0] == value[-1] else value
        return ",".join(f"{x:g}" for x in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def keys(row: Row) -> str:
    """Return what may follow a word."""
    cells = []
    for name, keyword in row.keys.items():
        needed = keyword.default is inspect.Parameter.empty
        said = f"`{name}`" if needed else f"`{name}={shown(keyword.default)}`"
        choices = f" ({' or '.join(keyword.choices)})" if keyword.choices else ""
        cells.append(f"{said} {keyword.text}{choices}{', must be given' if needed else ''}")
    return "; ".join(cells) or "-"


def table() -> str:
    """Return the tables in Markdown, one for each family."""
    parts = []
    for family in FAMILIES:
        title = (family.__doc__ or "").partition("\n")[0].partition(":")[0].rstrip(".")
        rows = [
            f"| `{name}` | {keys(row)} | {'-' if row.p is None else f'{row.p:g}'} | {row.like} "
            f"| {row.difference} |"
            for name, row in family.AUGMENTATIONS.items()
        ]
        parts.append("\n".join([f"### {title}\n", HEAD, *rows]))
    return "\n\n".join(parts) + "\n"


def page_with(text: str, content: str) -> str:
    """Return the page's text with the tables between its marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/augment.md")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the tables, or write them into the page."""
    if args.write:
        write_text(PAGE, page_with(PAGE.read_text(), table()))
    else:
        print(table())


if __name__ == "__main__":
    start.run(main, parse_args)
