"""What the test files borrow from each other: small runs, small networks, small batches."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import models
from datasets import build_dataset
from engine.files import save_atomic
from models.checkpoint import FORMAT

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
    save_atomic(checkpoint, path)
    return path


def on_camvid(root: Path, *more) -> list:
    return ["--data-dir", str(root), "--num-workers", "0", "--precision", "fp32", *more]


def script(name: str, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, name, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


# ------------------------------------------------------------------ methods

VALUES = {
    "num_classes": 3,
    "multi_level": False,
    "align_corners": False,
    "gan": "Vanilla",
    "lambda_adv_target1": 0.2,
    "lambda_adv_target2": 0.5,
    "learning_rate_D": 1e-3,
    "discriminator_width": 4,
    "discriminator_at": "input",
    "autocast": contextlib.nullcontext,
    "lambda_entropy": 0.3,
    "lambda_entropy_aux": 0.1,
    "lambda_seg": 0.1,
    "mix": "class",
    "mix_from": "source",
    "mix_labels": "teacher",
    "mix_weight": "share",
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
    "fixmatch_cutmix": 0.0,
    "lambda_target": 3.0,
    "lambda_pseudo": 0.25,
    "class_weight": None,
    "lambda_memory": 0.1,
    "memory_from": 0,
    "lambda_rectify": 1.0,
}
SIZE = (32, 48)


class Student(nn.Module):
    """A 1x1 convolution, its output at half the resolution."""

    def __init__(self, levels: tuple[str, ...] = ("out",)):
        super().__init__()
        self.heads = nn.ModuleDict({level: nn.Conv2d(3, 3, 1, stride=2) for level in levels})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {level: head(images / 255) for level, head in self.heads.items()}


def make_batch(student: Student, teacher: Student) -> dict:
    torch.manual_seed(3)
    source, target = torch.rand(2, 2, 3, *SIZE) * 255
    label = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
    with torch.no_grad():
        teacher_out = teacher(target)
    batch = {
        "step": 0,
        "source_image": source,
        "source_label": label,
        "source_out": {key: value.detach() for key, value in student(source).items()},
        "target_image": target,
        "target_out": student(target),
        "teacher_out": teacher_out,
    }
    for domain in ("labelled", "pseudo"):
        image = torch.rand(2, 3, *SIZE) * 255
        labels = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
        batch |= {f"{domain}_image": image, f"{domain}_label": labels}
        batch |= {f"{domain}_weight": None, f"{domain}_out": student(image)}
    return batch
