"""Networks in their authors' layouts: what a file of theirs holds, and what it must give.

The weights are those of integers.py's formula, the outputs those of the authors' own code (named
beside each). `digest` tells that the keys and shapes are theirs: of `KEY SHAPE` lines, sorted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import integers
from models import build_model, load_weights


class Golden(NamedTuple):
    """An output of somebody else's code.

    Attributes:
        network: name and options here.
        parameters: of the file, its digest, and the tensors in it that no network reads.
        output: mean, standard deviation, first, middle and last value.
        size: of the image, H and W; the logits are resized to it if `resized`.
        rename: our state dict's keys -> theirs, with shapes; None where they are the same.
        gain: see integers.tensor.
    """

    network: tuple[str, dict]
    parameters: int
    digest: str
    output: tuple[float, ...]
    size: tuple[int, int] = (64, 64)
    resized: bool = False
    rename: Callable[[dict], dict] | None = None
    gain: float = 6.0


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def check(golden: Golden, folder: Path) -> nn.Module:
    """Load a file in the authors' layout, compare the output; return the network."""
    name, options = golden.network
    network = build_model(name, 19, **options).eval()
    shapes = shapes_of(network)
    if golden.rename is not None:
        shapes = golden.rename(shapes)
    assert integers.digest(sorted(shapes.items())) == golden.digest
    torch.save(integers.state(shapes.items(), golden.gain), folder / "theirs.pth")
    report = load_weights(network, folder / "theirs.pth", strict=True)
    assert report.missing == []
    h, w = golden.size
    image = integers.uniform("input", 3 * h * w).float().view(1, 3, h, w)
    with torch.no_grad():
        out = network(image)["out"]
        if golden.resized:
            out = network.resize(out, golden.size)
    mean, std, *values = golden.output
    flat = out.flatten()
    shown = (out.mean(), flat[0], flat[len(flat) // 2], flat[-1])
    assert [v.item() for v in shown] == pytest.approx([mean, *values], abs=1e-3 * std, rel=0)
    assert out.std().item() == pytest.approx(std, rel=1e-3)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == golden.parameters
    return network
