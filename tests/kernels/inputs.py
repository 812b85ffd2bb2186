"""What the kernel tests run on: devices, layouts, label maps, and comparing bit for bit."""

import math

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

DEVICES = ["cpu", "emulated", *["cuda"] * torch.cuda.is_available()]

on_each_device = pytest.mark.parametrize("device", DEVICES, indirect=True)
on_each_real_device = pytest.mark.parametrize(  # where the emulator would take too long
    "device", [device for device in DEVICES if device != "emulated"], indirect=True
)
on_each_device_at_length = pytest.mark.parametrize(
    "device",
    [pytest.param(d, marks=pytest.mark.slow) if d == "emulated" else d for d in DEVICES],
    indirect=True,
)


def random_ids(shape, dtype=torch.uint8, low=0, high=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def random_floats(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_equal(actual, expected):
    """Compare tensors, or lists and tuples of them, bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert torch.equal(actual.cpu(), expected.cpu())
    else:
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_equal(ours, theirs)


def strided_views(tensor):
    """Return tensors of equal values in other memory layouts."""
    padded = torch.stack([tensor, tensor], -1)[..., 1]  # stride 2, offset 1
    turned = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    return [tensor, padded, turned]


checked = settings(
    max_examples=420,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one device for all examples
)
CLASS_COUNTS = st.integers(1, 20) | st.integers(1, 256)  # the reference is slow with many
VIEWS, SEEDS = st.integers(0, 2), st.integers(0, 1 << 32)


@st.composite
def shapes(draw, max_side=40):
    return draw(st.lists(st.integers(0, max_side), min_size=1, max_size=3))


@st.composite
def label_maps(draw, shape, dtype=torch.uint8):
    """Return ids in regions of some width, a few or all of the pixels being random, any layout."""
    high, width = draw(st.integers(1, 256)), draw(st.sampled_from([1, 3, 50, 200, 1000]))
    seed, noise = draw(SEEDS), draw(st.sampled_from([0, 0.05, 0.5]))
    pixels = math.prod(shape)
    regions = random_ids((pixels // width + 1,), dtype, high=high, seed=seed)
    ids = regions.repeat_interleave(width)[:pixels]
    random = random_ids((pixels,), dtype, high=256, seed=seed + 1)
    noisy = random_ids((pixels,), torch.int64, high=1000, seed=seed + 2) < 1000 * noise
    return strided_views(torch.where(noisy, random, ids).view(shape))[draw(VIEWS)]
