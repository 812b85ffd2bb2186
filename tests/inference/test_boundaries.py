"""Boundary IoU beside the authors' own steps, mask by mask."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import evaluate
from datasets import write_label_png
from inference.boundaries import BoundaryIoU
from worlds import in_camvid, on_camvid, open_camvid, write_checkpoint


def blocks(seed, height=60, width=90, side=15, ids=3):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, ids, (2, height // side, width // side), generator=generator).byte()
    return coarse.repeat_interleave(side, 1).repeat_interleave(side, 2)


def boundary_of(mask, steps):
    """Return a mask less its erosion by `steps` 3x3 squares, zeros being around the image."""
    eroded = F.pad(mask.float()[:, None], (1, 1, 1, 1))
    for _ in range(steps):
        eroded = -F.max_pool2d(-eroded, 3, 1, 1)
        eroded[..., [0, -1], :] = eroded[..., [0, -1]] = 0
    return mask & (eroded[:, 0, 1:-1, 1:-1] == 0)


def test_boundary_iou_mask_by_mask():
    label = blocks(0)
    pred = label.roll((1, 2), (1, 2))
    pred[0, 20:40, 30:60] = 1
    label[1, :7] = 255  # not scored, whatever was predicted there
    scores = BoundaryIoU(3)
    for i in range(2):
        scores.update(pred[i : i + 1], label[i : i + 1])
    steps = round(0.02 * math.hypot(60, 90))
    assert steps == 2
    for c, iou in enumerate(scores.compute()):
        truth = boundary_of(label == c, steps)
        predicted = boundary_of(pred == c, steps) & (label != 255)
        expected = (truth & predicted).sum() / (truth | predicted).sum()
        assert iou == pytest.approx(100 * expected.item())
    assert 10 < min(scores.compute()) < max(scores.compute()) < 90


def test_perfect_and_absent_classes():
    scores = BoundaryIoU(5)
    scores.update(blocks(1), blocks(1))
    iou = scores.compute()
    assert iou[:3] == [100, 100, 100]
    assert all(map(math.isnan, iou[3:]))
    summary = scores.summary(list("abcde"), [0, 4])
    assert summary["boundary_miou"] == 100
    assert summary["boundary_iou"] == {"a": 100, "b": 100, "c": 100, "d": None, "e": None}


def test_evaluate_scores_boundaries(camvid, tmp_path, capsys):
    """Its own labels as predictions: nothing is wrong."""
    for sample in open_camvid(camvid):
        write_label_png(tmp_path / f"pred/{sample['name']}", sample["label"].numpy())
    words = ["--predictions", tmp_path / "pred", "--dataset", "camvid", *in_camvid(camvid)]
    words += ["--boundaries", "--json", tmp_path / "scores.json"]
    evaluate.main(evaluate.parse_args([str(word) for word in words]))
    assert "boundary mIoU 100.00" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "scores.json").read_text())
    assert result["boundary_miou"] == 100


def test_a_network_and_its_saved_predictions_score_alike(camvid, tmp_path):
    network = write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)
    scores = []
    for words in (
        ["--restore-from", network, "--save", tmp_path / "saved", *on_camvid(camvid)],
        ["--predictions", tmp_path / "saved/train_ids", "--dataset", "camvid", *in_camvid(camvid)],
    ):
        words += ["--boundaries", "--json", tmp_path / "scores.json"]
        evaluate.main(evaluate.parse_args([str(word) for word in words]))
        scores += json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores[0]["boundary_miou"] < 100
    assert scores[0]["boundary_iou"] == scores[1]["boundary_iou"]
