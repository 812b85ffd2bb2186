"""Several sets of labelled images in one run: --val of the training scripts and of evaluate.py."""

import json
from pathlib import Path

import pytest
import torch

import evaluate
import fakedata
import train_da
import train_seg
from datasets import build_dataset
from engine.errors import UserError
from engine.parsing import split_named
from worlds import write_checkpoint

QUICK = """--recipe streets --input-size 64,48 --batch-size 2 --warmup-steps 1 --num-steps 2
    --save-pred-every 1""".split()
ADAPT = """--source camvid --source-set day_train --target camvid --set dusk_train --adapt-from 1
    --no-baseline""".split()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48))


def test_words_of_val():
    assert split_named("streets:val") == ("streets", "val", None, {})
    assert split_named("acdc:val:data/ACDC") == ("acdc", "val", "data/ACDC", {})
    whole = split_named("acdc:val:C:/a=b/ACDC:condition=night:seed=3")
    assert whole == ("acdc", "val", "C:/a=b/ACDC", {"condition": "night", "seed": 3})


@pytest.mark.parametrize("word", ["acdc", "acdc:", ":val", "acdc:val:data:x="])
def test_words_that_name_no_images(word: str, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--restore-from", "x.pth", "--val", word])
    assert "DATASET:SPLIT" in capsys.readouterr().err or word.endswith("=")


def test_adaptation_scores_every_set_and_the_first_chooses(root, tmp_path: Path, capsys):
    sets = [f"camvid:day_val:{root}", f"camvid:dusk_val:{root}", f"camvid:test:{root}"]
    words = [
        "--snapshot-dir",
        str(tmp_path),
        "--data-dir",
        str(root),
        *QUICK,
        *ADAPT,
        "--val",
        *sets,
    ]
    train_da.main(train_da.parse_args(words))
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())["adapted"]
    assert result["on"] == "camvid:day_val"
    assert list(result["also"]) == ["camvid:dusk_val", "camvid:test"]
    best = result["best"]
    assert f"best {best['miou']:.2f} (step {best['step']}, chosen on camvid:day_val)" in said
    assert f"mIoU on camvid:dusk_val{result['also']['camvid:dusk_val']['miou']:14.2f}" in said
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    scores = [entry for entry in log if "val_miou" in entry]
    assert [entry["val_on"] for entry in scores] == ["camvid:day_val"] * 2
    assert scores[-1]["val_also"]["camvid:test"] == result["also"]["camvid:test"]["miou"]
    assert best["miou"] == max(entry["val_miou"] for entry in scores)
    # the run's own folder is understood; a moved folder resumes, other sets do not
    words[-3:] = ["camvid:day_val", f"{sets[1]}/.", "camvid:test"]
    train_da.main(train_da.parse_args(words))
    with pytest.raises(UserError, match=r"--val \['camvid:day_val', .* -> \['camvid:test'\]"):
        train_da.main(train_da.parse_args([*words[:-3], sets[2]]))


def test_training_scores_as_evaluate_does(root, tmp_path: Path, capsys):
    sets = [f"camvid:day_val:{root}", f"camvid:dusk_val:{root}"]
    words = ["--dataset", "camvid", "--data-dir", str(root), "--set", "day_train", *QUICK]
    train_seg.main(train_seg.parse_args([*words, "--snapshot-dir", str(tmp_path), "--val", *sets]))
    last = json.loads((tmp_path / "result.json").read_text())["last"]
    out = tmp_path / "scores.json"
    checkpoint = str(tmp_path / "camvid_2.pth")
    words = ["--restore-from", checkpoint, "--val", *sets, "--json", str(out)]
    words += ["--save", str(tmp_path / "seen"), "--num-workers", "0"]
    evaluate.main(evaluate.parse_args(words))
    day, dusk = json.loads(out.read_text())
    assert (day["val"], dusk["val"]) == ("camvid:day_val", "camvid:dusk_val")
    assert day["miou"] == last["miou"]
    assert dusk["miou"] == last["also"]["camvid:dusk_val"]["miou"]
    assert f"camvid:dusk_val{dusk['miou']:8.2f}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "camvid_day_val",
        "camvid_dusk_val",
    }


def test_a_word_means_the_same_images_whatever_the_checkpoint_was_scored_on(tmp_path: Path):
    loveda = fakedata.make_loveda(tmp_path / "loveda")
    names = build_dataset("loveda", loveda, split="val").class_names
    scored_on = {"root": str(loveda), "split": "val", "options": {"domain": "urban"}}
    path = write_checkpoint(tmp_path / "x.pth", "loveda", names, data=scored_on)
    counts = []
    for word in (f"loveda:val:{loveda}", f"loveda:val:{loveda}:domain=urban"):
        words = ["--restore-from", str(path), "--val", word, "--json", str(tmp_path / "x.json")]
        evaluate.main(evaluate.parse_args([*words, "--num-workers", "0"]))
        (result,) = json.loads((tmp_path / "x.json").read_text())
        counts.append((result["domain"], result["count"]))
    assert counts == [("both", 4), ("urban", 2)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "val"], "--set goes with one set of images, not with --val"),
        (["--val", "camvid:val:{root}", "camvid:val:{root}"], "--val .* is given twice"),
        (["--val", "loveda:val:{root}"], "Val/Rural/images_png: nothing here"),
        (["--val", "nothing:val"], "unknown dataset 'nothing'"),
    ],
)
def test_mistakes_with_val(more, message, root, tmp_path: Path):
    torch.save({}, tmp_path / "x.pth")
    words = ["--restore-from", str(tmp_path / "x.pth"), "--val", f"camvid:val:{root}"]
    words += [word.format(root=root) for word in more]
    words += ["--model", "deeplabv2"]
    with pytest.raises(UserError, match=message):
        evaluate.main(evaluate.parse_args(words))


def test_classes_must_be_those_of_the_source(root, tmp_path: Path):
    loveda = fakedata.make_loveda(tmp_path / "loveda")
    words = ["--snapshot-dir", str(tmp_path / "s"), "--data-dir", str(root), *QUICK, *ADAPT]
    words += ["--val", f"camvid:day_val:{root}", f"loveda:val:{loveda}"]
    with pytest.raises(UserError, match="classes"):
        train_da.main(train_da.parse_args(words))
