"""Check soft_vote: by hand, beside the plain way, bit for bit, and what it needs of memory."""

import math
import os
import subprocess
import sys

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
    assert_equal,
    checked,
    on_each_device,
    random_floats,
    strided_views,
)
from kernels import reference
from worlds import ROOT

NAN, INF = math.nan, math.inf
KINDS = [(True, False), (True, True), (False, True)]  # probabilities, with_confidence


def vote_both_ways(members, size, weights, align_corners):
    """Assert that the compiled operation and the reference agree, whatever is asked for."""
    for probabilities, with_confidence in KINDS:
        words = (members, size, weights, align_corners, probabilities, with_confidence)
        assert_equal(torch.ops.segshift.soft_vote(*words), reference.soft_vote(*words))


@on_each_device
def test_soft_vote_by_hand(device):
    # two classes, 1x2 and 1x1: the first member turns to class 1 on its way, the second is for 0
    turning = torch.tensor([[0.9, 0.1], [0.1, 0.9]], device=device).view(1, 2, 1, 2)
    steady = torch.tensor([0.6, 0.4], device=device).view(1, 2, 1, 1)
    pred, confidence = kernels.soft_vote([turning, steady], (1, 4), with_confidence=True)
    # pixels at 0, 1/4, 3/4, 1 of the way: class 0 has 0.9, 0.7, 0.3, 0.1 of the first
    assert pred.tolist() == [[[0, 0, 1, 1]]]
    assert confidence.flatten().tolist() == pytest.approx([0.75, 0.65, 0.55, 0.65])
    pred, confidence = kernels.soft_vote(
        [turning, steady], (1, 4), [1, 3], with_confidence=True, probabilities=False
    )
    means = [(0.9 + 1.8) / 4, (0.7 + 1.8) / 4, (0.3 + 1.8) / 4, (0.1 + 1.8) / 4]  # of class 0
    assert pred.tolist() == [[[0, 0, 0, 1]]]
    expected = [1 / (1 + math.exp(-abs(2 * mean - 1))) for mean in means]
    assert confidence.flatten().tolist() == pytest.approx(expected)


@on_each_device
def test_soft_vote_of_ties_and_nan(device):
    pixels = [[0.5, 0.5], [NAN, 0.1], [NAN, NAN], [INF, 1.0], [0.25, 0.75]]
    one = torch.tensor(pixels, device=device).view(5, 2, 1, 1)
    other = torch.full_like(one, 0.5)
    for members in ([one, other], [other, one]):
        pred, confidence = kernels.soft_vote(members, (2, 2), with_confidence=True)
        assert pred[:, 0, 0].tolist() == [0, 1, 0, 1, 1]  # infinity times a weight of 0 is NaN
        assert confidence[:, 0, 0].tolist() == pytest.approx([0.5, 0.3, 0, 0.75, 0.625])


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
def test_soft_vote_of_one_is_argmax_upsample(device, align_corners):
    logits = random_floats((2, 7, 5, 9)).to(device)
    expected = kernels.argmax_upsample(logits, (33, 50), align_corners, with_confidence=True)
    actual = kernels.soft_vote(
        [logits], (33, 50), [3.0], align_corners, probabilities=False, with_confidence=True
    )
    assert_equal(actual, expected)


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
def test_soft_vote_agrees_with_full_size_means(device, align_corners):
    grids, weights, size = [(8, 16), (16, 32), (5, 9)], [1.0, 2.0, 0.5], (64, 128)
    members = [random_floats((2, 6, *g), seed=i).softmax(1) for i, g in enumerate(grids)]
    members = [member.to(device) for member in members]
    resized = [
        F.interpolate(member, size, mode="bilinear", align_corners=align_corners)
        for member in members
    ]
    mean = sum(w * x for w, x in zip(weights, resized, strict=True)) / sum(weights)
    best, second = mean.topk(2, 1).values.unbind(1)
    pred, confidence = kernels.soft_vote(
        members, size, weights, align_corners, with_confidence=True
    )
    assert torch.allclose(confidence, best, atol=1e-6)
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.99
    assert_equal(pred[clear], mean.argmax(1).byte()[clear])


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 19, 256])
def test_soft_vote_equals_reference(device, num_classes, align_corners):
    size = (37, 53) if num_classes < 20 else (9, 11)
    grids = [(5, 7), (10, 14), (1, 1), (4, 3)]
    members = [random_floats((2, num_classes, *g), seed=i) for i, g in enumerate(grids)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32]
    members = [m.to(d).to(device) for m, d in zip(members, dtypes, strict=True)]
    for view in range(3):
        views = [strided_views(member)[view] for member in members]
        vote_both_ways(views, size, [0.25, 0.5, 0.125, 1e-30], align_corners)
    vote_both_ways(members, (0, 5), [1.0] * 4, align_corners)
    vote_both_ways([member[:0] for member in members], (3, 5), [1.0] * 4, align_corners)


@on_each_device
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("lead", [0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e6, 3e37])
def test_soft_vote_of_near_ties(device, lead, scale, align_corners):
    """Where classes are within rounding, no block may be filled that the reference would split."""
    size = (120, 200)
    members = []
    for i, grid in enumerate([(3, 4), (6, 8), (5, 5)]):
        member = random_floats((1, 4, *grid), seed=i)
        member[:, 1] = member[:, 0] + lead * random_floats((1, *grid), seed=9 + i)
        member[:, 3] = 1.0 - member[:, 0]  # what one member takes another gives
        members.append((member * scale * (-1) ** i).to(device))
    vote_both_ways(members, size, [0.5, 0.25, 0.25], align_corners)


@on_each_device
def test_soft_vote_of_special_values(device):
    members = [random_floats((1, 3, 6, 6), seed=i).to(device) for i in range(2)]
    for value in (NAN, INF, -INF, 3e38, -3e38, 1e-45):
        for place in range(6):
            spoilt = [member.clone() for member in members]
            spoilt[place % 2][0, place % 3, place, 5 - place] = value
            vote_both_ways(spoilt, (20, 30), [0.5, 0.5], False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_soft_vote_by_several_threads(threads):
    members = [random_floats((2, 5, *grid), seed=3) for grid in [(20, 30), (9, 17)]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vote_both_ways(members, (300, 401), [0.3, 0.7], False)
    finally:
        torch.set_num_threads(before)


GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


@on_each_device
@checked
@given(
    st.integers(0, 2),
    CLASS_COUNTS,
    st.lists(
        st.tuples(GRIDS, st.sampled_from(reference.LOGIT_DTYPES), st.floats(0.01, 1.0)),
        min_size=1,
        max_size=5,
    ),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.booleans(),
    st.sampled_from(KINDS),
    SEEDS,
)
def test_soft_vote_property(device, samples, num_classes, votes, size, align_corners, kind, seed):
    members = []
    for i, (grid, dtype, _) in enumerate(votes):
        member = random_floats((samples, num_classes, *grid), seed=seed + i)
        smooth = member[..., :1, :1] + member.round(decimals=1) / 4  # ties, and clear cells
        members.append(strided_views(smooth.to(dtype))[(seed + i) % 3].to(device))
    words = (members, size, [weight for *_, weight in votes], align_corners, *kind)
    assert_equal(torch.ops.segshift.soft_vote(*words), reference.soft_vote(*words))


@pytest.mark.parametrize("device", DEVICES[:2], indirect=True)
def test_mistakes(device):
    one = torch.zeros(1, 3, 4, 4)
    mistakes = [
        ([one] * 33, (4, 4), [1.0] * 33, "1..32 members"),
        ([one, one], (4, 4), [1.0], "2 members but 1 weights"),
        ([one, one[:, :2]], (4, 4), [1.0, 1.0], "members differ in N or C"),
        ([one, one[:0]], (4, 4), [1.0, 1.0], "members differ in N or C"),
        ([one.double()], (4, 4), [1.0], "logits must be"),
        ([one], (4,), [1.0], "size must be"),
        ([one], (4, 4), [0.0], "weights must lie"),
        ([one], (4, 4), [NAN], "weights must lie"),
    ]
    for members, size, weights, sentence in mistakes:
        for function in (torch.ops.segshift.soft_vote, reference.soft_vote):
            with pytest.raises(RuntimeError, match=sentence):
                function(members, size, weights, False, True, False)
    with pytest.raises(RuntimeError, match="weights must lie"):
        kernels.soft_vote([one, one], (4, 4), [1.0, -1.0])


def test_no_members():
    with pytest.raises(RuntimeError, match=r"1\.\.32 members"):
        kernels.soft_vote([], (4, 4))


def test_opcheck():
    members = [random_floats((2, 5, 4, 6)), random_floats((2, 5, 2, 3))]
    for kind in KINDS:
        arguments = (members, [9, 13], [0.5, 0.5], False, *kind)
        torch.library.opcheck(torch.ops.segshift.soft_vote.default, arguments)


MEMORY = """
import resource, sys
import torch, kernels
members = [torch.rand(1, 19, 128, 256) for _ in range(5)]
kernels.soft_vote([m[..., :2, :2] for m in members], (4, 4), with_confidence=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pred, confidence = kernels.soft_vote(
    members, (1024, 2048), with_confidence=True, probabilities=sys.argv[1] == "True"
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB on Linux")
@pytest.mark.parametrize("probabilities", [True, False])
def test_soft_vote_needs_no_more_than_its_result(probabilities):
    """Five members, 19 classes, 2048x1024: the full-size means alone would be 159 MB."""
    if not kernels.backend("cpu").startswith("C++"):
        pytest.skip("the C++ kernels are not compiled")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(probabilities)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 30e6
