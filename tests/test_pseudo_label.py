"""Pseudo labels: what is kept, from which networks, how good it is, and folders gone on with."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate
import fakedata
import models
import pseudo_label
import train_seg
from datasets import write_label_png
from engine.errors import UserError
from engine.files import UNFINISHED
from engine.values import Loading, Views
from inference import pseudo_folder, thresholds
from inference.loop import predict
from inference.outputs import held
from inference.predictor import Ensemble, Predictor
from models.checkpoint import load_model
from worlds import FRAMES, ROOT, in_camvid, on_camvid, open_camvid, script, write_checkpoint

VAL = ("--set", "val")


@pytest.fixture
def checkpoint(camvid, tmp_path):
    return write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)


def run(*words) -> None:
    pseudo_label.main(pseudo_label.parse_args([str(word) for word in words]))


def read(folder: Path, names=FRAMES, kind="train_ids") -> np.ndarray:
    paths = [folder / kind / f"{name}.png" for name in names]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def about(folder: Path) -> dict:
    return json.loads((folder / "pseudo.json").read_text())


def predicted(camvid: Path, *checkpoints: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and confidences of the validation images, by the mean of the networks."""
    networks = [load_model(path, torch.device("cpu"))[0] for path in checkpoints]
    predictor = Ensemble([Predictor(models.fold_batchnorm(network)) for network in networks])
    images = predict(predictor, open_camvid(camvid), Loading(), with_confidence=True)
    _, ids, confidence = zip(*images, strict=True)
    return torch.cat(ids).numpy(), torch.cat(confidence).numpy()


# ------------------------------------------------------------------ what is kept


def test_thresholds_of_classes_by_hand():
    # trunc(-170 log2(1 - confidence)): 87, 224, 394, 564, 1129 of class 0, 295 twice of class 1
    confidence = torch.tensor([0.9, 0.3, 0.7, 0.99, 0.6, 0.7, 0.8])
    pred = torch.tensor([0, 0, 1, 0, 0, 1, 0], dtype=torch.uint8)
    counts = thresholds.histogram(confidence, pred, 3)
    assert counts.shape == (3, 4080)
    assert counts.nonzero().tolist() == [
        [0, 87], [0, 224], [0, 394], [0, 564], [0, 1129], [1, 295]
    ]  # fmt: skip

    # two of the five are 40 %; the two of class 1 share a bin, and class 2 was never predicted
    bins = thresholds.class_bins(counts, 0.4)
    assert bins.tolist() == [564, 295, 0]
    sure = thresholds.above_bins(confidence, pred, bins)
    assert sure.tolist() == [True, False, True, True, False, True, False]
    edges = thresholds.lower_edges(bins)
    assert edges == pytest.approx([1 - 2 ** (-564 / 170), 1 - 2 ** (-295 / 170), 0])
    assert edges[0] == pytest.approx(0.8997, abs=1e-4)  # just below the 0.9 that ranks second

    assert thresholds.class_bins(counts, 0.41)[0] == 394  # 2.05 pixels: three are kept
    assert thresholds.class_bins(counts, 1.0).tolist() == [87, 295, 0]


def test_certain_pixels_are_still_told_apart():
    """All are surer than 0.9998: one part in 4096 of 0..1 would hold them all."""
    generator = torch.Generator().manual_seed(0)
    margin = 10.0 ** -(3.75 + 1.25 * torch.rand(20000, generator=generator, dtype=torch.float64))
    confidence = (1 - margin).float()
    pred = torch.zeros(len(confidence), dtype=torch.uint8)
    assert confidence.min() > 1 - 1 / 4096
    for portion in (0.001, 0.2, 0.5, 1.0):
        counts = thresholds.histogram(confidence, pred, 1)
        bins = thresholds.class_bins(counts, portion)
        kept = thresholds.above_bins(confidence, pred, bins)
        wanted = confidence.sort(descending=True).values[: math.ceil(portion * len(pred))]
        assert kept.sum() >= len(wanted)
        # what is kept beyond them lies in the one bin
        assert kept.sum() - len(wanted) < counts[0, bins[0]]
        assert kept.sum() < len(wanted) + 60
        assert confidence[kept].min() <= wanted[-1]


def test_sure_without_doubt_is_kept():
    confidence, pred = torch.tensor([1.0, 0.5]), torch.zeros(2, dtype=torch.uint8)
    bins = thresholds.class_bins(thresholds.histogram(confidence, pred, 1), 0.5)
    assert bins.tolist() == [4079]
    assert thresholds.above_bins(confidence, pred, bins).tolist() == [True, False]


def test_a_threshold_keeps_what_is_confident(checkpoint, camvid, tmp_path):
    folder = tmp_path / "pseudo"
    on = on_camvid(camvid, *VAL)
    done = script(
        "pseudo_label.py", "--restore-from", checkpoint, "--save", folder, "--threshold", "0.5", *on
    )
    assert done.returncode == 0, done.stderr
    summary, labels = about(folder), read(folder)
    kept = labels != 255
    assert 0 < kept.mean() < 1
    assert summary["kept"] == pytest.approx(100 * kept.mean(), abs=1e-4)

    ids, confidence = predicted(camvid, checkpoint)
    assert np.array_equal(labels, np.where(confidence >= 0.5, ids, 255))
    names = open_camvid(camvid).class_names
    assert summary["classes"] == names
    assert set(summary["thresholds"].values()) == {0.5}
    for c, name in enumerate(names):
        share = summary["kept_of_class"][name]
        assert (share is None) == (not (ids == c).any())
        if share is not None:
            assert share == pytest.approx(100 * kept[ids == c].mean(), abs=1e-4)
    with Image.open(folder / "color" / f"{FRAMES[0]}_color.png") as image:
        assert image.mode == "P"
        assert tuple(image.getpalette()[:3]) == tuple(open_camvid(camvid).palette[0])
    assert not list(folder.rglob(".*"))

    # without a threshold, everything
    run("--restore-from", checkpoint, "--save", tmp_path / "all", *on)
    assert np.array_equal(read(tmp_path / "all"), ids)


def test_a_portion_keeps_the_surest_of_each_class(checkpoint, camvid, tmp_path):
    folder = tmp_path / "pseudo"
    run(
        "--restore-from", checkpoint, "--save", folder, "--portion", "0.3", *on_camvid(camvid, *VAL)
    )
    ids, confidence = predicted(camvid, checkpoint)
    labels, summary = read(folder), about(folder)
    assert np.array_equal(labels[labels != 255], ids[labels != 255])
    for c, name in enumerate(summary["classes"]):
        share, sure = summary["kept_of_class"][name], np.sort(confidence[ids == c])
        assert (share is None) == (not len(sure))
        if share is not None:
            kept = confidence[labels == c]
            assert len(kept) >= 0.3 * len(sure)
            assert np.array_equal(np.sort(kept), sure[len(sure) - len(kept) :])
            assert share == pytest.approx(100 * len(kept) / len(sure))
            assert kept.min() == pytest.approx(summary["thresholds"][name], abs=0.01)


# ------------------------------------------------------------------ maps


class TwoHeads(models.Network):
    """Probabilities 0.8 and 0.2 of the main head, one half each of the auxiliary one."""

    def __init__(self):
        super().__init__("caffe")
        self.nothing = nn.Parameter(torch.zeros(()))
        self.eval()

    def forward(self, images, aux=True):
        assert aux
        shape = (len(images), 1, 2, 3)
        main = torch.cat([torch.full(shape, math.log(0.8)), torch.full(shape, math.log(0.2))], 1)
        return {"out": main, "aux": torch.zeros(len(images), 2, 2, 3)}


def test_disagreement_by_hand():
    image = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)
    for how in ({}, {"scales": (1.0, 2.0), "flip": True}):
        predictor = thresholds.WithVariance(Ensemble([Predictor(TwoHeads(), views=Views(**how))]))
        ids, confidence, divergence = predictor(image, (5, 7), True)
        assert ids.unique().tolist() == [0]
        torch.testing.assert_close(confidence, torch.full((1, 5, 7), 0.8))
        # 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5)
        torch.testing.assert_close(divergence, torch.full((1, 5, 7), 0.192745))


def test_eight_bits():
    shares = torch.tensor([0.0, 0.2, 0.5, 1.0])  # 127.5 goes to the even one
    assert thresholds.eight_bits(shares).tolist() == [0, 51, 128, 255]


def test_maps_lie_beside_the_labels(camvid, tmp_path):
    names = open_camvid(camvid).class_names
    torch.manual_seed(1)
    model = models.build_model("deeplabv2", len(names), backbone="resnet50", multi_level=True)
    for head in (model.layer5, model.layer6):
        for conv in head.conv2d_list:
            nn.init.normal_(conv.weight, std=0.001)
    changes = {
        "model": model.state_dict(),
        "arch": model.arch,
        "normalisation": model.normalisation,
    }
    checkpoint = write_checkpoint(tmp_path / "net.pth", "camvid", names, **changes)
    folder, on = tmp_path / "pseudo", on_camvid(camvid, *VAL)
    run("--restore-from", checkpoint, "--save", folder, "--confidence", "--variance", *on)

    ids, confidence = predicted(camvid, checkpoint)
    maps = {kind: read(folder, kind=kind).astype(int) for kind in ("confidence", "variance")}
    assert np.abs(maps["confidence"] - np.round(255 * confidence.astype(np.float64))).max() <= 1
    assert (read(folder) == ids).mean() > 0.999
    assert maps["variance"].std() > 1
    # its own predictions are read back without the maps
    evaluate.main(
        evaluate.parse_args(
            ["--predictions", str(folder), "--dataset", "camvid", *in_camvid(camvid, *VAL)]
        )
    )


def test_disagreement_needs_two_heads(checkpoint, camvid, tmp_path):
    with pytest.raises(UserError, match=r"net\.pth has one head: --variance compares two"):
        run(
            "--restore-from", checkpoint, "--save", tmp_path / "p", "--variance", *on_camvid(camvid)
        )
    assert not (tmp_path / "p").exists()


# ------------------------------------------------------------------ several networks


def test_networks_are_averaged(checkpoint, camvid, tmp_path):
    names = open_camvid(camvid).class_names
    torch.manual_seed(5)
    model = models.build_model("compact", len(names), width=16)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    changes = {"model": model.state_dict(), "arch": model.arch}
    other = write_checkpoint(tmp_path / "other.pth", "camvid", names, **changes)
    folder = tmp_path / "pseudo"
    run("--restore-from", checkpoint, other, "--save", folder, *on_camvid(camvid, *VAL))
    both, _ = predicted(camvid, checkpoint, other)
    assert np.array_equal(read(folder), both)
    assert not np.array_equal(both, predicted(camvid, checkpoint)[0])
    assert [text.split()[0] for text in about(folder)["checkpoints"]] == ["net.pth", "other.pth"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: {"classes": [*names[:2], "pool", *names[3:]]},
         "other.pth knows 11 classes, .*net.pth has 11; the first that differs: class 2 is pool"),
        (lambda _: {"align_corners": True}, "align_corners False, .*other.pth True: give --align-"),
        (lambda _: {"input_size": (80, 48)}, r"input_size None, .*other.pth \(80, 48\): give --in"),
    ],
)  # fmt: skip
def test_networks_that_do_not_go_together(checkpoint, camvid, tmp_path, change, said):
    names = open_camvid(camvid).class_names
    other = write_checkpoint(tmp_path / "other.pth", "camvid", names, **change(names))
    with pytest.raises(UserError, match=said):
        run("--restore-from", checkpoint, other, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    assert not (tmp_path / "p").exists()


# ------------------------------------------------------------------ quality, training


def test_quality_of_all_and_of_what_is_kept(checkpoint, camvid, tmp_path, capsys):
    folder, on = tmp_path / "pseudo", on_camvid(camvid, *VAL)
    run("--restore-from", checkpoint, "--save", folder, "--threshold", "0.5", "--score", *on)
    printed = capsys.readouterr().out
    quality = about(folder)["quality"]

    scores = tmp_path / "scores.json"
    words = ["--restore-from", checkpoint, "--json", scores, *on]
    evaluate.main(evaluate.parse_args([str(word) for word in words]))
    assert quality["all"]["miou"] == json.loads(scores.read_text())[0]["miou"]
    assert f"mIoU {quality['all']['miou']:.2f} of 11 classes, every labelled pixel" in printed

    labels, truth = read(folder), torch.stack([s["label"] for s in open_camvid(camvid)]).numpy()
    counted = (labels != 255) & (truth != 255)
    ious = []
    for c in range(11):
        mine, true = labels[counted] == c, truth[counted] == c
        if (mine | true).any():
            ious.append(100 * (mine & true).sum() / (mine | true).sum())
    assert quality["kept"]["miou"] == pytest.approx(np.mean(ious))
    assert quality["kept"]["classes_scored"] == len(ious)


def test_labels_are_needed_for_the_score_alone(checkpoint, camvid, tmp_path):
    for path in camvid.glob("valannot/*.png"):
        path.unlink()
    on = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    with pytest.raises(UserError, match="no such label"):
        run(*on, "--score")
    run(*on)


def test_the_list_is_one_to_train_on(checkpoint, camvid, tmp_path):
    folder = tmp_path / "pseudo"
    run("--restore-from", checkpoint, "--save", folder, "--confidence", *on_camvid(camvid, *VAL))
    listed = {"list_file": folder / "list.txt", "label_root": folder, "label_kind": "trainIds"}
    dataset = open_camvid(camvid, **listed)
    assert [dataset[i]["label"].tolist() for i in range(3)] == read(folder).tolist()
    words = [
        "--snapshot-dir", tmp_path / "student", "--dataset", "camvid", "--data-dir", camvid,
        "--pseudo-labels", folder, "--model", "compact", "--num-steps", "1", "--num-workers", "0",
        "--input-size", "40,24",
    ]  # fmt: skip
    train_seg.main(train_seg.parse_args([str(word) for word in words]))
    assert (tmp_path / "student" / "camvid_1.pth").exists()

    settings = about(folder)
    settings["classes"][3] = "street"
    (folder / "pseudo.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"pseudo\.json: labels of other classes: .*street"):
        train_seg.main(train_seg.parse_args([str(word) for word in words]))


# ------------------------------------------------------------------ going on, beginning anew

SLOWLY = """
import time, pseudo_label
from engine import start
from inference import predictor, pseudo_folder
pseudo_folder.SAVE_EVERY_SECONDS = 0
plain = predictor.Ensemble.__call__
predictor.Ensemble.__call__ = lambda *given: (time.sleep(0.1), plain(*given))[1]
start.run(pseudo_label.main, pseudo_label.parse_args)
"""


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """Killed while it writes; it counts anew, and the folder ends up the same to the byte."""
    root, count = fakedata.make_camvid(tmp_path / "many", n=12, size=(40, 24)), 12
    names = open_camvid(root).class_names
    checkpoint = write_checkpoint(tmp_path / "net.pth", "camvid", names)
    given = ["--restore-from", checkpoint, "--portion", "0.4", "--confidence", "--score"]
    words = [*map(str, given), *on_camvid(root, *VAL)]
    folder, whole = tmp_path / "killed", tmp_path / "whole"

    def kill_when(reached) -> None:
        words_here = [sys.executable, "-c", SLOWLY, *words, "--save", str(folder)]
        with subprocess.Popen(words_here, cwd=ROOT, stderr=subprocess.PIPE) as process:
            while not reached():
                assert process.poll() is None, process.stderr.read().decode()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert not (folder / "list.txt").exists()

    def done() -> int:
        path = folder / ".written_0.pth"
        return pseudo_folder.Sums(path).done if path.exists() else 0

    kill_when(lambda: done() >= 3)
    assert 3 <= done() < count
    (
        folder / "train_ids" / "val" / f"{UNFINISHED}killed.tmp"
    ).touch()  # as a killed writer leaves behind

    asked = []
    plain = Ensemble.__call__
    monkeypatch.setattr(Ensemble, "__call__", lambda *x: (asked.append(1), plain(*x))[1])
    left = 2 * count - done()
    run(*words, "--save", folder)
    assert len(asked) == left
    run(*words, "--save", whole)
    assert len(asked) == left + 2 * count

    files = {path.relative_to(whole) for path in whole.rglob("*")}
    assert {path.relative_to(folder) for path in folder.rglob("*")} == files
    assert sum(path.suffix == ".png" for path in files) == 3 * count
    for path in files:
        if (whole / path).is_file():
            assert (folder / path).read_bytes() == (whole / path).read_bytes(), path


def test_a_finished_folder_is_left_alone(checkpoint, camvid, tmp_path, capsys):
    given = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    run(*given)
    first = tmp_path / "p" / "train_ids" / f"{FRAMES[0]}.png"
    before = first.stat().st_mtime_ns
    run(*given)
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before

    with pytest.raises(
        UserError, match=r"was made with threshold 0\.0, not threshold 0\.5: --overwrite begins"
    ):
        run(*given, "--threshold", "0.5")
    with pytest.raises(
        UserError, match=r"made with scales \[1.0\], flip false, not scales \[0.5\]"
    ):
        run(*given, "--scales", "0.5", "--flip")
    assert (read(tmp_path / "p") != 255).all()
    run(*given, "--threshold", "0.5", "--overwrite")
    assert (read(tmp_path / "p") == 255).any()

    first.unlink()
    with pytest.raises(UserError, match=f"{FRAMES[0]}.png was written and is gone: --overwrite"):
        run(*given, "--threshold", "0.5")


def test_another_network_or_class_table_is_not_gone_on_with(checkpoint, camvid, tmp_path):
    given = ("--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    run("--restore-from", checkpoint, *given)
    names = open_camvid(camvid).class_names
    write_checkpoint(checkpoint, "camvid", names, step=2)
    with pytest.raises(UserError, match=r'made with checkpoints \["net.pth [0-9a-f]{16}"\], not'):
        run("--restore-from", checkpoint, *given)
    settings = about(tmp_path / "p")
    settings["classes"][0] = "heaven"
    (tmp_path / "p" / "pseudo.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r'classes \["heaven", .*, not .*classes \["sky", '):
        run("--restore-from", checkpoint, *given)


def test_a_run_that_fails_leaves_no_list(checkpoint, camvid, tmp_path):
    given = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    content = (camvid / f"{FRAMES[2]}.png").read_bytes()
    (camvid / f"{FRAMES[2]}.png").write_bytes(b"")
    with pytest.raises(UserError, match="7963"):
        run(*given)
    assert not (tmp_path / "p" / "list.txt").exists()
    assert not list((tmp_path / "p").rglob("*.tmp"))
    (camvid / f"{FRAMES[2]}.png").write_bytes(content)
    run(*given)
    assert (tmp_path / "p" / "list.txt").exists()


# ------------------------------------------------------------------ mistakes


def test_a_teacher_that_is_never_sure(checkpoint, camvid, tmp_path):
    given = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    with pytest.raises(UserError, match=r"no pixel is as sure as --threshold 1\.0"):
        run(*given, "--threshold", "1")
    assert not (tmp_path / "p" / "list.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--portion", "1.5"], "expected 0 to 1: '1.5'"),
        (["--portion", "-0.1"], "-0.1"),
        (["--portion", "nan"], "nan"),
        (["--threshold", "1.01"], "expected 0 to 1: '1.01'"),
        (["--threshold", "0.5", "--portion", "0.5"], "not allowed with"),
    ],
)
def test_shares_that_are_none(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        pseudo_label.parse_args(["--restore-from", "x", "--save", "p", *words])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_nothing_of_each_class(checkpoint, camvid, tmp_path):
    words = ("--restore-from", checkpoint, "--save", tmp_path / "p", "--portion", "0")
    done = script("pseudo_label.py", *words, *on_camvid(camvid, *VAL))
    assert done.returncode == 2
    assert done.stderr == "error: --portion is above 0, to 1: 0 would keep nothing\n"
    assert not (tmp_path / "p").exists()


def test_images_labels_and_lists_are_never_replaced(checkpoint, camvid, tmp_path):
    on = on_camvid(camvid, *VAL)

    def refused(folder: Path, spared: Path, said: str, *more):
        before = spared.read_bytes()
        for overwrite in ([], ["--overwrite"]):
            with pytest.raises(UserError, match=said):
                run("--restore-from", checkpoint, "--save", folder, *on, *more, *overwrite)
        assert spared.read_bytes() == before

    first = camvid / f"{FRAMES[0]}.png"
    link = tmp_path / "link"
    link.symlink_to(camvid)
    for folder in (camvid, link):
        refused(folder, first, "is the data folder: give a folder of its own")
    assert not (camvid / "pseudo.json").exists()
    # the images by another name, also where an earlier run has left its mark
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train_ids").symlink_to(camvid)
    refused(linked, first, f"{FRAMES[0]}.png would be written over")
    (linked / "pseudo.json").write_text('{"checkpoints": 0, "classes": 0, "image_names": 0}')
    refused(linked, first, f"{FRAMES[0]}.png would be written over")

    # true labels where the pseudo labels would go
    jpeg, labels = camvid / "x.jpg", tmp_path / "labels"
    Image.new("RGB", (40, 24)).save(jpeg)
    write_label_png(labels / "train_ids" / "x.png", np.zeros((24, 40), np.uint8))
    (tmp_path / "one.txt").write_text("x.jpg x.png\n")
    listed = ("--data-list", tmp_path / "one.txt")
    refused(labels, labels / "train_ids" / "x.png", "x.png would be written over", *listed)

    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text("mine\n")
    refused(tmp_path / "lists", tmp_path / "lists" / "list.txt", "list.txt would be written over")


def test_only_files_of_ours_are_removed(checkpoint, camvid, tmp_path):
    """Whatever lies in the folder, begun with, gone on with or begun anew."""
    given = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    theirs = ["notes.tmp", ".model.pth", f"sub/{UNFINISHED}x.tmp", ".written_9.pth", "x/y.png"]
    for name in theirs:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(name)
    run(*given)
    assert [name for name in theirs if not (tmp_path / "p" / name).exists()] == []
    run(*given, "--overwrite")
    gone = [name for name in theirs if not (tmp_path / "p" / name).exists()]
    assert gone == [f"sub/{UNFINISHED}x.tmp", ".written_9.pth"]  # named as only ours are


def test_two_runs_do_not_share_a_folder(checkpoint, camvid, tmp_path):
    words = ("--restore-from", checkpoint, "--save", tmp_path / "p", *on_camvid(camvid, *VAL))
    with held(tmp_path / "p"):
        done = script("pseudo_label.py", *words)
        assert done.returncode == 2
        assert "is in use by another run: host " in done.stderr
    assert list((tmp_path / "p").iterdir()) == []


def test_names_that_no_list_reads_back(checkpoint, tmp_path):
    root = fakedata.make_camvid(tmp_path / "named", n=3, size=(40, 24))
    first = sorted((root / "val").iterdir())[0]
    on = ("--restore-from", checkpoint, *on_camvid(root, *VAL))

    def named(name: bytes | str) -> Path:
        path = os.path.join(os.fsencode(root / "val"), os.fsencode(name))
        os.rename(first, path)
        for label in (root / "valannot").glob(first.name):
            label.unlink()
        return Path(os.fsdecode(path))

    for good in ("a\u00a0b.png", "a b.png", "\u3042.png", "a\x85b.png", "-x.png"):
        now = named(good)
        run(*on, "--save", tmp_path / "good", "--overwrite")
        folder = tmp_path / "good"
        listed = {"list_file": folder / "list.txt", "label_root": folder, "label_kind": "trainIds"}
        images = [image for image, _ in open_camvid(root, **listed).pairs]
        assert f"val/{good}" in images
        shutil.rmtree(folder)
        now.rename(first)
    for bad in ("a\tb.png", "a\nb.png", b"a\xffb.png"):
        now = named(bad)
        with pytest.raises(UserError, match="no list can hold this name; rename it"):
            run(*on, "--save", tmp_path / "bad")
        assert not (tmp_path / "bad" / "train_ids").exists()
        now.rename(first)


def test_folders_that_cannot_be_used(checkpoint, camvid, tmp_path):
    on = ("--restore-from", checkpoint, *on_camvid(camvid, *VAL))
    with pytest.raises(UserError, match=r"cannot write the folder .*Not a directory"):
        run(*on, "--save", checkpoint / "p")
    for name in ("train_ids/other.png", "color/val/x_color.png"):
        write_label_png(tmp_path / name[:3] / name, np.zeros((2, 2), np.uint8))
        with pytest.raises(UserError, match=f"{name} is of no image to be labelled"):
            run(*on, "--save", tmp_path / name[:3])
        assert len(list((tmp_path / name[:3]).rglob("*.*"))) == 1
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pseudo.json").write_text("{")
    with pytest.raises(UserError, match=r"pseudo\.json: not what pseudo_label\.py writes"):
        run(*on, "--save", tmp_path / "broken")
