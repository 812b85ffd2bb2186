"""Losses against numbers worked by hand."""

import math

import pytest
import torch

from training import losses


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits = torch.tensor([[[[0.0, 0.0, 5.0]], [[0.0, math.log(3), 0.0]]]])  # [1,2,1,3]
    label = torch.tensor([[[0, 1, 255]]])
    # -log(1/2) and -log(3/4); the third pixel is ignored
    assert losses.cross_entropy(logits, label).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )


def test_cross_entropy_weighs_classes_as_torch_does():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    label[0, :2] = 255
    weight = torch.tensor([0.5, 1.0, 4.0])
    expected = torch.nn.functional.cross_entropy(logits, label, weight=weight, ignore_index=255)
    ours = losses.cross_entropy(logits, label, class_weight=weight)
    torch.testing.assert_close(ours, expected)


def test_a_crop_without_labels_gives_zero_and_zero_gradients():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    label = torch.full((1, 4, 4), 255)
    for weight in (None, torch.ones(3)):
        loss = losses.cross_entropy(logits, label, class_weight=weight)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().sum() == 0


def test_pixel_weights_divide_by_all_pixels():
    logits = torch.zeros(1, 4, 1, 2)
    label = torch.tensor([[[1, 255]]])
    weight = torch.tensor([[[0.5, 1.0]]])
    # 0.5 * log 4 on the first pixel, nothing on the ignored one, over two pixels
    ours = losses.cross_entropy(logits, label, pixel_weight=weight)
    assert ours.item() == pytest.approx(0.5 * math.log(4) / 2)


def test_focal_by_hand():
    """Probabilities 1/2 and 3/4 of the true class: (1/2)^2 ln 2 and (1/4)^2 ln 4/3."""
    logits = torch.tensor([[[[0.0, 0.0, 5.0]], [[0.0, math.log(3), 0.0]]]])
    label = torch.tensor([[[0, 1, 255]]])
    first, second = math.log(2) / 4, math.log(4 / 3) / 16
    assert losses.focal(logits, label).item() == pytest.approx((first + second) / 2)
    weighted = losses.focal(logits, label, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * first + second) / 4)
    pixel_weight = torch.tensor([[[1.0, 0.5, 1.0]]])
    by_pixel = losses.focal(logits, label, None, pixel_weight)
    assert by_pixel.item() == pytest.approx((first + second / 2) / 3)


@pytest.mark.parametrize("balanced", [False, True])
def test_focal_with_gamma_0_is_cross_entropy(balanced: bool):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    label = torch.randint(0, 5, (2, 8, 8)).where(torch.rand(2, 8, 8) < 0.8, 255)
    label[label == 4] = 255
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0]) if balanced else None
    ours, plain = (
        losses.focal(logits, label, weight, gamma=0.0),
        losses.cross_entropy(logits, label, weight),
    )
    torch.testing.assert_close(ours, plain)
    for gamma in (0.0, 0.5, 2.0):  # a sure pixel has no infinite slope
        sure = torch.tensor([[[[200.0]], [[0.0]]]], requires_grad=True)
        losses.focal(sure, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=gamma).backward()
        assert sure.grad.isfinite().all()


def test_entropy_runs_from_zero_to_one():
    assert losses.entropy(torch.zeros(1, 5, 2, 2)).item() == pytest.approx(1.0)
    sure = torch.zeros(1, 5, 2, 2)
    sure[:, 2] = 200.0
    assert losses.entropy(sure).item() == pytest.approx(0.0, abs=1e-6)


def test_entropy_equals_advents_formula():
    torch.manual_seed(0)
    logits = torch.randn(2, 19, 5, 7)
    probs = logits.softmax(1)
    n, c, h, w = probs.shape
    advent = -(probs * torch.log2(probs + 1e-30)).sum() / (n * h * w * math.log2(c))
    torch.testing.assert_close(losses.entropy(logits), advent)
    torch.testing.assert_close(losses.weighted_information(probs).sum(1).mean(), advent)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [("Vanilla", 0.0, math.log(4)), ("Vanilla", 1.0, math.log(4 / 3)), ("LS", 0.0, 1.2069489)],
)
def test_gan_losses_by_hand(kind: str, target: float, expected: float):
    decision = torch.full((1, 1, 2, 2), math.log(3))  # sigmoid 3/4, square 1.2069
    assert losses.gan(decision, target, kind).item() == pytest.approx(expected, rel=1e-6)
