"""--compile makes one graph of every network's forward pass, on an encoder of each family.

`pytest -m slow tests/models/test_compile.py`, three minutes; a few of them in every run. What the
compiler makes of a graph is its own business: these run it as it is, without generating code.
"""

import pytest
import torch

from engine.values import Training
from models import MODELS, build_model
from models.encoders import ENCODERS
from test_encoders import FAMILIES
from test_models import SMALL
from training.student import make_forward

FAST = ("compact", "fcn32s", "fpn")
CPU = torch.device("cpu")
OTHERS = {
    "pidnet l": {"size": "l", "boundary": True, "width": 8},
    "deeplabv3plus separable": {"encoder": "resnet18", "head": "separable", "width": 16},
    "segformer smp": {"encoder": "mit_b0", "style": "smp", "width": 16},
    "upernet mmseg": {"encoder": "resnet18", "style": "mmseg", "width": 16},
    **{
        f"fpn {name}": {"encoder": name, "pyramid_channels": 8, "width": 32}
        for name in (*FAMILIES, "beit_base")
    },
}
ALL = SMALL | OTHERS


def graphs_of(network: torch.nn.Module, monkeypatch) -> tuple[int, dict, dict]:
    """Return the number of graphs of a training pass, its outputs, and the plain pass's."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_(f, backend=keep, **how))
    images = torch.rand(1, 3, 97, 131) * 255
    results = []
    for compiled in (True, False):
        torch.manual_seed(0)  # dropout
        forward = make_forward(network, Training({}, compiled=compiled, precision="bf16"), CPU)
        results.append(forward(images))
    return len(graphs), *results


@pytest.mark.parametrize(
    "which", [pytest.param(one, marks=[] if one in FAST else pytest.mark.slow) for one in ALL]
)
def test_one_graph_holds_the_whole_pass(which: str, monkeypatch):
    torch.manual_seed(0)
    network = build_model(which.split()[0], 5, **ALL[which]).train()
    count, compiled, plain = graphs_of(network, monkeypatch)
    assert count == 1
    assert list(compiled) == list(plain)
    for name, expected in plain.items():
        assert torch.equal(compiled[name], expected), name


def test_a_broken_graph_is_found(monkeypatch):
    class Broken(MODELS["compact"]):
        def forward(self, images: torch.Tensor, aux: bool = True) -> dict:
            if images.mean().item() < 0:  # the compiler cannot know
                images = -images
            return super().forward(images, aux)

    count, *_ = graphs_of(Broken(5, width=8).train(), monkeypatch)
    assert count > 1


def test_every_family_has_its_line():
    families = {ENCODERS[name].build.__name__ for name in (*FAMILIES, "beit_base")}
    assert {row.build.__name__ for row in ENCODERS.values()} == families
