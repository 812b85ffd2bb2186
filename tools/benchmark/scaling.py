"""Time how the kernels' cost grows: with pixels, classes, ensemble members and threads."""

import math
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels import reference
from tools.benchmark import scenes
from tools.benchmark.timing import alternate

GROWTH = {
    "pixels": (1, 4, 16, 64),
    "classes": (2, 8, 32, 128, 256),
    "members": (2, 4, 8, 16, 32),
    "threads": (1, 2),
}
USUAL = {"pixels": 16, "classes": scenes.NUM_CLASSES, "members": 5}  # while another one grows
OPERATIONS = (
    *("confusion_matrix", "argmax_upsample", "argmax_upsample, confidence"),
    *("hard_vote", "soft_vote", "cutmix", "classmix", "confidence_histogram", "boundary_map"),
)
FREE_OF_CLASSES = ("hard_vote", "cutmix", "classmix", "boundary_map")
DEPENDS = {  # the other quantities matter to all of them
    "classes": [name for name in OPERATIONS if name not in FREE_OF_CLASSES],
    "members": ["hard_vote", "soft_vote"],
}


def run(device: torch.device, *, size: tuple[int, int], repeats: int) -> Iterator[dict]:
    """Yield for each quantity its values and the milliseconds of each operation, checked first.

    Args:
        device: where the operations run; threads are varied on CPUs only.
        size: W, H in pixels of the smallest maps; while another quantity grows, 16 times as many.
        repeats: rounds, in which the operations take turns.
    """
    threads = torch.get_num_threads()
    for quantity, values in GROWTH.items():
        if quantity == "threads" and device.type != "cpu":
            continue
        growth: dict[str, list[float]] = {name: [] for name in DEPENDS.get(quantity, OPERATIONS)}
        for value in values:
            given = {**USUAL, quantity: value}
            side = math.isqrt(given["pixels"])
            maps = (size[0] * side, size[1] * side)
            known = calls(maps, given["classes"], given["members"], device)
            timed = [checked(*known[name]) for name in growth]
            if quantity == "threads":
                torch.set_num_threads(value)
            try:
                rounds = alternate(timed, device, repeats)
            finally:
                torch.set_num_threads(threads)
            for times, seconds in zip(growth.values(), rounds, strict=True):
                times.append(statistics.median(seconds) * 1e3)
        yield {"quantity": quantity, "values": list(values), "ms": growth}


def calls(
    size: tuple[int, int], num_classes: int, members: int, device: torch.device
) -> dict[str, tuple[str, tuple]]:
    """Return the operator and its arguments for every operation, on smooth maps."""
    generator = torch.Generator().manual_seed(0)
    logits = scenes.smooth_logits(size, num_classes, generator).to(device)
    width, height = size
    upsample = (logits, (height, width), True)
    pred, confidence = torch.ops.segshift.argmax_upsample(*upsample, True)
    label = scenes.ignore_bottom(pred[0].roll((2, 2), (0, 1)))[None]
    votes = torch.stack([pred.roll((i, 2 * i), (1, 2)) for i in range(members)])
    probs = [logits.roll(i, 3).softmax(1) for i in range(members)]
    averaged = (probs, (height, width), [1 / members] * members)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator).byte().to(device)
    mixed = ([image, label], [image.flip(3).contiguous(), pred])
    box = (width // 4, height // 5, width * 9 // 10, height * 8 // 10)
    chosen = (torch.arange(256, device=device) % 2 == 0)[None]
    return {
        "confusion_matrix": ("confusion_matrix", (pred, label, num_classes, scenes.IGNORE)),
        "argmax_upsample": ("argmax_upsample", (*upsample, False)),
        "argmax_upsample, confidence": ("argmax_upsample", (*upsample, True)),
        "hard_vote": ("hard_vote", (votes, num_classes, None)),
        "soft_vote": ("soft_vote", (*averaged, True, True, False)),
        "boundary_map": ("boundary_map", (pred, 5, False)),
        "cutmix": ("cutmix", (*mixed, torch.tensor([[box]], device=device))),
        "classmix": ("classmix", (*mixed, pred, chosen)),
        "confidence_histogram": ("confidence_histogram", (confidence, pred, num_classes, 100)),
    }


def checked(operator: str, arguments: tuple) -> Callable:
    """Return the call to time; stop unless its result is the reference's, bit for bit."""
    call = getattr(torch.ops.segshift, operator)
    ours, expected = call(*arguments), getattr(reference, operator)(*arguments)
    if isinstance(ours, Tensor):
        ours, expected = [ours], [expected]
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y), f"{operator} differs from the reference"
    assert ours[0].any(), f"{operator} gives zeros only: not worth timing"
    return lambda: call(*arguments)


def table(growth: dict) -> str:
    """Return one quantity of `run` as a Markdown table in milliseconds."""
    heads = [growth["quantity"], *(tick(growth["quantity"], v) for v in growth["values"])]
    lines = [heads + ["last / first"], ["---"] * (len(heads) + 1)]
    for name, times in growth["ms"].items():
        lines.append([name, *(f"{ms:.2f}" for ms in times), f"{times[-1] / times[0]:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tick(quantity: str, value: int) -> str:
    """Name a value of a quantity."""
    return f"x{value}" if quantity == "pixels" else str(value)


def draw(rows: list[dict], size: tuple[int, int], path: str) -> None:
    """Draw what `run` yielded on logarithmic axes, one panel a quantity.

    Args:
        rows: of `run`.
        size: W, H of its smallest maps.
        path: of the PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure((4 * len(rows), 4), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), sharey=True), rows, strict=True):
        for name, times in row["ms"].items():
            axes.loglog(row["values"], times, "o-", color=f"C{OPERATIONS.index(name)}", label=name)
        axes.set_xticks(row["values"], [tick(row["quantity"], v) for v in row["values"]])
        axes.minorticks_off()
        unit = f", times {size[0]}x{size[1]}" if row["quantity"] == "pixels" else ""
        axes.set_title(f"ms over {row['quantity']}{unit}")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, format="png")
