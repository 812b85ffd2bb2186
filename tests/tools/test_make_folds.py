"""Folds whose classes are alike, beside what scikit-learn 1.9's StratifiedGroupKFold reaches."""

import json
from pathlib import Path

import numpy as np
import pytest

import fakedata
from datasets import build_dataset
from datasets.folds import divide
from engine.errors import UserError
from tools import make_folds


def labelled(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return pixels of each class in each image, the images' groups, and how many folds."""
    rng = np.random.RandomState(seed)  # whose numbers NumPy has frozen
    count, classes, folds = rng.randint(60, 200), rng.randint(3, 9), rng.randint(3, 6)
    groups = rng.randint(0, count // 2, count)
    groups = np.unique(groups, return_inverse=True)[1]
    likely = rng.rand(groups.max() + 1, classes)[groups] * rng.rand(classes)
    counts = (rng.rand(count, classes) < likely) * rng.lognormal(7, 1.5, (count, classes))
    counts[:, 0] += 20000
    return counts.astype(np.int64), groups, folds


def differences(counts: np.ndarray, fold_of: np.ndarray, folds: int) -> list[float]:
    """Return the largest differences of a share of images, and of pixels."""
    values = []
    for table in (counts > 0, counts / counts.sum()):
        whole = len(counts) if table.dtype == bool else 1
        for fold in range(folds):
            inside = table[fold_of == fold]
            held = len(inside) if table.dtype == bool else inside.sum()
            values.append(np.abs(inside.sum(0) / held - table.sum(0) / whole).max())
    return [max(values[:folds]), max(values[folds:])]


# of StratifiedGroupKFold, the better of stratifying by the class of the most pixels and by the one
# in the fewest images, shuffled and not
SKLEARN = {
    0: (0.0745, 0.0479),
    1: (0.0434, 0.0306),
    2: (0.1850, 0.0723),
    3: (0.0294, 0.0294),
    4: (0.1469, 0.0336),
    5: (0.1527, 0.0752),
    6: (0.0202, 0.0273),
    7: (0.1268, 0.0403),
}


@pytest.mark.parametrize("seed", SKLEARN)
def test_never_worse_than_scikit_learn(seed):
    counts, groups, folds = labelled(seed)
    fold_of = divide(counts, groups, folds)
    for group in range(groups.max() + 1):
        assert len(np.unique(fold_of[groups == group])) == 1
    assert set(fold_of.tolist()) == set(range(folds))
    for ours, theirs in zip(differences(counts, fold_of, folds), SKLEARN[seed], strict=True):
        assert ours <= theirs


def test_the_same_folds_every_time():
    counts, groups, folds = labelled(1)
    first = divide(counts, groups, folds)
    assert np.array_equal(first, divide(counts, groups, folds))
    assert not np.array_equal(first, divide(counts, groups, folds, seed=1))


def test_as_many_groups_as_folds():
    counts = np.array([[5, 0], [0, 9], [1, 1], [0, 0]])
    fold_of = divide(counts, np.array([0, 1, 2, 2]), 3)
    assert sorted(fold_of[:3].tolist()) == [0, 1, 2]


def run(root: Path, *words: str) -> Path:
    arguments = [str(root), "--save", str(root / "folds"), "--folds", "3", *words]
    make_folds.main(make_folds.parse_args(arguments))
    return root / "folds"


def test_the_lists_are_what_the_commands_take(tmp_path: Path, capsys):
    root = fakedata.make_folder(tmp_path, n=9)
    folder = run(root)
    seen = []
    for fold in range(3):
        sets = [
            build_dataset(
                "folder", root, split="train", list_file=folder / f"fold{fold}_{part}.txt"
            )
            for part in ("train", "val")
        ]
        train, val = ({pair for pair in one.pairs} for one in sets)
        assert not train & val
        assert len(train | val) == 9
        seen += val
    assert sorted(seen) == sorted(build_dataset("folder", root, split="train").pairs)
    about = json.loads((folder / "folds.json").read_text())
    assert about["images"] == [3, 3, 3]
    assert [row["name"] for row in about["classes"]] == ["ground", "plant", "water"]
    said = capsys.readouterr().out
    assert "largest difference of a share of images: 0.00 points" in said
    assert f"wrote {folder}: 3 folds of 9 images in 9 groups" in said


@pytest.mark.parametrize("how", ["regex", "table"])
def test_groups_stay_together(how, tmp_path: Path):
    root = fakedata.make_folder(tmp_path, n=9)
    for i in range(9):
        for kind, ending in (("images", ".jpg"), ("labels", ".png")):
            path = root / kind / "train" / f"{i}{ending}"
            path.rename(path.with_name(f"{i}_{'abcd'[i % 4]}{ending}"))
    if how == "regex":
        group = r"_(.)\.jpg$"
    else:
        group = str(root / "groups.csv")
        rows = [f"{i}_{'abcd'[i % 4]}.jpg,{'abcd'[i % 4]}\n" for i in range(9)]
        Path(group).write_text("image,group\n\n" + "".join(rows))
    folder = run(root, "--group", group)
    for fold in range(3):
        letters = [
            {line.split("_")[1][0] for line in (folder / f"fold{fold}_{part}.txt").open()}
            for part in ("train", "val")
        ]
        assert not letters[0] & letters[1]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(", r"--group \(: no regular expression"),
        ("x", "it finds nothing in the name of it: images/train/0.jpg"),
        ("train", "1 groups of images cannot become 3 folds"),
        ("nowhere.csv", r"nowhere.csv: .*no such file"),
        ("0.jpg,a\n0.jpg,b\n", r"line 2: '0.jpg' has two groups"),
        ("0.jpg\n", r"line 1: image and group expected, got '0.jpg'"),
        ("0.jpg,a\n", r"no row of it: images/train/1.jpg"),
        ('"0.jpg', r"no CSV"),
    ],
)
def test_what_is_refused(group, message, tmp_path: Path):
    root = fakedata.make_folder(tmp_path, n=3)
    if ".jpg" in group:
        (root / "groups.csv").write_text(group)
        group = str(root / "groups.csv")
    with pytest.raises(UserError, match=message):
        run(root, "--group", group)
    assert not list((root / "folds").glob("fold*"))


def test_folds_are_not_replaced(tmp_path: Path):
    root = fakedata.make_folder(tmp_path, n=3)
    folder = run(root)
    before = (folder / "fold0_val.txt").read_text()
    with pytest.raises(UserError, match=r"fold0_train.txt exists already: remove it"):
        run(root, "--seed", "1")
    assert (folder / "fold0_val.txt").read_text() == before
