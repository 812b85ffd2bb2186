"""The commands that the documentation shows: they parse, and those for CamVid run."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import ensemble
import evaluate
import fakedata
import pseudo_label
import train_da
import train_seg
from datasets.folder import read_class_table
from inference.submissions import Submission
from tools import coco_to_masks, cyclegan, make_classes, make_folds, sheet, submission, translate
from worlds import ROOT

SCRIPTS = {
    "train_da.py": train_da,
    "train_seg.py": train_seg,
    "evaluate.py": evaluate,
    "pseudo_label.py": pseudo_label,
    "ensemble.py": ensemble,
}
TOOLS = {
    "tools.coco_to_masks": coco_to_masks,
    "tools.cyclegan": cyclegan,
    "tools.make_classes": make_classes,
    "tools.make_folds": make_folds,
    "tools.sheet": sheet,
    "tools.submission": submission,
    "tools.translate": translate,
}
MARKDOWN = [
    "README.md",
    "docs/experiments.md",
    "docs/own-data.md",
    "docs/loveda.md",
    "docs/datasets.md",
    "docs/waste.md",
    "docs/augment.md",
]
PAGES = [*MARKDOWN, *SCRIPTS]
# what a training command of a page is run with here, beside its own words
SHORT = "--num-steps 2 --batch-size 2 --weights none --num-workers 0".split()


def commands(page: str) -> list[list[str]]:
    """Return the words of every `python SCRIPT ...` line of a page, continued lines joined."""
    text = (ROOT / page).read_text().replace("\\\\\n", " ").replace("\\\n", " ")
    lines = re.findall(r"^ *python (?:-m )?([\w.]+ .*)$", text, re.M)
    found = [
        words
        for line in lines
        if (words := shlex.split(line, comments=True))[0] in {**SCRIPTS, **TOOLS}
    ]
    return [words for words in found if "|" not in words[1]]


def run(words: list[str], *more: str) -> None:
    """Run a command of a page in this process, a training one with `more` words."""
    module = {**SCRIPTS, **TOOLS}[words[0]]
    training = words[0].startswith("train")
    module.main(module.parse_args([*words[1:], *(more if training else ())]))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str):
    found = commands(page)
    assert found
    for script, *words in found:
        {**SCRIPTS, **TOOLS}[script].parse_args(words)


@pytest.mark.parametrize("page", ["README.md", "docs/experiments.md"])
def test_the_camvid_commands_run_as_written(page: str, tmp_path: Path, monkeypatch):
    """In the public layout, for two steps, in the order of the page."""
    fakedata.make_camvid(tmp_path / "data" / "CamVid", n=18, size=(64, 48))
    monkeypatch.chdir(tmp_path)
    chosen = [words for words in commands(page) if any("snapshots" in word for word in words)]
    chosen = [words for words in chosen if "camvid" in " ".join(words)]
    assert len(chosen) >= 4
    for words in chosen:
        run(words, *SHORT, "--input-size", "64,48", "--crop-size", "48,48")
        if words[0] == "train_da.py":  # the page goes on from steps 300 and 100
            folder = Path(words[words.index("--snapshot-dir") + 1])
            assert (folder / "result.json").exists()
            for step in (100, 300):
                shutil.copy(folder / "camvid_2.pth", folder / f"camvid_{step}.pth")


def test_the_readmes_own_images_and_gta5_run_as_written(tmp_path: Path, monkeypatch):
    fakedata.make_folder(tmp_path / "DIR", n=2)
    fakedata.make_gta5(tmp_path / "data" / "GTA5")
    fakedata.make_cityscapes(tmp_path / "data" / "Cityscapes")
    monkeypatch.chdir(tmp_path)
    chosen = [w for w in commands("README.md") if {"snapshots/mine", "snapshots/gta5"} & {*w}]
    scored = [w for w in commands("README.md") if "snapshots/mine/folder_best.pth" in w]
    assert len(chosen) == 2
    for words in chosen + scored:
        own = "snapshots/mine" in words
        run(words, *SHORT, "--input-size", "64" if own else "64,48", *(
            ["--crop-size", "48,48"] if own else ["--input-size-target", "64,32"]))  # fmt: skip
    assert {"folder_2.pth", "folder_best.pth"} <= names("snapshots/mine")
    assert {"gta5_2.pth", "gta5_best.pth"} <= names("snapshots/gta5")


def names(folder: str) -> set[str]:
    """Return the names of all files below a folder."""
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


def test_own_images_become_a_scored_and_seen_model(tmp_path: Path, monkeypatch, capsys):
    """Of several shapes, without splits or a table; another folder has photographs alone."""
    for i in range(11):
        rng = np.random.default_rng(i)
        ids = fakedata.blocks(rng, ((64, 48), (48, 64))[i % 2], (0, 1, 2))
        fakedata.save(tmp_path / "data/mine/images" / f"{i}.jpg", fakedata.picture(rng, ids))
        fakedata.save(tmp_path / "data/mine/labels" / f"{i}.png", ids)
        fakedata.save(tmp_path / "data/new/some day" / f"{i}.jpg", fakedata.picture(rng, ids))
    monkeypatch.chdir(tmp_path)
    page = commands("docs/own-data.md")
    assert len(page) <= 6
    for words in page:
        run(words, *SHORT, "--input-size", "64", "--crop-size", "48,48")
    said = capsys.readouterr().out
    assert "===> mIoU: " in said
    seen = {name for name in names("snapshots/mine/seen") if name.endswith(".png")}
    assert len({name.split(".")[0].removesuffix("_color") for name in seen}) == 2  # of eleven
    assert "folder_finished.pth" in names("snapshots/adapted")
    overlays = Path("snapshots/adapted/seen/overlay").rglob("*")
    assert len([path for path in overlays if path.is_file()]) == 11


def test_the_page_of_loveda_runs_as_written(tmp_path: Path, monkeypatch):
    root = fakedata.make_loveda(tmp_path / "data/LoveDA")
    for domain in ("Urban", "Rural"):  # the test set has images alone
        inner = f"{domain}/images_png"
        shutil.copytree(root / "Val" / inner, root / "Test" / inner)
    monkeypatch.chdir(tmp_path)
    for words in commands("docs/loveda.md"):
        run(words, *SHORT, "--input-size", "64,64")
    for run_name in ("rural", "city", "control", "oracle"):
        assert "loveda_best.pth" in names(f"snapshots/{run_name}")
    assert any(name.endswith(".png") for name in names("snapshots/city/seen"))
    assert len(names("snapshots/city/test/submission")) == 4


def test_the_page_of_waste_runs_as_written(tmp_path: Path, monkeypatch):
    """The loop over five folds for two of them."""
    fakedata.make_waste(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    page = commands("docs/waste.md")
    assert len(page) <= 10
    loop = [words for words in page if "fold" in " ".join(words) and "$" in " ".join(words)]
    at = page.index(loop[0])
    assert page[at : at + len(loop)] == loop
    for words in page[:at]:
        run(words)
    for fold in "01":
        for words in loop:
            words = [w.replace("${fold}", fold).replace("$fold", fold) for w in words]
            run(words, *SHORT, "--input-size", "64", "--crop-size", "48,48")
    for fold in "234":
        shutil.copy("submissions/fold1.csv", f"submissions/fold{fold}.csv")
    for words in page[at + len(loop) :]:
        run(words)
    final, one = (Submission(path, 4) for path in ("submission.csv", "submissions/fold1.csv"))
    assert final.images == [b"batch_09/0000.jpg", b"batch_09/0001.jpg", b"batch_09/0002.jpg"]
    for image in final.images:  # four votes of five
        assert final.length == 256 * 256
        assert np.array_equal(final.read(image), one.read(image))


def test_the_readmes_demo_has_a_column_for_the_seed_of_make_demo():
    seed = train_da.parse_args(["--snapshot-dir", "s"]).random_seed
    assert f"| seed {seed} (`make demo`) |" in (ROOT / "README.md").read_text()


def test_the_table_on_the_page_is_one(tmp_path: Path):
    page = (ROOT / "docs/own-data.md").read_text()
    (tmp_path / "classes.json").write_text(re.search(r"```json\n(.*?)```", page, re.S)[1])
    rows = read_class_table(tmp_path / "classes.json")
    assert [row.id for row in rows] == [0, 1, 2, 255]
