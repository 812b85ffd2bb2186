"""What a run may change when it goes on, and what it may not: contents count, paths do not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import fakedata
import train_seg
from engine.errors import UserError

FLAGS = """--dataset folder --input-size 64,48 --model compact width=8 --num-steps 2 --val-set train
    --num-workers 0 --num-steps-stop 1""".split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fakedata.make_folder(tmp_path / "data", splits=("train",))


def train(folder: Path, data: Path, *flags: str) -> dict:
    """Train for a step, or go on, and return last.pth."""
    words = [*FLAGS, "--data-dir", str(data), "--snapshot-dir", str(folder), *flags]
    train_seg.main(train_seg.parse_args(words))
    return torch.load(folder / "last.pth", weights_only=True)


def add_an_image(data: Path) -> None:
    for kind, ending in (("images", "jpg"), ("labels", "png")):
        folder = data / kind / "train"
        shutil.copy(folder / f"0.{ending}", folder / f"9.{ending}")


def pairs(*names: str) -> list[tuple[str, str]]:
    return [(f"images/train/{name}.jpg", f"labels/train/{name}.png") for name in names]


def test_moved_data_go_on_and_more_data_do_not(data: Path, tmp_path: Path):
    train(tmp_path / "run", data)
    moved = data.rename(tmp_path / "moved")
    assert train(tmp_path / "run", moved, "--num-steps-stop", "2")["step"] == 2
    add_an_image(moved)
    with pytest.raises(UserError, match="other contents of the training images"):
        train(tmp_path / "run", moved)


def test_a_list_counts_by_what_is_in_it(data: Path, tmp_path: Path):
    one = fakedata.write_list(tmp_path / "one.txt", pairs("0", "1"))
    train(tmp_path / "run", data, "--data-list", str(one))
    same = fakedata.write_list(tmp_path / "same.txt", pairs("0", "1"))
    train(tmp_path / "run", data, "--data-list", str(same))
    for names in (("1", "0"), ("0", "2"), ("0",)):
        other = fakedata.write_list(tmp_path / "one.txt", pairs(*names))
        with pytest.raises(UserError, match="other contents of the training images"):
            train(tmp_path / "run", data, "--data-list", str(other))


@pytest.mark.parametrize("flag", ["--weights", "--restore-from"])
def test_weights_count_by_what_is_in_them(data: Path, tmp_path: Path, flag: str):
    torch.manual_seed(0)
    state = train(tmp_path / "first", data)["state"]["model"]
    torch.save(state, tmp_path / "one.pth")
    train(tmp_path / "run", data, flag, str(tmp_path / "one.pth"))
    shutil.copy(tmp_path / "one.pth", tmp_path / "same.pth")
    train(tmp_path / "run", data, flag, str(tmp_path / "same.pth"))
    torch.save({key: value * 2 for key, value in state.items()}, tmp_path / "one.pth")
    with pytest.raises(UserError, match=f"other contents of {flag}"):
        train(tmp_path / "run", data, flag, str(tmp_path / "one.pth"))


def test_more_steps_by_a_flag_alone(data: Path, tmp_path: Path, capsys):
    train(tmp_path / "run", data)
    with pytest.raises(UserError, match=r"--num-steps 2 -> 3.*--change-num-steps"):
        train(tmp_path / "run", data, "--num-steps", "3")
    more = ["--num-steps", "3", "--num-steps-stop", "3"]
    assert train(tmp_path / "run", data, *more, "--change-num-steps")["step"] == 3
    assert "the schedule of 2 steps is now one of 3: from step 1 on" in capsys.readouterr().out
    assert train(tmp_path / "run", data, *more)["step"] == 3


def test_an_option_that_an_older_run_did_not_have_was_its_default(data: Path, tmp_path: Path):
    saved = train(tmp_path / "run", data)
    for key in ("warmup_steps", "augment"):
        del saved["options"][key]
    torch.save(saved, tmp_path / "run" / "last.pth")
    train(tmp_path / "run", data)
    torch.save(saved, tmp_path / "run" / "last.pth")
    for flags in (["--warmup-steps", "5"], ["--augment", "hflip"]):
        with pytest.raises(UserError, match=f"made with other options \\({flags[0]} "):
            train(tmp_path / "run", data, *flags)


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", "7"), ("step", -1), ("state", []), ("options", 3), ("best", "x"), ("digests", 1)],
)
def test_a_last_checkpoint_of_other_types_is_named(data: Path, tmp_path: Path, key: str, value):
    saved = train(tmp_path / "run", data)
    torch.save({**saved, key: value}, tmp_path / "run" / "last.pth")
    with pytest.raises(UserError, match=rf"last\.pth: its {key} is"):
        train(tmp_path / "run", data)


def test_the_log_says_the_true_learning_rate_and_keeps_no_torn_line(data: Path, tmp_path: Path):
    log = tmp_path / "run" / "log.jsonl"
    flags = ["--learning-rate", "0.01", "--power", "1", "--print-every", "1"]
    train(tmp_path / "run", data, *flags)
    assert json.loads(log.read_text().splitlines()[0])["learning_rate"] == pytest.approx(0.01)
    with log.open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"step": "2"}\n{"step": 2}\n' + b"[" * 100_000 + b"\n")
    train(tmp_path / "run", data, *flags, "--num-steps-stop", "2")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates == pytest.approx([0.01, 0.005])
    assert {line["step"] for line in lines} == {1, 2}


def test_a_class_that_no_label_holds_is_refused(data: Path, tmp_path: Path, capsys):
    table = json.loads((data / "classes.json").read_text())
    table["classes"].append({"id": 1, "name": "crack", "color": [1, 2, 3]})
    (data / "classes.json").write_text(json.dumps(table))
    why = r"no training label holds crack \(id 1\); the labels hold the ids 10, 20, 30, 40: "
    with pytest.raises(UserError, match=why):
        train(tmp_path / "run", data)
    train(tmp_path / "run", data, "--allow-missing-classes")
    shown = capsys.readouterr().out
    assert "training images: folder train: 3 images; 64x48; labels hold 3 of 4 classes" in shown
    assert "(none: crack)" in shown
    assert "of 4 classes)  best" in shown


def test_classes_that_mean_other_ids_are_other_data(data: Path, tmp_path: Path):
    train(tmp_path / "run", data)
    table = json.loads((data / "classes.json").read_text())
    rows = table["classes"] if isinstance(table, dict) else table
    rows[0]["id"], rows[1]["id"] = rows[1]["id"], rows[0]["id"]
    (data / "classes.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="other contents of the training images"):
        train(tmp_path / "run", data)
