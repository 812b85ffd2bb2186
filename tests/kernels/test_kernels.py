"""Check the kernels: numbers worked by hand, equality with the reference, builds that go wrong."""

import itertools
import math
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import kernels
from inputs import (
    CLASS_COUNTS,
    DEVICES,
    SEEDS,
    VIEWS,
    assert_equal,
    checked,
    label_maps,
    on_each_device,
    on_each_device_at_length,
    on_each_real_device,
    random_floats,
    random_ids,
    shapes,
    strided_views,
)
from kernels import reference

NAN, INF = math.nan, math.inf


def test_cpu_kernels_are_compiled():
    if os.environ.get("SEGSHIFT_KERNELS") == "reference":
        pytest.skip("SEGSHIFT_KERNELS=reference: the tests below compare it with itself")
    assert kernels.backend("cpu").startswith("C++ (")


# ---- worked by hand ----------------------------------------------------------------------------


@on_each_device
def test_confusion_matrix_by_hand(device):
    label = torch.tensor([[0, 0, 1, 1], [2, 255, 7, 255]], device=device)
    pred = torch.tensor([[0, 1, 1, 9], [2, 0, 1, 9]], device=device)
    expected = [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    matrix = kernels.confusion_matrix(pred, label, num_classes=3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == expected
    # With another ignore value, 255 is an invalid id like 7, and 0 may be the ignored one.
    matrix = kernels.confusion_matrix(pred, label, num_classes=3, ignore_index=0)
    assert matrix.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
def test_argmax_upsample_by_hand(device, align_corners):
    # Class 0 falls from 3 to 0, class 1 rises from 0 to 1: they meet at 3/4 of the way.
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]], device=device).view(1, 2, 1, 2)
    pred = kernels.argmax_upsample(logits, (2, 8), align_corners)
    # align_corners: pixel x lies at x / 7, the meeting point between 5/7 and 6/7;
    # else at (x + 0.5) / 4 - 0.5, of which x = 5 gives 0.875 and x = 4 gives 0.625.
    row = [0, 0, 0, 0, 0, 0, 1, 1] if align_corners else [0, 0, 0, 0, 0, 1, 1, 1]
    assert pred.tolist() == [[row, row]]


@on_each_device
def test_argmax_upsample_of_ties_and_nan(device):
    pixels = [[1, 1, 0], [NAN, 0, 1], [NAN, NAN, NAN], [-INF, -INF, -INF], [0, INF, 0], [2, 5, 5]]
    logits = torch.tensor(pixels, device=device).view(6, 3, 1, 1)
    pred, confidence = kernels.argmax_upsample(logits, (1, 1), with_confidence=True)
    # An infinite logit times a weight of 0 is NaN as well.
    assert pred.flatten().tolist() == [0, 2, 0, 0, 0, 1]
    expected = [1 / (2 + math.exp(-1)), 1 / (1 + math.exp(-1)), 0, 0, 1 / 2, 1 / (2 + math.exp(-3))]
    assert confidence.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@on_each_device
def test_cutmix_by_hand(device):
    a, b = torch.zeros(1, 3, 5, device=device), torch.ones(1, 3, 5, device=device)
    boxes = [[1, 0, 3, 2], [2, 1, 9, 2], [-4, 2, 1, 7], [3, 3, 3, 3], [4, 2, 2, 3]]
    mixed, image = kernels.cutmix(
        [a, a.view(1, 1, 3, 5)], [b, b.view(1, 1, 3, 5)], torch.tensor([boxes], device=device)
    )
    assert mixed.tolist() == [[[0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]]
    assert image.tolist() == [mixed.tolist()]


@on_each_device
def test_classmix_by_hand(device):
    label = torch.tensor([[[0, 7], [255, 0]], [[0, 7], [255, 0]]], dtype=torch.uint8, device=device)
    classes = torch.zeros(2, 256, dtype=torch.bool, device=device)
    classes[0, 7] = classes[0, 255] = classes[1, 0] = True
    (mixed,) = kernels.classmix([torch.zeros_like(label)], [label + 1], label, classes)
    assert mixed.tolist() == [[[0, 8], [0, 0]], [[1, 0], [0, 1]]]  # 255 + 1 wraps to 0
    image = torch.zeros(2, 3, 2, 2, device=device)
    (mixed,) = kernels.classmix([image], [image + 1], label, classes)
    assert mixed[:, 2].tolist() == [[[0, 1], [1, 0]], [[1, 0], [0, 1]]]


@on_each_device
def test_classmix_with_bools_of_other_bytes(device):
    label = torch.tensor([[[0, 3, 3, 3, 1]]], dtype=torch.uint8, device=device)
    classes = torch.zeros(1, 256, dtype=torch.uint8, device=device)
    classes[0, 3], classes[0, 1] = 2, 255
    classes = classes.view(torch.bool)  # whose true values are not all 1
    image = torch.zeros(1, 2, 1, 5, device=device)
    mixed, same = kernels.classmix([label * 0, image], [label * 0 + 1, image + 1], label, classes)
    assert mixed.tolist() == [[[0, 1, 1, 1, 1]]]
    assert same.tolist() == [[[[0, 1, 1, 1, 1]]] * 2]


@on_each_device
@pytest.mark.parametrize(
    ("votes", "weights", "winner"),
    [
        ([3, 3, 1], None, 3),
        ([3, 1, 1, 3], None, 1),  # a tie goes to the lowest
        ([2, 1, 0], None, 0),
        ([9, 9, 4], None, 4),  # 9 is no class: an abstention
        ([9, 9, 9], None, 255),
        ([3, 1, 1], [2.5, 1, 1], 3),
        ([3, 1, 1], [2, 1, 1], 1),
        ([3, 1, 3, 1], [0.5, 1, 1, 0.25], 3),
        ([9, 1], [5, 0.5], 1),
        ([9], [5], 255),
    ],
)
def test_hard_vote_by_hand(device, votes, weights, winner):
    votes = torch.tensor(votes, dtype=torch.uint8, device=device)[:, None]
    assert kernels.hard_vote(votes, 5, weights).tolist() == [winner]


@on_each_device
def test_confidence_histogram_by_hand(device):
    confidence = [0, 0.24, 0.25, 0.99, 1, 1.5, -1, NAN, INF, 0.5]
    pred = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2], dtype=torch.uint8, device=device)
    confidence = torch.tensor(confidence, device=device)
    counts = kernels.confidence_histogram(confidence, pred, 2, 4)
    assert counts.tolist() == [[2, 1, 0, 2], [1, 0, 0, 2]]
    label = torch.tensor([0, 0, 1, 255, 0, 1, 0, 1, 9, 2], dtype=torch.uint8, device=device)
    counts = kernels.confidence_histogram(confidence, pred, 2, 4, label)
    wrong, right = counts.unbind(2)
    assert wrong.tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]  # 9 is no class, so not 1 either
    assert right.tolist() == [[2, 0, 0, 1], [0, 0, 0, 1]]
    everything = kernels.confidence_histogram(confidence, pred, 2, 4, label, ignore_index=-1)
    assert (everything - counts)[0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 0]]


# ---- equal to the reference, bit for bit -------------------------------------------------------

IDS = reference.LABEL_DTYPES
CLASSES = [1, 2, 19, 254, 255, 256]


@on_each_device
@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize(("pred_dtype", "label_dtype"), list(itertools.product(IDS, IDS)))
def test_confusion_matrix_equals_reference(device, pred_dtype, label_dtype, num_classes):
    low = 0 if pred_dtype == torch.uint8 else -3
    pred = random_ids((3, 33, 41), pred_dtype, low, 259 + low).to(device)
    label = random_ids((3, 33, 41), label_dtype, seed=1).to(device)
    label[0, :20] = pred[0, :20] = 0  # runs that are counted at once
    for ignore_index in (255, 0, -3, 1 << 40):
        expected = reference.confusion_matrix(pred, label, num_classes, ignore_index)
        actual = kernels.confusion_matrix(pred, label, num_classes, ignore_index)
        assert_equal(actual, expected)
    assert expected.sum() == pred.numel()  # nothing is lost where nothing is ignored
    for p, l in zip(strided_views(pred), strided_views(label), strict=True):  # noqa: E741
        assert_equal(kernels.confusion_matrix(p, l, num_classes, 1 << 40), expected)


@on_each_device
def test_confusion_matrix_of_nothing_and_of_ignored_labels(device):
    nothing = torch.empty(0, 5, dtype=torch.uint8, device=device)
    assert kernels.confusion_matrix(nothing, nothing, 4).tolist() == [[0] * 5] * 5
    label = torch.full((300, 5), 255, dtype=torch.uint8, device=device)
    assert kernels.confusion_matrix(label, label, 4).tolist() == [[0] * 5] * 5


@on_each_device
@pytest.mark.parametrize("dtype", reference.LOGIT_DTYPES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 19])
def test_argmax_upsample_equals_reference(device, num_classes, align_corners, dtype):
    for (h, w), size in itertools.product([(5, 7), (1, 1), (3, 40)], [(33, 61), (7, 9)]):
        logits = random_floats((2, num_classes, h, w), dtype).to(device) * 4
        expected = reference.argmax_upsample(logits, size, align_corners, True)
        channels_last = logits.contiguous(memory_format=torch.channels_last)
        for view in [*strided_views(logits), channels_last]:
            assert_equal(kernels.argmax_upsample(view, size, align_corners), expected[0])
        assert_equal(kernels.argmax_upsample(channels_last, size, align_corners, True), expected)


@on_each_device
def test_argmax_upsample_with_256_classes_and_without_pixels(device):
    logits = random_floats((1, 256, 3, 4)).to(device)
    expected = reference.argmax_upsample(logits, (17, 9), False, True)
    assert_equal(kernels.argmax_upsample(logits, (17, 9), with_confidence=True), expected)
    assert kernels.argmax_upsample(logits, (0, 9)).shape == (1, 0, 9)
    assert kernels.argmax_upsample(logits[:0], (5, 9)).shape == (0, 5, 9)
    pred, confidence = kernels.argmax_upsample(logits, (5, 0), with_confidence=True)
    assert pred.shape == confidence.shape == (1, 5, 0)


@on_each_device
@pytest.mark.parametrize("lead", [0, 1, 2, 4, 16, 64, 256])
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-3, 1.0, 3e4, 1e38, 3.3e38])
def test_argmax_upsample_of_near_ties(device, scale, lead):
    """Give class 1 a lead of a few units in the last place at every corner.

    Rounding inside a cell may take it away, and class 0 then wins the tie: the C++ kernel must
    not take the corners' word for it.
    """
    generator = torch.Generator().manual_seed(lead)
    values = (torch.rand(1, 1, 6, 9, generator=generator) * 2 - 1) * scale
    ahead = (values.view(torch.int32) + lead * values.sign().int()).view(torch.float32)
    far_below = torch.full_like(values, -3.4e38)
    logits = torch.cat([values, ahead, far_below], 1).to(device)
    expected, _ = reference.argmax_upsample(logits, (90, 140), True, False)
    assert_equal(kernels.argmax_upsample(logits, (90, 140), True), expected)
    if lead == 1 and 1e-38 < scale < 1e38:
        assert 0 < (expected == 0).sum() < expected.numel()  # the hard case does occur


@on_each_device
def test_argmax_upsample_of_special_values(device):
    logits = random_floats((4, 5, 8, 8))
    for seed, value in enumerate([NAN, INF, -INF, 3.4e38, -3.4e38, 0.0, -0.0]):
        logits[random_ids(logits.shape, high=9, seed=seed) == 0] = value
    logits = logits.to(device)
    for align_corners in (False, True):
        expected = reference.argmax_upsample(logits, (50, 70), align_corners, True)
        assert_equal(kernels.argmax_upsample(logits, (50, 70), align_corners), expected[0])
        assert_equal(kernels.argmax_upsample(logits, (50, 70), align_corners, True), expected)


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
def test_argmax_upsample_agrees_with_interpolate(device, align_corners):
    logits = random_floats((1, 19, 33, 65)).to(device)
    pred, confidence = kernels.argmax_upsample(logits, (264, 520), align_corners, True)
    full = F.interpolate(logits, size=(264, 520), mode="bilinear", align_corners=align_corners)
    differ = pred != full.argmax(1)
    assert differ.float().mean() <= 1e-5
    first, second = full.topk(2, dim=1).values.unbind(1)
    assert (first - second)[differ].max() < 1e-5 if differ.any() else True
    torch.testing.assert_close(confidence, full.softmax(1).amax(1), rtol=2e-5, atol=0)


def mix_entries(device, height=31, width=48):
    def make(seed):
        return [
            random_floats((2, 3, height, width), seed=seed),
            random_ids((2, height, width), seed=seed),
            random_ids((2, height, width), torch.int64, -5, 5, seed),
            random_floats((2, 1, height, width), torch.bfloat16, seed),
            random_ids((2, height, width), torch.bool, 0, 2, seed),
            random_floats((2, height, width), torch.complex128, seed),
        ]

    return [t.to(device) for t in make(1)], [t.to(device) for t in make(2)]


@on_each_device
@pytest.mark.parametrize("size", [(31, 48), (1, 1), (7, 37), (0, 5), (5, 0)])
def test_mixes_equal_reference(device, size):
    a, b = mix_entries(device, *size)
    boxes = random_ids((2, 3, 4), torch.int64, -10, 60).to(device)
    label, classes = a[1], random_ids((2, 256), torch.bool, 0, 2).to(device)
    for make in (lambda tensors: tensors, lambda tensors: [strided_views(t)[2] for t in tensors]):
        x, y = make(a), make(b)
        assert_equal(kernels.cutmix(x, y, boxes), reference.cutmix(a, b, boxes))
        assert_equal(kernels.cutmix(x, y, boxes[:, :0]), a)
        expected = reference.classmix(a, b, label, classes)
        assert_equal(kernels.classmix(x, y, strided_views(label)[1], classes), expected)
    huge = torch.tensor([[[-(1 << 62), -(1 << 62), 1 << 62, 1 << 62]]] * 2, device=device)
    assert_equal(kernels.cutmix(a, b, huge), b)


@on_each_device
@pytest.mark.parametrize("members", [1, 2, 5, 33, 255])
@pytest.mark.parametrize("num_classes", [1, 5, 19, 256])
def test_hard_vote_equals_reference(device, members, num_classes):
    pixels = 700 if members < 30 else 20
    votes = random_ids((members, 3, pixels), high=min(256, num_classes + 2)).to(device)
    tied = [0.1 * (1 + i % 3) for i in range(members)]  # sums that depend on the order of addition
    for weights in (None, tied, [1e-30 if i % 2 else 1e30 for i in range(members)]):
        expected = reference.hard_vote(votes, num_classes, weights)
        for view in strided_views(votes):
            assert_equal(kernels.hard_vote(view, num_classes, weights), expected)
    assert kernels.hard_vote(votes[:, :0], num_classes).shape == (0, pixels)


@on_each_device
@pytest.mark.parametrize(("num_classes", "bins"), [(1, 1), (19, 100), (256, 7), (3, 4096)])
def test_confidence_histogram_equals_reference(device, num_classes, bins):
    confidence = random_floats((5, 777)).sigmoid().to(device)
    confidence[0, :6] = torch.tensor([NAN, INF, -INF, 0, 1, 1 - 2**-24])
    pred = random_ids((5, 777), high=min(num_classes + 1, 256)).to(device)
    pred[1], confidence[1] = 0, 0.75  # runs that are counted at once
    expected = reference.confidence_histogram(confidence, pred, num_classes, bins)
    label = random_ids((5, 777), high=min(num_classes + 1, 256), seed=1).to(device)
    label[1, :700] = 0
    rights = reference.confidence_histogram(confidence, pred, num_classes, bins, label, 1)
    views = [strided_views(each) for each in (confidence, pred, label)]
    for f, p, l in zip(*views, strict=True):  # noqa: E741
        assert_equal(kernels.confidence_histogram(f, p, num_classes, bins), expected)
        assert_equal(kernels.confidence_histogram(f, p, num_classes, bins, l, 1), rights)
    assert kernels.confidence_histogram(confidence[:0], pred[:0], num_classes, bins).sum() == 0


# ---- properties: equal to the reference, whatever the shape, layout and values -----------------


@on_each_device
@checked
@given(
    st.data(),
    shapes(),
    st.sampled_from(IDS),
    st.sampled_from(IDS),
    st.integers(1, 256),
    st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-1, 256),
)
def test_confusion_matrix_property(
    device, data, shape, pred_dtype, label_dtype, num_classes, ignore
):
    pred = data.draw(label_maps(shape, pred_dtype)).to(device)
    label = data.draw(label_maps(shape, label_dtype)).to(device)
    expected = reference.confusion_matrix(pred, label, num_classes, ignore)
    assert_equal(kernels.confusion_matrix(pred, label, num_classes, ignore), expected)


@on_each_device
@checked
@given(
    st.tuples(st.integers(0, 2), CLASS_COUNTS, st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.sampled_from(reference.LOGIT_DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.integers(0, 3),
    SEEDS,
)
def test_argmax_upsample_property(
    device, shape, size, dtype, align_corners, with_confidence, scale, view, seed
):
    # Rounded to few values, so that ties are common.
    logits = (random_floats(shape, seed=seed).round(decimals=1) * scale).to(dtype)
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    logits = [*strided_views(logits), channels_last][view].to(device)
    expected = reference.argmax_upsample(logits, size, align_corners, with_confidence)
    actual = kernels.argmax_upsample(logits, size, align_corners, with_confidence)
    assert_equal(actual, expected if with_confidence else expected[0])


@st.composite
def mixes(draw):
    """Return entries a and b of one N, H and W, and that shape."""
    samples, height, width = draw(st.tuples(st.integers(0, 3), *[st.integers(0, 40)] * 2))
    dtypes = st.sampled_from([torch.uint8, torch.bool, torch.bfloat16, *IDS[1:], torch.float64])
    channels = st.sampled_from([(), (1,), (3,), (0,)])
    a, b = [], []
    for dtype, middle in draw(st.lists(st.tuples(dtypes, channels), min_size=1, max_size=5)):
        for entries in (a, b):
            ids = random_ids((samples, *middle, height, width), seed=draw(SEEDS)).to(dtype)
            entries.append(strided_views(ids)[draw(VIEWS)])
    return a, b, (samples, height, width)


@on_each_device
@checked
@given(mixes(), st.integers(0, 4) | st.sampled_from([32, 33, 70]), SEEDS)
def test_cutmix_property(device, entries, num_boxes, seed):
    a, b = ([tensor.to(device) for tensor in side] for side in entries[:2])
    boxes = random_ids((entries[2][0], num_boxes, 4), torch.int64, -10, 50, seed).to(device)
    assert_equal(kernels.cutmix(a, b, boxes), reference.cutmix(a, b, boxes))


@on_each_device
@checked
@given(st.data(), mixes(), SEEDS)
def test_classmix_property(device, data, entries, seed):
    a, b = ([tensor.to(device) for tensor in side] for side in entries[:2])
    label = data.draw(label_maps(entries[2])).to(device)
    classes = random_ids((len(label), 256), torch.bool, high=2, seed=seed).to(device)
    expected = reference.classmix(a, b, label, classes)
    assert_equal(kernels.classmix(a, b, label, classes), expected)


@on_each_device
@checked
@given(
    st.data(),
    st.integers(1, 12),
    shapes(),
    st.integers(1, 256),
    st.none() | st.lists(st.floats(1e-30, 1e30), min_size=12, max_size=12),
)
def test_hard_vote_property(device, data, members, shape, num_classes, weights):
    votes = data.draw(label_maps([members, *shape])).to(device)
    weights = weights and weights[:members]
    expected = reference.hard_vote(votes, num_classes, weights)
    assert_equal(kernels.hard_vote(votes, num_classes, weights), expected)


@on_each_device
@checked
@given(
    st.data(),
    shapes(),
    st.integers(1, 256),
    st.integers(1, 4096),
    st.booleans(),
    st.none() | st.integers(-1, 256),
)
def test_confidence_histogram_property(device, data, shape, num_classes, bins, saturated, ignore):
    pred = data.draw(label_maps(shape)).to(device)
    values = random_floats(1024, seed=data.draw(SEEDS)).sigmoid()
    values[:7] = torch.tensor([NAN, INF, -INF, -0.0, 1.0, 1 - 2**-24, 1e-45])
    confidence = values[data.draw(label_maps(shape, torch.int64)) * (1 if saturated else 4)]
    confidence = strided_views(confidence)[data.draw(VIEWS)].to(device)
    arguments = [confidence, pred, num_classes, bins]
    if ignore is not None:
        arguments += [data.draw(label_maps(shape)).to(device), ignore]
    expected = reference.confidence_histogram(*arguments)
    assert_equal(kernels.confidence_histogram(*arguments), expected)


# ---- more than 2^31 elements -------------------------------------------------------------------
# On CPUs, memory that is only read takes none: calloc's addresses all lead to one page of zeros.

HUGE_H, HUGE_W = (1 << 16) + 1, 1 << 15


def huge_zeros(shape, dtype, device):
    if kernels.backend(device).startswith("reference"):
        pytest.skip("the reference needs several tensors of this size")
    assert math.prod(shape) > 1 << 31
    if device == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.zeros(shape, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype, device=device)


@on_each_real_device
def test_huge_confusion_matrix(device):
    pred, label = (huge_zeros([(1 << 31) + 100], np.uint8, device) for _ in range(2))
    label[-1] = pred[-2] = 1
    counts = kernels.confusion_matrix(pred, label, 2)
    assert counts.tolist() == [[(1 << 31) + 98, 1, 0], [1, 0, 0], [0, 0, 0]]


@on_each_real_device
def test_huge_confidence_histogram(device):
    confidence = huge_zeros([(1 << 31) + 100], np.float32, device)
    pred = huge_zeros([(1 << 31) + 100], np.uint8, device)
    confidence[-1], pred[-2] = 1.0, 1
    counts = kernels.confidence_histogram(confidence, pred, 2, 2)
    assert counts.tolist() == [[(1 << 31) + 98, 1], [1, 0]]


@on_each_device_at_length
def test_huge_hard_vote(device):
    votes = huge_zeros([17, (1 << 27) + 5], np.uint8, device)
    votes[8:, -1] = 3
    winner = kernels.hard_vote(votes, 4)
    assert winner[-3:].tolist() == [0, 0, 3]
    assert winner.count_nonzero() == 1


@on_each_real_device
@pytest.mark.parametrize("name", ["cutmix", "classmix"])
def test_huge_mix(device, name):
    channels, height, width = 64, 1025, HUGE_W
    pixels = huge_zeros([channels * height * width + width], np.uint8, device)
    # b is a, one row on: less memory to touch
    a, b = (x.view(1, channels, height, width) for x in (pixels[:-width], pixels[width:]))
    a[0, -1, -1, 0], a[0, -1, -1, -1], b[0, -1, -1, -1], b[0, -1, -1, -2] = 5, 6, 7, 8
    if name == "cutmix":
        boxes = torch.tensor([[[width - 1, height - 1, width, height]]], device=device)
        (mixed,) = kernels.cutmix([a], [b], boxes)
    else:
        label = torch.zeros(1, height, width, dtype=torch.uint8, device=device)
        classes = torch.zeros(1, 256, dtype=torch.bool, device=device)
        label[0, -1, -1], classes[0, 9] = 9, True
        (mixed,) = kernels.classmix([a], [b], label, classes)
    assert mixed[0, -1, -1, [0, 1, -2, -1]].tolist() == [5, 0, 0, 7]


@on_each_device_at_length
def test_huge_argmax_upsample(device):
    logits = huge_zeros((1, 2, HUGE_H, HUGE_W // 2), np.float32, device)
    logits[0, 1, -1, -1] = 1  # the last of more than 2^31
    pred = kernels.argmax_upsample(logits, (2, 2), align_corners=True)
    assert pred.tolist() == [[[0, 0], [0, 1]]]
    logits = torch.zeros(1, 2, 99, 2, device=device)
    logits[0, 0, :98], logits[0, 1, 98] = 1, 1  # class 1 wins in the last half of the last cell
    pred = kernels.argmax_upsample(logits, (HUGE_H, HUGE_W), align_corners=True)
    assert pred[0, [0, -999, -99, -1], -1].tolist() == [0, 0, 1, 1]


# ---- mistakes ----------------------------------------------------------------------------------

U8, F32 = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4)
LOGITS, BOXES = torch.zeros(1, 3, 4, 4), torch.zeros(2, 1, 4, dtype=torch.int64)
CHOSEN = torch.zeros(2, 256, dtype=torch.bool)
MISTAKES = [
    ("confusion_matrix", (U8, U8, 0, 255), "num_classes"),
    ("confusion_matrix", (U8, U8, 257, 255), "num_classes"),
    ("confusion_matrix", (F32, U8, 3, 255), "pred must be"),
    ("confusion_matrix", (U8, F32, 3, 255), "label must be"),
    ("confusion_matrix", (U8, U8[:1], 3, 255), "differ in shape"),
    ("argmax_upsample", (LOGITS.double(), (4, 4), False, False), "logits must be"),
    ("argmax_upsample", (LOGITS[0], (4, 4), False, False), "logits must be"),
    ("argmax_upsample", (LOGITS, (4,), False, False), "size must be"),
    ("argmax_upsample", (LOGITS, (4, -1), False, False), "negative"),
    ("argmax_upsample", (LOGITS[:, :0], (4, 4), False, False), "num_classes"),
    ("argmax_upsample", (LOGITS[:, :, :0], (4, 4), False, False), "no rows"),
    ("argmax_upsample", (LOGITS[..., :0], (4, 4), False, False), "no columns"),
    ("cutmix", ([], [], BOXES), "1..16 entries"),
    ("cutmix", ([U8] * 17, [U8] * 17, BOXES), "1..16 entries"),
    ("cutmix", ([U8], [U8, U8], BOXES), "entries"),
    ("cutmix", ([U8], [F32], BOXES), "b has"),
    ("cutmix", ([U8], [U8[:, :2]], BOXES), "b has"),
    ("cutmix", ([U8[0]], [U8[0]], BOXES), "an entry must be"),
    ("cutmix", ([U8, U8[..., :2]], [U8, U8[..., :2]], BOXES), "differ in N, H or W"),
    ("cutmix", ([U8], [U8], BOXES.float()), "boxes must be int64"),
    ("cutmix", ([U8], [U8], BOXES[:1]), "boxes must be"),
    ("classmix", ([F32], [F32], F32, CHOSEN), "label must be uint8"),
    ("classmix", ([F32], [F32], U8[:, :2], CHOSEN), "label must be"),
    ("classmix", ([F32], [F32], U8, CHOSEN[:, :19]), "classes must be"),
    ("hard_vote", (F32, 3, None), "predictions must be uint8"),
    ("hard_vote", (U8[:0], 3, None), "members"),
    ("hard_vote", (U8, 3, [1.0]), "weights"),
    ("hard_vote", (U8, 3, [1.0, NAN]), "weights must lie"),
    ("hard_vote", (U8, 3, [1.0, 0.0]), "weights must lie"),
    ("confidence_histogram", (F32, U8, 3, 0), "bins"),
    ("confidence_histogram", (F32.double(), U8, 3, 9), "confidence must be"),
    ("confidence_histogram", (F32, U8.long(), 3, 9), "pred must be"),
    ("confidence_histogram", (F32, U8[:1], 3, 9), "differ in shape"),
    ("confidence_histogram", (F32, U8, 3, 9, U8.long()), "label must be"),
    ("confidence_histogram", (F32, U8, 3, 9, U8[:1]), "label and pred differ in shape"),
]


@pytest.mark.parametrize("device", DEVICES[:2], indirect=True)
@pytest.mark.parametrize(("name", "arguments", "sentence"), MISTAKES)
def test_mistakes_are_refused_alike(device, name, arguments, sentence):
    for function in (getattr(torch.ops.segshift, name), getattr(reference, name)):
        with pytest.raises(RuntimeError, match=sentence):
            function(*arguments)


# ---- torch.compile -----------------------------------------------------------------------------

CALLS = [
    ("confusion_matrix", (random_ids((2, 9, 11)), random_ids((2, 9, 11), torch.int64), 19, 255)),
    ("argmax_upsample", (random_floats((2, 5, 4, 6)), [9, 13], False, True)),
    ("argmax_upsample", (random_floats((2, 5, 4, 6)), [9, 13], True, False)),
    ("cutmix", ([U8, F32], [U8 + 1, F32 + 1], BOXES + torch.tensor([0, 1, 2, 3]))),
    ("classmix", ([U8, F32], [U8 + 1, F32 + 1], U8, ~CHOSEN)),
    ("hard_vote", (random_ids((3, 50), high=5), 5, None)),
    ("hard_vote", (random_ids((3, 50), high=5), 5, [0.5, 1.0, 2.0])),
    ("confidence_histogram", (F32, U8, 3, 10)),
    ("confidence_histogram", (F32, U8, 3, 10, U8, 7)),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.segshift, name).default, arguments)


def test_compiled_evaluation_equals_eager():
    def evaluate(logits, label):
        pred, confidence = kernels.argmax_upsample(logits * 2, (20, 30), with_confidence=True)
        counts = kernels.confidence_histogram(confidence, pred, 5, 10)
        return kernels.confusion_matrix(pred, label, 5) + 1, counts

    logits, label = random_floats((2, 5, 4, 6)), random_ids((2, 20, 30), high=5)
    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(logits, label), evaluate(logits, label))


def test_inductor_equals_eager():
    """Compile all operations, and arithmetic between them, with torch.compile's own backend."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("Inductor needs a C++ compiler")

    def everything(logits, label, votes, boxes, chosen):
        pred, confidence = kernels.argmax_upsample(logits * 2 - 1, (20, 30), with_confidence=True)
        counts = kernels.confusion_matrix(pred, label, 5)
        mixed, certainty = kernels.cutmix([label, confidence], [pred, 1 - confidence], boxes)
        (mixed,) = kernels.classmix([mixed], [pred], label, chosen)
        histogram = kernels.confidence_histogram(certainty, mixed, 5, 10)
        return counts, histogram, kernels.hard_vote(votes, 5, [1.0, 0.5, 2.0]), mixed

    shape = (2, 20, 30)
    arguments = [random_floats((2, 5, 4, 6)), random_ids(shape, high=5)]
    arguments += [random_ids((3, *shape), high=5, seed=1), torch.tensor([[[3, 4, 20, 15]]] * 2)]
    arguments += [random_ids((2, 256), torch.bool, high=2)]
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True)
    assert_equal(compiled(*arguments), everything(*arguments))
