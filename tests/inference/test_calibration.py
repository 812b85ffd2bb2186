"""Calibration: against NumPy, by hand, and temperatures that are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.errors import UserError
from inference.calibration import BINS, Calibration, fit_temperature, sampled

NAMES = ["a", "b", "c", "d"]


def reference(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return equation 3 of Guo et al. in percent."""
    place = np.clip((confidence * np.float32(BINS)).astype(int), 0, BINS - 1)
    error = 0.0
    for b in range(BINS):
        own = place == b
        if own.any():
            gap = right[own].mean() - confidence[own].astype(np.float64).mean()
            error += own.sum() / len(confidence) * abs(gap)
    return 100 * error


@pytest.fixture
def pixels():
    rng = np.random.default_rng(3)
    pred = rng.integers(0, 3, (5, 40, 50)).astype(np.uint8)  # d is never predicted
    confidence = rng.beta(5, 2, pred.shape).astype(np.float32)
    confidence[0, 0, :4] = 0, 1, 1 / 15, 2 / 15
    label = np.where(rng.random(pred.shape) < confidence**2, pred, rng.integers(0, 4, pred.shape))
    label = label.astype(np.uint8)
    label[rng.random(pred.shape) < 0.1] = 255
    return pred, confidence, label


def test_errors_equal_those_of_numpy(pixels):
    pred, confidence, label = pixels
    found = Calibration(4)
    for i in range(5):
        found.update(*(torch.from_numpy(x[i : i + 1]) for x in (pred, confidence, label)))
    found.add_up_processes()
    summary = found.summary(NAMES)
    kept = label != 255
    assert summary["ece"] == pytest.approx(
        reference(confidence[kept], (pred == label)[kept]), abs=1e-6
    )
    for c, name in enumerate(NAMES[:3]):
        own = kept & (pred == c)
        wanted = reference(confidence[own], (pred == label)[own])
        assert summary["ece_by_class"][name] == pytest.approx(wanted, abs=1e-6)
    assert summary["ece_by_class"]["d"] is None
    assert sum(n for n, *_ in summary["reliability"]["bins"]) == kept.sum()
    assert summary["reliability"]["classes"]["d"] == [[0, 0.0, 0.0]] * BINS


def test_an_error_by_hand():
    found = Calibration(2)
    pred = torch.zeros(1, 1, 4, dtype=torch.uint8)
    label = torch.tensor([[[0, 0, 0, 1]]], dtype=torch.uint8)
    found.update(pred, torch.tensor([[[0.95, 0.95, 0.5, 0.5]]]), label)
    found.add_up_processes()
    # half the pixels 95 % sure and all right, half 50 % sure and half right
    assert found.summary(["a", "b"])["ece"] == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("wanted", [0.4, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(wanted):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / wanted).softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(wanted, rel=0.02)
    grid = found * torch.linspace(0.9, 1.1, 21, dtype=torch.float64)
    losses = [F.cross_entropy(logits / t, labels).item() for t in grid]
    assert min(losses) == losses[10]  # no neighbour says the labels better


def test_where_no_temperature_is_best_that_is_said():
    logits = torch.tensor([[3.0, 0], [0, 2]], dtype=torch.float64)
    for labels in ([0, 1], [1, 0]):
        with pytest.raises(UserError, match="no temperature can be fitted: the best is beyond"):
            fit_temperature(logits, torch.tensor(labels))
    with pytest.raises(UserError, match="no labelled pixel"):
        fit_temperature(logits[:0], torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("align_corners", [False, True])
def test_samples_are_the_logits_resized_to_the_label(align_corners):
    logits = torch.randn(3, 5, 7)
    label = torch.full((33, 41), 255, dtype=torch.uint8)
    label[3:30:3, 2:40:5] = 1
    label[0, 0], label[32, 40] = 0, 2
    size = {"size": (33, 41), "mode": "bilinear", "align_corners": align_corners}
    whole = F.interpolate(logits.double()[None], **size)[0].flatten(1).T
    values, labels = sampled(logits, label, align_corners, 255, seed=0)
    assert len(labels) == (label != 255).sum()
    assert sorted(labels.tolist()) == sorted(label[label != 255].tolist())
    first = values[labels == 0]
    torch.testing.assert_close(first[0], whole[0])
    torch.testing.assert_close(values[labels == 2][0], whole[-1])
    torch.testing.assert_close(
        values.sort(0).values, whole[(label != 255).flatten()].sort(0).values
    )
