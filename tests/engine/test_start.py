"""How commands begin: what is missing is said, --help compiles nothing and imports little."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worlds import ROOT

COMMANDS = ["train_da.py", "train_seg.py", "evaluate.py", "pseudo_label.py", "ensemble.py"]
COMMANDS += ["-m tools.benchmark"]
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
