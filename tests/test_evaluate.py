"""Scoring networks and folders of predictions: evaluate.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import fakedata
import models
from datasets import build_dataset, write_label_png
from engine.errors import UserError
from inference.label_folders import match
from inference.outputs import Writers
from models.checkpoint import FORMAT, load_checkpoint, load_model
from worlds import FRAMES, in_camvid, on_camvid, open_camvid, script, write_checkpoint


@pytest.fixture
def checkpoint(camvid, tmp_path):
    return write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)


def run_evaluate(*words) -> None:
    evaluate.main(evaluate.parse_args([str(word) for word in words]))


# ------------------------------------------------------------------ evaluate.py


def test_evaluate_scores_saves_and_scores_what_it_saved(checkpoint, camvid, tmp_path):
    saved, scores = tmp_path / "saved", tmp_path / "scores.json"
    done = script(
        "evaluate.py", "--restore-from", checkpoint, "--save", saved, "--json", scores,
        *on_camvid(camvid, "--batch-size", "2"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("protocol: dataset camvid, images val, count 3, ")
    assert "input 40x24, label 40x24, align_corners no, scales 1, flip no, slide no" in lines[0]
    (result,) = json.loads(scores.read_text())
    names = list(result["iou"])
    assert lines[1:12] == [f"===>{name}:\t{round(result['iou'][name], 2)}" for name in names]
    assert lines[12] == f"===> mIoU: {round(result['miou'], 2)}"
    assert 0 < result["miou"] < 100

    again = tmp_path / "again.json"
    run_evaluate(
        "--predictions", saved / "train_ids", "--dataset", "camvid", "--json", again,
        *in_camvid(camvid),
    )  # fmt: skip
    (from_files,) = json.loads(again.read_text())
    for key in ("iou", "miou", "pixel_accuracy", "fw_iou"):
        assert from_files[key] == result[key]
    with Image.open(saved / "color" / f"{FRAMES[0]}_color.png") as colour:
        ids = np.asarray(Image.open(saved / "train_ids" / f"{FRAMES[0]}.png"))
        palette = np.array(open_camvid(camvid).palette)
        assert np.array_equal(np.asarray(colour.convert("RGB")), palette[ids])
    assert not (saved / "label_ids").exists()  # CamVid's own ids are the train ids


def test_evaluate_where_the_system_has_no_fcntl(checkpoint, camvid, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fcntl'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    saved, cache = tmp_path / "saved", tmp_path / "cache"
    words = ["--restore-from", checkpoint, "--save", saved, *on_camvid(camvid)]
    for more in ([], ["--cache", cache]):
        done = script("evaluate.py", *words, *more)
        assert done.returncode == 0, done.stderr
        assert "===> mIoU: " in done.stdout
        assert "fcntl" not in done.stderr


def test_evaluate_several_checkpoints(checkpoint, camvid, tmp_path, capsys):
    other = tmp_path / "other.pth"
    names = open_camvid(camvid).class_names
    write_checkpoint(other, "camvid", names, align_corners=True, input_size=(80, 48))
    run_evaluate(
        "--restore-from", checkpoint, other, "--save", tmp_path / "saved", *on_camvid(camvid)
    )
    printed = capsys.readouterr().out
    assert printed.count("===> mIoU: ") == 2
    # the checkpoint's own protocol, unless the command line says otherwise
    assert "input 80x48, label 40x24, align_corners yes" in printed
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["IoU", "(1)", "(2)"])
    assert lines[-2:] == [f"(1) {checkpoint}", f"(2) {other}"]
    tables = [float(line.split()[-1]) for line in lines if line.startswith("===>building")]
    assert [float(x) for x in lines[start + 2].split()[1:]] == tables  # side by side
    means = [float(line.split()[-1]) for line in lines if line.startswith("===> mIoU")]
    assert lines[-3].split() == ["mIoU", *(f"{mean:.2f}" for mean in means)]
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"net", "other"}


def test_intervals_of_networks_folders_and_of_what_lies_between(
    checkpoint, camvid, tmp_path, capsys
):
    other, scores = tmp_path / "other.pth", tmp_path / "scores.json"
    names = open_camvid(camvid).class_names
    write_checkpoint(other, "camvid", names, align_corners=True, input_size=(80, 48))
    both = ["--restore-from", checkpoint, other, "--save", tmp_path / "saved", "--intervals"]
    run_evaluate(*both, "--json", scores, *on_camvid(camvid))
    printed = capsys.readouterr().out
    first, second = json.loads(scores.read_text())
    low, high = first["miou_interval"]
    assert low < first["miou"] < high
    assert f"mIoU {first['miou']:.1f} [{low:.1f}, {high:.1f}], 95 % of the draws" in printed
    gain = second["miou"] - first["miou"]
    low, high = second["beside_first"]["interval"]
    assert low <= gain <= high
    assert f"(2) - (1): [{low:+.1f}, {high:+.1f}], p " in printed
    saved = tmp_path / "saved" / "net"
    data = ["--dataset", "camvid", "--data-dir", camvid, "--num-workers", "0"]
    run_evaluate("--predictions", saved, "--intervals", "--json", scores, *data)
    (again,) = json.loads(scores.read_text())
    assert again["miou_interval"] == first["miou_interval"]


def test_evaluate_repeats_the_validation_without_further_flags(camvid, tmp_path, capsys):
    names = open_camvid(camvid).class_names
    rows = [" ".join(pair) for pair in open_camvid(camvid).pairs[:2]]
    listed = tmp_path / "two.txt"
    listed.write_text("\n".join(rows))
    data = {"root": str(camvid), "split": "val", "list_file": str(listed), "options": {"seed": 3}}
    checkpoint = write_checkpoint(
        tmp_path / "net.pth", "camvid", names, data=data, input_size=(80, 48)
    )
    run_evaluate("--restore-from", checkpoint, "--num-workers", "0")
    printed = capsys.readouterr().out
    assert f"dataset camvid, images {listed}, count 2, " in printed
    assert "input 80x48, label 40x24" in printed
    run_evaluate("--restore-from", checkpoint, "--num-workers", "0", "--set", "test")
    assert "images test, count 3, " in capsys.readouterr().out


def test_evaluate_views_and_windows_from_the_command_line(checkpoint, camvid, capsys):
    how = ("--scales", "0.5,1", "--flip", "--slide", "32,32", "--align-corners")
    run_evaluate("--restore-from", checkpoint, *how, *on_camvid(camvid))
    assert "align_corners yes, scales 0.5,1, flip yes, slide 32x32" in capsys.readouterr().out


def test_evaluate_weights_of_others_by_their_architecture(checkpoint, camvid, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    model = load_checkpoint(checkpoint)["model"]
    torch.save({f"module.{name}": value for name, value in model.items()}, weights)
    given = ("--dataset", "camvid", *on_camvid(camvid))
    run_evaluate("--restore-from", checkpoint, *given)
    ours = capsys.readouterr().out
    run_evaluate("--restore-from", weights, "--model", "compact", "--width", "8", *given)
    theirs = capsys.readouterr().out
    assert scores_of(theirs) == scores_of(ours)


def scores_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("===>")]


def test_evaluate_a_list_without_one_class_says_how_many_count(checkpoint, camvid, capsys):
    for name in FRAMES:
        Image.new("L", (40, 24), 3).save(camvid / f"{name}.png".replace("val", "valannot"))
        write_label_png(camvid / "pred" / f"{name}.png", np.full((24, 40), 3, np.uint8))
    run_evaluate("--predictions", camvid / "pred", "--dataset", "camvid", *in_camvid(camvid))
    printed = capsys.readouterr().out
    assert "===>road:\t100.0\n" in printed
    assert "===>sky:\tnan\n" in printed
    assert "mIoU is the mean of 1 of 11 classes" in printed


def test_evaluate_equals_cityscapesscripts_on_the_same_files(official, tmp_path, capsys):
    """Score predictions that use every id of the class table, in the names of the server."""
    root, folder = fakedata.make_cityscapes(tmp_path / "cs", n=4), tmp_path / "results"
    rng = np.random.default_rng(2)
    truths, files = sorted(root.glob("gtFine/val/*/*_labelIds.png")), []
    for path in truths:
        truth = np.asarray(Image.open(path))
        instances = path.with_name(path.name.replace("labelIds", "instanceIds"))
        fakedata.save(instances, np.where(truth > 23, truth.astype(np.uint16) * 1000, truth))
        pred = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 34, truth.shape))
        files.append(folder / path.name.replace("_gtFine_labelIds", "_run1"))
        fakedata.save(files[-1], pred.astype(np.uint8))
    theirs = official.evaluateImgLists([*map(str, files)], [*map(str, truths)], official.args)

    scores = tmp_path / "scores.json"
    run_evaluate(
        "--predictions", folder, "--prediction-ids", "label", "--dataset", "cityscapes",
        "--data-dir", root, "--json", scores, "--num-workers", "0",
    )  # fmt: skip
    printed = capsys.readouterr().out
    (ours,) = json.loads(scores.read_text())
    assert ours["miou"] == 100 * theirs["averageScoreClasses"]
    assert ours["category_miou"] == 100 * theirs["averageScoreCategories"]
    official_names = {"light": "traffic light", "sign": "traffic sign", "motocycle": "motorcycle"}
    for name, iou in ours["iou"].items():
        score = 100 * theirs["classScores"][official_names.get(name, name)]
        assert (iou is None and math.isnan(score)) or iou == score
        assert f"===>{name}:\t{round(score, 2)}\n" in printed
    for name, iou in ours["categories"].items():
        assert iou == 100 * theirs["categoryScores"][name]
    assert "of the pixels have no predicted class" in printed


def test_label_ids_for_the_cityscapes_server_score_the_same(official, tmp_path):
    root = fakedata.make_cityscapes(tmp_path / "cs", n=2)
    names = build_dataset("cityscapes", root, split="val").class_names
    checkpoint = write_checkpoint(tmp_path / "net.pth", "cityscapes", names)
    saved, scores = tmp_path / "saved", tmp_path / "scores.json"
    run_evaluate(
        "--restore-from", checkpoint, "--data-dir", root, "--save", saved, "--json", scores,
        "--num-workers", "0",
    )  # fmt: skip
    truths = sorted(root.glob("gtFine/val/*/*_labelIds.png"))
    arguments = official.CArgs()
    vars(arguments).update(vars(official.args), evalInstLevelScore=False)
    arguments.predictionPath = str(saved / "label_ids")
    files = [official.getPrediction(arguments, str(truth)) for truth in truths]
    theirs = official.evaluateImgLists(files, [*map(str, truths)], arguments)
    (ours,) = json.loads(scores.read_text())
    assert ours["miou"] == 100 * theirs["averageScoreClasses"]


@pytest.mark.parametrize(("subset", "count"), [("16", 16), ("13", 13)])
def test_subsets_of_synthia(tmp_path, capsys, subset, count):
    root = fakedata.make_cityscapes(tmp_path / "cs", n=1)
    shown = ("--dataset", "cityscapes", "--data-dir", root, "--num-workers", "0")
    labels = tmp_path / "labels"
    for path in root.glob("gtFine/val/*/*_labelTrainIds.png"):
        ids = np.asarray(Image.open(path))
        write_label_png(labels / path.name.replace("_gtFine_labelTrainIds", ""), ids)
    run_evaluate("--predictions", labels, "--classes", subset, *shown)
    printed = capsys.readouterr().out
    assert len(scores_of(printed)) == count + 1
    assert "===>terrain" not in printed
    assert f"classes {subset}" in printed


# ------------------------------------------------------------------ mistakes: one line, exit 2


@pytest.mark.parametrize("name", ["evaluate.py", "pseudo_label.py"])
def test_a_mistake_is_one_line_and_status_2(name, tmp_path):
    words = {
        "evaluate.py": ["--restore-from", tmp_path / "none.pth"],
        "pseudo_label.py": ["--restore-from", tmp_path / "none.pth", "--save", tmp_path / "out"],
    }[name]
    done = script(name, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "none") in line


class RunsCode:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_checkpoints_that_cannot_be_used(checkpoint, camvid, tmp_path):
    whole = checkpoint.read_bytes()
    saved = load_checkpoint(checkpoint)
    bad = tmp_path / "bad.pth"

    def refused(said: str, *more):
        with pytest.raises(UserError, match=said) as caught:
            run_evaluate("--restore-from", bad, *on_camvid(camvid), *more)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)

    refused("no such file")
    bad.write_bytes(b"")
    refused("empty")
    bad.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    torch.save({"model": RunsCode(tmp_path / "ran")}, bad)
    refused("refused: loading it would run")
    assert not (tmp_path / "ran").exists()
    torch.save({"something": 1}, bad)
    refused("not a segshift checkpoint")
    torch.save({**saved, "arch": "resnet50"}, bad)
    refused('arch is "resnet50"; {name, num_classes} expected')
    torch.save({**saved, "arch": {"name": "compact"}}, bad)
    refused("arch lacks 'num_classes'")
    torch.save({key: saved[key] for key in ("model", "arch")}, bad)
    refused(r"not a segshift checkpoint \(without format, normalisation, classes\)")
    torch.save({**saved, "format": FORMAT + 1}, bad)
    refused(f"of format {FORMAT + 1}")
    torch.save({"format": FORMAT, "state": {"model": saved["model"]}, "options": {}}, bad)
    refused("is for resuming; use NAME_STEP.pth or NAME_best.pth beside it")
    torch.save({**saved, "classes": ["sky", "road"]}, bad)
    refused("2 names of classes, 11 classes in arch")
    torch.save({**saved, "arch": {**saved["arch"], "width": 16}}, bad)
    refused(r"does not fit .*\(8, 3, 3, 3\) in the file, \(16, 3, 3, 3\) here")
    torch.save(saved["model"], bad)
    refused("fits nothing", "--model", "deeplabv3plus", "--dataset", "camvid")


def test_a_checkpoint_keeps_the_normalisation_it_was_trained_with(camvid, tmp_path):
    caffe = models.NORMALISATIONS["caffe"]
    path = write_checkpoint(tmp_path / "net.pth", "camvid", ["a", "b"], normalisation=caffe)
    model, _ = load_model(path, torch.device("cpu"))
    assert model.normalisation == caffe


def test_predictions_that_do_not_fit(checkpoint, camvid, tmp_path):
    folder = tmp_path / "predictions"
    first = folder / f"{FRAMES[0]}.png"

    def refused(said: str):
        with pytest.raises(UserError, match=said):
            run_evaluate("--predictions", folder, "--dataset", "camvid", *in_camvid(camvid))

    refused("no such folder of predictions")
    folder.mkdir()
    refused("no PNG in it")
    ids = np.zeros((24, 40), np.uint8)
    for name in FRAMES[1:]:
        write_label_png(folder / f"{name}.png", ids)
    refused(f"no prediction of {FRAMES[0]}")
    write_label_png(first, ids)
    write_label_png(folder / "surplus.png", ids)
    refused("of no image of the dataset: surplus")
    (folder / "surplus.png").unlink()
    write_label_png(first, ids[:, 1:])
    refused(rf"{first.name}: the prediction is 39x24 pixels, the label of .* 40x24")
    write_label_png(first, ids + 11)
    refused(rf"{first.name}: ids that camvid does not have: 11 \(see --prediction-ids\)")
    Image.new("RGB", (40, 24)).save(first)
    refused(rf"{first.name}: a label of mode RGB")


def test_views_of_predictions_are_refused(camvid):
    idle = "--flip", "--scales 0.5", "--save x", "--model compact", "--device cpu", "--batch-size 1"
    for words in map(str.split, (*idle, "--precision fp32")):
        with pytest.raises(UserError, match=f"{words[0]} goes with --restore-from"):
            run_evaluate("--predictions", camvid, "--dataset", "camvid", *words)


def test_predictions_are_found_by_the_servers_naming(tmp_path):
    root = fakedata.make_cityscapes(tmp_path / "cs", n=2)
    dataset = build_dataset("cityscapes", root, split="val")
    frames = [Path(image).name.removesuffix("_leftImg8bit.png") for image, _ in dataset.pairs]
    folder = tmp_path / "flat"
    for frame in frames:
        write_label_png(folder / f"{frame}_mine.png", np.zeros((32, 64), np.uint8))
    assert match(dataset, folder) == [folder / f"{frame}_mine.png" for frame in frames]
    write_label_png(folder / f"{frames[0]}_other.png", np.zeros((32, 64), np.uint8))
    with pytest.raises(UserError, match="are of the same image"):
        match(dataset, folder)
    # frames of one name in two folders: the name alone does not say which is meant
    dataset.pairs = [(f"{split}/{frames[0]}.png", None) for split in ("train", "val")]
    with pytest.raises(UserError, match=f"no prediction of train/{frames[0]}, val/{frames[0]}"):
        match(dataset, folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "16"], "the subsets of camvid are: none"),
        (["--dataset", "nowhere"], "unknown dataset 'nowhere'; there are: acdc"),
        (["--set", "dawn"], "has no split 'dawn'"),
        (["--backbone", "resnet18"], "--backbone goes with --model"),
        (["--slide", "50,50"], "multiples of 32"),
        (["--data-option", "colour=blue"], "has no option 'colour'"),
        (["--save", "{file}/folder"], "cannot write the folder .*Not a directory"),
        (["--json", "{file}/x.json"], "cannot write the folder .*File exists"),
        (["--json", "{file}"], r"net\.pth would be written over, which is read"),
        (["--json", "{data}/val/0016E5_07959.png"], r"07959\.png would be written over"),
        (["--save", "{data}"], "is the data folder: give a folder of its own"),
        (["--restore-from", "{file}", "a/net.pth", "--save", "x"], "two have the same name"),
        (["--prediction-ids", "label"], "--prediction-ids goes with --predictions"),
    ],
)
def test_options_that_cannot_be(checkpoint, camvid, words, said):
    words = [word.format(file=checkpoint, data=camvid) for word in words]
    with pytest.raises(UserError, match=said):
        run_evaluate("--restore-from", checkpoint, *on_camvid(camvid, *words))


@pytest.mark.parametrize(
    "words", [["--input-size", "0"], ["--scales", "1;2"], ["--data-option", "style"], []]
)
def test_words_that_do_not_parse(words, capsys):
    given = ["--restore-from", "net.pth", *words] if words else []
    with pytest.raises(SystemExit) as caught:
        evaluate.parse_args(given)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_writers_pass_errors_on():
    def fail():
        raise UserError("disk full")

    write = Writers(max_waiting=1)
    write(fail)
    with pytest.raises(UserError, match="disk full"):
        write(fail)  # the second call waits for the first
    with pytest.raises(UserError, match="disk full"), Writers() as write:
        write(fail)
