"""Write the tables of networks and encoders into docs/models.md: what runs with what, and its cost.

    python -m tools.network_table              print what runs with what
    python -m tools.network_table --costs      print what each costs, which takes minutes
    python -m tools.network_table --write      put either between its marks in docs/models.md

Every cell is a network that was built and ran forward on the meta device, which computes shapes and
counts operations (a multiplication and an addition are two). Times are measured on this machine.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
from engine import options, start
from engine.errors import UserError
from engine.files import write_text
from engine.words import keywords
from models.encoders import ENCODERS, build_encoder

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- python -m tools.network_table --write -->\n", "<!-- end -->\n"
BEGIN_COSTS = "<!-- python -m tools.network_table --costs --write -->\n"
CLASSES, SIZE = 19, (97, 131)
COUNTED, ROUNDS = (256, 512), 2  # the image, H and W, whose operations are counted; passes timed
TIMED = 4e8  # parameters up to which they are: DINOv3's largest encoder would fill 27 GB


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
    """Return millions of parameters / GFLOP with 19 classes, or a dash where the pair is refused.

    A star says that it takes output stride 32, where the network's own default is refused.
    """
    strided = "output_stride" in keywords(models.MODELS[network])
    for more, mark in (({}, ""), ({"output_stride": 32} if strided else {}, "*")):
        try:
            built = run(network, words | more)
        except UserError:
            continue
        images = torch.zeros(1, 3, *COUNTED, device="meta")
        return f"{millions(built)} / {gflop(built.eval(), images)}{mark}"
    return "-"


def millions(module: nn.Module) -> str:
    """Return how many million parameters a module has."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"


def operations(forward: Callable[[Tensor], object], images: Tensor) -> int:
    """Return what torch's counter counts: convolutions, matrix products and attention alone."""
    with FlopCounterMode(display=False) as counter:
        forward(images)
    return counter.get_total_flops()


def gflop(forward: Callable[[Tensor], object], images: Tensor) -> str:
    """Return these operations in units of 1e9, three digits of them at least."""
    count = operations(forward, images) / 1e9
    return f"{count:.3g}" if count < 1000 else f"{count:.0f}"


def milliseconds(forward: Callable[[Tensor], object]) -> float:
    """Return the processor time of one thread's fastest pass, which others' work disturbs least."""
    images, taken = torch.rand(1, 3, *COUNTED), []
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            started = time.process_time()
            forward(images)
            taken.append(time.process_time() - started)
    return 1e3 * min(taken[1:])


def costs() -> str:
    """Return the tables of what the networks as they are, and the encoders, cost."""
    torch.set_num_threads(1)
    builds = {name: lambda name=name: models.build_model(name, CLASSES) for name in models.MODELS}
    networks = cost_table("network", builds, lambda network: network)
    builds = {name: lambda name=name: build_encoder(name, 32) for name in ENCODERS}
    return f"{networks}\n{cost_table('encoder', builds, lambda encoder: encoder.features)}"


def cost_table(what: str, builds: dict[str, Callable], forward_of: Callable) -> str:
    """Return a row for each module that is built: parameters, operations, time.

    Args:
        what: the modules are, for the heading.
        builds: by name.
        forward_of: a module -> what is run.
    """
    rows = [f"| {what} | million parameters | GFLOP | ms |", "|---|---|---|---|"]
    for name, build in builds.items():
        with torch.device("meta"):
            module = build().eval()
            images = torch.zeros(1, 3, *COUNTED)
        counted = gflop(forward_of(module), images)
        small = sum(parameter.numel() for parameter in module.parameters()) <= TIMED
        taken = f"{milliseconds(forward_of(build().eval())):.0f}" if small else "-"
        rows.append(f"| `{name}` | {millions(module)} | {counted} | {taken} |")
    return "\n".join(rows) + "\n"


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


def page_with(text: str, content: str, begin: str = BEGIN) -> str:
    """Return the page's text with the tables between these marks replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{content}\n{END}{after}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    parser.add_argument("--costs", action="store_true", help="what each costs, in their place")
    parser.add_argument("--write", action="store_true", help="into docs/models.md")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the tables, or write them into the page."""
    begin, content = (BEGIN_COSTS, costs()) if args.costs else (BEGIN, table())
    if args.write:
        write_text(PAGE, page_with(PAGE.read_text(), content, begin))
    else:
        print(content)


if __name__ == "__main__":
    start.run(main, parse_args)
