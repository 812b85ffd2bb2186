"""The shipped batch scripts on a real Slurm: two nodes on this machine, see local_slurm.sh."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fakedata
from worlds import ROOT, SMALL, free_port

LOCAL_SLURM = Path(__file__).parent / "local_slurm.sh"
MEMORY = "/sys/fs/cgroup/memory/cgroup.procs"  # Slurm can enforce --mem
os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps the daemons, for any user
MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge"
    ),
    pytest.mark.xdist_group("slurm"),  # one cluster for all
]
TRAIN = [*SMALL, *"--method none --print-every 1 --device cpu --num-workers 0".split()]
TRAIN += "--num-steps 100000 --num-steps-stop 100000".split()
ONE_CPU = "--gres=none --mem=0 --cpus-per-task=1".split()
TWO_NODES = [*ONE_CPU, "--nodes=2", "--ntasks-per-node=1", "slurm/multi_node.sbatch"]


class Job:
    """A job, by what Slurm and its output file say."""

    def __init__(self, number: str, output: Path):
        self.number, self.output = number, output

    def state(self) -> dict[str, str]:
        """Return what scontrol shows of the job: JobState, Restarts, ExitCode, ..."""
        words = sh("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def text(self) -> str:
        """Return the output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for_state(self, *names: str, seconds: float = 60) -> dict[str, str]:
        """Return the job's state once it is one of these."""
        until(lambda: self.state()["JobState"] in names, seconds, self)
        return self.state()

    def wait_for_text(self, text: str, times: int = 1) -> None:
        """Wait until the output holds a text so many times; a job that is over will not add it."""

        def there() -> bool:
            found = self.text().count(text) >= times
            over = self.state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED")
            return found or over

        until(there, 150, self)
        assert self.text().count(text) >= times, self.text()

    def is_ending(self) -> bool:
        """Say whether daemons of the run before the requeue are left."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(f"slurmstepd: [{self.number}.".encode()):
                    return True
            except OSError:  # ended meanwhile
                continue
        return False

    def start_again(self) -> None:
        """Start a requeued job now: by itself it waits for two minutes."""
        self.wait_for_state("PENDING")
        until(lambda: not self.is_ending(), 30, self)  # else that end is taken for the next one's
        time.sleep(2)  # Slurm kills a start in the second in which it revoked the one before
        sh("scontrol", "update", f"JobId={self.number}", "StartTime=now")


def sh(*words: str) -> str:
    """Run a command of Slurm's and return what it prints."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


def until(condition: Callable[[], bool], seconds: float, job: Job) -> None:
    """Wait for a condition, and show the job's output if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{job.state()}\n{job.text()}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """Start Slurm; yield a folder whose file `flags` holds words added to every python command.

    A batch script keeps its words when it is requeued; `flags` lets a test end such a run.
    """
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@" $(cat "{folder}/flags")\n')
    python.chmod(0o755)
    # control groups know the nodes by name: two suites on one machine take turns
    turn = (Path(tempfile.gettempdir()) / f"segshift_slurm_{os.getuid()}.lock").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    where = tempfile.mkdtemp(prefix="slurm_")  # munged wants a path that anyone can enter
    cluster = {"LOCAL_SLURM_DIR": where, "LOCAL_SLURM_PORT": free_port()}
    cluster["LOCAL_SLURM_MEMORY"] = "1" if os.access(MEMORY, os.W_OK) else "0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
        patch.setenv("SLURM_CONF", f"{where}/slurm.conf")
        patch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes' names are known to Slurm alone
        for key, value in cluster.items():
            patch.setenv(key, value)
        try:
            started = subprocess.run(["bash", LOCAL_SLURM, "start"], capture_output=True, text=True)
            if started.returncode != 0:
                pytest.skip(f"no Slurm can be started here: {started.stderr.strip()[-200:]}")
            yield folder
        finally:
            subprocess.run(["bash", LOCAL_SLURM, "stop"], check=False, timeout=60)
            turn.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Return the flags of a folder in CamVid's layout."""
    folder = fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48))
    return ["--data-dir", str(folder)]


@pytest.fixture
def submit(cluster: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Return a function that gives words to sbatch; the jobs are cancelled in the end."""
    (cluster / "flags").write_text("")
    jobs = []

    def submit_job(*words: str, **environment: str) -> Job:
        output = tmp_path / f"{len(jobs)}.out"
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            number = sh("sbatch", "--parsable", f"--output={output}", *words).strip()
        jobs.append(Job(number, output))
        return jobs[-1]

    yield submit_job
    for job in jobs:
        subprocess.run(["scancel", "--quiet", job.number], check=False)


def saved_step(folder: Path) -> int:
    """Return the step of last.pth, which must be all that the log holds."""
    step = torch.load(folder / "last.pth", weights_only=True)["step"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seg" in line] == list(range(1, step + 1))
    return step


def pids(folder: Path) -> list[int]:
    """Return the training processes of a snapshot folder, the first rank first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            ranks = dict(
                entry.split(b"=", 1)
                for entry in (path.parent / "environ").read_bytes().split(b"\0")
                if b"=" in entry
            )
        except OSError:  # ended meanwhile
            continue
        if b"train_da.py" in words[1:2] and str(folder).encode() in words:
            found.append((int(ranks[b"SLURM_PROCID"]), int(path.parent.name)))
    return [pid for _, pid in sorted(found)]


def finish_soon(cluster: Path, step: int) -> None:
    """Make the next start of a requeued run end two steps after this one."""
    (cluster / "flags").write_text(f"--num-steps-stop {step + 2}")


def test_a_warning_and_a_requeue_lose_no_step_on_two_nodes(cluster, submit, data, tmp_path: Path):
    """The warning before the time limit reaches the batch shell; a requeue, the processes."""
    folder = tmp_path / "run"
    job = submit(*TWO_NODES, *TRAIN, *data, "--snapshot-dir", str(folder))
    job.wait_for_text("steps/s", times=2)
    sh("scancel", "--batch", "--signal=USR2", job.number)
    job.wait_for_text("the same command resumes")
    assert job.wait_for_state("PENDING")["Restarts"] == "1"
    first = saved_step(folder)
    assert f"stopped after step {first};" in job.text()
    for task in (0, 1):  # both agreed on the step, or one would wait for the other
        assert f"task {task}: Exited with exit code 75" in job.text()
    assert [path.name for path in folder.glob("*.pth")] == ["last.pth"]

    job.start_again()
    job.wait_for_text(f"resuming {folder}/last.pth at step {first}")
    job.wait_for_text(f"step {first + 2} ")
    sh("scontrol", "requeue", job.number)
    job.wait_for_text("the same command resumes", times=2)
    second = saved_step(folder)
    assert second > first

    finish_soon(cluster, second)
    job.start_again()
    state = job.wait_for_state("COMPLETED", "FAILED", seconds=150)
    assert state["JobState"] == "COMPLETED", job.text()
    assert state["Restarts"] == "2"
    assert f"resuming {folder}/last.pth at step {second}" in job.text()
    assert saved_step(folder) == second + 2
    assert (folder / "result.json").exists()


@pytest.mark.slow
def test_a_job_that_nears_its_time_limit_is_warned_and_goes_on(submit, data, tmp_path: Path):
    """Slurm's own warning, which it sends in whole minutes."""
    folder = tmp_path / "run"
    limit = ["--time=2", "--signal=B:USR2@60"]
    job = submit(*limit, *TWO_NODES, *TRAIN, *data, "--snapshot-dir", str(folder))
    job.wait_for_text("the same command resumes")
    assert job.wait_for_state("PENDING")["Restarts"] == "1"
    step = saved_step(folder)
    assert f"stopped after step {step};" in job.text()
    job.start_again()
    job.wait_for_text(f"resuming {folder}/last.pth at step {step}")


def test_a_dead_process_ends_the_job_and_a_dead_node_requeues_it(submit, data, tmp_path: Path):
    folder = tmp_path / "run"
    words = [*TWO_NODES, *TRAIN, *data, "--snapshot-dir", str(folder)]
    words += ["--save-every-minutes", "0.001"]
    job = submit(*words)
    job.wait_for_text("steps/s", times=5)
    os.kill(pids(folder)[1], signal.SIGKILL)
    state = job.wait_for_state("FAILED", "COMPLETED", "CANCELLED", seconds=60)
    assert state["JobState"] == "FAILED"
    assert state["ExitCode"] != "0:0"
    assert "task 1: Killed" in job.text()

    job = submit(*words)
    job.wait_for_text(f"resuming {folder}/last.pth at step ")
    job.wait_for_text("steps/s", times=5)
    sh("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        assert job.wait_for_state("PENDING")["Restarts"] == "1"
        until(lambda: not pids(folder), 60, job)
    finally:
        # refused where the node has come back by itself meanwhile
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], capture_output=True)
    job.start_again()
    job.wait_for_text(f"resuming {folder}/last.pth at step ", times=2)


def test_scancel_saves_and_is_not_undone(cluster, submit, data, tmp_path: Path):
    """And plain python in a batch script of four tasks is one process, which goes on from there."""
    folder = tmp_path / "run"
    words = [*TRAIN, *data, "--num-workers", "1", "--snapshot-dir", str(folder)]
    job = submit(*ONE_CPU, "slurm/train_da.sbatch", *words)
    job.wait_for_text("steps/s", times=2)
    sh("scancel", job.number)
    job.wait_for_state("CANCELLED", "FAILED", seconds=60)
    until(lambda: not pids(folder), 60, job)
    step = saved_step(folder)
    assert f"stopped after step {step};" in job.text()
    time.sleep(2)
    assert job.state()["JobState"] == "CANCELLED"
    assert job.state()["Restarts"] == "0"

    command = shlex.join(["exec", "python", "train_da.py", *words])
    finish_soon(cluster, step)
    plain = submit("--ntasks=4", "--mem=0", f"--wrap={command}")
    state = plain.wait_for_state("COMPLETED", "FAILED", seconds=150)
    assert state["JobState"] == "COMPLETED", plain.text()
    assert plain.text().count("resuming ") == 1
    assert saved_step(folder) == step + 2


def test_a_task_of_the_sweep_runs_and_requeues_its_experiment(cluster, submit, data, tmp_path):
    folder, page = tmp_path / "run", tmp_path / "page.md"
    train = shlex.join(["python", "train_da.py", *TRAIN, *data])
    page.write_text(
        "### 1. Another\n\n```sh\npython -c exit(1)\n```\n\n"
        f"### 2. This one\n\nIn words.\n\n```sh\n# first, then\n{train} \\\n"
        f"    --snapshot-dir {folder}\npython -c print(12345)\n```\n"
    )
    job = submit(*ONE_CPU, "--array=2", "slurm/sweep.sbatch", PAGE=str(page))
    job.number += "_2"
    job.wait_for_text("steps/s", times=2)
    sh("scancel", "--batch", "--signal=USR2", job.number)
    job.wait_for_text("the same command resumes")
    step = saved_step(folder)
    finish_soon(cluster, step)
    job.start_again()
    state = job.wait_for_state("COMPLETED", "FAILED", seconds=150)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.text()
    assert saved_step(folder) == step + 2
    assert "\n12345\n" in job.text()

    wrong = submit(*ONE_CPU, "--array=3", "slurm/sweep.sbatch", PAGE=str(page))
    wrong.number += "_3"
    assert wrong.wait_for_state("FAILED")["ExitCode"] == "2:0"
    assert "has no experiment 3" in wrong.text()


def test_every_checkpoint_is_scored_once_as_it_appears(submit, data, tmp_path: Path):
    import train_da

    folder = tmp_path / "run"
    words = [*SMALL, *data, "--method", "none", "--num-steps", "2", "--save-pred-every", "1"]
    train_da.main(
        train_da.parse_args([*words, "--num-workers", "0", "--snapshot-dir", str(folder)])
    )
    (folder / "result.json").rename(tmp_path / "result.json")
    (folder / "camvid_2.pth").rename(tmp_path / "camvid_2.pth")
    deleted = folder / "camvid_3.pth"  # which --keep-last takes away before it is opened
    shutil.copy(folder / "camvid_1.pth", deleted)
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nif {str(deleted)!r} in sys.orig_argv:\n    os.unlink({str(deleted)!r})\n"
    )

    flags = ["--device", "cpu", "--num-workers", "0"]
    how = {"EVERY": "0.5", "PYTHONPATH": str(tmp_path)}
    job = submit(*ONE_CPU, "slurm/evaluate.sbatch", str(folder), *flags, **how)
    until((folder / "camvid_1.json").exists, 150, job)
    until(lambda: not deleted.exists(), 150, job)
    for name in ("camvid_2.pth", "result.json"):
        (tmp_path / name).rename(folder / name)
    state = job.wait_for_state("COMPLETED", "FAILED", seconds=150)
    assert state["JobState"] == "COMPLETED", job.text()
    assert job.text().count("===> mIoU") == 2
    (score,) = json.loads((folder / "camvid_2.json").read_text())
    last = json.loads((folder / "result.json").read_text())["adapted"]["last"]
    assert score["miou"] == pytest.approx(last["miou"])


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="needs root and cgroup v1 for --mem")
def test_too_little_memory_ends_the_job(submit, data, tmp_path: Path):
    folder = tmp_path / "run"
    words = ["--gres=none", "--cpus-per-task=1", "--mem=150M", "slurm/train_da.sbatch"]
    job = submit(*words, *TRAIN, *data, "--snapshot-dir", str(folder))
    state = job.wait_for_state("OUT_OF_MEMORY", "FAILED", "COMPLETED", seconds=60)
    assert state["ExitCode"] != "0:0"
    assert "Out Of Memory" in job.text()
    assert not list(folder.glob("*.pth"))
