"""What the test files borrow from each other: small runs, small networks, small batches."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from datasets import build_dataset
from engine.files import save_tensors
from methods import Adapting, Method, Seen, Setting
from models.checkpoint import FORMAT
from training.batch import Batch
from training.losses import PixelLoss
from training.student import Student

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------ training runs

SMALL = """--recipe streets --source camvid --source-set day_train --target camvid --set dusk_train
    --val-set dusk_val --input-size 64,48 --batch-size 2 --adapt-from 1 --warmup-steps 1
    --save-pred-every 100 --no-baseline""".split()
FOUR_METHODS = ["adversarial", "advent", "entropy", "mix"]


def flatten(value, name: str = "") -> dict:
    """Return every leaf of nested dicts and lists under its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {name: value}
    return {k: v for key, item in items for k, v in flatten(item, f"{name}/{key}").items()}


def assert_equal(first: dict, second: dict) -> None:
    """Assert that two states are equal bit for bit."""
    first, second = flatten(first), flatten(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same, name


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


# ------------------------------------------------------------------ networks on three frames

FRAMES = ("val/0016E5_07959", "val/0016E5_07961", "val/0016E5_07963")


def open_camvid(root: Path, **options):
    return build_dataset("camvid", root, split="val", resize_label=False, **options)


def write_checkpoint(path: Path, dataset: str, class_names: list[str], **changes) -> Path:
    """Write a checkpoint of a small network with random weights, as a training run would."""
    torch.manual_seed(7)
    model = models.build_model("compact", len(class_names), width=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far from uniform, so that predictions differ
    checkpoint = {
        "format": FORMAT,
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
    save_tensors(checkpoint, path)
    return path


def on_camvid(root: Path, *more) -> list:
    """Return the words that run networks on a CamVid folder."""
    return [*in_camvid(root), "--num-workers", "0", "--precision", "fp32", *more]


def in_camvid(root: Path, *more) -> list:
    """Return the words that name a CamVid folder, without a network."""
    return ["--data-dir", str(root), *more]


def script(name: str, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, name, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


# ------------------------------------------------------------------ methods

SETTING = Setting(num_classes=3, autocast=contextlib.nullcontext)
# as few random changes as possible, and weights that are told apart
VALUES = {
    "lambda_adv_target1": 0.2,
    "lambda_adv_target2": 0.5,
    "learning_rate_D": 1e-3,
    "discriminator_width": 4,
    "lambda_entropy": 0.3,
    "lambda_entropy_aux": 0.1,
    "lambda_mix": 2.0,
    "mix_threshold": 0.9,
    "mix_jitter": 0.0,
    "mix_hue": 0.0,
    "mix_blur": 0.0,
    "lambda_fixmatch": 0.5,
    "fixmatch_threshold": 0.9,
    "fixmatch_jitter": 0.0,
    "fixmatch_hue": 0.0,
    "fixmatch_blur": 0.0,
    "lambda_masked": 0.4,
    "masked_threshold": 0.9,
    "masked_block": 4,
    "masked_jitter": 0.0,
    "masked_hue": 0.0,
    "masked_blur": 0.0,
    "lambda_target": 3.0,
    "lambda_pseudo": 0.25,
}
SIZE = (32, 48)


def build_method(name: str, setting: Setting = SETTING, **values) -> Method:
    """Build one method with the values above, but for those given."""
    return Adapting([name], setting, {**VALUES, **values})[name]


class Halved(models.Network):
    """A 1x1 convolution, its output at half the resolution."""

    def __init__(self, heads: tuple[str, ...] = ("out",)):
        super().__init__()
        self.heads = heads
        self.convs = nn.ModuleDict({head: nn.Conv2d(3, 3, 1, stride=2) for head in heads})

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        return {head: conv(images / 255) for head, conv in self.convs.items()}


class OnTheSpot:
    """A student without optimiser: a function of images, and the losses of a network."""

    def __init__(self, function, network: models.Network | None = None, class_weight=None):
        self.function, self.network = function, network or models.Network()
        self.pixel_loss = PixelLoss([(1.0, "ce", {})], class_weight)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return self.function(images)

    loss = Student.loss


def halved(heads: tuple[str, ...] = ("out",)) -> OnTheSpot:
    """Return a student of `Halved`."""
    network = Halved(heads)
    return OnTheSpot(network, network)


def make_seen(student, teacher) -> Seen:
    """Return random batches of every domain, forwarded by both."""
    torch.manual_seed(3)
    source, target = torch.rand(2, 2, 3, *SIZE) * 255
    label = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
    with torch.no_grad():
        teacher_out = teacher(target)
        source_out = student(source)
    seen = Seen(0, Batch(source, label, outputs=source_out), Batch(target))
    seen.target.outputs, seen.teacher = student(target), teacher_out
    for name in ("labelled", "pseudo"):
        image = torch.rand(2, 3, *SIZE) * 255
        label = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
        setattr(seen, name, Batch(image, label, outputs=student(image)))
    return seen


def seen_of(**parts) -> Seen:
    """Return what a method sees: `source_image`, `target_out`, `pseudo_weight`, `teacher_out`."""
    batches: dict[str, Batch] = {}
    for key, value in parts.items():
        domain, _, what = key.partition("_")
        if domain not in ("teacher", "step"):
            batch = batches.setdefault(domain, Batch(None))
            setattr(batch, {"out": "outputs"}.get(what, what), value)
    source = batches.pop("source", Batch(None))
    return Seen(parts.get("step", 0), source, teacher=parts.get("teacher_out"), **batches)
