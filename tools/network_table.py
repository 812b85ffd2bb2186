"""Write the table of networks and encoders into docs/models.md: what runs with what, and its size.

    python -m tools.network_table              print it
    python -m tools.network_table --write      put it between the marks in docs/models.md

Every cell is a network that was built and ran forward on an image of 97x131, on the meta device,
which computes shapes and nothing else.
"""

import argparse
from pathlib import Path

import torch

import models
from engine import options, start
from engine.errors import UserError
from engine.files import write_text
from engine.words import keywords
from models.encoders import ENCODERS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- python -m tools.network_table --write -->\n", "<!-- end -->\n"
CLASSES, SIZE = 19, (97, 131)


def representatives() -> list[str]:
    """Return the first encoder of each family, by the class that builds it."""
    first: dict[str, str] = {}
    for name, row in ENCODERS.items():
        first.setdefault(row.build.__module__ + row.build.__qualname__, name)
    return list(first.values())


def run(network: str, words: dict[str, str]) -> models.Network:
    """Build a network on the meta device and run it forward.

    Raises:
        UserError: the network cannot have these options.
        AssertionError: its logits have another size than its resizing makes good.
    """
    with torch.device("meta"), torch.no_grad():
        built = models.build_model(network, CLASSES, **words)
        outputs = built(torch.zeros(2, 3, *SIZE))
        for name in built.heads:
            resized = built.resize(outputs[name], SIZE)
            assert resized.shape[2:] == SIZE, name
    return built


def cell(network: str, words: dict[str, str]) -> str:
    """Return the millions of parameters with 19 classes, or a dash where the pair is refused.

    A star says that it takes output stride 32, where the network's own default is refused.
    """
    strided = "output_stride" in keywords(models.MODELS[network])
    for more, mark in (({}, ""), ({"output_stride": 32} if strided else {}, "*")):
        try:
            built = run(network, words | more)
        except UserError:
            continue
        return f"{sum(parameter.numel() for parameter in built.parameters()) / 1e6:.1f}{mark}"
    return "-"


def table() -> str:
    """Return the tables in Markdown."""
    encoded = on_any_encoder()
    lines = [f"| network | {' | '.join(representatives())} |"]
    lines.append("|---" * (1 + len(representatives())) + "|")
    for name in encoded:
        cells = [cell(name, {"encoder": encoder}) for encoder in representatives()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    alone = [f"`{name}` {cell(name, {})}" for name in models.MODELS if name not in encoded]
    return "\n".join(lines) + f"\n\nWith an encoder of their own: {', '.join(alone)}.\n"


def on_any_encoder() -> list[str]:
    """Return the networks whose encoder may be any."""
    found = {name: keywords(network).get("encoder") for name, network in models.MODELS.items()}
    return [name for name, keyword in found.items() if keyword and not keyword.choices]


def page_with(text: str, content: str) -> str:
    """Return the page's text with the tables between its marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/models.md")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the tables, or write them into the page."""
    if args.write:
        write_text(PAGE, page_with(PAGE.read_text(), table()))
    else:
        print(table())


if __name__ == "__main__":
    start.run(main, parse_args)
