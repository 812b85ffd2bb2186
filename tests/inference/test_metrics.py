"""Scores against hand-worked numbers and against the official cityscapesScripts."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from engine.errors import UserError
from inference.metrics import ConfusionMatrix


def counted(pred, label, num_classes=3, **options) -> ConfusionMatrix:
    names = [f"class{c}" for c in range(num_classes)]
    confusion = ConfusionMatrix(num_classes, names, **options)
    confusion.update(torch.tensor(pred, dtype=torch.uint8), torch.tensor(label, dtype=torch.uint8))
    return confusion


# truth 0: four pixels, three right, one taken for 1; truth 1: two, both right; truth 2: none, and
# never predicted; two pixels are ignored.
PRED = [[0, 0, 0, 1, 1, 1, 0, 2]]
LABEL = [[0, 0, 0, 0, 1, 1, 255, 255]]


def test_hand_worked():
    scores = counted(PRED, LABEL).compute()
    assert scores["iou"][:2] == pytest.approx([75.0, 200 / 3])
    assert math.isnan(scores["iou"][2])
    assert scores["miou"] == pytest.approx((75 + 200 / 3) / 2)
    assert scores["accuracy"][:2] == [75.0, 100.0]
    assert scores["mean_accuracy"] == 87.5
    assert scores["pixel_accuracy"] == pytest.approx(100 * 5 / 6)
    assert scores["fw_iou"] == pytest.approx(4 / 6 * 75 + 2 / 6 * 200 / 3)
    assert scores["classes_scored"] == 2
    assert scores["void_share"] == 0


def test_predicted_but_absent_class_scores_zero():
    scores = counted([[0, 2]], [[0, 0]]).compute()
    assert scores["iou"][0] == 50
    assert scores["iou"][2] == 0
    assert scores["miou"] == 25
    assert scores["mean_accuracy"] == 50  # no truth, no accuracy: class 2 does not count


def test_lines_are_adaptsegnets():
    confusion = counted(PRED, LABEL)
    assert confusion.lines(confusion.compute()) == [
        "===>class0:\t75.0",
        "===>class1:\t66.67",
        "===>class2:\tnan",
        "===> mIoU: 70.83",
    ]


def test_subset_averages_the_listed_classes_only():
    confusion = counted(PRED, LABEL)
    scores = confusion.compute(scored=[0, 2])
    assert scores["miou"] == 75
    assert scores["classes_scored"] == 1
    assert [line.split(":")[0] for line in confusion.lines(scores)][:2] == [
        "===>class0",
        "===>class2",
    ]


def test_groups_forgive_confusions_within_them():
    confusion = counted([[0, 1, 2, 2]], [[1, 0, 2, 0]])
    assert confusion.group_iou({"a": [0, 1], "b": [2], "none": []}) == pytest.approx(
        {"a": 200 / 3, "b": 50.0, "none": math.nan}, nan_ok=True
    )


def test_updates_accumulate():
    whole = counted(PRED, LABEL)
    left = counted([PRED[0][:3]], [LABEL[0][:3]])
    left.update(
        torch.tensor(PRED[0][3:], dtype=torch.uint8), torch.tensor(LABEL[0][3:], dtype=torch.uint8)
    )
    assert torch.equal(left.counts, whole.counts)


def test_nothing_scored_is_an_error():
    with pytest.raises(UserError, match="no pixel was scored"):
        ConfusionMatrix(2, ["a", "b"]).compute()
    with pytest.raises(UserError, match="no pixel was scored"):
        counted([[0]], [[255]]).compute()


@pytest.mark.parametrize(("pred", "label"), [([[3]], [[0]]), ([[0]], [[3]])])
def test_ids_outside_the_classes_are_an_error(pred, label):
    with pytest.raises(UserError, match=r"outside the 3 classes 0\.\.2"):
        counted(pred, label).compute()


def test_void_predictions_are_misses_and_nobodys_false_positives():
    scores = counted([[0, 255, 1, 255]], [[0, 0, 1, 255]], allow_void=True).compute()
    assert scores["iou"][:2] == [50, 100]
    assert scores["pixel_accuracy"] == pytest.approx(200 / 3)
    assert scores["void_share"] == pytest.approx(100 / 3)
    with pytest.raises(UserError, match="outside"):
        counted([[0]], [[7]], allow_void=True).compute()


def official_scores(module, folder, pairs):
    """Return the official scores of (prediction, truth) arrays of label ids."""
    predictions, truths = [], []
    for index, (pred, truth) in enumerate(pairs):
        stem = folder / f"aachen_{index:06}_000019"
        predictions.append(f"{stem}_pred.png")
        truths.append(f"{stem}_gtFine_labelIds.png")
        Image.fromarray(pred).save(predictions[-1])
        Image.fromarray(truth).save(truths[-1])
        things = (truth >= 24) & (truth <= 33)
        instances = np.where(things, truth.astype(np.uint16) * 1000 + 1, truth)
        Image.fromarray(instances).save(f"{stem}_gtFine_instanceIds.png")
    return module.evaluateImgLists(predictions, truths, module.args)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [(range(34), range(34)), (range(7, 34), range(34)), ((7, 8, 26, 33), (7, 11, 26, 0, 29))],
    ids=["every id", "no void predicted", "classes absent"],
)
def test_equals_cityscapesscripts_to_the_last_bit(official, tmp_path, predicted, true):
    rng = np.random.default_rng(5)
    pairs = []
    for _ in range(3):
        truth = rng.choice(np.array(true, np.uint8), (24, 40))
        # mostly right, as a network is, so that no score is lost among the others
        wrong = rng.random(truth.shape) < 0.4
        pred = np.where(wrong, rng.choice(np.array(predicted, np.uint8), truth.shape), truth)
        pairs.append((pred, truth))
    theirs = official_scores(official, tmp_path, pairs)

    rows = [label for label in official.labels if not label.ignoreInEval]
    train_id = np.full(256, 255, np.uint8)
    categories = {}
    for label in rows:
        train_id[label.id] = label.trainId
        categories.setdefault(label.category, []).append(label.trainId)
    confusion = ConfusionMatrix(19, [label.name for label in rows], allow_void=True)
    for pred, truth in pairs:
        confusion.update(torch.from_numpy(train_id[pred]), torch.from_numpy(train_id[truth]))
    ours = confusion.compute()

    for label, iou in zip(rows, ours["iou"], strict=True):
        assert_same(iou, theirs["classScores"][label.name])
    assert_same(ours["miou"], theirs["averageScoreClasses"])
    for name, iou in confusion.group_iou(categories).items():
        assert_same(iou, theirs["categoryScores"][name])


def assert_same(percent: float, fraction: float):
    assert percent == 100 * fraction or (math.isnan(percent) and math.isnan(fraction))


def test_summary_is_plain_json():
    summary = counted(PRED, LABEL).summary()
    assert summary["iou"] == {"class0": 75.0, "class1": pytest.approx(200 / 3), "class2": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
