"""The training scripts on drawn streets: resuming, controls, results, bad input, signals."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import evaluate
import fakedata
import train_da
import train_seg
from engine import start
from engine.errors import UserError
from engine.files import save_tensors
from models.checkpoint import load_model
from training.identity import Identity
from training.log import Log
from training.run import Run
from worlds import FOUR_METHODS, ROOT, SMALL, assert_equal


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Return a folder in CamVid's layout: 6 frames by day, 4 at dusk, 2 to validate."""
    return str(fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48)))


@pytest.fixture
def adapt(data: str):
    """Return a function that runs train_da.py in this process and returns its last.pth."""

    def run(folder: Path, *flags: str) -> dict:
        words = ["--snapshot-dir", str(folder), "--data-dir", data, *SMALL, *flags]
        train_da.main(train_da.parse_args(words))
        return torch.load(folder / "last.pth", weights_only=True)

    return run


def script(*words: str, **how) -> subprocess.CompletedProcess:
    """Run a script as a user does."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **how)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_two_steps_and_two_more_equal_four(adapt, tmp_path: Path, workers: str):
    flags = ["--method", *FOUR_METHODS, "--num-steps", "4", "--num-workers", workers]
    whole = adapt(tmp_path / "whole", *flags)
    halfway = adapt(tmp_path / "parts", *flags, "--num-steps-stop", "2")
    assert halfway["step"] == 2
    parts = adapt(tmp_path / "parts", *flags)
    assert parts["step"] == 4
    assert_equal(whole["state"], parts["state"])
    assert {"model", "optimizer", "methods", "teacher"} == set(parts["state"])
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    steps = [[json.loads(line)["step"] for line in log if "seg" in log[0]] for log in logs]
    assert steps[1] == [2, 2, 4, 4]  # losses and validation at 2 and at 4, none twice
    assert steps[0] == [4, 4]


def test_a_control_without_batch_norm_is_the_source_only_run(adapt, tmp_path: Path):
    """Weight zero must mean zero: only batch statistics could make a difference."""
    flags = ["--num-steps", "4"]
    alone = adapt(tmp_path / "alone", "--method", "none", *flags)
    control = adapt(tmp_path / "control", "--method", *FOUR_METHODS, "--control", *flags)
    adapted = adapt(tmp_path / "adapted", "--method", *FOUR_METHODS, *flags)
    assert_equal(alone["state"]["model"], control["state"]["model"])
    weight = "classifier.weight"
    assert not torch.equal(alone["state"]["model"][weight], adapted["state"]["model"][weight])


def test_a_control_with_batch_norm_sees_the_target(adapt, tmp_path: Path):
    flags = ["--num-steps", "3", "--norm", "batch"]
    alone = adapt(tmp_path / "alone", "--method", "none", *flags)["state"]["model"]
    control = adapt(tmp_path / "c", "--method", "entropy", "--control", *flags)["state"]["model"]
    means = [key for key in alone if key.endswith("running_mean")]
    assert means
    assert not torch.equal(alone[means[0]], control[means[0]])


def test_adabn_is_scored_and_published_beside_last(adapt, tmp_path: Path):
    flags = ["--num-steps", "2", "--norm", "batch", "--method", "adabn"]
    adapt(tmp_path / "run", *flags)
    result = json.loads((tmp_path / "run" / "result.json").read_text())["adapted"]
    assert result["miou"] == result["finished"]["miou"]
    assert result["last"]["step"] == 2
    raw, _ = load_model(tmp_path / "run" / "camvid_2.pth", torch.device("cpu"))
    finished, _ = load_model(tmp_path / "run" / "camvid_finished.pth", torch.device("cpu"))
    raw, finished = raw.state_dict(), finished.state_dict()
    changed = {key for key in raw if not torch.equal(raw[key], finished[key])}
    assert changed
    assert all("running" in key or "num_batches" in key for key in changed)


def test_the_baseline_has_the_same_start_and_the_result_holds_both(tmp_path: Path, capsys):
    folder = tmp_path / "demo"
    flags = "--batch-size 2 --num-steps 3 --adapt-from 2 --save-pred-every 2 --num-workers 0"
    train_da.main(train_da.parse_args(["--snapshot-dir", str(folder), *flags.split()]))
    out = capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"source_only", "adapted"}
    for score in result.values():
        assert set(score["iou"]) >= {"road", "sky", "car"}
        assert 0 < score["miou"] < 100
        assert score["best"]["miou"] >= score["last"]["miou"]
    # step 2, before the methods set in, is the same network in both
    alone = torch.load(folder / "source" / "streets_2.pth", weights_only=True)["model"]
    adapted = torch.load(folder / "streets_2.pth", weights_only=True)["model"]
    assert_equal(alone, adapted)
    assert (folder / "demo.png").stat().st_size > 5000
    assert "adversarial adds" in out
    assert out.endswith(f"to look at: {folder / 'page/index.html'}\n")
    runs = json.loads((folder / "page" / "report.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["source only", "adapted"]
    assert runs[1]["miou"] == pytest.approx(result["adapted"]["last"]["miou"])
    again = train_da.parse_args(["--snapshot-dir", str(folder), *flags.split()])
    train_da.main(again)  # a finished run does no step, and says the same
    assert "resuming" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text()) == result


def test_the_seed_changes_everything(adapt, tmp_path: Path):
    states = [
        adapt(tmp_path / seed, "--num-steps", "1", "--random-seed", seed)["state"]["model"]
        for seed in ("0", "1")
    ]
    assert not torch.equal(states[0]["classifier.weight"], states[1]["classifier.weight"])


@pytest.mark.parametrize("method", ["none", "entropy", "adversarial"])
def test_accumulating_two_batches_equals_one_of_twice_the_size(adapt, tmp_path: Path, method: str):
    flags = ["--method", method, "--num-steps", "2", "--optimizer", "sgd", "--no-random-mirror"]
    flags += ["--no-class-balance", "--adapt-from", "0"]
    # full labels: a mean over pixels of two batches is then the mean of the means
    once = adapt(tmp_path / "once", *flags, "--batch-size", "4")["state"]["model"]
    twice = adapt(tmp_path / "twice", *flags, "--batch-size", "2", "--iter-size", "2")
    for name, value in twice["state"]["model"].items():
        torch.testing.assert_close(value, once[name], rtol=1e-3, atol=2e-5)
    logs = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])
        for name in ("once", "twice")
    ]
    assert logs[0]["seg"] == pytest.approx(logs[1]["seg"], rel=1e-2)


def test_every_number_of_workers_gives_the_same_run(adapt, tmp_path: Path):
    runs = [
        adapt(tmp_path / workers, "--num-steps", "3", "--num-workers", workers)
        for workers in ("0", "1", "3")
    ]
    for other in runs[1:]:
        assert_equal(runs[0]["state"], other["state"])


def test_a_multi_level_network_trains_every_level(adapt, tmp_path: Path):
    flags = "--model deeplabv2 --backbone resnet50 --multi-level --num-steps 2 --adapt-from 0"
    run = adapt(tmp_path / "run", *flags.split(), "--method", *FOUR_METHODS)
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    both = ["seg", "adv", "advent", "entropy", "mix"]
    assert {f"{name}_aux" for name in both} <= log.keys()
    assert "D_adv_aux" in log
    assert any("discriminators.aux" in key for key in run["state"]["methods"])


def test_train_seg_trains_resumes_and_evaluate_needs_no_model_flag(data: str, tmp_path: Path):
    flags = f"--recipe streets --dataset camvid --data-dir {data} --set day_train --val-set day_val"
    flags += f" --input-size 64,48 --crop-size 32,32 --batch-size 2 --snapshot-dir {tmp_path}/run"
    flags += " --save-pred-every 2 --num-steps 4"
    train_seg.main(train_seg.parse_args([*flags.split(), "--num-steps-stop", "2"]))
    train_seg.main(train_seg.parse_args(flags.split()))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["last"]["step"] == 4
    checkpoint = str(tmp_path / "run" / "camvid_4.pth")
    done = script("evaluate.py", "--restore-from", checkpoint)  # no other flag
    assert done.returncode == 0, done.stderr
    printed = float(done.stdout.split("===> mIoU: ")[1].split()[0])
    assert printed == pytest.approx(result["last"]["miou"], abs=0.01)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method magic", "invalid choice: 'magic' (choose from"),
        ("--model vnet", "--model vnet: there are: "),
        ("--source kitti --target streets", "unknown dataset 'kitti'; there are: acdc"),
        ("--input-size 1024x512", "expected W,H in pixels, for instance 1024,512: '1024x512'"),
        ("--input-size 0,512", "expected W,H in pixels"),
        ("--batch-size 0", "expected int >= 1: '0'"),
        ("--crop-size 500,500", "--crop-size 500,500 is larger than the images 160,96"),
        ("--device tpu", "--device is auto, cpu, cuda, cuda:N or mps, not 'tpu'"),
        ("--device cuda:7", "this machine has"),
        ("--restore-from nowhere.pth", "nowhere.pth"),
        ("--random-scale 0,0", "expected LOW,HIGH, 0 < LOW <= HIGH: '0,0'"),
        ("--random-scale 0.5", "expected LOW,HIGH"),
        ("--mix-threshold 5", "expected 0 to 1: '5'"),
        ("--discriminator-width 0", "expected int >= 1: '0'"),
        ("--target-option gap=7", "gap must lie in [0, 1], got 7"),
        ("--source-option light=1", "has no option 'light'; it has: style, gap"),
        ("--random-seed one", "expected int >= 0: 'one'"),
        ("--source camvid --source camvid --data-dir a --data-dir b --data-dir c", "as many"),
        ("--crop-size 30,30 --adapt-from 0", "needs maps of 32x32 or more, not 30x30"),
        ("--method adabn", "this model has no batch normalisation"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(tmp_path: Path, capsys, flags: str, message: str):
    common = ["--snapshot-dir", str(tmp_path / "run"), "--recipe", "streets", "--num-steps", "1"]
    words = [*common, "--no-baseline", *flags.split()]
    with pytest.raises(SystemExit) as ended:
        start.run(train_da.main, lambda: train_da.parse_args(words))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_snapshot_folder_that_is_a_file_is_refused_before_the_first_step(tmp_path: Path):
    (tmp_path / "run").write_text("")
    done = script("train_da.py", "--snapshot-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write --snapshot-dir")


def test_an_exploding_loss_stops_and_names_step_and_term(adapt, tmp_path: Path):
    flags = ["--method", "none", "--optimizer", "sgd", "--num-steps", "40", "--random-seed", "1"]
    folder = tmp_path / "run"
    adapt(folder, *flags, "--num-steps-stop", "2")
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    assert set(before) == {"last.pth", "camvid_2.pth", "camvid_best.pth"}
    saved = torch.load(folder / "last.pth", weights_only=True)
    saved["state"]["optimizer"]["param_groups"][0]["initial_lr"] = 1e30  # a run that goes astray
    torch.save(saved, folder / "last.pth")
    before["last.pth"] = (folder / "last.pth").read_bytes()
    with pytest.raises(UserError, match=r"step \d+: loss term seg is (nan|inf); .*is as it was"):
        adapt(folder, *flags)
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    with pytest.raises(UserError, match=r"no checkpoint had been written"):
        adapt(tmp_path / "other", *flags, "--learning-rate", "1e30")
    assert not list((tmp_path / "other").glob("*.pth"))


def test_a_checkpoint_that_is_not_finite_is_never_published(tmp_path: Path):
    model = torch.nn.BatchNorm2d(2)
    model.arch, model.normalisation = {}, {}
    model.running_mean[1] = float("nan")
    run = Run(tmp_path / "run", "x", Identity(), {})
    with pytest.raises(UserError, match="running_mean is not finite; no checkpoint is written"):
        run.publish(model, "1", None)
    assert not list((tmp_path / "run").glob("*.pth"))
    run.close()


def test_other_options_are_refused_by_name_when_resuming(adapt, tmp_path: Path):
    adapt(tmp_path / "run", "--num-steps", "2", "--method", "none")
    with pytest.raises(UserError, match=r"--learning-rate 0.002 -> 0.5"):
        adapt(tmp_path / "run", "--num-steps", "2", "--method", "none", "--learning-rate", "0.5")


def test_a_last_checkpoint_that_cannot_be_resumed_is_named(adapt, tmp_path: Path):
    flags = ["--num-steps", "1", "--method", "none"]
    whole = adapt(tmp_path / "run", *flags)
    path = tmp_path / "run" / "last.pth"
    other = {**whole, "state": {"model": {}, "optimizer": {}, "methods": {}}}
    for damaged in (path.read_bytes()[:1000], {"weights": 1}, {**whole, "format": 99}, other):
        if isinstance(damaged, bytes):
            path.write_bytes(damaged)
        else:
            torch.save(damaged, path)
        with pytest.raises(UserError, match=r"last\.pth"):
            adapt(tmp_path / "run", *flags)


def test_a_run_stopped_before_its_first_score_is_scored_when_it_ends(adapt, tmp_path: Path):
    flags = ["--num-steps", "4", "--method", "none"]
    adapt(tmp_path / "run", *flags, "--num-steps-stop", "2")
    path = tmp_path / "run" / "last.pth"
    torch.save({**torch.load(path, weights_only=True), "last": None, "best": None}, path)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "se')  # torn by a kill
    adapt(tmp_path / "run", *flags, "--num-steps-stop", "2")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["adapted"]["last"]["step"] == 2
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 2 for line in log)


def test_tensorboard_writes_or_says_what_is_missing(adapt, tmp_path: Path):
    flags = ["--num-steps", "1", "--method", "none", "--tensorboard"]
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UserError, match="--tensorboard needs the package tensorboard"):
            adapt(tmp_path / "run", *flags)
    else:
        adapt(tmp_path / "run", *flags)
        assert list((tmp_path / "run").glob("events.out.tfevents.*"))


class Board:
    """What SummaryWriter and a run of wandb are asked to do."""

    written: ClassVar[list] = []

    def __init__(self, *_):
        Board.written = self.written = []

    def add_scalar(self, name, value, step):
        self.written.append((name, value, step))

    def add_image(self, name, picture, step, dataformats):
        self.written.append((name, picture.shape, step, dataformats))

    def add_text(self, name, text, step):
        self.written.append((name, text, step))

    def log(self, values, step):
        self.written.append((values, step))

    def close(self):
        self.written.append("closed")

    finish = close


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_board_gets_options_numbers_and_a_picture(name, tmp_path: Path, monkeypatch):
    def init(**how):
        board = Board()
        board.written.append((how["config"], how["name"], how["resume"]))
        return board

    modules = {
        "tensorboard": types.SimpleNamespace(SummaryWriter=Board),
        "wandb": types.SimpleNamespace(init=init, Image=np.shape, Error=ValueError),
    }
    place = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name]
    monkeypatch.setitem(sys.modules, place, modules[name])
    log = Log(tmp_path / "run")
    (tmp_path / "run").mkdir()
    log.show(1, {}, lambda: pytest.fail("drawn although nobody looks"))
    log.open_boards([name], {"loss": ["ce"], "size": (4, 6)})
    log.write({"step": 2, "val_miou": 50.0, "val_iou": {"road": 50.0}})
    score = {"iou": {"road": 50.0, "rider": None}}
    log.show(3, score, lambda: np.zeros((4, 6, 3), np.uint8))
    log.close()
    options = {"loss": ["ce"], "size": [4, 6]}
    assert (
        Board.written
        == {
            "tensorboard": [
                ("options", '    loss: ["ce"]\n    size: [4, 6]', 0),
                ("val_miou", 50.0, 2),
                ("iou/road", 50.0, 3),
                ("validation", (4, 6, 3), 3, "HWC"),
                "closed",
            ],
            "wandb": [
                (options, "run", "allow"),
                ({"val_miou": 50.0}, 2),
                ({"iou/road": 50.0}, 3),
                ({"validation": (4, 6, 3)}, 3),
                "closed",
            ],
        }[name]
    )


def test_wandb_that_is_missing_is_said(adapt, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the package wandb"):
        adapt(tmp_path / "run", "--num-steps", "1", "--method", "none", "--wandb")


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    first = Run(tmp_path / "run", "x", Identity(), {})
    with pytest.raises(UserError, match=rf"in use by another run: host .*, pid {os.getpid()}"):
        Run(tmp_path / "run", "x", Identity(), {})
    first.close()
    Run(tmp_path / "run", "x", Identity(), {}).close()


def test_saving_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch):
    path = tmp_path / "last.pth"
    save_tensors({"step": 1}, path)

    def full(value, file) -> None:
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*last\.pth: .*No space left on device"):
        save_tensors({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_run_at_a_step_and_the_same_command_resumes(
    data: str, tmp_path: Path, number: int, status: int, workers: str
):
    folder = tmp_path / "run"
    flags = ["--data-dir", data, "--method", "none", "--num-steps", "100000", "--print-every", "1"]
    flags += ["--num-workers", workers]
    command = [sys.executable, "-u", "train_da.py", "--snapshot-dir", str(folder), *SMALL, *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 2 "):
                break
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the loader's workers too
        else:
            process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == status
    assert "the same command resumes" in rest
    saved = torch.load(folder / "last.pth", weights_only=True)
    assert saved["step"] >= 2
    assert len((folder / "log.jsonl").read_text().splitlines()) == saved["step"]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(adapt, tmp_path: Path, capsys):
    flags = ["--method", "entropy", "--num-steps", "4", "--num-workers", "0"]
    whole = adapt(tmp_path / "whole", *flags)
    folder = tmp_path / "run"
    adapt(folder, *flags, "--num-steps-stop", "2")
    adapt(folder, *flags, "--num-steps-stop", "3")
    (folder / "last.pth").write_bytes((folder / "last.pth").read_bytes()[:1000])
    capsys.readouterr()
    assert_equal(whole["state"], adapt(folder, *flags)["state"])
    out = capsys.readouterr().out
    assert out.count("warning:") == 1
    assert f"resuming {folder / 'previous.pth'} at step 2" in out
    (folder / "last.pth").write_bytes(b"")
    (folder / "previous.pth").unlink()
    with pytest.raises(UserError, match=r"last\.pth is empty"):
        adapt(folder, *flags)


def test_only_the_newest_steps_are_kept(adapt, tmp_path: Path):
    flags = "--num-steps 4 --save-pred-every 1 --keep-last 2 --num-workers 0".split()
    adapt(tmp_path, *flags)
    steps = {path.name for path in tmp_path.glob("camvid_*.pth")}
    assert steps == {"camvid_3.pth", "camvid_4.pth", "camvid_best.pth"}


def test_safetensors_are_published_and_scored(adapt, data: str, tmp_path: Path):
    flags = "--num-steps 3 --save-pred-every 1 --keep-last 1 --num-workers 0".split()
    adapt(tmp_path, *flags, "--save-format", "safetensors")
    names = {path.name for path in tmp_path.glob("camvid_*")}
    assert names == {"camvid_3.safetensors", "camvid_best.safetensors"}
    adapt(tmp_path, *flags)  # the formats of one run may differ
    checkpoint, scores = tmp_path / "camvid_3.safetensors", tmp_path / "scores.json"
    words = ["--restore-from", checkpoint, "--json", scores, "--precision", "fp32"]
    evaluate.main(evaluate.parse_args([str(word) for word in [*words, "--data-dir", data]]))
    (result,) = json.loads(scores.read_text())
    assert result["images"] == "dusk_val"


def test_a_save_is_due_by_the_clock(adapt, tmp_path: Path, monkeypatch):
    saved = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda run: (saved.append(run.step), save(run)))
    flags = ["--num-steps", "3", "--num-workers", "0", "--save-every-minutes"]
    adapt(tmp_path / "often", *flags, "1e-9")
    assert saved == [0, 1, 2, 3]  # between the steps, and at the end
    saved.clear()
    adapt(tmp_path / "never", *flags, "0")
    assert saved == [3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_every_process_stops_after_the_step(data: str, tmp_path: Path, number):
    """Slurm may signal the loader's workers too: none may die before the main process is done."""
    words = ["--snapshot-dir", str(tmp_path), "--data-dir", data, *SMALL, "--print-every", "1"]
    words += ["--num-steps", "100000", "--num-workers", "2", "--method", "none"]
    command = [sys.executable, "train_da.py", *words]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **how) as process:
        line = ""
        while "steps/s" not in line:
            line = process.stdout.readline()
            assert line, "ended early"
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)
        start = time.monotonic()
        assert process.wait(timeout=60) == 75, process.stdout.read()
        assert time.monotonic() - start < 60
    with pytest.raises(ProcessLookupError):  # no worker is left behind
        os.killpg(process.pid, 0)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] >= 1
