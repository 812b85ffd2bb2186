"""tools.translate: every method against values by hand; a folder is whole, or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fakedata
from datasets import build_dataset
from engine.errors import UserError
from tools import translate
from training.augment import style

# `histogram` is match_histograms of scikit-image 0.25.2, to 1e-5 on random images; here by hand
SOURCE = [[[0, 9, 50], [0, 9, 60]], [[1, 200, 70], [2, 9, 80]]]
LIKE = [[[10, 7, 0], [10, 7, 255], [40, 7, 0], [20, 7, 255]]]


def on_folders(root: Path, *more) -> Path:
    """Translate root/source to the look of root/like."""
    words = [str(root / "source"), "--like", str(root / "like"), "--save", str(root / "out")]
    translate.main(translate.parse_args([*words, *map(str, more)]))
    return root / "out" / "images_translated"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with three images to translate, one of them deeper, and two to be like."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "deeper/c.png"):
        fakedata.save(tmp_path / "source" / name, rng.integers(0, 120, (24, 32, 3), np.uint8))
    for name in ("x.png", "y.png"):
        fakedata.save(tmp_path / "like" / name, rng.integers(100, 256, (20, 28, 3), np.uint8))
    return tmp_path


def test_histogram_by_hand():
    """Shares of red: 0 -> 2/4, 1 -> 3/4, 2 -> 4/4; like 10 -> 2/4, 20 -> 3/4, 40 -> 4/4."""
    source, like = (translate.to_tensor(np.array(x, np.uint8)) for x in (SOURCE, LIKE))
    matched = translate.histogram(source, like)[0]
    assert matched[0].tolist() == [[10, 10], [20, 40]]
    assert matched[1].tolist() == [[7, 7], [7, 7]]
    # shares 1/4, 2/4, 3/4, 1 of blue between 0 at 2/4 and 255 at 1
    assert matched[2].tolist() == [[0, 0], [127.5, 255]]


@pytest.mark.parametrize("method", ["lab", "fda"])
def test_one_colour_becomes_the_other(method: str, tmp_path: Path):
    """Of images of one colour the mean of L*a*b*, and the lowest frequency, is that colour."""
    for name, colour in (("source", (40, 90, 160)), ("like", (200, 120, 30))):
        fakedata.save(tmp_path / name / "a.png", np.full((16, 16, 3), colour, np.uint8))
    done = np.asarray(Image.open(on_folders(tmp_path, "--method", method) / "a.png"))
    assert abs(done.astype(int) - (200, 120, 30)).max() <= 1


def test_lab_has_the_others_mean_and_deviation():
    """Where no colour is cut off; Reinhard et al. 2001, equations 10 and 11, in L*a*b*."""
    rng = np.random.default_rng(1)
    source = translate.to_tensor(rng.integers(90, 120, (40, 50, 3), np.uint8))
    like = translate.to_tensor(rng.integers(130, 150, (30, 60, 3), np.uint8))
    done, wanted = style.to_lab(style.lab(source, like)), style.to_lab(like)
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(done, (2, 3)), statistic(wanted, (2, 3)), atol=0.01)


def test_the_lowest_frequency_is_the_mean():
    """A window of one frequency (beta 0) moves the mean alone; Yang and Soatto 2020, equation 3."""
    rng = np.random.default_rng(1)
    source = translate.to_tensor(rng.integers(90, 120, (20, 30, 3), np.uint8))
    like = translate.to_tensor(rng.integers(130, 150, (30, 60, 3), np.uint8))
    done = style.fda(source, like, beta=(0, 0))
    shift = like.mean((2, 3), keepdim=True) - source.mean((2, 3), keepdim=True)
    assert torch.allclose(done, source + shift, atol=0.01)


@pytest.mark.parametrize("method", ["lab", "fda", "histogram"])
def test_a_folder_is_written_whole_and_the_same_again(method: str, root: Path):
    folder = on_folders(root, "--method", method)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == ["a.png", "b.png", "deeper/c.png"]
    first = {name: (folder / name).read_bytes() for name in names}
    for name, content in first.items():
        assert Image.open(folder / name).size == (32, 24)
        assert np.asarray(Image.open(folder / name)).mean() > 100  # as bright as the others
        assert content
    assert not (root / "out" / "images_translated.unfinished").exists()
    with pytest.raises(UserError, match="images_translated exists already"):
        on_folders(root, "--method", method)
    folder.rename(root / "before")
    again = on_folders(root, "--method", method)
    assert {name: (again / name).read_bytes() for name in names} == first


def test_it_goes_on_where_it_ended(root: Path, monkeypatch, capsys):
    whole = on_folders(root, "--method", "lab")
    whole.rename(root / "whole")
    save, count = translate.save_png, []

    def full_disk(path, pixels):
        if count:
            raise OSError(28, "No space left on device")
        count.append(path)
        save(path, pixels)

    monkeypatch.setattr(translate, "save_png", full_disk)
    with pytest.raises(OSError, match="No space"):
        on_folders(root, "--method", "lab")
    monkeypatch.undo()
    assert not whole.exists()  # a part is not taken for the whole
    with pytest.raises(UserError, match="was begun with another method"):
        on_folders(root, "--method", "histogram")
    with pytest.raises(UserError, match="was begun with another seed"):
        on_folders(root, "--method", "lab", "--random-seed", "3")
    on_folders(root, "--method", "lab")
    assert "going on: 1 of 3 images are there already" in capsys.readouterr().out
    for path in (root / "whole").rglob("*.png"):
        same = whole / path.relative_to(root / "whole")
        assert same.read_bytes() == path.read_bytes()


def test_strength_zero_changes_nothing(root: Path):
    folder = on_folders(root, "--method", "lab", "--strength", "0")
    source = np.asarray(Image.open(root / "source/a.png"))
    assert np.array_equal(np.asarray(Image.open(folder / "a.png")), source)


def test_cyclegta_reads_it(tmp_path: Path):
    fakedata.make_gta5(tmp_path / "gta", n=2)
    like = fakedata.make_cityscapes(tmp_path / "cs", n=1) / "leftImg8bit"
    words = [str(tmp_path / "gta/images"), "--like", str(like), "--save", str(tmp_path / "gta")]
    translate.main(translate.parse_args([*words, "--method", "fda"]))
    dataset = build_dataset("cyclegta", tmp_path / "gta", split="train")
    assert dataset.pairs[0] == ("images_translated/00001.png", "labels/00001.png")
    about = json.loads((tmp_path / "gta/images_translated.json").read_text())
    assert about["method"] == "fda"


def test_mistakes(root: Path):
    with pytest.raises(UserError, match="--beta goes with --method fda"):
        on_folders(root, "--method", "lab", "--beta", "0.1")
    (root / "source/a.jpg").write_bytes((root / "source/b.jpg").read_bytes())
    with pytest.raises(UserError, match=r"a.jpg and a.png would have one name"):
        on_folders(root, "--method", "lab")
    (root / "source/a.jpg").write_bytes(b"no image")
    (root / "source/a.png").unlink()
    with pytest.raises(UserError, match=r"source/a.jpg: not a readable image"):
        on_folders(root, "--method", "lab")
    for path in (root / "like").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"like: no images here"):
        on_folders(root, "--method", "lab")
