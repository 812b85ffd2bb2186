"""Losses of regions: by hand, and beside implementations that share nothing with ours."""

import math

import pytest
import torch
from torch import Tensor

from training.losses import LOSSES, cross_entropy, recall
from training.overlap import boundary, dice, focal_tversky, lovasz, tversky

# probabilities (1/2, 1/2) and (1/4, 3/4) of two pixels of classes 0 and 1; a third has no label
LOGITS = torch.tensor([[[[0.0, 0.0, 5.0]], [[0.0, math.log(3), 0.0]]]])
LABEL = torch.tensor([[[0, 1, 255]]])


def drawn(classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits [2,C,9,11] and a label with ignored pixels, its last class in no pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 9, 11, generator=generator)
    label = torch.randint(0, classes - 1, (2, 9, 11), generator=generator)
    return logits, label.masked_fill(torch.rand(2, 9, 11, generator=generator) < 0.2, 255)


# ------------------------------------------------------------------ by hand


def test_lovasz_by_hand():
    """Class 0: its pixel is wrong by 1/2, and comes first: 1/2. Class 1: the other one is wrong by
    1/2 and adds 1 - 1/2; its own by 1/4 and adds the other half: 1/4 + 1/8."""
    assert lovasz(LOGITS, LABEL).item() == pytest.approx((0.5 + 0.375) / 2)
    weighted = lovasz(LOGITS, LABEL, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * 0.5 + 0.375) / 4)


def test_dice_by_hand():
    """2 * 0.5 / (0.75 + 1) and 2 * 0.75 / (1.25 + 1), then with one pixel on both sides."""
    assert dice(LOGITS, LABEL, smooth=0).item() == pytest.approx(1 - (1 / 1.75 + 1.5 / 2.25) / 2)
    smoothed = 1 - (2 / 2.75 + 2.5 / 3.25) / 2
    assert dice(LOGITS, LABEL).item() == pytest.approx(smoothed)


def test_tversky_by_hand():
    """Class 0: TP 0.5, FP 0.25, FN 0.5; class 1: TP 0.75, FP 0.5, FN 0.25."""
    first, second = 0.5 / (0.5 + 0.3 * 0.25 + 0.7 * 0.5), 0.75 / (0.75 + 0.3 * 0.5 + 0.7 * 0.25)
    assert tversky(LOGITS, LABEL, smooth=0).item() == pytest.approx(1 - (first + second) / 2)
    powers = ((1 - first) ** 0.75 + (1 - second) ** 0.75) / 2
    assert focal_tversky(LOGITS, LABEL, smooth=0).item() == pytest.approx(powers)
    assert focal_tversky(LOGITS, LABEL, gamma=1).item() == pytest.approx(
        tversky(LOGITS, LABEL).item()
    )


def test_the_boundary_loss_by_hand():
    """Left half class 0, right half class 1, of six columns: each class's boundary is its column
    at the middle. Sure predictions: met when shifted by one column, lost when by four."""
    label = torch.zeros(1, 5, 12, dtype=torch.long)
    label[:, :, 6:] = 1

    def sure(first: int) -> Tensor:
        logits = torch.full((1, 2, 5, 12), -50.0)
        logits[:, 0, :, :first], logits[:, 1, :, first:] = 50.0, 50.0
        return logits

    assert boundary(sure(6), label).item() == pytest.approx(0, abs=1e-6)
    assert boundary(sure(7), label).item() == pytest.approx(0, abs=1e-6)
    assert boundary(sure(10), label).item() == pytest.approx(1)
    # half sure everywhere: no boundary is predicted
    assert boundary(torch.zeros(1, 2, 5, 12), label).item() == pytest.approx(1)
    # a third class in place of half of the right side, at the far end: it is predicted nowhere
    assert boundary(sure(9), label, width=3, tolerance=7).item() == pytest.approx(0, abs=1e-6)


def test_smoothed_cross_entropy_by_hand():
    """0.1 of the target is shared: 0.95 of the true class, 0.05 of the other."""
    first = math.log(2)
    second = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)
    ours = cross_entropy(LOGITS, LABEL, smoothing=0.1)
    assert ours.item() == pytest.approx((first + second) / 2)


def test_recall_by_hand():
    """Class 0 has two pixels, one of which is right: its weight is 1/2; class 1 is all wrong."""
    logits = torch.tensor([[[[2.0, 0.0, 2.0, 9.0]], [[0.0, 2.0, 0.0, 0.0]]]])
    label = torch.tensor([[[0, 0, 1, 255]]])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    expected = (0.5 * right + 0.5 * wrong + wrong) / 3
    assert recall(logits, label).item() == pytest.approx(expected)
    doubled = recall(logits, label, torch.tensor([2.0, 1.0])).item()
    assert doubled == pytest.approx((right + wrong + wrong) / 3)


# ------------------------------------------------------------------ beside other implementations


def jaccard_integral(logits: Tensor, label: Tensor) -> float:
    """Integrate the Jaccard loss of {pixels whose error is above t} over t, in Python's floats."""
    probs, losses = logits.double().softmax(1), []
    for c in range(logits.shape[1]):
        of_class, errors = [], []
        for p, t in zip(probs[:, c].flatten().tolist(), label.flatten().tolist(), strict=True):
            if t != 255:
                of_class.append(t == c)
                errors.append(1 - p if t == c else p)
        if not any(of_class):
            continue
        area, below = 0.0, 0.0
        for level in sorted(errors):
            wrong = [e >= level for e in errors]
            missed = sum(w and f for w, f in zip(wrong, of_class, strict=True))
            added = sum(w and not f for w, f in zip(wrong, of_class, strict=True))
            iou = (sum(of_class) - missed) / (sum(of_class) + added)
            area, below = area + (1 - iou) * (level - below), level
        losses.append(area)
    return sum(losses) / len(losses)


def counted(logits: Tensor, label: Tensor, fp: float, fn: float, smooth: float) -> list[float]:
    """Return Tversky's loss of every class in the label, counted pixel by pixel."""
    probs, losses = logits.double().softmax(1).movedim(1, -1).flatten(0, 2), []
    for c in range(logits.shape[1]):
        tp = wrong = missed = 0.0
        for p, t in zip(probs[:, c].tolist(), label.flatten().tolist(), strict=True):
            if t == 255:
                continue
            tp, missed = tp + p * (t == c), missed + (1 - p) * (t == c)
            wrong += p * (t != c)
        if c in label:
            losses.append(1 - (tp + smooth) / (tp + fp * wrong + fn * missed + smooth))
    return losses


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lovasz_is_the_integral_of_the_jaccard_loss(seed: int):
    logits, label = drawn(seed=seed)
    assert lovasz(logits, label).item() == pytest.approx(jaccard_integral(logits, label), rel=1e-5)


def test_the_gradient_of_lovasz_is_its_slope():
    logits, label = drawn()
    logits.requires_grad_()
    lovasz(logits, label).backward()
    way = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
    at, step = logits.detach().double(), 1e-6
    slope = (jaccard_integral(at + step * way, label) - jaccard_integral(at, label)) / step
    assert (logits.grad * way).sum().item() == pytest.approx(slope, rel=1e-3)


def test_the_tversky_family_equals_a_count():
    logits, label = drawn()
    for fp, fn, smooth in ((0.3, 0.7, 1.0), (0.6, 0.2, 0.0)):
        losses = counted(logits, label, fp, fn, smooth)
        ours = tversky(logits, label, fp=fp, fn=fn, smooth=smooth).item()
        assert ours == pytest.approx(sum(losses) / 4, rel=1e-5)
        powers = [loss ** (1 / 1.5) for loss in losses]
        ours = focal_tversky(logits, label, fp=fp, fn=fn, smooth=smooth, gamma=1.5).item()
        assert ours == pytest.approx(sum(powers) / 4, rel=1e-5)
    losses = counted(logits, label, 0.5, 0.5, 0.5)
    assert dice(logits, label).item() == pytest.approx(sum(losses) / 4, rel=1e-5)


# ------------------------------------------------------------------ what holds for every loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_is_0_with_zero_gradients(name: str):
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    label = torch.full((2, 8, 8), 255)
    for weights in ((None, None), (torch.ones(4), None), (None, torch.ones(2, 8, 8))):
        loss = LOSSES[name](logits, label, *weights)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_logits_are_computed_in_float32(name: str):
    logits, label = drawn()
    coarse = logits.bfloat16().requires_grad_()
    loss = LOSSES[name](coarse, label)
    assert loss.dtype == torch.float32
    assert loss.item() == LOSSES[name](logits.bfloat16().float(), label).item()
    loss.backward()
    assert coarse.grad.isfinite().all()
    assert coarse.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_do_not_count(name: str):
    logits, label = drawn()
    logits.requires_grad_()
    loss = LOSSES[name](logits, label)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.movedim(1, -1)[label == 255].abs().max() == 0
    other = torch.where((label == 255)[:, None], 40.0, logits.detach())
    torch.testing.assert_close(LOSSES[name](other, label), loss.detach())


@pytest.mark.parametrize("name", LOSSES)
def test_half_the_weight_of_every_pixel_is_half_the_loss(name: str):
    logits, label = drawn()
    how = {"smooth": 0} if name in ("dice", "tversky", "focal_tversky") else {}  # a whole pixel's

    def weighted(weight: float) -> Tensor:
        return LOSSES[name](logits, label, None, torch.full(label.shape, weight), **how)

    torch.testing.assert_close(weighted(0.5), weighted(1.0) / 2)
    if name != "ohem":  # whose mean is over the hard pixels
        share = (label != 255).float().mean()
        torch.testing.assert_close(weighted(1.0), LOSSES[name](logits, label, **how) * share)


@pytest.mark.parametrize("name", LOSSES)
def test_sure_and_wrong_logits_have_finite_gradients(name: str):
    label = torch.tensor([[[0, 1, 0, 255], [1, 1, 0, 0]]])
    for sign in (1.0, -1.0):
        logits = sign * torch.stack([200.0 * (label == c) for c in range(3)], 1)
        logits.requires_grad_()
        loss = LOSSES[name](logits, label)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


def test_lovasz_weighs_pixels_as_if_they_stood_there_several_times():
    logits, label = drawn()
    times = torch.randint(1, 4, (1, 1, 11), generator=torch.Generator().manual_seed(1))
    repeated = times.flatten()
    several = lovasz(logits.repeat_interleave(repeated, 3), label.repeat_interleave(repeated, 2))
    weight = times.expand(label.shape).float()
    scale = (weight * (label != 255)).mean()
    ours = lovasz(logits, label, None, weight)
    torch.testing.assert_close(ours, several * scale, rtol=1e-4, atol=1e-6)
