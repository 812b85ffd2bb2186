"""How commands begin: what is missing is said, --help compiles nothing and imports little."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.elastic.multiprocessing.errors

from engine import files
from worlds import ROOT, free_port

COMMANDS = ["train_da.py", "train_seg.py", "evaluate.py", "pseudo_label.py", "ensemble.py"]
COMMANDS += ["-m tools.benchmark", "-m tools.compare"]
# half a second each, or a compiler's: what --help has no use for
SLOW = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension", "torch.utils.tensorboard")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_compiles_nothing_and_imports_nothing_slow(command: str, tmp_path: Path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    words = [sys.executable, "-X", "importtime", *command.split(), "--help"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"python {command}" in done.stdout  # the docstring's commands
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & set(SLOW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*COMMANDS, "-m kernels"])
def test_what_is_not_installed_is_said_in_one_line(command: str):
    without_packages = [sys.executable, "-S", *command.split(), "--help"]
    done = subprocess.run(without_packages, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torch, numpy, pillow, tqdm not installed")
    assert line.endswith("pip install -r requirements.txt")


ENDS = """
import sys
import torch
from engine import start
from engine.errors import UserError
from engine.files import whole

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        {inside}

def main(_):
    {outside}
    list(torch.utils.data.DataLoader(Images(), num_workers=1))

start.run(main, lambda: None)
"""


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("raise UserError('a.png: no')", "a.png: no"),
        ("raise UserError('first\\nsecond \\x1b[2J\\x07')", "first\\nsecond \\x1b[2J\\x07"),
        ("raise OSError(28, 'No space left on device', 'a.png')", "No space left on device"),
        ("raise MemoryError", "out of memory: a smaller batch"),
        (
            "raise RuntimeError('CUDA out of memory. Tried to')",
            "CUDA out of memory. Tried to: a",
        ),
        ("raise RuntimeError('unable to write to file </torch_1>: No space')", "--num-workers 0"),
    ],
)
def test_a_fault_is_one_printable_line_with_its_cause_and_what_helps(where, code, line):
    script = ENDS.format(**{"inside": "return 0", "outside": "pass", where: code})
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (shown,) = done.stderr.splitlines()
    assert shown.startswith("error: ")
    assert line in shown
    assert shown.isprintable()


def test_a_bug_in_a_worker_keeps_its_traceback():
    script = ENDS.format(inside="return {}['lost']", outside="pass")
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "KeyError: 'lost'" in done.stderr


def test_a_full_disk_names_the_file(tmp_path: Path):
    def full(_file):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space") as caught,
        files.whole(tmp_path / "scores.json") as file,
    ):
        full(file)
    assert caught.value.filename == str(tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rank", "port", "line"),
    [
        ("1", "{free}", "waits at 127.0.0.1:{free} for all 2"),  # the master is not there
        ("0", "{free}", "not all 2 are there after 0:00:05"),
        ("0", "{taken}", "port {taken} is taken here: give another MASTER_PORT"),
        ("x", "{free}", "RANK is 'x', not a number"),
    ],
)
def test_waiting_for_other_processes_is_said_and_bounded(rank: str, port: str, line: str):
    code = (
        "import datetime\n"
        "from engine import processes, start\n"
        "processes.PATIENCE, processes.SILENCE = datetime.timedelta(seconds=5), 1.0\n"
        "start.run(lambda _: None, lambda: None)\n"
    )
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = {"free": free_port(), "taken": taken.getsockname()[1]}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port.format(**ports)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **where, "RANK": rank, "WORLD_SIZE": "2"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert line.format(**ports) in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_torchrun_ends_with_our_line(tmp_path: Path):
    """Its launcher prints forty lines of its own after it, the last of which say it again."""
    path = tmp_path / "error.json"
    environment = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(path)}
    words = [sys.executable, "evaluate.py", "--restore-from", "nowhere.pth"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    failure = torch.distributed.elastic.multiprocessing.errors.ProcessFailure(0, 1, 2, str(path))
    assert failure.message == done.stderr.rstrip("\n")
    assert failure.timestamp > 0
