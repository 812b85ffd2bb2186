"""Votes over folders, submission files and networks; agreement; the choice of members."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ensemble
import evaluate
from datasets import write_label_png
from engine.errors import UserError
from engine.files import save_tensors
from engine.values import Loading
from inference import submissions, votes
from inference.loop import predict
from inference.predictor import Predictor
from models.checkpoint import load_checkpoint, load_model
from worlds import FRAMES, ROOT, in_camvid, on_camvid, open_camvid, script, write_checkpoint


def run_ensemble(*words) -> None:
    ensemble.main(ensemble.parse_args([str(word) for word in words]))


def read_png(path: Path) -> list:
    return np.asarray(Image.open(path)).tolist()


# ------------------------------------------------------------------ folders


@pytest.fixture
def voters(tmp_path):
    """Three folders that predict one image of four pixels; only the first has colours."""
    votes = {"a": [[0, 1], [2, 255]], "b": [[1, 1], [0, 255]], "c": [[1, 0], [1, 4]]}
    for name, ids in votes.items():
        palette = [(9, 8, 7), (1, 2, 3)] if name == "a" else None
        write_label_png(tmp_path / name / "x" / "1.png", np.array(ids, np.uint8), palette)
    return [tmp_path / name for name in votes]


def test_folders_vote(voters, tmp_path):
    done = script("ensemble.py", "--predictions", *voters, "--save", tmp_path / "vote")
    assert done.returncode == 0, done.stderr
    # majorities; a tie of three goes to the lowest id; abstentions do not count
    assert read_png(tmp_path / "vote" / "train_ids" / "x" / "1.png") == [[1, 1], [0, 4]]
    with Image.open(tmp_path / "vote" / "color" / "x" / "1_color.png") as image:
        assert np.asarray(image).tolist() == [[1, 1], [0, 4]]
        assert image.getpalette()[:6] == [9, 8, 7, 1, 2, 3]
    assert {path.name for path in (tmp_path / "vote").iterdir()} == {"train_ids", "color"}
    run_ensemble("--predictions", *voters, "--save", tmp_path / "weighted", "--weights", "3,1,1")
    assert read_png(tmp_path / "weighted" / "train_ids" / "x" / "1.png") == [[0, 1], [2, 4]]


def test_the_agreement_table_and_map(voters, tmp_path, capsys):
    save, share = tmp_path / "vote", tmp_path / "share"
    run_ensemble("--predictions", *voters, "--save", save, "--agreement", share)
    # beside the vote 1 1 0 4: a 0 1 2 255, b 1 1 0 255, c 1 0 1 4
    assert capsys.readouterr().out.splitlines() == [
        "% same   vote      1      2      3",
        f"     1  25.00      -  50.00   0.00  {voters[0]}",
        f"     2  75.00  50.00      -  25.00  {voters[1]}",
        f"     3  50.00   0.00  25.00      -  {voters[2]}",
        f"1 images, 3 votes each, in {save}",
    ]
    assert read_png(share / "x" / "1.png") == [[170, 170], [85, 85]]  # of 255: two thirds, a third
    run_ensemble(
        "--predictions", *voters, "--save", save, "--agreement", share, "--weights", "3,1,1"
    )
    # the winner's share of the weights: vote 0 1 2 4
    assert read_png(share / "x" / "1.png") == [[153, 204], [153, 51]]


def test_a_vote_never_replaces_a_voter(voters, tmp_path):
    before = (voters[1] / "x" / "1.png").read_bytes()
    (tmp_path / "link").symlink_to(voters[1])
    for save in (voters[1], tmp_path / "link", voters[0] / ".." / "b", voters[1] / "vote"):
        with pytest.raises(UserError, match="b, which votes: give another"):
            run_ensemble("--predictions", *voters, "--save", save)
        with pytest.raises(UserError, match="b, which votes: give another"):
            run_ensemble("--predictions", *voters, "--save", tmp_path / "v", "--agreement", save)
    assert (voters[1] / "x" / "1.png").read_bytes() == before
    assert not (voters[1] / "vote").exists()


def test_a_vote_never_replaces_a_voter_within(voters, tmp_path):
    """A member may be the train_ids/ of the folder that the vote would be written into."""
    runs = tmp_path / "runs"
    runs.mkdir()
    voters[1].rename(runs / "train_ids")
    before = (runs / "train_ids" / "x" / "1.png").read_bytes()
    with pytest.raises(UserError, match=r"runs/train_ids/x/1\.png would be written over"):
        run_ensemble("--predictions", voters[0], runs / "train_ids", "--save", runs)
    assert (runs / "train_ids" / "x" / "1.png").read_bytes() == before


def test_folders_that_disagree_are_listed(voters, tmp_path):
    def refused(said: str):
        with pytest.raises(UserError, match=said):
            run_ensemble("--predictions", *voters, "--save", tmp_path / "vote")
        assert not (tmp_path / "vote").exists()

    for i in range(2, 6):
        write_label_png(voters[1] / f"{i}.png", np.zeros((2, 2), np.uint8))
    write_label_png(voters[2] / "2.png", np.zeros((2, 2), np.uint8))
    refused(r"a lacks 2, 3, 4, \.\.\. \(4\); .*c lacks 3, 4, 5$")
    for voter in voters:
        for i in range(2, 6):
            size = (2, 3 if voter == voters[2] else 2)
            write_label_png(voter / f"{i}.png", np.zeros(size, np.uint8))
    refused(r"a/2\.png 2x2 and .*c/2\.png 3x2, .*3\.png.*4\.png 3x2, \.\.\. \(4\)")


def test_a_damaged_voter_leaves_nothing(voters, tmp_path):
    for voter in voters:
        write_label_png(voter / "0.png", np.zeros((200, 200), np.uint8))
    whole = (voters[1] / "0.png").read_bytes()
    (voters[1] / "x" / "1.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    for voter in (voters[0], voters[2]):
        write_label_png(voter / "x" / "1.png", np.zeros((200, 200), np.uint8))
    done = script("ensemble.py", "--predictions", *voters, "--save", tmp_path / "vote")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "b/x/1.png" in line
    assert not list((tmp_path / "vote").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "1,2"], "--weights must be 3 numbers above 0"),
        (["--weights", "1,2,0"], "--weights must be 3 numbers above 0"),
        (["--weights", "1,2,nan"], "--weights must be 3 numbers above 0"),
        (["--soft"], "--soft goes with --restore-from$"),
        (
            ["--dataset", "camvid"],
            "--dataset goes with --restore-from, or --pred",
        ),
        (["--truth", "t.csv"], "--truth goes with --csv"),
        (["--num-classes", "3"], "--num-classes goes with --csv"),
        (["--agreement", "{save}/share"], "apart, neither within the other"),
        (["--select"], "give --dataset"),
    ],
)
def test_options_that_cannot_be(voters, tmp_path, words, said):
    words = [word.format(save=tmp_path / "vote") for word in words]
    with pytest.raises(UserError, match=said):
        run_ensemble("--predictions", *voters, "--save", tmp_path / "vote", *words)


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = script("ensemble.py", "--predictions", tmp_path / "none", "--save", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "none") in line
    for words in ([], ["--csv", "a", "--predictions", "b"]):
        with pytest.raises(SystemExit) as caught:
            ensemble.parse_args(["--save", "x", *words])
        assert caught.value.code == 2


# ------------------------------------------------------------------ the choice of members


def test_the_path_goes_on_where_the_score_falls():
    """Members 0 and 2 are the best pair but worse than 2 alone; with 1 they are best of all."""
    value = {(2,): 60, (0,): 50, (1,): 50, (2, 0): 55, (2, 1): 40, (0, 1, 2): 70, (0, 1, 2, 3): 70}

    def score(groups):
        return [value.get(tuple(group), value.get(tuple(sorted(group)), 0)) for group in groups]

    path = votes.grow(4, score)
    assert path == [([2], 60), ([2, 0], 55), ([2, 0, 1], 70), ([2, 0, 1, 3], 70)]
    assert votes.best_group(path) == [0, 1, 2]  # the smaller of equals


@pytest.fixture
def members(camvid, tmp_path):
    """Four folders: three that err in a third of the columns each, one that always errs alike."""
    dataset = open_camvid(camvid)
    errors = {"good0": 0, "bad": None, "good1": 1, "good2": 2}
    for i, (name, third) in itertools.product(range(len(dataset)), errors.items()):
        label = dataset[i]["label"].numpy()
        ids = np.where(label == 255, 0, (label + 1) % dataset.num_classes).astype(np.uint8)
        if third is not None:
            right = np.arange(label.shape[1]) % 3 != third
            ids[:, right] = label[:, right]
        ids[label == 255] = 0
        write_label_png(tmp_path / name / f"{FRAMES[i]}.png", ids)
    return [tmp_path / name for name in errors]


def steps(printed: str) -> list[tuple[int, float, str]]:
    """Return count, mIoU and new member of every line of the choice."""
    found = re.findall(r"^ +(\d) members  mIoU +([\d.]+)  \+ (\S+)$", printed, re.M)
    return [(int(count), float(score), Path(name).name) for count, score, name in found]


def test_select_leaves_a_bad_member_out(camvid, members, tmp_path, capsys):
    on = ["--dataset", "camvid", "--data-dir", camvid]
    run_ensemble("--predictions", *members, "--save", tmp_path / "vote", "--select", *on)
    printed = capsys.readouterr().out
    counts, scores, names = zip(*steps(printed), strict=True)
    assert counts == (1, 2, 3, 4)
    assert names[3] == "bad"
    # any two goods make the third one's errors good; the bad one's tie with each of them
    assert scores[2] == 100
    assert max(scores[0], scores[1], scores[3]) < 100
    assert f"selected 3 of 4: {members[0]} {members[2]} {members[3]}\n" in printed
    for frame, sample in zip(FRAMES, open_camvid(camvid), strict=True):
        vote, label = (
            np.array(read_png(tmp_path / "vote" / "train_ids" / f"{frame}.png")),
            sample["label"].numpy(),
        )
        assert np.array_equal(vote[label != 255], label[label != 255])

    # the first step is what evaluate.py says of the best member alone
    evaluate.main(evaluate.parse_args([
        "--predictions", str(members[0]), "--json", str(tmp_path / "s.json"), "--dataset", "camvid",
        *in_camvid(camvid),
    ]))  # fmt: skip
    first = {name: score for _, score, name in steps(printed)[:1]}
    if "good0" in first:
        (alone,) = json.loads((tmp_path / "s.json").read_text())
        assert first["good0"] == pytest.approx(alone["miou"], abs=0.005)


def test_select_refuses_ids_that_the_dataset_lacks(camvid, members, tmp_path):
    write_label_png(members[1] / f"{FRAMES[0]}.png", np.full((24, 40), 77, np.uint8))
    words = ["--select", "--dataset", "camvid", "--data-dir", camvid]
    with pytest.raises(UserError, match=r"bad/val.*ids that camvid does not have: 77"):
        run_ensemble("--predictions", *members, "--save", tmp_path / "vote", *words)


# ------------------------------------------------------------------ submission files


def write_csv(path: Path, rows: dict[str, str], header: str = "image_id,PredictionString") -> Path:
    path.write_text(
        "".join(f"{line}\n" for line in [header, *(f"{k},{v}" for k, v in rows.items())])
    )
    return path


@pytest.fixture
def files(tmp_path):
    """Three submissions of two images of four pixels, the second in another order."""
    return [
        write_csv(tmp_path / "a.csv", {"x/1.jpg": "0 1 2 10", "2.jpg": "5 5 5 5"}),
        write_csv(tmp_path / "b.csv", {"2.jpg": "5 4 3 254", "x/1.jpg": "1 1 0 10"}),
        write_csv(tmp_path / "c.csv", {"x/1.jpg": "1 0 1 7", "2.jpg": "0 4 3 2"}),
    ]


def test_submissions_vote(files, tmp_path, capsys):
    done = script("ensemble.py", "--csv", *files, "--save", tmp_path / "new" / "vote.csv")
    assert done.returncode == 0, done.stderr
    voted = (tmp_path / "new" / "vote.csv").read_text()
    assert voted == "image_id,PredictionString\nx/1.jpg,1 1 0 10\n2.jpg,5 4 3 2\n"
    assert done.stdout.splitlines()[1] == f"     1  37.50      -  37.50   0.00  {files[0]}"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["vote.csv"]
    run_ensemble("--csv", *files, "--save", tmp_path / "v.csv", "--weights", "1,1,2.5")
    assert (tmp_path / "v.csv").read_text().splitlines()[1:] == ["x/1.jpg,1 0 1 7", "2.jpg,0 4 3 2"]


def test_awkward_files_are_read_as_they_are_meant(files, tmp_path):
    run_ensemble("--csv", *files, "--save", tmp_path / "vote.csv")
    rows = b'"2.jpg"  ,"5  4 3 254 ","a, ""b"""\r\n\r\nx/1.jpg,1 1 0 10,\xe9\r\n'
    head = b'\xef\xbb\xbf"image_id", PredictionString ,note\r\n'
    awkward = tmp_path / "awkward.csv"
    awkward.write_bytes(head + rows.replace(b'"  ,', b'",').rstrip(b"\r\n"))  # no last line end
    run_ensemble("--csv", files[0], awkward, files[2], "--save", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "vote.csv").read_bytes()
    # the first file's columns and order are kept, what needs quotes has them
    run_ensemble("--csv", awkward, files[0], files[2], "--save", tmp_path / "third.csv")
    assert (tmp_path / "third.csv").read_bytes() == (
        b'image_id,PredictionString,note\n2.jpg,5 4 3 2,"a, ""b"""\nx/1.jpg,1 1 0 10,\xe9\n'
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"b\.csv: one column image_id is needed, its own: $"),
        ("image,PredictionString\n", "one column image_id is needed, its own: image, Pred"),
        ("image_id,PredictionString,image_id\n", "one column image_id is needed"),
        ("image_id,PredictionString\n", "no row below the header"),
        ("image_id,PredictionString\n1,0 0\n1,0 0\n", "line 3: 1 has a row already, line 2"),
        ("image_id,PredictionString\n,0 0\n", "line 2: no image_id"),
        ("image_id,PredictionString\n1,0 0,5\n", "line 2: 3 fields below a header of 2"),
        ("image_id,PredictionString\n1\n", "line 2: 1 fields below a header of 2"),
        ('image_id,PredictionString\n1,"0 0\n0 0"\n', "line 2: .*must end in its line"),
        (
            "image_id,PredictionString\n3,0 0\n",
            r"different images: .*a\.csv lacks 3; .*b\.csv lacks 1, 2$",
        ),
        ("image_id,PredictionString\n1,0 0\n", r"different images: .*b\.csv lacks 2$"),
        ("image_id,PredictionString\n1,0 0\n2,0\n", r"b\.csv, line 3 \(2\): 1 class ids, 2 in the"),
        ("image_id,PredictionString\n1,0 0\n2,\n", r"b\.csv, line 3 \(2\): no class ids"),
        ("image_id,PredictionString\n1,0 0\n2,0 9\n", r"line 3 \(2\): the id 9 is outside 0\.\.7"),
        ("image_id,PredictionString\n1,0 0\n2,0 999\n", "the id 999 is outside"),
        ("image_id,PredictionString\n1,0 0\n2,0 1000\n", "the 2. id is '1000', a number of 0..7"),
        ("image_id,PredictionString\n1,0 0\n2,0 -1\n", "the 2. id is '-1'"),
        ("image_id,PredictionString\n1,0 0\n2,0.0 1\n", "the 1. id is '0.0'"),
        ("image_id,PredictionString\n1,0 0\n2,1  0\t1\n", r"the 2. id is '0\\t1'"),
        ("image_id,PredictionString\n1,0 0\n2,0 nan\n", "the 2. id is 'nan'"),
        ("image_id,PredictionString\n1,0 0\n2,[0 ... 0]\n", r"the 1. id is '\[0'"),
    ],
)
def test_submissions_that_cannot_be(tmp_path, content, said):
    good = write_csv(tmp_path / "a.csv", {"1": "0 0", "2": "1 1"})
    (tmp_path / "b.csv").write_text(content)
    save = tmp_path / "vote.csv"
    save.write_text("of before")
    with pytest.raises(UserError, match=said) as caught:
        run_ensemble("--csv", good, tmp_path / "b.csv", "--save", save, "--num-classes", "8")
    assert "\n" not in str(caught.value)
    assert save.read_text() == "of before"
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.csv", "vote.csv"}


def test_submission_options_that_cannot_be(files, tmp_path):
    def refused(said: str, *words):
        with pytest.raises(UserError, match=said):
            run_ensemble("--csv", *files, *words)

    save = ["--save", tmp_path / "vote.csv"]
    refused("a.csv, which votes", "--save", files[0])
    refused("is a folder: name a file", "--save", tmp_path)
    refused("no such file", *save, "--select", "--truth", tmp_path / "none.csv")
    refused("needs --truth", *save, "--select")
    refused("needs --truth", *save, "--truth", files[0])
    refused("--num-classes is at most 255", *save, "--num-classes", "256")
    refused("--agreement goes with", *save, "--agreement", tmp_path)
    refused("--flip goes with", *save, "--flip")


def test_select_among_submissions(files, tmp_path, capsys):
    truth = {"2.jpg": "5 4 3 2", "x/1.jpg": "1 1 255 10"}
    right = write_csv(tmp_path / "truth.csv", truth)
    words = ["--save", tmp_path / "vote.csv", "--select", "--num-classes", "255"]
    run_ensemble("--csv", *files, *words, "--truth", right)
    lines = capsys.readouterr().out.splitlines()
    # b alone errs in one pixel of seven, 2 taken for 254: IoU 1 of the classes 1, 10, 5, 4, 3 and
    # 0 of 2 and 254; all three err nowhere; b and a are right but for ties
    assert lines[0] == f"   1 members  mIoU {500 / 7:6.2f}  + {files[1]}"
    assert lines[2].startswith("   3 members  mIoU 100.00")
    assert lines[3].startswith("selected 3 of 3: ")
    write_csv(right, truth | {"x/1.jpg": "1 1 255"})
    with pytest.raises(UserError, match=r"truth\.csv, line 3 .*: 3 class ids, 4 in the first row"):
        run_ensemble("--csv", *files, *words, "--truth", right)


@pytest.mark.parametrize("num_classes", [3, 10, 11, 256])
def test_ids_come_back(num_classes):
    ids = np.random.default_rng(num_classes).integers(0, num_classes, 5000).astype(np.uint8)
    text = " ".join(map(str, ids.tolist())).encode()
    assert submissions.format_ids(ids) == text
    for written in (text, text.replace(b" ", b"  "), b" " + text + b" "):
        assert np.array_equal(submissions.parse_ids(written, num_classes), ids)


MEASURE = """
import re, sys
import ensemble
ensemble.main(ensemble.parse_args(sys.argv[1:]))
# not ru_maxrss, in which a process begins with the peak of the one that started it
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def write_large(path: Path, rows: int, seed: int) -> Path:
    """Write rows of 65 536 ids each."""
    ids = np.random.default_rng(seed).integers(0, 11, 65536).astype(np.uint8)
    with path.open("wb") as file:
        file.write(b"image_id,PredictionString\n")
        for i in range(rows):
            file.write(b"%d.jpg,%b\n" % (i, submissions.format_ids(np.roll(ids, i))))
    return path


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for rows in (10, 120):
        paths = [write_large(tmp_path / f"{seed}.csv", rows, seed) for seed in range(3)]
        words = [sys.executable, "-c", MEASURE, "--csv", *paths, "--save", tmp_path / "vote.csv"]
        done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    held = 3 * 110 * 65536 / 2**20  # MiB that the ids of the further rows would take: 20
    assert peaks[1] - peaks[0] < held / 3, peaks
    assert len((tmp_path / "vote.csv").read_bytes().splitlines()) == 121


def test_a_killed_vote_leaves_the_old_file(tmp_path):
    paths = [write_large(tmp_path / f"{seed}.csv", 150, seed) for seed in range(3)]
    save = tmp_path / "vote.csv"
    save.write_text("of before")
    words = [sys.executable, "ensemble.py", "--csv", *paths, "--save", save]
    running = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.glob(".segshift-*.tmp")):
        assert running.poll() is None
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert save.read_text() == "of before"


# ------------------------------------------------------------------ networks


@pytest.fixture
def networks(camvid, tmp_path):
    """Three small networks that predict differently."""
    names = open_camvid(camvid).class_names
    paths = []
    for i, style in enumerate(("a", "b", "c")):
        path = write_checkpoint(tmp_path / f"{style}.pth", "camvid", names)
        value = load_checkpoint(path)
        generator = torch.Generator().manual_seed(i)
        for tensor in value["model"].values():
            if tensor.is_floating_point():
                tensor += (
                    0.5 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
                )
        save_tensors(value, path)
        paths.append(path)
    return paths


def saved(folder: Path) -> torch.Tensor:
    return torch.from_numpy(
        np.stack([read_png(folder / "train_ids" / f"{name}.png") for name in FRAMES])
    )


def test_networks_vote(networks, camvid, tmp_path, capsys):
    on = on_camvid(camvid)
    run_ensemble("--restore-from", *networks, "--save", tmp_path / "hard", *on)
    table = capsys.readouterr().out.splitlines()[:-1]
    ids = {}
    for path in networks:
        model, _ = load_model(path, torch.device("cpu"))
        results = predict(Predictor(model), open_camvid(camvid), Loading())
        ids[path] = torch.cat([pred for _, pred, _ in results])
    ballots = torch.stack(list(ids.values()))
    vote = ballots.mode(0).values  # of three, the most frequent; where all differ, the lowest
    assert torch.equal(saved(tmp_path / "hard"), vote.long())
    assert len({tuple(ballot.flatten().tolist()) for ballot in ballots}) == 3
    for line, path in zip(table[1:], networks, strict=True):
        share = 100 * (ids[path] == vote).double().mean()
        assert float(line.split()[1]) == pytest.approx(share.item(), abs=0.005)

    # the same from the networks' PNGs, and on images without labels
    folders = []
    for path in networks:
        for i, name in enumerate(FRAMES):
            write_label_png(tmp_path / path.stem / f"{name}.png", ids[path][i].numpy())
        folders.append(tmp_path / path.stem)
    run_ensemble("--predictions", *folders, "--save", tmp_path / "again")
    assert torch.equal(saved(tmp_path / "again"), vote.long())
    for label in (camvid / "valannot").iterdir():
        label.unlink()
    run_ensemble("--restore-from", *networks, "--save", tmp_path / "blind", *on)
    assert torch.equal(saved(tmp_path / "blind"), vote.long())


def test_networks_vote_softly(networks, camvid, tmp_path, capsys):
    """The mean of the softmax, on the networks' grid, resized as its logarithm."""
    weights = (3.0, 1.0, 2.0)
    words = ["--restore-from", *networks, *on_camvid(camvid, "--set", "val", "--batch-size", "3")]
    run_ensemble(*words, "--save", tmp_path / "soft", "--soft", "--weights", "3,1,2")
    table = capsys.readouterr().out.splitlines()
    images = torch.stack([sample["image"] for sample in open_camvid(camvid)])
    mean = 0
    for path, weight in zip(networks, weights, strict=True):
        model, _ = load_model(path, torch.device("cpu"))
        with torch.inference_mode():
            mean += weight / 6 * Predictor(model).logits(images).softmax(1)
    full = F.interpolate(mean.log(), size=(24, 40), mode="bilinear", align_corners=False)
    assert (saved(tmp_path / "soft") == full.argmax(1)).double().mean() > 0.999
    run_ensemble(*words, "--save", tmp_path / "hard", "--weights", "3,1,2")
    hard_table = capsys.readouterr().out.splitlines()
    assert not torch.equal(saved(tmp_path / "soft"), saved(tmp_path / "hard"))
    # the members agree with each other as they do in a hard vote
    assert [line.split()[2:5] for line in table[1:4]] == [
        line.split()[2:5] for line in hard_table[1:4]
    ]


def test_select_among_networks(networks, camvid, tmp_path, capsys):
    """The labels are what the second predicts."""
    run_ensemble("--restore-from", networks[1], "--save", tmp_path / "truth", *on_camvid(camvid))
    for name in FRAMES:
        label = camvid / name.replace("val/", "valannot/")
        write_label_png(
            f"{label}.png", saved(tmp_path / "truth")[FRAMES.index(name)].byte().numpy()
        )
    capsys.readouterr()
    words = ["--restore-from", *networks, "--save", tmp_path / "vote", *on_camvid(camvid)]
    run_ensemble(*words, "--select")
    printed = capsys.readouterr().out
    assert steps(printed)[0][1:] == (100, "b.pth")
    assert f"selected 1 of 3: {networks[1]}\n" in printed
    assert torch.equal(saved(tmp_path / "vote"), saved(tmp_path / "truth"))
    assert {path.name for path in (tmp_path / "vote").iterdir()} == {"train_ids", "color"}
    with pytest.raises(UserError, match="leave --soft away"):
        run_ensemble(*words, "--select", "--soft")


def test_networks_never_write_over_their_images(networks, camvid, tmp_path):
    before = (camvid / f"{FRAMES[0]}.png").read_bytes()
    with pytest.raises(UserError, match="is the data folder"):
        run_ensemble("--restore-from", *networks, "--save", camvid, *on_camvid(camvid))
    with pytest.raises(UserError, match=f"{FRAMES[0]}.png would be written over"):
        run_ensemble(
            "--restore-from", *networks, "--save", tmp_path / "v", "--agreement", camvid,
            *on_camvid(camvid),
        )  # fmt: skip
    assert (camvid / f"{FRAMES[0]}.png").read_bytes() == before
