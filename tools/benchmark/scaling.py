"""Time how the kernels' cost grows: with pixels, classes, ensemble members and threads."""

import math
import statistics
from collections.abc import Callable, Iterator

import torch
from PIL import Image, ImageDraw, ImageFont
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
# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = {
    "confusion_matrix": "#0072b2",
    "argmax_upsample": "#d55e00",
    "argmax_upsample, confidence": "#e69f00",
    "hard_vote": "#009e73",
    "cutmix": "#cc79a7",
    "classmix": "#7f3c8d",
    "confidence_histogram": "#56b4e9",
}
DEPENDS = {  # the other quantities matter to all of them
    "classes": [name for name in COLOURS if name not in ("hard_vote", "cutmix", "classmix")],
    "members": ["hard_vote"],
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
        growth: dict[str, list[float]] = {name: [] for name in DEPENDS.get(quantity, COLOURS)}
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
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator).byte().to(device)
    mixed = ([image, label], [image.flip(3).contiguous(), pred])
    box = (width // 4, height // 5, width * 9 // 10, height * 8 // 10)
    chosen = (torch.arange(256, device=device) % 2 == 0)[None]
    return {
        "confusion_matrix": ("confusion_matrix", (pred, label, num_classes, scenes.IGNORE)),
        "argmax_upsample": ("argmax_upsample", (*upsample, False)),
        "argmax_upsample, confidence": ("argmax_upsample", (*upsample, True)),
        "hard_vote": ("hard_vote", (votes, num_classes, None)),
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


# ---- the plot: logarithmic axes, one panel a quantity ------------------------------------------

PANEL_W, PANEL_H = 420, 400  # pixels, of which the margins are for ticks and titles
LEFT, RIGHT, TOP, BOTTOM, LEGEND = 64, 20, 44, 56, 76
GREY, BLACK = "#d0d0d0", "#222222"
FINER = 2  # drawn larger, then shrunk, for smooth lines


def draw(rows: list[dict], size: tuple[int, int]) -> Image.Image:
    """Return a plot of what `run` yielded.

    Args:
        rows: of `run`.
        size: W, H of its smallest maps.
    """
    image = Image.new("RGB", (PANEL_W * len(rows), PANEL_H + LEGEND), "white")
    canvas = Canvas(image.resize((image.width * FINER, image.height * FINER)))
    every = [ms for row in rows for times in row["ms"].values() for ms in times]
    decades = range(math.floor(math.log10(min(every))), math.ceil(math.log10(max(every))) + 1)
    for column, row in enumerate(rows):
        draw_panel(canvas, column * PANEL_W, row, decades, size)
    across = 4  # entries of a line of the legend
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + i % across * (image.width - LEFT) / across
        y = PANEL_H + 18 + i // across * 28
        canvas.line([(x, y), (x + 30, y)], colour, 3)
        canvas.text((x + 38, y), name, "lm")
    return canvas.image.resize(image.size, Image.Resampling.LANCZOS)


def draw_panel(
    canvas: "Canvas", origin: int, row: dict, decades: range, size: tuple[int, int]
) -> None:
    """Draw one quantity: time in ms over its values."""
    quantity, values = row["quantity"], row["values"]
    left, right, bottom = origin + LEFT, origin + PANEL_W - RIGHT, PANEL_H - BOTTOM

    def x_of(value: int) -> float:
        return left + (right - left) * math.log(value / values[0]) / math.log(
            values[-1] / values[0]
        )

    def y_of(ms: float) -> float:
        share = (math.log10(ms) - decades[0]) / (decades[-1] - decades[0])
        return bottom - (bottom - TOP) * share

    for decade in decades:
        y = y_of(10.0**decade)
        canvas.line([(left, y), (right, y)], GREY, 1)
        canvas.text((left - 8, y), f"{10.0**decade:g}", "rm")
    for value in values:
        canvas.line([(x_of(value), TOP), (x_of(value), bottom)], GREY, 1)
        canvas.text((x_of(value), bottom + 8), tick(quantity, value), "mt")
    canvas.text((left, TOP - 26), f"ms over {quantity}", "lt")
    if quantity == "pixels":
        canvas.text(((left + right) / 2, bottom + 30), "times {}x{}".format(*size), "mt")
    for name, times in row["ms"].items():
        points = [(x_of(v), y_of(ms)) for v, ms in zip(values, times, strict=True)]
        canvas.line(points, COLOURS[name], 3)
        for point in points:
            canvas.dot(point, COLOURS[name], 5)


class Canvas:
    """Draw in the plot's own pixels on an image FINER times as large."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)
        self.font = ImageFont.load_default(17 * FINER)

    def line(self, points: list[tuple[float, float]], colour: str, width: int) -> None:
        """Draw a line through points."""
        self.pen.line([(x * FINER, y * FINER) for x, y in points], colour, width * FINER, "curve")

    def dot(self, point: tuple[float, float], colour: str, radius: int) -> None:
        """Draw a disc."""
        self.pen.circle([value * FINER for value in point], radius * FINER, colour)

    def text(self, point: tuple[float, float], words: str, anchor: str) -> None:
        """Write words at a point; anchor: as in PIL."""
        self.pen.text([value * FINER for value in point], words, BLACK, self.font, anchor)
