"""Faults that a long run on a cluster meets: kills, full disks, signals, stuck reads, leaks.

docs/reliability.md says which test stands for which fault. Repetitions are few here;
`pytest -m slow` does them all.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fakedata
import train_da
from datasets.loading import StepBatches
from engine import processes, start
from engine.errors import UserError
from engine.files import save_tensors
from engine.values import Saving
from models import build_model
from models.checkpoint import load_checkpoint
from training.identity import Identity
from training.run import Run
from worlds import FOUR_METHODS, ROOT, SMALL, assert_equal

QUICK = [*SMALL, *"--method none --num-workers 0 --print-every 1".split()]
# children of a process that has imported everything: a run then starts at once
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train_da", "inference.loop", "training.losses", "torch"])


def times(few: int, many: int) -> pytest.MarkDecorator:
    """Return the parameter `count`: a few repetitions, or many in the slow run."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Return the flags of a folder in CamVid's layout."""
    folder = fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48))
    return ["--data-dir", str(folder)]


# ------------------------------------------------------------------ kills


def save_for_ever(folder: Path, reported) -> None:
    """Save 40 MB as a run does, step after step, and say after each how far it is."""
    for step in itertools.count(reported.value + 1):
        value = {"step": step, "weights": torch.full((10_000_000,), float(step))}
        save_tensors(value, folder / "last.pth", keep=folder / "previous.pth")
        reported.value = step


@times(8, 50)
def test_a_kill_while_saving_leaves_one_that_loads(count: int, tmp_path: Path):
    reported = PROCESSES.Value("q", 0)
    torn = 0
    for kill in range(10 * count):
        if kill >= count and torn > count // 4:
            return
        before = reported.value
        child = PROCESSES.Process(target=save_for_ever, args=(tmp_path, reported), daemon=True)
        child.start()
        while reported.value == before:
            assert child.is_alive()
            time.sleep(0.001)
        time.sleep(random.Random(kill).uniform(0, 0.5))
        child.kill()
        child.join()
        torn += len(list(tmp_path.glob(".segshift-*.tmp")))
        run = Run(tmp_path, "x", Identity(), {})
        assert not list(tmp_path.glob(".segshift-*.tmp"))
        _, saved = run._newest()
        run.close()
        assert saved["step"] >= reported.value
        assert (saved["weights"] == saved["step"]).all()
        reported.value = saved["step"]
    pytest.fail("no save was under way when it was killed: this tested nothing")


def train(words: list[str]) -> None:
    """Run train_da.py in silence."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    train_da.main(train_da.parse_args(words))


def logged(folder: Path) -> list[dict]:
    """Return the lines of a run's log without what the clock says."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


@times(3, 20)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(count: int, data, tmp_path: Path):
    words = [*QUICK, *data, "--method", *FOUR_METHODS, "--num-steps", "8", "--norm", "batch"]
    words += ["--save-every-minutes", "1e-9", "--save-pred-every", "3", "--snapshot-dir"]

    def start(folder: Path, workers: str = "0") -> multiprocessing.Process:
        child = PROCESSES.Process(
            target=train, args=([*words, str(folder), "--num-workers", workers],)
        )
        child.start()
        return child

    start(tmp_path / "warm").join()  # the first one starts the server
    begin = time.monotonic()
    start(tmp_path / "whole").join()
    seconds = time.monotonic() - begin
    whole = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)
    assert whole["step"] == 8
    for kill in range(count):
        folder, workers = tmp_path / f"killed_{kill}", ("0", "1", "4")[kill % 3]
        child = start(folder, workers)
        child.join(timeout=random.Random(kill).uniform(0.1, 1) * seconds)
        child.kill()
        child.join()
        child = start(folder, workers)
        child.join()
        assert child.exitcode == 0
        last = torch.load(folder / "last.pth", weights_only=True)
        for key in ("state", "step", "best", "last"):
            assert_equal({key: whole[key]}, {key: last[key]})
        # the same losses in the same order: the same images, crops and rates
        assert logged(folder) == logged(tmp_path / "whole")


def hold(folder: Path) -> None:
    """Take a snapshot folder and keep it."""
    run = Run(folder, "x", Identity(), {})
    time.sleep(60)
    run.close()


def test_the_folder_of_a_killed_run_is_free(tmp_path: Path):
    child = PROCESSES.Process(target=hold, args=(tmp_path,), daemon=True)
    child.start()
    while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
        time.sleep(0.01)
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"in use by another run: host .*, pid {child.pid}"):
        Run(tmp_path, "x", Identity(), {})
    assert time.monotonic() - begin < 60
    child.kill()
    child.join()
    Run(tmp_path, "x", Identity(), {}).close()


# ------------------------------------------------------------------ files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_nothing_but_the_save(small_disk: Path):
    path = small_disk / "last.pth"
    save_tensors({"step": 1}, path)
    weights = torch.zeros(20_000_000)
    message = rf"cannot write {path}: .*No space left on device.*; about 80 MB are needed"
    with pytest.raises(UserError, match=message):
        save_tensors({"step": 2, "weights": weights}, path, keep=small_disk / "previous.pth")
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(small_disk.iterdir()) == [path]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_text("<!DOCTYPE html><html>not found</html>"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        flip_a_byte,
    ],
    ids=["empty", "half", "web page", "LFS pointer", "flipped byte"],
)
def test_every_damage_gives_way_to_the_checkpoint_before(damage, tmp_path: Path, capsys):
    """And that one stays until another whole one is there."""
    model = torch.nn.Linear(100, 100)
    run = Run(tmp_path, "x", Identity(), {})
    run.state = {"model": model}
    for run.step in (1, 2):
        run.save()
    damage(tmp_path / "last.pth")
    assert run.resume({"model": model}) == 1
    assert capsys.readouterr().out.count("warning: ") == 1
    run.save()
    assert torch.load(tmp_path / "previous.pth", weights_only=True)["step"] == 1
    run.close()


def test_the_newest_of_many_is_kept_by_number(tmp_path: Path):
    run = Run(tmp_path, "x", Identity(), {}, Saving(keep_last=2))
    for name in ("x_9000.pth", "x_10000.pth", "x_100000.pth", "x_best.pth", ".segshift-1.tmp"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    model = torch.nn.Linear(1, 1)
    assert run.resume({"model": model}) == 0  # only last.pth is resumed from
    run._forget_old()
    left = {path.name for path in run.published()}
    assert left == {"x_10000.pth", "x_100000.pth", "x_best.pth"}
    run.close()


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(UserError, match="cannot write --snapshot-dir /proc/run"):
        Run("/proc/run", "x", Identity(), {})


def publish_for_ever(path: Path) -> None:
    """Write one published checkpoint over and over."""
    model = {"weight": torch.zeros(1_000_000)}
    about = build_model("compact", 2)
    whole = {"format": 1, "model": model, "arch": about.arch, "classes": ["a", "b"]}
    whole["normalisation"] = about.normalisation
    for step in itertools.count():
        save_tensors({**whole, "step": step}, path)


def test_reading_while_another_process_writes_never_fails(tmp_path: Path):
    path = tmp_path / "x_best.pth"
    child = PROCESSES.Process(target=publish_for_ever, args=(path,), daemon=True)
    child.start()
    while not path.exists():
        time.sleep(0.01)
    seen = {load_checkpoint(path)["step"] for _ in range(100)}
    assert child.is_alive()
    child.kill()
    child.join()
    assert len(seen) > 10


def test_every_file_of_a_run_is_tensors_and_plain_values(data, tmp_path: Path):
    words = [*QUICK, *data, "--method", *FOUR_METHODS, "--num-steps", "2", "--norm", "batch"]
    words += ["--save-pred-every", "1", "--snapshot-dir", str(tmp_path)]
    train_da.main(train_da.parse_args(words))
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert {"last.pth", "previous.pth", "camvid_1.pth", "camvid_best.pth"} <= names
    plain = (torch.Tensor, str, int, float, bool, type(None))

    def check(value: object) -> None:
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple, set)):
            for one in value:
                check(one)
        else:
            assert type(value) in (*plain, torch.nn.Parameter), type(value)

    for name in names:
        check(torch.load(tmp_path / name, weights_only=True))


def test_an_old_torch_is_warned_about(monkeypatch, capsys):
    for version, warned in (("2.9.1+cpu", True), ("2.10.0", False)):
        monkeypatch.setattr(torch, "__version__", version)
        start.run(lambda args: None, lambda: None)
        assert ("known holes" in capsys.readouterr().err) == warned


# ------------------------------------------------------------------ signals and loader workers

# runs train_da.py with one function made slow; says "now" when it is reached
SLOWED = """
import importlib, sys, time
module, name, seconds = sys.argv[1:4]
module = importlib.import_module(module)
quick = getattr(module, name)
def slow(*args, **how):
    print("now", flush=True)
    time.sleep(float(seconds))
    return quick(*args, **how)
setattr(module, name, slow)
sys.argv[1:] = sys.argv[4:]
import train_da
from engine import start
start.run(train_da.main, train_da.parse_args)
"""


@contextlib.contextmanager
def process(*words: str) -> Iterator[subprocess.Popen]:
    """Start python in a group of its own, of which nothing is left in the end."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True, **how) as one:
        guard = threading.Timer(120, one.kill)  # a hang ends the test
        guard.start()
        try:
            yield one
        finally:
            guard.cancel()
            one.kill()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(one.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(one.pid, signal.SIGKILL)
    pytest.fail("processes were left behind")


def read_until(one: subprocess.Popen, text: str) -> None:
    """Read a process's output up to a line with this text."""
    line = ""
    while text not in line:
        line = one.stdout.readline()
        assert line, "ended early"


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [
        ("torch", "save", 75),
        ("inference.loop", "validate", 75),
        ("training.student", "build_network", -signal.SIGTERM),
        ("torch.utils.cpp_extension", "load", -signal.SIGTERM),
    ],
    ids=["a save", "validation", "start-up", "the build of the kernels"],
)
def test_two_terms_at_the_worst_moment(
    module: str, name: str, status: int, data, tmp_path: Path, monkeypatch
):
    if name == "load":  # nothing is built yet
        monkeypatch.setenv("SEGSHIFT_KERNELS", "auto")
        for key in ("TORCH_EXTENSIONS_DIR", "TMPDIR"):
            monkeypatch.setenv(key, str(tmp_path))
    words = [*QUICK, *data, "--num-steps", "1000", "--save-pred-every", "3"]
    words += ["--save-every-minutes", "1e-9", "--snapshot-dir", str(tmp_path / "run")]
    with process("-c", SLOWED, module, name, "1", *words) as one:
        read_until(one, "now")
        one.terminate()
        time.sleep(0.01)
        one.terminate()
        begin = time.monotonic()
        output = one.stdout.read()
        assert one.wait() == status, output
        assert time.monotonic() - begin < 60
    last = tmp_path / "run" / "last.pth"
    assert last.exists() == (status == 75)
    if status == 75:
        step = torch.load(last, weights_only=True)["step"]
        assert f"stopped after step {step};" in output


@times(1, 20)
def test_term_to_every_process_saves_and_leaves_none(count: int, data, tmp_path: Path):
    for number in range(count):
        words = [*QUICK, *data, "--num-steps", "100000", "--num-workers", "2"]
        words += ["--snapshot-dir", str(tmp_path / str(number))]
        with process("train_da.py", *words) as one:
            read_until(one, "steps/s")
            time.sleep(random.Random(number).uniform(0, 1))
            os.killpg(one.pid, signal.SIGTERM)
            begin = time.monotonic()
            output = one.stdout.read()
            assert one.wait() == 75, output
            assert time.monotonic() - begin < 60
        assert torch.load(tmp_path / str(number) / "last.pth", weights_only=True)["step"] >= 1


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_worker_ends_the_run_and_says_so(data, tmp_path: Path):
    """What the kernel does to it when memory is short."""
    words = [*QUICK, *data, "--num-steps", "100000", "--num-workers", "1", "--snapshot-dir"]
    with process("train_da.py", *words, str(tmp_path), "--save-every-minutes", "1e-9") as one:
        read_until(one, "steps/s")
        os.kill(children(one.pid)[0], signal.SIGKILL)
        begin = time.monotonic()
        output = one.stdout.read()
        assert one.wait() == 2
        assert time.monotonic() - begin < 60
    assert re.search(r"error: DataLoader worker .*(killed by signal|exited)", output), output
    assert "Traceback" not in output
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] >= 0


def test_a_read_that_hangs_ends_the_run(data, tmp_path: Path):
    words = [*QUICK, *data, "--num-workers", "1", "--loader-timeout", "2", "--snapshot-dir"]
    begin = time.monotonic()
    with process("-c", SLOWED, "PIL.Image", "open", "600", *words, str(tmp_path / "run")) as one:
        output = one.stdout.read()
        assert one.wait() == 2, output
    assert "error: DataLoader timed out after 2 seconds" in output
    assert time.monotonic() - begin < 60


# ------------------------------------------------------------------ memory and randomness


def resident(pid: int) -> float:
    """Return the memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@times(300, 5000)
def test_memory_does_not_grow_with_the_steps(count: int, data, tmp_path: Path):
    words = [*QUICK, *data, "--method", "mix", "--num-steps", str(count), "--snapshot-dir"]
    child = PROCESSES.Process(target=train, args=([*words, str(tmp_path)],))
    child.start()
    log = tmp_path / "log.jsonl"
    early = late = math.nan
    while child.is_alive():
        step = len(log.read_text().splitlines()) if log.exists() else 0
        with contextlib.suppress(FileNotFoundError, IndexError):  # it has just ended
            if step < count // 3:
                early = resident(child.pid)
            elif step < count:
                late = resident(child.pid)
        time.sleep(0.2)
    assert child.exitcode == 0
    print(f"{late - early:.1f} MB over {count} steps")
    assert late - early <= 20


@times(20, 100)
def test_workers_change_no_loss(count: int, data, tmp_path: Path):
    logs = []
    for workers in ("0", "1", "4"):
        folder = tmp_path / workers
        words = [*QUICK, *data, "--num-steps", str(count), "--num-workers", workers]
        train_da.main(train_da.parse_args([*words, "--snapshot-dir", str(folder)]))
        logs.append(logged(folder))
    assert logs[0] == logs[1] == logs[2]
    assert len(logs[0]) == count + 1


def test_no_two_steps_processes_or_seeds_share_their_draws(monkeypatch, tmp_path: Path):
    drawn = set()
    for seed in (0, 1):
        for rank in (0, 1):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            run = Run(tmp_path / f"{seed}{rank}", "x", Identity(), {})
            for _ in run.steps(50, seed):
                drawn.add((torch.rand(()).item(), random.random()))
    assert len({first for first, _ in drawn}) == len({second for _, second in drawn}) == 200


def test_two_epochs_have_two_orders():
    batches = iter(StepBatches(100, 100, seed=0))
    assert sorted(first := next(batches)) == sorted(second := next(batches)) == list(range(100))
    assert first != second


# ------------------------------------------------------------------ the page


def test_the_page_names_a_test_for_every_fault():
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+|P\d+\.\d+|K\d+) \|.*\|(.*)\|$", page, re.M)
    numbers = [int(key) for key, _ in rows if key.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({key for key, _ in rows}) == len(rows)
    files = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for key, tests in rows:
        assert re.search(r"`test_\w+`", tests), key
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in files, name
