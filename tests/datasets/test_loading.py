"""From datasets to batches: the order of steps, rare classes, statistics of the labels."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedata
import train_da
from datasets import build_dataset, loading
from datasets.base import SegmentationDataset
from datasets.order import ClassesInTurn, RareClasses
from datasets.statistics import class_counts, class_weights
from engine import options, training_options
from engine.errors import UserError
from engine.values import Loading
from training.augment import geometry

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path):
    """Return six images of 40x30 pixels, two in each of three classes and one corner of another."""
    root = fakedata.make_gta5(tmp_path / "gta5", n=6, size=(40, 30))
    for i in range(6):
        ids = np.full((30, 40), (7, 8, 11)[i // 2], np.uint8)  # road, sidewalk, building
        ids[:3, :4] = (33, 0)[i % 2]  # bicycle or nothing
        fakedata.save(root / "labels" / f"{i + 1:05d}.png", ids)
    return build_dataset("gta5", root, split="train", size=(40, 30))


def first(count: int, batches) -> list[dict]:
    """Return the first batches."""
    return list(itertools.islice(batches, count))


# ---- statistics


def test_class_counts_by_hand(source, tmp_path: Path):
    counts = class_counts(source, tmp_path, Loading(0))
    expected = torch.zeros(6, 19, dtype=torch.int64)
    for i in range(6):
        expected[i, i // 2] = 40 * 30 - 12
        expected[i, 18] = 12 * (i % 2 == 0)
    assert torch.equal(counts, expected)
    assert torch.equal(class_counts(source, tmp_path / "again", Loading(2)), expected)


def test_labels_are_counted_once_and_again_when_they_change(source, tmp_path, monkeypatch):
    counts = class_counts(source, tmp_path, Loading(0))
    monkeypatch.delattr(SegmentationDataset, "read_label")
    assert torch.equal(class_counts(source, tmp_path, Loading(0)), counts)
    monkeypatch.undo()
    fakedata.save(source.root / "labels" / "00001.png", np.full((30, 40), 26, np.uint8))
    assert class_counts(source, tmp_path, Loading(0))[0].nonzero().tolist() == [[13]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda counts: counts[:3],
        lambda counts: counts + counts[:1],
        lambda counts: [row[:-1] for row in counts],
        lambda counts: [[-1, *row[1:]] for row in counts],
        lambda counts: [[0.5, *row[1:]] for row in counts],
        lambda counts: [[0] * len(row) for row in counts],
        lambda counts: [[2**62] * len(row) for row in counts],
        lambda counts: {"counts": counts},
        lambda counts: [],
    ],
)
def test_counts_that_cannot_be_of_these_labels_are_counted_again(source, tmp_path, spoil):
    counts = class_counts(source, tmp_path, Loading(0))
    (path,) = tmp_path.glob("*.class_counts.json")
    path.write_text(json.dumps(spoil(counts.tolist())))
    assert torch.equal(class_counts(source, tmp_path, Loading(0)), counts)
    path.write_text("[" * 100_000)
    assert torch.equal(class_counts(source, tmp_path, Loading(0)), counts)


def test_labels_are_counted_in_the_size_they_are_trained_in(source, tmp_path: Path):
    small = build_dataset("gta5", source.root, split="train", size=(20, 10))
    assert class_counts(small, tmp_path, Loading(0)).sum(1).max() == 20 * 10


def test_nothing_but_ignored_pixels_is_an_error(source, tmp_path: Path):
    for i in range(1, 7):
        fakedata.save(source.root / "labels" / f"{i:05d}.png", np.zeros((30, 40), np.uint8))
    with pytest.raises(UserError, match=r"the labels of gta5 \(.*\) hold no class"):
        class_counts(source, tmp_path, Loading(0))


def test_class_weights_by_hand():
    counts = torch.tensor([[60, 1, 0, 3], [40, 0, 0, 6]])  # 100, 1, 0, 9: the median of three is 9
    expected = [math.sqrt(9 / 100), 3.0, 1.0, 1.0]
    torch.testing.assert_close(class_weights(counts), torch.tensor(expected))
    extreme = torch.tensor([[10_000, 100, 1]])
    assert class_weights(extreme).tolist() == pytest.approx([0.3, 1.0, 4.0])


def test_published_class_weights_by_hand():
    """Of two images of 64 and 36 labelled pixels; class 2 is in neither."""
    counts = torch.tensor([[60, 4, 0, 0], [30, 0, 0, 6]])  # 90, 4, 0, 6
    # shares in the images that hold them: 90 / 100, 4 / 64, 6 / 36; the median is 1 / 6
    median = [100 / 540, 64 / 24, 1.0, 1.0]
    torch.testing.assert_close(class_weights(counts, "median"), torch.tensor(median))
    mean = (1 / 90 + 1 / 4 + 1 / 6) / 3
    inverse = [1 / 90 / mean, 1 / 4 / mean, 1.0, 1 / 6 / mean]
    torch.testing.assert_close(class_weights(counts, "inverse"), torch.tensor(inverse))
    number = [1 - (1 - 3 / 100) ** n for n in (90, 4, 6)]  # beta is 1 - 1 / m, m = 100 / 3
    mean = sum(1 / n for n in number) / 3
    effective = [1 / number[0] / mean, 1 / number[1] / mean, 1.0, 1 / number[2] / mean]
    torch.testing.assert_close(class_weights(counts, "effective"), torch.tensor(effective))
    tempered = class_weights(counts, "root-median")
    assert torch.equal(tempered, class_weights(counts))
    assert tempered.tolist() == pytest.approx([0.3, math.sqrt(6 / 4), 1.0, 1.0])
    for kind in ("median", "inverse", "effective"):  # a class alone, in a single pixel
        assert class_weights(torch.tensor([[0, 1]]), kind).tolist() == [1, 1]


# ---- rare classes


def test_rare_class_probabilities_by_hand():
    """Frequencies 0.6, 0.3, 0.1 and none: exp(0.4 / T), exp(0.7 / T), exp(0.9 / T) of their sum."""
    counts = torch.tensor([[500, 0, 100, 0], [100, 300, 0, 0]])
    rare = RareClasses(counts, (40, 10), temperature=0.5)
    parts = [math.exp(0.8), math.exp(1.4), math.exp(1.8)]
    expected = [part / sum(parts) for part in parts] + [0]
    np.testing.assert_allclose(rare.probability, expected)
    published = RareClasses(counts, (40, 10), temperature=0.01)
    np.testing.assert_allclose(published.probability[1], 1 / (1 + math.exp(20)), rtol=1e-6)


def test_images_have_enough_of_the_class_they_are_drawn_for():
    """3000 of 1914x1052 pixels; below, the image with the most of a class stands for it."""
    counts = torch.tensor([[3000, 2999, 0], [2999, 100, 9], [5000, 2999, 9], [0, 1, 2]])
    rare = RareClasses(counts, (1914, 1052), temperature=0.1)
    assert [images.tolist() for images in rare.images] == [[0, 2], [0, 2], [1, 2]]
    quarter = RareClasses(counts // 4, (957, 526), temperature=0.1)
    assert quarter.images[0].tolist() == [0, 2]


def test_classes_come_as_often_as_they_should():
    counts = torch.tensor([[900, 0], [600, 100], [500, 0]])
    rare = RareClasses(counts, (40, 30), temperature=1.0)
    drawn = [rare.draw(4, seed=3, step=step) for step in range(500)]
    images, classes = (np.concatenate(part) for part in zip(*drawn, strict=True))
    assert abs(classes.mean() - rare.probability[1]) < 0.03
    assert set(images[classes == 1]) == {1}
    share = np.bincount(images[classes == 0]) / (classes == 0).sum()
    assert abs(share - 1 / 3).max() < 0.06


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_on_seed_and_step_alone(source, tmp_path: Path, workers: int):
    rare = RareClasses(class_counts(source, tmp_path, Loading(0)), (40, 30), 0.5)

    def batches(seed: int, start: int, number: int) -> list[dict]:
        how = {"seed": seed, "start": start, "device": CPU, "loading": Loading(number)}
        return first(4, loading.step_batches(source, 3, by_class=rare, **how))

    plain, later, other = batches(7, 0, 0), batches(7, 2, workers), batches(8, 0, workers)
    for one, two in zip(plain[2:], later, strict=False):
        assert one["name"] == two["name"]
        assert torch.equal(one["rare_class"], two["rare_class"])
    assert [b["name"] for b in plain] != [b["name"] for b in other]
    for batch in plain:
        for label, wanted in zip(batch["label"], batch["rare_class"], strict=True):
            assert (label == wanted).any()


def test_several_sources_are_counted_and_drawn_as_one(source, tmp_path: Path):
    root = fakedata.make_gta5(tmp_path / "other", n=2, size=(40, 30))
    fakedata.save(root / "labels" / "00002.png", np.full((30, 40), 31, np.uint8))  # train
    fakedata.save(root / "labels" / "00001.png", np.full((30, 40), 7, np.uint8))
    other = build_dataset("gta5", root, split="train", size=(40, 30), cache_dir=tmp_path / "cache")
    joined = loading.join_datasets([source, other])
    counts = class_counts(joined, tmp_path, Loading(0))
    assert counts.shape == (8, 19)
    rare = RareClasses(counts, (40, 30), temperature=0.01)
    assert rare.images[16].tolist() == [7]
    how = {"seed": 0, "start": 0, "device": CPU, "loading": Loading()}
    for batch in first(10, loading.step_batches(joined, 2, by_class=rare, **how)):
        assert all((x == c).any() for x, c in zip(batch["label"], batch["rare_class"], strict=True))


def test_every_class_has_its_turn():
    """Three classes that occur, batches of two: six draws of each in nine steps."""
    counts = torch.tensor([[900, 0, 0, 9], [600, 100, 0, 0], [500, 0, 0, 0]])
    turns = ClassesInTurn(counts, (40, 30))
    drawn = [turns.draw(2, seed=3, step=step) for step in range(9)]
    classes = [c for _, part in drawn for c in part]
    assert all(sorted(classes[i : i + 3]) == [0, 1, 3] for i in range(0, 18, 3))
    assert len({tuple(classes[i : i + 3]) for i in range(0, 18, 3)}) > 1  # shuffled
    for images, part in drawn:
        for image, c in zip(images, part, strict=True):
            assert counts[image, c] > 0
    again = [turns.draw(2, seed=3, step=step) for step in range(9)]
    assert again == drawn
    assert [turns.draw(2, seed=4, step=step) for step in range(9)] != drawn


# ---- crops


def corners(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose pixels are their own labels: class 5 in a corner of 8x8, of 40x30."""
    label = torch.zeros(n, 30, 40, dtype=torch.uint8)
    label[:, :8, :8] = 5
    return label.unsqueeze(1).expand(n, 3, 30, 40), label


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.8, 1.5)])
def test_crops_hold_the_rare_class(scale: tuple[float, float]):
    images, label = corners()
    how = {"crop_size": (24, 20), "scale": scale, "mirror": True}
    torch.manual_seed(0)
    _, by_chance = geometry.warp(images, label[:, None], **how)
    torch.manual_seed(0)
    rare = torch.full((len(label),), 5)
    cropped, kept = geometry.warp(images, label[:, None], rare_class=rare, **how)
    kept = kept[:, 0]
    enough = geometry.RARE_CLASS_SHARE * 30 * 40
    held = (kept == 5).sum((1, 2))
    assert (held > enough - 1).float().mean() > 0.95  # 10 tries; nearest pixels where it is scaled
    assert ((by_chance[:, 0] == 5).sum((1, 2)) > enough).float().mean() < 0.8
    assert held.float().var() > 0  # still at random places
    if scale == (1.0, 1.0):
        torch.testing.assert_close(cropped[:, 0], kept.float(), atol=1e-3, rtol=0)


def test_the_first_crop_with_enough_is_taken_else_the_last(monkeypatch):
    _, label = corners(2)
    left = torch.tensor([0.9, 0.5, 0.0, 0.1, *[0.9] * 5, 0.99])  # x 15, 8, 0, 1, 15, ..., 16
    draws = torch.zeros(3, 2, 10)
    draws[1] = left
    monkeypatch.setattr(torch, "rand", lambda *_shape: draws.clone())
    chosen = geometry.crops_with(torch.tensor([5, 6]), label, (24, 20), (1.0, 1.0))
    assert chosen.tolist() == [[1, 1], [0, 16], [0, 0]]
    label[:, :8, 8:9] = 5  # one column more: the second crop has 8 pixels, above 1.95
    chosen = geometry.crops_with(torch.tensor([5, 6]), label, (24, 20), (1.0, 1.0))
    assert chosen.tolist() == [[1, 1], [8, 16], [0, 0]]


# ---- the scripts


@pytest.mark.parametrize("sampling", ["--rare-class-sampling", "--class-balanced-sampling"])
def test_a_run_that_draws_by_class_resumes_and_balances(tmp_path: Path, sampling: str):
    root = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    words = f"""--recipe streets --source camvid --source-set day_train --target camvid
        --set dusk_train --val-set dusk_val --input-size 64,48 --crop-size 48,40 --batch-size 2
        --save-pred-every 100 --no-baseline --method none --num-steps 4 --data-dir {root}
        {sampling}""".split()

    def train(name: str, *flags: str) -> dict:
        folder = tmp_path / name
        train_da.main(train_da.parse_args([*words, "--snapshot-dir", str(folder), *flags]))
        return torch.load(folder / "last.pth", weights_only=True)["state"]["model"]

    whole = train("whole", "--num-workers", "0")
    train("parts", "--num-steps-stop", "2")
    for key, value in train("parts", "--num-workers", "1").items():
        assert torch.equal(value, whole[key]), key
    assert len(list((tmp_path / "whole").glob("camvid-64x48-*.class_counts.json"))) == 1
    otherwise = ["--rare-class-sampling", "0.1"] if "rare" in sampling else ["--random-seed", "3"]
    other = train("other", *otherwise, "--cache", str(tmp_path / "cache"))
    assert any(not torch.equal(value, whole[key]) for key, value in other.items())
    assert len(list((tmp_path / "cache").glob("camvid-64x48-*.class_counts.json"))) == 1


def test_how_classes_are_balanced_is_said_in_words():
    def given(*words: str) -> object:
        return train_da.parse_args(["--snapshot-dir", "s", "--data-dir", "d", *words]).class_balance

    assert (given(), given("--no-class-balance")) == (False, False)
    assert given("--class-balance") is True
    assert given("--class-balance", "effective") == "effective"
    assert given("--recipe", "camvid") is True
    assert given("--recipe", "camvid", "--class-balance", "median") == "median"
    assert given("--recipe", "camvid", "--no-class-balance") is False
    two = ["--rare-class-sampling", "--class-balanced-sampling"]
    for wrong in (["--class-balance", "some"], ["--no-class-balance", "median"], two):
        with pytest.raises(SystemExit):
            given(*wrong)
    parser = options.parser("")
    training_options.add_training(parser, {}, {})
    (action,) = (a for a in parser._actions if a.dest == "class_balance")
    counts = torch.tensor([[60, 4, 9], [30, 0, 1]])
    kinds = [tuple(class_weights(counts, kind).tolist()) for kind in action.choices]
    assert len(set(kinds)) == 4
