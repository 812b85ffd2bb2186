"""Mutated checkpoints: each is rebuilt, or ends in one line, in bounded time and memory."""

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from fuzzing import mutated, survive
from models import build_model, load_weights, safetensors
from models.checkpoint import FORMAT, load_model

CPU = torch.device("cpu")
NETWORK = build_model("compact", 3, width=8)
WHOLE = {
    "format": FORMAT,
    "model": NETWORK.state_dict(),
    "arch": NETWORK.arch,
    "normalisation": NETWORK.normalisation,
    "classes": ["road", "sky", "car"],
    "palette": [(1, 2, 3), (4, 5, 6), (7, 8, 9)],
    "dataset": "camvid",
    "data": {"root": "x", "split": "val", "list_file": None, "options": {"seed": 3}},
    "input_size": (64, 48),
    "align_corners": False,
    "precision": "fp32",
    "step": 7,
    "score": {"miou": 12.5, "iou": {"road": None}},
}
FOREIGN = {"epoch": 3, "ema": {f"module.{k}": t for k, t in NETWORK.state_dict().items()}}


def saved(value: dict, save, **how) -> bytes:
    file = io.BytesIO()
    save(value, file, **how)
    return file.getvalue()


def rebuild(path: Path) -> object:
    return load_model(path, CPU)


def start_from(path: Path) -> object:
    return load_weights(build_model("compact", 3, width=8), path, classes=["car", "sky", "road"])


def mutated_archive(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated file, or one of whose parts one is mutated, with checksums of its own."""
    if rng.random() < 0.3 or not content.startswith(b"PK"):
        return mutated(content, rng)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(file, "w") as out:
        names = whole.namelist()
        pickled = [name for name in names if name.endswith("data.pkl")]
        chosen = rng.choice(pickled if rng.random() < 0.8 else names)
        for name in names:
            part = whole.read(name)
            out.writestr(name, mutated(part, rng) if name == chosen else part)
    return file.getvalue()


def mutated_tensors(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated file, or one whose header is mutated and has its length."""
    if rng.random() < 0.3:
        return mutated(content, rng)
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutated(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


PLAIN = {"_use_new_zipfile_serialization": False}
READERS = {
    "pth": (
        rebuild,
        [saved(WHOLE, torch.save), saved(WHOLE, torch.save, **PLAIN)],
        mutated_archive,
    ),
    "pth of others": (start_from, [saved(FOREIGN, torch.save)], mutated_archive),
    "safetensors": (rebuild, [saved(WHOLE, safetensors.save)], mutated_tensors),
    "safetensors of others": (
        start_from,
        [saved({"model": FOREIGN["ema"]}, safetensors.save)],
        mutated_tensors,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_some_mutated_checkpoints(name: str, tmp_path: Path):
    survive(name, READERS[name], tmp_path, range(120))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_2500_mutated_checkpoints(name: str, tmp_path: Path):
    survive(name, READERS[name], tmp_path, range(1000, 3500))
