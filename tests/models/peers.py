"""Networks of torchvision, timm and smp, made beside a build of torch for the CPU."""

import importlib.util
import pathlib
import re

import pytest
import torch
from torch import Tensor, nn


def need() -> None:
    """Skip the test where the three packages are not installed; `make test-peers` has them.

    torchvision's wheel for CUDA beside torch for the CPU has no compiled operators, and fails to
    declare what they return: their names are declared here, none can be called.
    """
    for package in ("torchvision", "timm", "segmentation_models_pytorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make test-peers")
    if not hasattr(need, "library"):
        need.library = torch.library.Library("torchvision", "FRAGMENT")
        folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
        text = pathlib.Path(folder, "_meta_registrations.py").read_text()
        for name in sorted(
            set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text))
        ):
            if not hasattr(torch.ops.torchvision, name):
                need.library.define(f"{name}(Tensor a) -> Tensor")


def smp_encoder(name: str, **options) -> nn.Module:
    """Build an encoder of segmentation_models_pytorch; its first map is left out by `maps`."""
    from segmentation_models_pytorch.encoders import get_encoder

    return get_encoder(name, weights=None, **options)


def timm_network(name: str, **options) -> nn.Module:
    """Build a network of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, **options)


def randomise(network: nn.Module) -> nn.Module:
    """Give batch norms statistics, and layer scales values, that no constructor gives them."""
    torch.manual_seed(0)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        kind = name.rpartition(".")[2]
        if kind == "running_var":
            tensor.data.uniform_(0.75, 1.25)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data.normal_(float(kind in ("weight", "gamma")), 0.1)
        elif tensor.ndim >= 2 and tensor.is_floating_point() and not tensor.any():
            tensor.data.normal_(0, 0.2)
    return network.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
