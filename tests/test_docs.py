"""The commands that the documentation shows: they parse, and those for CamVid run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import ensemble
import evaluate
import fakedata
import pseudo_label
import train_da
import train_seg
from worlds import ROOT

SCRIPTS = {
    "train_da.py": train_da,
    "train_seg.py": train_seg,
    "evaluate.py": evaluate,
    "pseudo_label.py": pseudo_label,
    "ensemble.py": ensemble,
}
PAGES = ["README.md", "docs/experiments.md", *SCRIPTS]


def commands(page: str) -> list[list[str]]:
    """Return the words of every `python SCRIPT ...` line of a page, continued lines joined."""
    text = (ROOT / page).read_text().replace("\\\\\n", " ").replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^ *python (\w+\.py .*)$", text, re.M)]
    return [words for words in found if words[0] in SCRIPTS and "|" not in words[1]]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str):
    found = commands(page)
    assert found
    for script, *words in found:
        SCRIPTS[script].parse_args(words)


@pytest.mark.parametrize("page", ["README.md", "docs/experiments.md"])
def test_the_camvid_commands_run_as_written(page: str, tmp_path: Path, monkeypatch):
    """In the public layout, for two steps, in the order of the page."""
    fakedata.make_camvid(tmp_path / "data" / "CamVid", n=18, size=(64, 48))
    monkeypatch.chdir(tmp_path)
    chosen = [words for words in commands(page) if any("snapshots" in word for word in words)]
    chosen = [words for words in chosen if "camvid" in " ".join(words)]
    assert len(chosen) >= 4
    for script, *words in chosen:
        if script == "train_da.py":
            words += ["--num-steps", "2", "--input-size", "64,48", "--crop-size", "48,48"]
            words += ["--batch-size", "2", "--weights", "none", "--num-workers", "0"]
        module = SCRIPTS[script]
        module.main(module.parse_args(words))
        if script == "train_da.py":  # the page goes on from steps 300 and 100
            folder = Path(words[words.index("--snapshot-dir") + 1])
            assert (folder / "result.json").exists()
            for step in (100, 300):
                shutil.copy(folder / "camvid_2.pth", folder / f"camvid_{step}.pth")
