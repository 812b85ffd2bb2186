"""Intervals of scores: the draws by hand, their coverage by simulation, pairs that are paired."""

import pytest
import torch

from inference import intervals
from inference.metrics import ConfusionMatrix


def image(hits: int, misses: int, background: int = 50) -> torch.Tensor:
    """Return the matrix of an image of two classes, some pixels of class 1 missed."""
    return torch.tensor([[background, 0, 0], [misses, hits, 0], [0, 0, 0]])


def test_a_draw_is_scored_as_the_images_it_holds(monkeypatch):
    counts = torch.stack([image(10, 0), image(0, 10), image(5, 5, 7)])
    taken = torch.tensor([[1.0, 1, 1], [3, 0, 0], [0, 1, 2]]).double()
    monkeypatch.setattr(intervals, "drawn", lambda *_: taken)
    for draw, miou in zip(taken.long(), intervals.drawn_miou(counts, draws=3), strict=True):
        whole = ConfusionMatrix(2, ["a", "b"])
        whole.counts = (counts * draw[:, None, None]).sum(0)
        assert miou.item() == pytest.approx(whole.compute()["miou"], abs=1e-9)
    only = intervals.drawn_miou(counts, scored=[1], draws=3)
    assert only[1].item() == pytest.approx(100)
    assert only[2].item() == pytest.approx(100 * 10 / 30)


def test_what_is_predicted_outside_the_classes_is_a_miss():
    counts = torch.tensor([[[8, 0, 2], [0, 5, 0], [0, 0, 0]]])
    whole = ConfusionMatrix(2, ["a", "b"], allow_void=True)
    whole.counts = counts[0]
    assert intervals.drawn_miou(counts, draws=1).item() == whole.compute()["miou"] == 90


def test_an_absent_class_is_left_out_of_a_draw():
    counts = torch.tensor([[[4, 0, 0], [0, 0, 0], [0, 0, 0]]])
    assert intervals.drawn_miou(counts, draws=2).tolist() == [100, 100]
    assert intervals.drawn_miou(counts * 0, draws=2).isnan().all()


def test_draws_have_as_many_images_and_repeat():
    taken = intervals.drawn(7, draws=20)
    assert taken.sum(1).tolist() == [7] * 20
    assert torch.equal(taken, intervals.drawn(7, draws=20))
    assert not torch.equal(taken, intervals.drawn(7, draws=20, seed=1))


def test_an_interval_of_95_percent_holds_the_truth_in_about_95_percent_of_samples():
    """400 samples of 60 images; an interval of 90 percent, or of pixels, would fall out."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([0.3, 0.5, 0.9])  # what an image's share of hits may be

    def sample(images: int) -> torch.Tensor:
        hits = (100 * rates[torch.randint(3, (images,), generator=generator)]).long()
        return torch.stack([image(int(h), 100 - int(h)) for h in hits])

    truth = intervals.drawn_miou(sample(20_000), draws=1).item()
    inside = 0
    for _ in range(400):
        low, high = intervals.interval(intervals.drawn_miou(sample(60), draws=300))
        inside += low <= truth <= high
    assert 0.91 <= inside / 400 <= 0.98


def test_a_difference_is_of_pairs():
    """Images differ by far more than the networks do; pairs tell them apart all the same."""
    generator = torch.Generator().manual_seed(0)
    hits = torch.randint(20, 80, (50,), generator=generator).tolist()
    worse = intervals.drawn_miou(torch.stack([image(h, 100 - h) for h in hits]))
    better = intervals.drawn_miou(torch.stack([image(h + 2, 98 - h) for h in hits]))
    found = intervals.difference(better, worse)
    assert 0 < found.interval.low < found.interval.high < 4
    assert found.p_value < 0.01
    assert intervals.interval(better).low < worse.mean() < better.mean()
    assert str(found).startswith("[+")
    same = intervals.difference(worse, worse)
    assert same.p_value == 1
    assert same.interval == (0, 0)
