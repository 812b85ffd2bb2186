"""nIoU: by hand, as figures of the official evaluation, and beside it where it is installed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import fakedata
from datasets import build_dataset
from engine.errors import UserError
from inference.instances import InstanceIoU, lines
from inference.metrics import ConfusionMatrix
from worlds import write_checkpoint

PERSON, CAR, BUS = 24, 26, 28


def write_scene(root: Path, n: int = 3, seed: int = 0) -> Path:
    """Write Cityscapes of 64x32 whose instances are boxes, some of them groups without number."""
    fakedata.make_cityscapes(root, n=n)
    rng = np.random.default_rng(seed)
    for path in sorted(root.glob("gtFine/*/*/*_labelIds.png")):
        instances = np.full((32, 64), 7, np.uint16)
        for number, label in enumerate(rng.choice([24, 25, 26, 27, 28, 29, 31, 32, 33], 8)):
            top, left = rng.integers(0, 24), rng.integers(0, 48)
            box = np.s_[top : top + rng.integers(3, 12), left : left + rng.integers(3, 20)]
            instances[box] = label if number == 0 else label * 1000 + number
        labels = np.where(instances > 1000, instances // 1000, instances).astype(np.uint8)
        fakedata.save(path, labels)
        fakedata.save(path.with_name(path.name.replace("labelIds", "instanceIds")), instances)
    return root


def predictions(root: Path, folder: Path, seed: int = 1) -> list[Path]:
    """Write predictions of label ids, half of them right, and return the files."""
    rng, files = np.random.default_rng(seed), []
    ids = np.array([7, 8, 11, 21, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
    for path in sorted(root.glob("gtFine/val/*/*_labelIds.png")):
        truth = fakedata.Image.open(path)
        truth = np.where(np.isin(truth, ids), truth, 7)
        wrong = rng.random(truth.shape) < 0.5
        files.append(folder / path.name.replace("_gtFine_labelIds", ""))
        fakedata.save(
            files[-1], np.where(wrong, rng.choice(ids, truth.shape), truth).astype(np.uint8)
        )
    return files


def scores_of(root: Path, folder: Path, *more: str) -> dict:
    """Return what evaluate.py writes of a folder of predictions."""
    words = ["--predictions", folder, "--prediction-ids", "label", "--dataset", "cityscapes"]
    words += ["--data-dir", root, "--num-workers", "0", "--json", folder / "scores.json"]
    evaluate.main(evaluate.parse_args([*map(str, words), "--instances", *more]))
    return json.loads((folder / "scores.json").read_text())[0]


def test_niou_by_hand(tmp_path: Path):
    """A car of 4 pixels, 3 found, one of 2, none found; a person, found, and a group that is none.

    Cars weigh 12794.0202738185 each: 3/4 of one is found, 1/4 and a whole one are missed. A pixel
    of road is taken for a car, and one of the missed for a bus, which is a vehicle too.
    """
    root = fakedata.make_cityscapes(tmp_path, n=1, size=(6, 2))
    (path,) = root.glob("gtFine/val/*/*_labelIds.png")
    instances = np.array([[26000, 26000, 26001, 26001, 24000, 24], [26000, 26000, 7, 7, 7, 7]])
    fakedata.save(path, np.where(instances > 1000, instances // 1000, instances).astype(np.uint8))
    fakedata.save(
        path.with_name(path.name.replace("labelIds", "instanceIds")), instances.astype(np.uint16)
    )
    dataset = build_dataset("cityscapes", root, split="val")
    pred = torch.tensor([[[13, 13, 15, 0, 11, 11], [13, 0, 13, 0, 0, 0]]], dtype=torch.uint8)
    niou = InstanceIoU(dataset)
    niou.update([dataset[0]["name"]], pred)
    niou.add_up_processes()
    confusion = ConfusionMatrix(19, dataset.class_names)
    confusion.update(pred, dataset[0]["label"][None])
    found = niou.summary(confusion, None)
    size = 12794.0202738185
    car = 100 * 0.75 * size / (2 * size + 1)
    assert found["niou"]["car"] == pytest.approx(car, rel=1e-12)
    assert found["niou"]["person"] == 100  # the group without number is no false positive
    assert found["niou"]["bus"] == 0  # predicted, where there is none
    assert found["niou"]["train"] is None
    assert found["mean_niou"] == pytest.approx((car + 100) / 3)
    vehicle = 100 * 1.25 * size / (2 * size + 1)
    assert found["category_niou"] == {"human": 100, "vehicle": pytest.approx(vehicle)}
    assert found["mean_category_niou"] == pytest.approx((100 + vehicle) / 2)
    assert niou.summary(confusion, [0, 13])["mean_niou"] == found["niou"]["car"]
    assert f"nIoU car\t{round(car, 2)}" in lines(found)


# of cityscapesscripts 2.3.0 on the scene of seed 0 and the predictions of seed 1
OFFICIAL = {
    "niou": {
        "person": 50.02480998250229,
        "rider": 54.1248078923852,
        "car": 48.475773728365034,
        "truck": 54.407293387075676,
        "bus": 56.58320214957263,
        "train": 54.89191560205039,
        "motocycle": 56.68481518922248,
        "bicycle": 55.93218491470373,
    },
    "mean_niou": 53.890600355734676,
    "category_niou": {"human": 59.05331924986205, "vehicle": 76.13258855596254},
    "mean_category_niou": 67.59295390291229,
}


def test_niou_is_what_the_official_evaluation_says(tmp_path: Path):
    root = write_scene(tmp_path / "cs")
    predictions(root, tmp_path / "pred")
    ours = scores_of(root, tmp_path / "pred")
    assert {key: ours[key] for key in OFFICIAL} == OFFICIAL


@pytest.mark.parametrize("seed", [0, 3])
def test_niou_equals_cityscapesscripts_to_the_last_digit(official, tmp_path: Path, seed: int):
    root = write_scene(tmp_path / "cs", seed=seed)
    files = predictions(root, tmp_path / "pred")
    truths = sorted(root.glob("gtFine/val/*/*_labelIds.png"))
    theirs = official.evaluateImgLists([*map(str, files)], [*map(str, truths)], official.args)
    ours = scores_of(root, tmp_path / "pred")
    names = {"motocycle": "motorcycle"}
    for name, score in ours["niou"].items():
        other = theirs["classInstScores"][names.get(name, name)]
        assert (score is None and math.isnan(other)) or score == 100 * other, name
    for name, score in ours["category_niou"].items():
        assert score == 100 * theirs["categoryInstScores"][name], name
    assert ours["mean_niou"] == 100 * theirs["averageScoreInstClasses"]
    assert ours["mean_category_niou"] == 100 * theirs["averageScoreInstCategories"]
    if seed == 0:
        figures = {names.get(name, name): score for name, score in OFFICIAL["niou"].items()}
        assert figures == {
            name: 100 * score
            for name, score in theirs["classInstScores"].items()
            if not math.isnan(score)
        }


def test_a_network_is_scored_as_its_saved_predictions_are(tmp_path: Path):
    root = write_scene(tmp_path / "cs", n=2)
    names = build_dataset("cityscapes", root, split="val").class_names
    checkpoint = write_checkpoint(tmp_path / "net.pth", "cityscapes", names)
    words = ["--restore-from", checkpoint, "--data-dir", root, "--save", tmp_path / "saved"]
    words += ["--json", tmp_path / "s.json", "--num-workers", "0", "--instances"]
    evaluate.main(evaluate.parse_args([*map(str, words)]))
    ours = json.loads((tmp_path / "s.json").read_text())[0]
    again = scores_of(root, tmp_path / "saved" / "label_ids")
    assert ours["niou"] == again["niou"]
    assert ours["category_niou"] == again["category_niou"]


def test_instance_maps_that_are_not_there(tmp_path: Path, capsys):
    root = write_scene(tmp_path / "cs", n=1)
    predictions(root, tmp_path / "pred")
    (path,) = root.glob("gtFine/val/*/*_instanceIds.png")
    fakedata.save(path, np.zeros((3, 3), np.uint16))
    with pytest.raises(UserError, match=f"{path.name}: 3x3 pixels, its label and prediction 64x32"):
        scores_of(root, tmp_path / "pred")
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"{path.name}: not a readable PNG"):
        scores_of(root, tmp_path / "pred")
    path.unlink()
    with pytest.raises(UserError, match=f"--instances: .*{path.name}: No such file"):
        scores_of(root, tmp_path / "pred")
    camvid = fakedata.make_camvid(tmp_path / "camvid", n=2)
    with pytest.raises(UserError, match="--instances: camvid has no instance maps"):
        InstanceIoU(build_dataset("camvid", camvid, split="val"))
