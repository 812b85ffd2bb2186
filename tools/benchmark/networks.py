"""What networks cost: parameters, arithmetic, time and memory of one image's forward pass."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from engine import words
from engine.device import autocast, pick_precision
from models import MODELS, Network, build_model
from models.layers import choose
from tools.benchmark.timing import alternate


class PeakMemory(TorchDispatchMode):
    """Count the bytes of tensors that live at once, of those made inside this context.

    A process's memory says little about one forward pass on the CPU: allocators keep what is freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operator and count what it returned."""
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set) -> None:
        if storage in given or storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def run(
    device: torch.device,
    *,
    size: tuple[int, int],
    repeats: int,
    models: Sequence[Sequence[str]] | None,
    classes: int,
) -> Iterator[dict]:
    """Yield a row for each network, in evaluation mode and the device's precision.

    Args:
        device: where they run.
        size: W, H of the image in pixels.
        repeats: rounds after one that warms up.
        models: words of each, NAME KEY=VALUE ...; None for every network as it is.
        classes: predicted.
    """
    precision = pick_precision("auto", device)
    for name, *given in models or [[name] for name in MODELS]:
        choose("model", name, MODELS)
        pairs = [word.partition("=")[::2] for word in given]
        options = words.bind(f"model {name}", MODELS[name], pairs)
        torch.manual_seed(0)
        network = build_model(name, classes, **options).eval().to(device).requires_grad_(False)
        image = torch.randn(1, 3, size[1], size[0], device=device)
        row = {"name": " ".join([name, *given]), "precision": precision}
        with torch.inference_mode():
            row |= measure(network, image, precision, repeats)
        yield row


def draw(rows: list[dict], path: str) -> None:
    """Draw parameters over time, a point for each network of `run`, larger the more it computes.

    Args:
        rows: of `run`.
        path: of the PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure((9, 6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        place = row["mean_ms"], row["parameters"] / 1e6
        axes.scatter(*place, s=10 + 2 * row["gflop"], alpha=0.6)
        axes.annotate(row["name"], place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="ms an image", ylabel="million parameters")
    axes.set_title("the larger a point, the more operations")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png")


def measure(network: Network, image: Tensor, precision: str, repeats: int) -> dict:
    """Return the numbers of a network on one image, float [1,3,H,W]."""
    device = image.device

    def forward() -> Tensor:
        with autocast(precision, device):
            return network(image, aux=False)["out"]

    # attention as matrix products, which are counted; the counter knows no fused one of CPUs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward()
    (seconds,) = alternate([forward], device, repeats)
    milliseconds = [1e3 * one for one in seconds]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "mean_ms": statistics.mean(milliseconds),
        "deviation_ms": statistics.stdev(milliseconds) if repeats > 1 else 0.0,
        "memory_mb": peak_memory(forward, device) / 1e6,
    }


def peak_memory(forward: Callable[[], Tensor], device: torch.device) -> int:
    """Return the bytes that a forward pass needs at once, without weights and image."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        forward()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        forward()
    return memory.peak
