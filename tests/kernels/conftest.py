"""The devices that the kernel tests run on."""

import pytest
import torch

import emulate


@pytest.fixture
def device(request, monkeypatch):
    """Return where tensors go; for "emulated", the CPU, whose operators are then CUDA's."""
    if request.param != "emulated":
        return request.param
    monkeypatch.setattr(torch.ops, "segshift", emulate.operators())
    return "cpu"
