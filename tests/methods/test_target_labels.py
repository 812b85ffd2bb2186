"""Methods that learn from labels of the target, known, guessed or a teacher's: numbers by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fakedata
import train_da
from engine import start
from engine.errors import UserError
from methods.base import Watch
from training.augment import Augment, pasting
from worlds import SMALL, OnTheSpot, assert_equal, build_method, halved, make_seen, seen_of

LOG3 = math.log(3)  # the cross-entropy of zero logits over three classes


def undecided(seen: list) -> OnTheSpot:
    """Return a student whose logits are zero, that keeps what it is shown."""

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(images)
        return {"out": torch.zeros(len(images), 3, *images.shape[-2:])}

    return OnTheSpot(student)


def ids(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.uint8)


def sure_on_the_left(label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return logits whose best class is `label` [N,H,W], by far in the left half only."""
    logits = torch.nn.functional.one_hot(label.long(), 3).permute(0, 3, 1, 2).float()
    logits[..., : label.shape[-1] // 2] *= 50
    return {"out": logits}


# ------------------------------------------------------------------ mix


@pytest.mark.parametrize("weight", ["share", "pixel"])
def test_classmix_by_hand(monkeypatch, weight: str):
    """Classes 0 and 2 of the source go onto a target that the teacher calls 1, sure on the left."""
    chosen = torch.zeros(1, 256, dtype=torch.bool)
    chosen[0, [0, 2]] = True
    monkeypatch.setattr(pasting, "half_of_classes", lambda label: chosen)
    batch = {
        "source_image": torch.full((1, 3, 2, 4), 200.0),
        "source_label": ids([[0, 0, 1, 1], [1, 255, 2, 255]]),
        "target_image": torch.full((1, 3, 2, 4), 10.0),
        "teacher_out": sure_on_the_left(ids([[1, 1, 1, 1], [1, 1, 1, 1]])),
    }
    wanted = []

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        wanted.append(images[:, 0])
        logits = torch.zeros(1, 3, 2, 4)
        logits[:, 1] = math.log(2)  # probabilities 1/4, 1/2, 1/4: the cost names the label
        return {"out": logits}

    term = build_method("mix", mix_weight=weight)(seen_of(**batch), OnTheSpot(student))[
        "mix"
    ].item()
    pasted = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 0]]])
    assert torch.equal(wanted[0], 10.0 + 190.0 * pasted)
    # mixed label 0 0 1 1 / 1 1 2 1: three pasted pixels cost log 4 each; the other five cost log 2,
    # times 1/2 each by share; by pixel only the two sure ones of them (second row) count
    others = 5 / 2 if weight == "share" else 2
    assert term == pytest.approx(2 * (3 * math.log(4) + others * math.log(2)) / 8, rel=1e-5)


def test_mixing_within_the_target_pastes_the_next_image_and_its_label(monkeypatch):
    left = torch.tensor([[[0, 0, 2, 4]], [[0, 0, 2, 4]]])  # a box over the left half
    monkeypatch.setattr(pasting, "half_area_boxes", lambda *_: left)
    target = torch.zeros(2, 3, 4, 4)
    target[1] = 100.0
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    label[1] = 2
    out = sure_on_the_left(label)
    batch = {"target_image": target, "teacher_out": out, "source_label": label}
    built = build_method("mix", mix="box", mix_from="target", mix_weight="pixel")
    cost = []

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        cost.append(images[:, 0])
        logits = torch.zeros(2, 3, 4, 4)
        logits[0, 2] = logits[1, 0] = 50.0  # right where the other image was pasted
        return {"out": logits}

    term = built(seen_of(**batch), OnTheSpot(student))["mix"].item()
    assert torch.equal(cost[0][0], torch.tensor([[100.0, 100.0, 0.0, 0.0]] * 4))
    assert torch.equal(cost[0][1], torch.tensor([[0.0, 0.0, 100.0, 100.0]] * 4))
    assert term == pytest.approx(0.0, abs=1e-5)  # the unsure right half, where it errs, counts 0
    alone = {key: value[:1] for key, value in batch.items() if torch.is_tensor(value)}
    alone["teacher_out"] = {"out": out["out"][:1]}
    with pytest.raises(UserError, match=r"--mix-from target .*--batch-size 2 or more"):
        built(seen_of(**alone), OnTheSpot(student))


def test_cutmix_real_needs_no_teacher_and_counts_labelled_pixels(monkeypatch):
    monkeypatch.setattr(pasting, "half_area_boxes", lambda *_: torch.tensor([[[0, 0, 4, 1]]]))
    built = build_method("mix", mix="box", mix_labels="true")
    assert built.needs == {"labelled"}
    batch = {
        "source_image": torch.full((1, 3, 2, 4), 200.0),
        "source_label": ids([[0, 0, 255, 255], [1, 1, 1, 1]]),
        "labelled_image": torch.full((1, 3, 2, 4), 10.0),
        "labelled_label": ids([[1, 1, 1, 1], [2, 2, 255, 2]]),
    }

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(1, 3, 2, 4)
        logits[:, 0] = math.log(2)
        return {"out": logits}

    # mixed label 0 0 255 255 / 2 2 255 2, probabilities 1/2, 1/4, 1/4
    expected = 2 * (2 * math.log(2) + 3 * math.log(4)) / 5
    assert built(seen_of(**batch), OnTheSpot(student))["mix"].item() == pytest.approx(
        expected, rel=1e-5
    )
    assert built.diagnose() == ({}, [])


# ------------------------------------------------------------------ fixmatch, supervised, pseudo


def test_fixmatch_by_hand():
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    batch = {
        "target_image": torch.zeros(2, 3, 4, 4),
        "target_out": sure_on_the_left(label),
        "source_label": label,
    }
    built, seen = build_method("fixmatch"), []
    # half of the pixels are sure and cost log 3 each; the mean is over all; lambda is 0.5
    assert built(seen_of(**batch), undecided(seen))["fixmatch"].item() == pytest.approx(
        0.5 * LOG3 / 2
    )
    assert torch.equal(seen[0], batch["target_image"])  # jitter and blur are off


def test_fixmatch_changes_what_the_student_sees_and_not_what_is_predicted():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16) * 255
    batch = {
        "target_image": image.clone(),
        "target_out": {"out": torch.randn(2, 3, 16, 16, requires_grad=True)},
        "source_label": torch.zeros(2, 16, 16, dtype=torch.uint8),
    }
    seen = []
    built = build_method("fixmatch", fixmatch_jitter=0.5, fixmatch_hue=0.25, fixmatch_blur=1.0)
    built(seen_of(**batch), undecided(seen))
    assert not torch.equal(seen[0], image)
    assert torch.equal(batch["target_image"], image)


def test_fixmatch_can_paste_boxes_of_the_next_image(monkeypatch):
    left = torch.tensor([[[0, 0, 2, 4]], [[0, 0, 2, 4]]])
    monkeypatch.setattr(pasting, "half_area_boxes", lambda *_: left.clone())
    image = torch.zeros(2, 3, 4, 4)
    image[1] = 100.0
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    batch = {"target_image": image, "target_out": sure_on_the_left(label), "source_label": label}
    seen = []
    build_method("fixmatch", fixmatch_cutmix=1.0)(seen_of(**batch), undecided(seen))
    assert torch.equal(seen[0][0, 0], torch.tensor([[100.0, 100.0, 0.0, 0.0]] * 4))
    batch = {key: value[:1] for key, value in batch.items() if torch.is_tensor(value)}
    batch["target_out"] = {"out": torch.zeros(1, 3, 4, 4)}
    with pytest.raises(UserError, match=r"--fixmatch-cutmix .*--batch-size 2 or more"):
        build_method("fixmatch", fixmatch_cutmix=1.0)(seen_of(**batch), undecided([]))


def test_target_supervised_by_hand_with_the_classes_weights():
    weights = torch.tensor([1.0, 4.0, 1.0])
    logits = torch.zeros(1, 3, 1, 4)
    logits[:, 1] = math.log(2)  # probabilities 1/4, 1/2, 1/4
    batch = {"labelled_out": {"out": logits}, "labelled_label": ids([[0, 1, 2, 255]])}
    built, seen = build_method("target_supervised"), seen_of(**batch)
    plain = built(seen, OnTheSpot(None))["target_seg"].item()
    assert plain == pytest.approx(3 * (2 * math.log(4) + math.log(2)) / 3, rel=1e-5)
    weighted = built(seen, OnTheSpot(None, class_weight=weights))["target_seg"].item()
    assert weighted == pytest.approx(3 * (2 * math.log(4) + 4 * math.log(2)) / 6, rel=1e-5)


def test_pseudo_by_hand_with_and_without_confidence():
    batch = {
        "pseudo_out": {"out": torch.zeros(1, 3, 1, 4)},
        "pseudo_label": ids([[0, 1, 2, 255]]),
        "pseudo_weight": None,
    }
    built, seen = build_method("pseudo"), seen_of(**batch)
    assert built(seen, OnTheSpot(None))["pseudo"].item() == pytest.approx(0.25 * LOG3, rel=1e-5)
    seen.pseudo.weight = torch.tensor([[[1.0, 0.5, 0.0, 1.0]]])
    expected = 0.25 * 1.5 * LOG3 / 4
    assert built(seen, OnTheSpot(None))["pseudo"].item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ what a teacher is watched for


def watched(pseudo: list, sure: list, source: list) -> tuple[dict, list[str]]:
    watch = Watch("mix", 6)
    half = len(pseudo) // 2
    for part in (slice(half), slice(half, None)):  # two batches, one answer
        watch.count(ids([pseudo[part]]), torch.tensor([[sure[part]]]), ids([source[part]]))
    values, warnings = watch.read()
    assert watch.read() == ({}, [])
    return {key: value.item() for key, value in values.items()}, warnings


def test_a_teacher_that_is_sure_of_several_classes_is_left_alone():
    values, warnings = watched(
        [0, 0, 0, 1, 2, 3, 4, 5], [True] * 5 + [False] * 3, [0, 1, 2, 3, 4, 255, 255, 255]
    )
    wanted = {"mix_confident": 5 / 8, "mix_largest_class": 3 / 5, "mix_classes": 3.0}
    assert values == pytest.approx(wanted)
    assert warnings == []


def test_a_teacher_that_is_never_sure_or_sees_few_classes_is_named():
    source = [0, 1, 2, 3, 4, 5] * 40
    unsure = [True] * 2 + [False] * 238
    _, warnings = watched([0, 1] * 120, unsure, source)
    assert warnings == ["mix: the teacher never becomes confident: 0.83% of the pixels count"]
    _, warnings = watched([4] * 239 + [1], [True] * 240, source)
    assert warnings == ["mix: the pseudo labels collapse: 99.6% are class 4"]
    values, warnings = watched([0, 1] * 120, [True] * 240, source)
    assert warnings == ["mix: the pseudo labels collapse to 2 classes; the source has 6"]
    assert values["mix_largest_class"] == 0.5


# ------------------------------------------------------------------ scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48))


@pytest.fixture(scope="module")
def pseudo(data: Path, tmp_path_factory) -> Path:
    """Return a folder as pseudo_label.py leaves it, for the four images of dusk_train."""
    folder = tmp_path_factory.mktemp("pseudo")
    names = sorted(path.name for path in (data / "train").glob("0001TP*"))[:4]
    rng = np.random.default_rng(0)
    (folder / "confidence").mkdir()
    for name in names:
        label = fakedata.blocks(rng, (64, 48), [0, 1, 2, 3, 255])
        fakedata.save(folder / name, label)
        fakedata.save(folder / "confidence" / name, rng.integers(0, 256, label.shape, np.uint8))
    fakedata.write_list(folder / "list.txt", [(f"train/{name}", name) for name in names])
    from datasets.camvid import CamVid

    classes = [row.name for row in CamVid.rows[:11]]
    about = {"checkpoint": "x.pth", "dataset": "camvid", "classes": classes}
    (folder / "pseudo.json").write_text(json.dumps(about))
    return folder


def adapt(data: Path, folder: Path, *flags: str) -> dict:
    words = ["--snapshot-dir", str(folder), "--data-dir", str(data), *SMALL, *flags]
    train_da.main(train_da.parse_args(words))
    return torch.load(folder / "last.pth", weights_only=True)


EACH = {
    "fixmatch": "--method fixmatch --fixmatch-cutmix 0.5",
    "target_supervised": "--method target_supervised --target-labels 3",
    "pseudo": "--method pseudo --pseudo-labels PSEUDO",
    "pseudo weighted": "--method pseudo --pseudo-labels PSEUDO --pseudo-confidence",
    "mix within the target": "--method mix --mix-from target --mix-weight pixel",
    "mix of true labels": "--method mix --mix box --mix-labels true --target-labels all",
    "all": "--method adversarial entropy fixmatch target_supervised mix pseudo"
    " --target-labels 2 --pseudo-labels PSEUDO",
}


@pytest.mark.parametrize("flags", EACH.values(), ids=EACH.keys())
def test_each_trains_resumes_bit_for_bit_and_has_a_control(
    data: Path, pseudo: Path, tmp_path: Path, flags: str
):
    words = [*flags.replace("PSEUDO", str(pseudo)).split(), "--num-steps", "4"]
    words += ["--num-workers", "0"]
    for name in {"fixmatch", "mix"} & {*words}:
        words += [f"--{name}-threshold", "0"]
    whole = adapt(data, tmp_path / "whole", *words)
    assert adapt(data, tmp_path / "parts", *words, "--num-steps-stop", "2")["step"] == 2
    assert_equal(whole["state"], adapt(data, tmp_path / "parts", *words)["state"])
    control = adapt(data, tmp_path / "control", *words, "--control")
    alone = adapt(data, tmp_path / "alone", "--method", "none", "--num-steps", "4")
    assert_equal(alone["state"]["model"], control["state"]["model"])
    weight = "classifier.weight"
    assert not torch.equal(whole["state"]["model"][weight], alone["state"]["model"][weight])


def test_two_batches_a_step_resume_too(data: Path, pseudo: Path, tmp_path: Path):
    words = f"--method target_supervised pseudo fixmatch --target-labels 2 --pseudo-labels {pseudo}"
    words = [*words.split(), "--num-steps", "3", "--iter-size", "2", "--num-workers", "0"]
    whole = adapt(data, tmp_path / "whole", *words)
    adapt(data, tmp_path / "parts", *words, "--num-steps-stop", "2")
    assert_equal(whole["state"], adapt(data, tmp_path / "parts", *words)["state"])


def test_two_heads_train_and_resume(data: Path, pseudo: Path, tmp_path: Path):
    words = f"--method memory rectify adversarial --memory-from 3 --pseudo-labels {pseudo}"
    words += " --model deeplabv3plus --backbone efficientnet_lite0 --multi-level --width 16"
    words = f"{words} --auto-augment --num-steps 4 --print-every 1 --num-workers 0".split()
    whole = adapt(data, tmp_path / "whole", *words)
    assert adapt(data, tmp_path / "parts", *words, "--num-steps-stop", "2")["step"] == 2
    assert_equal(whole["state"], adapt(data, tmp_path / "parts", *words)["state"])
    lines = [json.loads(line) for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "memory" in line]
    assert [line["step"] for line in logged] == [2, 3, 4]  # SMALL adapts from step 1
    for head in ("memory", "memory_aux"):
        assert [line[head] > 0 for line in logged] == [False, False, True]
    for line in logged:
        assert min(line["rectify"], line["rectify_aux"], line["adv_aux"]) > 0


def test_the_log_says_how_sure_the_teacher_is(data: Path, tmp_path: Path, capsys):
    words = "--method fixmatch --num-steps 104 --print-every 52 --fixmatch-threshold 1"
    words += " --save-pred-every 1000"
    adapt(data, tmp_path / "run", *words.split(), "--adapt-from", "0", "--num-workers", "0")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "seg" in line]
    assert [line["step"] for line in logged] == [52, 104]
    for line in logged:
        assert line["fixmatch_confident"] == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "warning: fixmatch" in line]
    assert told == [  # at step 52 it is too early to tell
        "warning: fixmatch: the teacher never becomes confident: 0.00% of the pixels count"
    ]


def test_labelled_images_are_the_first_of_the_seeds_shuffle(data: Path, tmp_path: Path):
    def opened(*flags: str):
        words = ["--snapshot-dir", str(tmp_path), "--data-dir", str(data), *SMALL, *flags]
        return train_da.open_data(train_da.parse_args(words))

    two, three = (opened("--target-labels", n).labelled.pairs for n in ("2", "3"))
    assert three[:2] == two
    assert [image for image, _ in two] == [
        image for image, _ in opened("--num-images", "2").target.pairs
    ]
    whole = opened("--target-labels", "all")
    assert len(whole.labelled) == len(whole.target) == 4
    fewer = opened("--target-labels", "all", "--num-images", "3")
    assert fewer.labelled.pairs == three
    assert fewer.target[0].keys() == {"image", "name"}


def test_label_and_confidence_move_together(data: Path, pseudo: Path, tmp_path: Path):
    label = torch.randint(0, 255, (8, 20, 30), dtype=torch.uint8)
    batch = {"image": label.unsqueeze(1).expand(-1, 3, -1, -1), "label": label, "confidence": label}
    torch.manual_seed(0)
    warped = Augment(["crop=20,10", "hflip", "scale=0.5,2"])(batch, "target")
    inside = warped.label != 255
    assert warped.label.shape == (8, 10, 20)
    expected = warped.label.float() / 255
    assert torch.equal(warped.weight[inside], expected[inside])
    assert 0 < inside.float().mean() < 1
    words = f"--method pseudo --pseudo-labels {pseudo} --pseudo-confidence".split()
    words += ["--snapshot-dir", str(tmp_path), "--data-dir", str(data), *SMALL]
    words += ["--input-size", "32,24"]
    sample = train_da.open_data(train_da.parse_args(words)).pseudo[0]
    name = Path(sample["name"]).name
    stored = np.asarray(Image.open(pseudo / "confidence" / name))
    assert sample["confidence"].shape == sample["label"].shape == (24, 32)
    resized = Image.fromarray(stored).resize((32, 24), Image.Resampling.NEAREST)
    assert np.array_equal(sample["confidence"].numpy(), np.asarray(resized))


MISTAKES = {
    "--method target_supervised": "--method target_supervised needs --target-labels",
    "--method mix --mix-labels true": "--method mix needs --target-labels",
    "--method mix --target-labels 2": "--method mix does not use --target-labels",
    "--method pseudo": "--method pseudo needs --pseudo-labels",
    "--method entropy --pseudo-labels PSEUDO": "entropy does not use --pseudo-labels",
    "--method entropy --pseudo-confidence": "--pseudo-confidence goes with --pseudo-labels",
    "--method target_supervised --target-labels 9": "9 images asked for, 4 available",
    "--method target_supervised --target-labels 0": "expected int >= 1: '0'",
    "--method target_supervised --target-labels some": "expected int >= 1: 'some'",
    "--method pseudo --pseudo-labels EMPTY": "has not finished this folder",
    "--method pseudo --pseudo-labels OTHER": "labels of other classes: cat, dog, not sky, building",
    "--method pseudo --pseudo-labels NOTHING": "pseudo.json: not what pseudo_label.py writes",
    "--method pseudo --pseudo-labels GONE": "list.txt, line 2: no such file",
    "--method pseudo --pseudo-labels BARE --pseudo-confidence": "no such confidence, of label",
    "--method pseudo --pseudo-labels SMALL --pseudo-confidence": "confidence is 5x4 pixels, its",
    "--method mix --mix-from target --batch-size 1": "give --batch-size 2 or more",
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.items())
def test_mistakes_end_in_one_line(
    data: Path, pseudo: Path, tmp_path: Path, capsys, flags: str, message: str
):
    words = flags.split()
    kinds = {"PSEUDO", "EMPTY", "OTHER", "NOTHING", "GONE", "BARE", "SMALL"} & set(words)
    for kind in kinds:
        folder = tmp_path / "labels"
        shutil.copytree(pseudo, folder)
        labels = sorted(folder.glob("*.png"))
        if kind == "EMPTY":
            (folder / "list.txt").unlink()
        elif kind == "OTHER":
            (folder / "pseudo.json").write_text('{"classes": ["cat", "dog"]}')
        elif kind == "NOTHING":
            (folder / "pseudo.json").unlink()
        elif kind == "GONE":
            labels[1].unlink()
        elif kind == "BARE":
            shutil.rmtree(folder / "confidence")
        elif kind == "SMALL":
            for path in (folder / "confidence").iterdir():
                Image.new("L", (5, 4)).save(path)
        words[words.index(kind)] = str(folder)
    words += [
        "--snapshot-dir",
        str(tmp_path / "run"),
        "--data-dir",
        str(data),
        "--num-workers",
        "0",
    ]
    words = [*SMALL, "--num-steps", "2", *words]
    with pytest.raises(SystemExit) as ended:
        start.run(train_da.main, lambda: train_da.parse_args(words))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_mistake_in_the_methods_shows_before_the_baseline_is_trained(data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="needs --target-labels"):
        adapt(data, tmp_path / "run", "--method", "target_supervised", "--baseline")
    assert not (tmp_path / "run" / "source").exists()


def test_what_a_teacher_learns_from_is_the_students_own_business():
    """Labels and pseudo labels never carry gradients back to what made them."""
    seen = make_seen(halved(), halved())
    seen.target.outputs = {"out": seen.target.outputs["out"] * 100}  # sure, and with a graph
    term = build_method("fixmatch")(seen, undecided([]))["fixmatch"]
    assert not term.requires_grad
