"""Several processes as one run: the same numbers, every image once, one end for all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedata
from worlds import ROOT, SMALL, assert_equal, free_port

# whole images: with group or synchronised norms a step does not depend on how its batch is divided
PLAIN = "--crop-size 64,48 --no-random-mirror --no-class-balance --print-every 1 --num-workers 0"


def start(ranks: int, *words: str, slurm: bool = False) -> list[subprocess.Popen]:
    """Start a script in several processes, as torchrun or srun would."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        if slurm:
            own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "7"}
            own["SLURM_STEP_NUM_TASKS"] = str(ranks)
        processes.append(
            subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, **address, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def run(ranks: int, *words: str, status: int = 0, **how) -> list[str]:
    """Run a script in several processes to its end; return what each printed."""
    processes = start(ranks, *words, **how)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output
    return outputs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Return a folder in CamVid's layout, 8 frames by day and 6 at dusk, every pixel labelled."""
    folder = tmp_path_factory.mktemp("camvid")
    fakedata.make_camvid(folder, n=8, size=(64, 48))
    for path in folder.rglob("trainannot/0006R0*.png"):
        # means over pixels then weigh the images alike, however a batch is divided
        fakedata.save(path, fakedata.blocks(np.random.default_rng(0), (64, 48), range(11)))
    return str(folder)


def adapt(data: str, folder: Path, *flags: str, ranks: int = 1, **how) -> dict:
    """Run train_da.py in several processes and return its last.pth."""
    words = ["train_da.py", "--snapshot-dir", str(folder), "--data-dir", data, *SMALL]
    run(ranks, *words, *PLAIN.split(), *flags, **how)
    return torch.load(folder / "last.pth", weights_only=True)


METHODS = "--method adversarial entropy --discriminator-at input --discriminator-width 4".split()


@pytest.mark.parametrize(
    "how",
    [
        "--norm group --learning-rate 0.01",
        # batch norm of two small images magnifies rounding: after 20 steps at 0.001 by 100
        "--norm batch --sync-bn --learning-rate 0.0001",
    ],
)
def test_two_processes_of_one_image_are_one_of_two(data: str, tmp_path: Path, how: str):
    """Weights and losses after 20 steps, SGD: the order of sums is all that differs."""
    flags = [*METHODS, "--num-steps", "20", "--optimizer", "sgd", *how.split()]
    one = adapt(data, tmp_path / "one", *flags, "--batch-size", "2")
    two = adapt(data, tmp_path / "two", *flags, "--batch-size", "1", ranks=2)
    for key, value in one["state"]["model"].items():
        torch.testing.assert_close(two["state"]["model"][key], value, rtol=1e-5, atol=1e-5)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 21  # every step once, and a validation
    for first, second in zip(*logs, strict=True):
        for key in first.keys() - {"steps_per_second"}:
            assert second[key] == pytest.approx(first[key], abs=1e-5), key


def test_adabn_counts_the_target_once_with_synchronised_batch_norm(data: str, tmp_path: Path):
    flags = ["--method", "adabn", "--norm", "batch", "--sync-bn", "--num-steps", "1"]
    models = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        adapt(data, folder, *flags, "--learning-rate", "0", "--batch-size", "1", ranks=ranks)
        finished = torch.load(folder / "camvid_finished.pth", weights_only=True)
        models.append(finished["model"])
    counts = [value for key, value in models[0].items() if key.endswith("num_batches_tracked")]
    assert set(map(int, counts)) == {6}  # dusk_train
    for key, value in models[0].items():
        # an unbiased variance of n pixels is n / (n - 1) times the plain one; two see 2 n
        close = {"rtol": 0.02, "atol": 0} if key.endswith("running_var") else {}
        torch.testing.assert_close(models[1][key], value, **close)


def test_synchronised_batch_norm_is_refused_where_it_cannot_be(data: str, tmp_path: Path):
    words = ["train_da.py", "--snapshot-dir", str(tmp_path), "--data-dir", data, *SMALL]
    words += [*PLAIN.split(), "--method", "none", "--num-steps", "1", "--sync-bn"]
    for more, why in (
        (["--norm", "group"], "error: --sync-bn: this network has no batch norm"),
        (["--norm", "batch", "--compile"], "error: --compile does not go with --sync-bn"),
    ):
        assert all(why in output for output in run(2, *words, *more, status=2))


def test_two_processes_resume_bit_for_bit(data: str, tmp_path: Path):
    flags = ["--method", "mix", "adversarial", *METHODS[3:], "--num-steps", "4", "--norm", "batch"]
    flags += ["--batch-size", "2"]
    whole = adapt(data, tmp_path / "whole", *flags, ranks=2)
    adapt(data, tmp_path / "parts", *flags, "--num-steps-stop", "2", ranks=2, slurm=True)
    parts = adapt(data, tmp_path / "parts", *flags, ranks=2)
    assert_equal(whole["state"], parts["state"])
    words = ["train_da.py", "--snapshot-dir", str(tmp_path / "parts"), "--data-dir", data, *SMALL]
    (output,) = run(1, *words, *PLAIN.split(), *flags, status=2)
    assert "4 images a step in all processes together -> 2" in output
    adapt(data, tmp_path / "one", *flags, "--batch-size", "4", "--num-steps-stop", "2")
    assert adapt(data, tmp_path / "one", *flags, ranks=2)["step"] == 4  # as many images a step


GRADIENTS = """
import torch
from torch import nn
from engine import gradients, processes, start

def main(_):
    gradients.BUCKET = 4 * 12  # one layer a bucket
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: nn.Linear(4, 3, bias=False) for name in "dabc"})
    average = gradients.GradientAverage(layers)
    rank = processes.rank()
    mine, theirs = (torch.full((2, 4), 1.0 + r) for r in (rank, 1 - rank))
    for step in range(2):
        layers.zero_grad()
        layers.a(mine).sum().backward()  # a in two passes, b in the last, c in process 1, d never
        average.begin_last()
        last = [layers.a(mine), layers.b(mine), *([layers.c(mine)] if rank else [])]
        torch.cat(last).sum().backward()
        assert len(average._sent) == (3 if rank else 0)  # the last layer's bucket goes first
        average.wait()
        grads = {name: layer.weight.grad for name, layer in layers.items()}
        both = (mine + theirs).sum(0).expand(3, 4) / 2
        assert torch.equal(grads["a"], 2 * both) and torch.equal(grads["b"], both), grads
        assert torch.equal(grads["c"], torch.full((3, 4), 2.0)) and grads["d"] is None, grads
    if processes.world_size() == 2:
        print("averaged")

start.run(main, lambda: None)
"""


def test_gradients_of_several_passes_are_averaged_and_sent_while_the_last_one_computes():
    assert "averaged" in run(2, "-c", GRADIENTS)[0]


def test_two_processes_exchange_no_pickle():
    code = """
from engine import processes, start
def main(_):
    print(processes.gather({"rank": [processes.rank(), None, "é"] * (1 + 9 * processes.rank())}))
    processes.MESSAGE = 10
    processes.gather("x" * 100 * processes.rank())
start.run(main, lambda: None)
"""
    output = run(2, "-c", code, status=2)[0]
    assert str([{"rank": [0, None, "é"]}, {"rank": [1, None, "é"] * 10}]) in output
    assert "error: a process sends 102 bytes; at most 10 are taken" in output
    pickling = re.compile(r"\b\w+_object(_list)?\(")
    for path in ROOT.rglob("*.py"):
        if not {"tests", ".venv"} & set(path.relative_to(ROOT).parts):
            assert not pickling.search(path.read_text()), path


def test_a_signal_to_one_process_stops_all_after_the_same_step(data: str, tmp_path: Path):
    words = ["train_da.py", "--snapshot-dir", str(tmp_path), "--data-dir", data, *SMALL]
    words += [*PLAIN.split(), "--num-steps", "100000", "--method", "none"]
    first, second = start(2, *words)
    while "steps/s" not in first.stdout.readline():
        assert first.poll() is None
    second.send_signal(signal.SIGUSR2)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 75, output
    assert second.wait(timeout=60) == 75
    step = torch.load(tmp_path / "last.pth", weights_only=True)["step"]
    assert f"stopped after step {step};" in output
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == step


LEAVE = """
import atexit, os, sys
from pathlib import Path
from engine import processes, start
from engine.errors import UserError

# threads of gloo abort a Python that is ending, now and then, with SIGABRT: here, each time with 9
def gloo_is_left():
    return any("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

def main(_):
    import torch._dynamo, torch.distributed.nn  # as torch itself does once a network is trained
    processes.largest(0)
    assert gloo_is_left()
    {end}

atexit.register(lambda: gloo_is_left() and os._exit(9))
start.run(main, lambda: None)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("pass", 0), ("processes.stop(); sys.exit(75)", 75), ("raise UserError('no')", 2)],
)
def test_every_end_leaves_no_thread_of_gloo_to_a_python_that_ends(end: str, status: int):
    for output in run(2, "-c", LEAVE.format(end=end), status=status):
        assert output.count("error: no (process ") == (status == 2)


def test_when_a_process_dies_the_others_end(data: str, tmp_path: Path):
    words = ["train_da.py", "--snapshot-dir", str(tmp_path), "--data-dir", data, *SMALL]
    words += [*PLAIN.split(), "--num-steps", "100000", "--method", "none"]
    first, second = start(2, *words)
    while "steps/s" not in first.stdout.readline():
        assert first.poll() is None
    second.kill()
    begin = time.monotonic()
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 2
    assert "error:" in output.splitlines()[-1]
    assert time.monotonic() - begin < 60
    second.wait()


def test_every_image_is_scored_once_on_any_number_of_processes(data: str, tmp_path: Path):
    adapt(data, tmp_path / "run", "--method", "none", "--num-steps", "1")
    words = ["evaluate.py", "--restore-from", str(tmp_path / "run" / "camvid_1.pth")]
    words += ["--set", "val", "--data-list", str(listed(data, tmp_path)), "--num-workers", "0"]
    scores = []
    for ranks in (1, 2, 3):
        path, saved = tmp_path / f"{ranks}.json", tmp_path / f"png{ranks}"
        outputs = run(ranks, *words, "--json", str(path), "--save", str(saved))
        (score,) = json.loads(path.read_text())
        scores.append({key: value for key, value in score.items() if key != "seconds"})
        assert all("mIoU" not in output for output in outputs[1:])  # one process speaks
        assert len(list((saved / "train_ids").rglob("*.png"))) == 7
    assert scores[0] == scores[1] == scores[2]


def test_pseudo_labels_and_votes_are_shared_out(data: str, tmp_path: Path):
    adapt(data, tmp_path / "run", "--method", "none", "--num-steps", "1")
    words = ["pseudo_label.py", "--restore-from", str(tmp_path / "run" / "camvid_1.pth")]
    words += ["--data-list", str(listed(data, tmp_path)), "--num-workers", "0"]
    words += ["--portion", "0.5", "--score"]
    made = {}
    for ranks in (1, 2):
        folder = tmp_path / f"pseudo{ranks}"
        run(ranks, *words, "--save", str(folder))
        about = json.loads((folder / "pseudo.json").read_text())
        assert about.pop("processes") == ranks
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".txt"))
        made[ranks] = about, {path.relative_to(folder): path.read_bytes() for path in files}
        vote = ["--predictions", *[str(tmp_path / "pseudo1")] * 2, "--save"]
        outputs = run(ranks, "ensemble.py", *vote, str(tmp_path / f"vote{ranks}"))
        assert "7 images, 2 votes each" in outputs[0]
        assert len(list((tmp_path / f"vote{ranks}" / "train_ids").rglob("*.png"))) == 7
    assert made[1] == made[2]
    assert len(made[1][1]) == 15  # ids and colours of 7 images, and the list


def listed(data: str, folder: Path) -> Path:
    """Write a list of 7 images, which neither 2 nor 3 divides."""
    names = sorted(path.name for path in Path(data, "train").glob("*.png"))[:7]
    return fakedata.write_list(
        folder / "seven.txt", [(f"train/{name}", f"trainannot/{name}") for name in names]
    )


def test_a_batch_script_with_tasks_but_no_step_is_one_process():
    environment = {**os.environ, "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}
    code = "from engine import processes as d; d.start(); print(d.world_size())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "1\n"
