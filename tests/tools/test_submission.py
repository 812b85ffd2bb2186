"""What test servers take: made of predictions, read back, and refused by name."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ensemble
import fakedata
from datasets import write_label_png
from engine.errors import UserError
from inference.label_folders import find_labels
from inference.submissions import Submission
from tools import submission


def run(*words) -> None:
    submission.main(submission.parse_args([*map(str, words)]))


def predictions(root: Path, kind: str = "train_ids", **maps: np.ndarray) -> Path:
    for stem, ids in maps.items():
        write_label_png(root / kind / f"{stem.replace('__', '/')}.png", np.array(ids, np.uint8))
    return root


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open()))


SMALL = [[0, 1, 1], [2, 1, 0]]


def test_csv_is_what_ensemble_votes_over(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    maps = {name: fakedata.blocks(rng, (512, 512), (0, 1, 2)) for name in ("b__1", "b__2")}
    folder = predictions(tmp_path / "seen", **maps)
    (tmp_path / "like.csv").write_text("image_id,PredictionString\nb/2.jpg,\nb/1.jpg,0 0\n")
    files = []
    for i in range(2):
        files.append(str(tmp_path / f"{i}.csv"))
        run("csv", folder, "--like", tmp_path / "like.csv", "--save", files[-1])
    assert "2 rows" in capsys.readouterr().out
    ensemble.main(ensemble.parse_args(["--csv", *files, "--save", str(tmp_path / "vote.csv")]))
    for path in (files[0], tmp_path / "vote.csv"):
        read = Submission(path, 3)
        assert read.images == [b"b/2.jpg", b"b/1.jpg"]
        small = Image.fromarray(maps["b__1"]).resize((256, 256), Image.Resampling.NEAREST)
        assert np.array_equal(read.read(b"b/1.jpg").reshape(256, 256), small)


def test_columns_size_and_endings(tmp_path: Path):
    folder = predictions(tmp_path / "seen", a=SMALL)
    words = ("--columns", "id,ids", "--size", "3,2", "--ending", ".jpg", "--save")
    run("csv", folder, *words, tmp_path / "a.csv")
    assert rows(tmp_path / "a.csv") == [["id", "ids"], ["a.jpg", "0 1 1 2 1 0"]]


def test_the_datasets_own_ids_are_taken_where_there_are_some(tmp_path: Path):
    folder = predictions(tmp_path / "seen", a=SMALL)
    predictions(folder, "label_ids", a=np.array(SMALL) + 7)
    run("csv", folder, "--size", "3,2", "--save", tmp_path / "a.csv")
    assert rows(tmp_path / "a.csv")[1][1] == "7 8 8 9 8 7"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--num-classes 3", [["a_1", "3 3"], ["a_2", "2 1"]]),
        ("--num-classes 4 --skip-empty", [["a_1", "3 3"], ["a_2", "2 1"]]),
        ("--num-classes 4", [["a_1", "3 3"], ["a_2", "2 1"], ["a_3", ""]]),
        ("--num-classes 3 --row-major", [["a_1", "2 2 5 1"], ["a_2", "4 1"]]),
        ("--num-classes 3 --without 1,2", [["a_0", "1 1 6 1"]]),
        ("--num-classes 3 --columns i,c,r", [["a", "1", "3 3"], ["a", "2", "2 1"]]),
        ("--foreground", [["a", "2 4"]]),
        ("--foreground --without 0,1,2", [["a", ""]]),
        ("--foreground --without 0,1,2 --skip-empty", []),
    ],
)
def test_run_lengths(words, expected, tmp_path: Path):
    folder = predictions(tmp_path / "seen", a=SMALL)
    run("rle", folder, *words.split(), "--save", tmp_path / "a.csv")
    assert rows(tmp_path / "a.csv")[1:] == expected


def test_archives(tmp_path: Path, official):
    name = "frankfurt_000000_000294"
    kinds = {"label_ids": np.array(SMALL) + 7, "train_ids": SMALL}
    folder = tmp_path / "city"
    for kind, ids in kinds.items():
        predictions(folder, kind, **{f"val__frankfurt__{name}_leftImg8bit": ids})
    run("cityscapes", folder, "--save", tmp_path / "city.zip")
    with zipfile.ZipFile(tmp_path / "city.zip") as archive:
        assert archive.namelist() == [f"{name}_leftImg8bit.png"]
        archive.extractall(tmp_path / "server")
    official.args.predictionWalk = None
    official.args.predictionPath = str(tmp_path / "server")
    truth = tmp_path / f"{name}_gtFine_labelIds.png"
    found = official.getPrediction(official.args, str(truth))
    assert np.array(Image.open(found)).tolist() == kinds["label_ids"].tolist()
    folder = predictions(tmp_path / "land", Test__Rural__images_png__12=SMALL)
    for _ in range(2):
        run("loveda", folder, "--save", tmp_path / "land.zip")
        content = (tmp_path / "land.zip").read_bytes()
    run("loveda", folder, "--save", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == content
    assert list(find_labels(tmp_path / "land.zip")) == ["12"]


def test_archives_are_voted_over(tmp_path: Path):
    for i in range(3):
        folder = predictions(tmp_path / f"p{i}", **{"7": np.full((2, 2), i // 2)})
        run("loveda", folder, "--save", tmp_path / f"{i}.zip")
    members = [str(tmp_path / f"{i}.zip") for i in range(3)]
    ensemble.main(
        ensemble.parse_args(["--predictions", *members, "--save", str(tmp_path / "vote")])
    )
    assert not np.array(Image.open(tmp_path / "vote/train_ids/7.png")).any()


@pytest.mark.parametrize(
    ("words", "like", "message"),
    [
        ("csv --size 3,2", "image_id\nb.jpg\n", r"like.csv, line 2: .*seen has no b.jpg"),
        ("csv --size 3,2", "image_id\na.jpg\na.jpg\n", "line 3: 'a.jpg' stands twice"),
        ("csv", "id\na.jpg\n", "no column 'image_id'; its own: id"),
        ("csv", "image_id\n", "no row below the header"),
        ("csv", "image_id\n\xe9".encode("latin-1"), "cannot read this table"),
        ("csv --ending .jpg", "image_id\na.jpg\n", "--ending means nothing beside --like"),
        ("rle", None, "rle needs --num-classes, or --foreground"),
        ("rle --num-classes 2", None, r"a: the id 2 is outside 0..1"),
        ("csv --columns a,b,c", None, "--columns: 2 names are expected"),
        ("csv --skip-empty", None, "--skip-empty means nothing for csv"),
        ("loveda --size 3,2", None, "--size means nothing for loveda"),
        ("loveda", None, r"a.png: the server expects a number as its name"),
        ("cityscapes", None, r"a.png: the server expects CITY_123456_123456"),
    ],
)
def test_what_is_refused(words, like, message, tmp_path: Path):
    folder = predictions(tmp_path / "seen", a=SMALL)
    form, *words = words.split()
    if like is not None:
        (tmp_path / "like.csv").write_bytes(like if isinstance(like, bytes) else like.encode())
        words += ["--like", str(tmp_path / "like.csv")]
    with pytest.raises(UserError, match=message):
        run(form, folder, *words, "--save", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pixels_that_are_no_class(tmp_path: Path):
    with pytest.raises(UserError, match=r"a.png: holds 255, which is no class"):
        run("csv", predictions(tmp_path / "seen", a=[[0, 255]]), "--save", tmp_path / "a.csv")
    land = predictions(tmp_path / "land", **{"1": [[0, 7]]})
    with pytest.raises(UserError, match=r"1.png: the id 7 is outside 0..6"):
        run("loveda", land, "--save", tmp_path / "a.zip")
    assert not list(tmp_path.glob("a.*"))
