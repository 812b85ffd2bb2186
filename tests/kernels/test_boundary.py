"""Check boundary_map: by hand, beside the erosion that Boundary IoU is defined by, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import kernels
from inputs import (
    DEVICES,
    assert_equal,
    checked,
    label_maps,
    on_each_device,
    random_ids,
    strided_views,
)
from kernels import reference

DOTS = """
.........
.........
....1....
.........
.........
.........
.......22
.......22"""


def ids_of(picture):
    rows = [[0 if c == "." else int(c) for c in row] for row in picture.split()]
    return torch.tensor([rows], dtype=torch.uint8)


@on_each_device
def test_boundary_map_by_hand(device):
    near = """
    .........
    ...111...
    ...111...
    ...111...
    .........
    ......111
    ......111
    ......11."""
    label = ids_of(DOTS).to(device)
    actual = kernels.boundary_map(label, 1)
    assert actual.dtype == torch.bool
    assert_equal(actual.byte(), ids_of(near))
    assert not kernels.boundary_map(label, 0, border=True).any()
    assert kernels.boundary_map(label, 8).all()
    framed = ids_of(near)
    framed[:, [0, -1]] = framed[:, :, [0, -1]] = 1
    assert_equal(kernels.boundary_map(label, 1, border=True).byte(), framed)
    # one pixel has nothing around it but the border
    assert kernels.boundary_map(label[:, :1, :1], 3).tolist() == [[[False]]]
    assert kernels.boundary_map(label[:, :1, :1], 3, border=True).tolist() == [[[True]]]


@on_each_device
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_boundary_map_is_a_mask_less_its_erosion(device, steps):
    """As the authors of Boundary IoU have it, for each class: zeros around, steps of 3x3."""
    blocks = random_ids((2, 4, 5), high=3)
    label = blocks.repeat_interleave(9, 1).repeat_interleave(7, 2).to(device)
    actual = kernels.boundary_map(label, steps, border=True)
    for c in range(3):
        mask = (label == c).float()[:, None]
        eroded = F.pad(mask, (1, 1, 1, 1))
        for _ in range(steps):
            eroded = -F.max_pool2d(-eroded, 3, 1, 1)
        expected = mask - eroded[..., 1:-1, 1:-1]
        assert_equal((actual & (label == c)).float(), expected[:, 0])


@on_each_device
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (33, 130), (0, 5), (5, 0)])
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 31, 64, 65, 32767])
def test_boundary_map_equals_reference(device, size, radius):
    label = random_ids((2, *size), high=300, seed=radius).clamp(max=1).to(device)
    label[:, :, size[1] // 3 :] = 5
    for border in (False, True):
        expected = reference.boundary_map(label, radius, border)
        for view in strided_views(label):
            assert_equal(kernels.boundary_map(view, radius, border), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_boundary_map_by_several_threads(threads):
    """Parts of an image, and of the next one, begin with the rows above them."""
    label = random_ids((3, 90, 700), high=4000, seed=threads, dtype=torch.int64).clamp(max=1).byte()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for radius in (1, 3, 11, 50, 100):
            expected = reference.boundary_map(label, radius, False)
            assert_equal(kernels.boundary_map(label, radius), expected)
    finally:
        torch.set_num_threads(before)


@on_each_device
@checked
@given(
    st.data(),
    st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 60)),
    st.integers(0, 6) | st.integers(0, 70),
    st.booleans(),
)
def test_boundary_map_property(device, data, shape, radius, border):
    label = data.draw(label_maps(list(shape))).to(device)
    expected = reference.boundary_map(label, radius, border)
    assert_equal(kernels.boundary_map(label, radius, border), expected)


@pytest.mark.parametrize("device", DEVICES[:2], indirect=True)
def test_mistakes(device):
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    mistakes = [
        ((label.long(), 1), "label must be uint8"),
        ((label[0], 1), r"label must be \[N, H, W\]"),
        ((label, -1), "radius must be"),
        ((label, 32768), "radius must be"),
    ]
    for arguments, sentence in mistakes:
        for function in (torch.ops.segshift.boundary_map, reference.boundary_map):
            with pytest.raises(RuntimeError, match=sentence):
                function(*arguments, False)


def test_opcheck():
    label = random_ids((2, 9, 11), high=3)
    torch.library.opcheck(torch.ops.segshift.boundary_map.default, (label, 2, True))
    compiled = torch.compile(kernels.boundary_map, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(label, 2, True), kernels.boundary_map(label, 2, True))
