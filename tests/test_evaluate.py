"""Prediction, and the three scripts that run it: evaluate, pseudo_label, ensemble."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import engine
import ensemble
import evaluate
import models
import pseudo_label
from datasets import build_dataset, write_label_png
from errors import UserError
from inference import Predictor, predict

ROOT = Path(__file__).parent.parent
PLAIN = {"order": "RGB", "mean": [0.0] * 3, "std": [255.0] * 3}


class Cells(nn.Module):
    """Classes from the mean colours of cells: what a cell says depends on nothing around it."""

    normalisation = PLAIN

    def __init__(self, stride: int, num_classes: int = 3):
        super().__init__()
        self.pool = nn.AvgPool2d(stride, ceil_mode=True)
        self.head = nn.Conv2d(3, num_classes, 1)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.randn(num_classes, 3, 1, 1))
        self.eval()

    def forward(self, images, aux=True):
        return {"out": self.head(self.pool(images))}


class Sides(nn.Module):
    """One cell: class 0 as bright as the left half of the image, class 1 as the right half."""

    normalisation = PLAIN

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.eval()

    def forward(self, images, aux=True):
        left, right = images.chunk(2, dim=3)
        cells = torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)
        return {"out": self.gain * cells[:, :, None, None]}


@pytest.fixture
def images():
    """Return two images of 96x64 pixels in blocks of 8x8."""
    torch.manual_seed(3)
    blocks = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


# ------------------------------------------------------------------ views


def test_mirrored_view_of_a_symmetric_model_changes_nothing(images):
    torch.manual_seed(0)
    model = Cells(8)
    plain, mirrored = Predictor(model), Predictor(model, flip=True)
    ids, confidence = plain(images, (128, 192), with_confidence=True)
    ids_flip, confidence_flip = mirrored(images, (128, 192), with_confidence=True)
    assert torch.equal(ids, ids_flip)
    torch.testing.assert_close(confidence, confidence_flip)
    assert len(ids.unique()) == 3


def test_views_are_averaged_as_probabilities():
    image = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    image[..., :4] = 255  # logits 2 and 0: class 0 with probability e^2 / (e^2 + 1)
    ids, confidence = Predictor(Sides())(image, (1, 1), with_confidence=True)
    assert ids.item() == 0
    assert confidence.item() == pytest.approx(0.880797)
    assert Predictor(Sides())(image.flip(3), (1, 1)).item() == 1
    # with the mirrored view both classes have the same mean, 1/2
    confidence = Predictor(Sides(), flip=True)(image, (1, 1), with_confidence=True)[1]
    assert confidence.item() == pytest.approx(0.5)


def test_one_view_twice_is_one_view(images):
    torch.manual_seed(0)
    model = Cells(8)
    once = Predictor(model)(images, (64, 96), with_confidence=True)
    twice = Predictor(model, scales=(1.0, 1.0))(images, (64, 96), with_confidence=True)
    assert torch.equal(once[0], twice[0])
    torch.testing.assert_close(once[1], twice[1])


def test_scales_of_a_uniform_image_agree_on_the_largest_grid():
    torch.manual_seed(0)
    model = Cells(8)
    image = torch.full((1, 3, 48, 80), 90, dtype=torch.uint8)
    plain = Predictor(model).logits(image)
    scaled = Predictor(model, scales=(0.5, 1.0, 1.5)).logits(image)
    assert scaled.shape[2:] == (9, 15)
    torch.testing.assert_close(scaled[:, :, 4, 4], plain.log_softmax(1)[:, :, 2, 2])


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (200, 37), (33, 300)])
def test_windows_equal_the_whole_for_a_model_without_context(size):
    torch.manual_seed(1)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    model = Cells(8)
    whole = Predictor(model).logits(image)
    windows = Predictor(model, slide=(64, 32)).logits(image)
    torch.testing.assert_close(windows, whole)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "compact"},
        {"name": "deeplabv2", "backbone": "resnet50"},
        {"name": "deeplabv3plus", "backbone": "resnet18"},
        {"name": "deeplabv3plus", "backbone": "efficientnet_lite0"},
    ],
    ids=lambda network: network.get("backbone", network["name"]),
)
def test_windows_cover_the_grid_of_every_network(network):
    model = models.build_model(num_classes=4, **network).eval()
    image = torch.zeros(1, 3, 99, 133, dtype=torch.uint8)
    whole = Predictor(model).logits(image)
    windows = Predictor(model, slide=(64, 64)).logits(image)
    assert windows.shape == whole.shape
    assert windows.isfinite().all()  # a cell that no window covers would be 0 / 0
    assert torch.equal(Predictor(model, slide=(192, 192)).logits(image), whole)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"slide": (100, 96)}, "multiples of 32"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"scales": ()}, "above 0"),
    ],
)
def test_views_that_cannot_be(how, said):
    with pytest.raises(UserError, match=said):
        Predictor(Cells(8), **how)


def test_window_of_too_few_cells():
    with pytest.raises(UserError, match="only 2 cells"):
        Predictor(Cells(16), slide=(32, 32)).logits(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


class LargestFloat(TorchDispatchMode):
    """Record the largest floating-point tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("how", [{}, {"scales": (0.5, 1.0), "flip": True}, {"slide": (64, 32)}])
def test_full_size_logits_never_exist(how):
    image = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    height, width = 512, 1024
    predictor = Predictor(Cells(8, num_classes=19), **how)
    with LargestFloat() as largest:
        predictor(image, (height, width), with_confidence=True)
    assert 0 < largest.numel <= height * width  # one plane, not 19


# ------------------------------------------------------------------ data to run on


@pytest.fixture
def camvid(tmp_path):
    """A folder of three labelled images of 40x24 pixels, with a list."""
    rng = np.random.default_rng(1)
    root = tmp_path / "camvid"
    (root / "images").mkdir(parents=True)
    lines = []
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (24, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        write_label_png(root / "labels" / f"{name}.png", rng.integers(0, 12, (24, 40), np.uint8))
        lines.append(f"images/{name}.png labels/{name}.png\n")
    (root / "list.txt").write_text("".join(lines))
    return root


def open_camvid(root: Path, **options):
    options = {"list_file": root / "list.txt", "resize_label": False, **options}
    return build_dataset("camvid", root, split="day_val", **options)


def write_checkpoint(path: Path, dataset: str, class_names: list[str], **changes) -> Path:
    """Write a checkpoint of a small network with random weights, as a training run would."""
    torch.manual_seed(7)
    model = models.build_model("compact", len(class_names), width=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far from uniform, so that predictions differ
    checkpoint = {
        "format": engine.CHECKPOINT_FORMAT,
        "model": model.state_dict(),
        "arch": model.arch,
        "normalisation": model.normalisation,
        "dataset": dataset,
        "classes": class_names,
        "palette": [],
        "input_size": None,
        "align_corners": False,
        "step": 1,
        "score": None,
        **changes,
    }
    engine.save_atomic(checkpoint, path)
    return path


@pytest.fixture
def checkpoint(camvid, tmp_path):
    return write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)


def on_camvid(root: Path, *more: str) -> list[str]:
    listed = ["--data-dir", str(root), "--data-list", str(root / "list.txt")]
    return [*listed, "--num-workers", "0", "--precision", "fp32", *map(str, more)]


def script(name: str, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, name, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def run_evaluate(*words) -> None:
    evaluate.main(evaluate.parse_args([str(word) for word in words]))


def run_pseudo_label(*words) -> None:
    pseudo_label.main(pseudo_label.parse_args([str(word) for word in words]))


def run_ensemble(*words) -> None:
    ensemble.main(ensemble.parse_args([str(word) for word in words]))


def test_prediction_has_the_size_of_the_file_without_labels(camvid):
    dataset = open_camvid(camvid, labelled=False, size=(24, 16))
    predictor = Predictor(Cells(8))
    for batch, pred, confidence in predict(predictor, dataset, num_workers=0):
        assert batch["image"].shape[2:] == (16, 24)
        assert pred.shape == (1, 24, 40)
        assert confidence is None


def test_batches_of_several_sizes_are_refused(camvid):
    Image.new("RGB", (20, 24)).save(camvid / "images" / "b.png")
    Image.new("L", (20, 24)).save(camvid / "labels" / "b.png")
    dataset = open_camvid(camvid)
    batches = predict(Predictor(Cells(8)), dataset, num_workers=0, batch_size=2)
    with pytest.raises(UserError, match=r"a\.png and images/b\.png differ in size: give --batch"):
        next(batches)


# ------------------------------------------------------------------ evaluate.py


def test_evaluate_scores_saves_and_scores_what_it_saved(checkpoint, camvid, tmp_path):
    saved, scores = tmp_path / "saved", tmp_path / "scores.json"
    done = script(
        "evaluate.py", "--restore-from", checkpoint, "--save", saved, "--json", scores,
        *on_camvid(camvid),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("protocol: dataset camvid, images ")
    assert "input 40x24, label 40x24, align_corners no, scales 1, flip no, slide no" in lines[0]
    (result,) = json.loads(scores.read_text())
    names = list(result["iou"])
    assert lines[1:12] == [f"===>{name}:\t{round(result['iou'][name], 2)}" for name in names]
    assert lines[12] == f"===> mIoU: {round(result['miou'], 2)}"
    assert 0 < result["miou"] < 100

    again = tmp_path / "again.json"
    run_evaluate(
        "--predictions", saved / "train_ids", "--dataset", "camvid", "--json", again,
        *on_camvid(camvid),
    )  # fmt: skip
    (from_files,) = json.loads(again.read_text())
    for key in ("iou", "miou", "pixel_accuracy", "fw_iou"):
        assert from_files[key] == result[key]
    with Image.open(saved / "color" / "images" / "a_color.png") as colour:
        ids = np.asarray(Image.open(saved / "train_ids" / "images" / "a.png"))
        palette = np.array(open_camvid(camvid).palette)
        assert np.array_equal(np.asarray(colour.convert("RGB")), palette[ids])
    assert not (saved / "label_ids").exists()  # CamVid's own ids are the train ids


def test_evaluate_several_checkpoints(checkpoint, camvid, tmp_path, capsys):
    other = tmp_path / "other.pth"
    names = open_camvid(camvid).class_names
    write_checkpoint(other, "camvid", names, align_corners=True, input_size=(80, 48))
    run_evaluate(
        "--restore-from", checkpoint, other, "--save", tmp_path / "saved", *on_camvid(camvid)
    )
    printed = capsys.readouterr().out
    assert printed.count("===> mIoU: ") == 2
    # the checkpoint's own protocol, unless the command line says otherwise
    assert "input 80x48, label 40x24, align_corners yes" in printed
    assert printed.splitlines()[-1].endswith("other.pth")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"net", "other"}


def test_evaluate_views_and_windows_from_the_command_line(checkpoint, camvid, capsys):
    how = ("--scales", "0.5,1", "--flip", "--slide", "32,32", "--align-corners")
    run_evaluate("--restore-from", checkpoint, *how, *on_camvid(camvid))
    assert "align_corners yes, scales 0.5,1, flip yes, slide 32x32" in capsys.readouterr().out


def test_evaluate_weights_of_others_by_their_architecture(checkpoint, camvid, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    model = engine.load_checkpoint(checkpoint)["model"]
    torch.save({f"module.{name}": value for name, value in model.items()}, weights)
    given = ("--dataset", "camvid", *on_camvid(camvid))
    run_evaluate("--restore-from", checkpoint, *given)
    ours = capsys.readouterr().out
    run_evaluate("--restore-from", weights, "--model", "compact", "--width", "8", *given)
    theirs = capsys.readouterr().out
    assert scores_of(theirs) == scores_of(ours)


def scores_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("===>")]


def test_evaluate_a_list_without_one_class_says_how_many_count(checkpoint, camvid, capsys):
    for name in "abc":
        Image.new("L", (40, 24), 3).save(camvid / "labels" / f"{name}.png")
        write_label_png(camvid / "pred" / f"{name}.png", np.full((24, 40), 3, np.uint8))
    run_evaluate("--predictions", camvid / "pred", "--dataset", "camvid", *on_camvid(camvid))
    printed = capsys.readouterr().out
    assert "===>road:\t100.0\n" in printed
    assert "===>sky:\tnan\n" in printed
    assert "mIoU is the mean of 1 of 11 classes" in printed
