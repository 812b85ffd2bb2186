"""Which devices there are, and what is said of others."""

import pytest
import torch

from engine import device, processes
from engine.errors import UserError

SOME = "auto, cpu, cuda, cuda:N or mps"


@pytest.mark.parametrize(
    "name", ["xpu", "meta", "gpu", "cuda:x", "", "mps:x", "cpu,cuda", "vulkan"]
)
def test_other_devices_are_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"--device is {SOME}, not '{name}'"):
        device.pick_device(name)


def test_what_this_machine_lacks_is_said(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device mps: this machine has no GPU of Apple's"):
        device.pick_device("mps")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"--device {name}: this machine has 0 GPUs"):
            device.pick_device(name)
    assert device.pick_device("auto").type == device.pick_device("cpu").type == "cpu"


def test_mps_where_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.pick_device("mps").type == "mps"
    assert device.pick_precision("auto", torch.device("mps")) == "fp32"
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with pytest.raises(UserError, match="several processes cannot share it"):
        device.pick_device("mps")
