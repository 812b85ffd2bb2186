"""Checkpoints of ours: enough to rebuild the network from."""

from pathlib import Path
from typing import Any

import torch

import models
from engine import words
from engine.errors import UserError
from engine.files import save_tensors
from engine.shapes import Either, OneOf, Within, misfit
from models import normalisation, safetensors
from models.fit import fit_state

FORMAT = 1
_COLOUR = (Within(0, 255),) * 3
_OPTION = Either(None, bool, float, str, [Either(float, str)])
_SIZE = (Within(1, 2**20), Within(1, 2**20))  # W, H in pixels; one number is the long side
# What a published checkpoint says, see `Run.publish`: nothing is used before it is known to be of
# this shape. Only the data's folder and list are paths, and they are only read.
SHAPE = {
    "format": int,
    "model": dict,
    "arch": {
        "name": str,
        "num_classes": Within(1, 255),
        ...: Either(None, bool, float, str, [float]),
    },
    "normalisation": normalisation.SHAPE,
    "classes": [str],
    "palette?": Either(None, [Either(None, _COLOUR)]),
    "dataset?": str,
    "data?": {
        "root?": Either(None, str),
        "split?": Either(None, str),
        "list_file?": Either(None, str),
        "options?": {"seed?": Within(0), "classes?": Either(None, str, dict), ...: _OPTION},
        ...: object,
    },
    "input_size?": Either(None, Within(1, 2**20), _SIZE),
    "align_corners?": bool,
    "precision?": OneOf("auto", "bf16", "fp32"),
    "step?": Within(0),
    "temperature?": float,  # of `inference.calibration`
    "score?": Either(None, dict),
    ...: object,
}
MAX_ARCH = 2000  # characters: no network has options as long


def save_checkpoint(value: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all, in the format that the path's ending says.

    Args:
        value: of `SHAPE`.
        path: ends in .pth or .safetensors.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    save = safetensors.save if path.suffix == ".safetensors" else torch.save
    save_tensors(value, path, save=save)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of ours.

    Raises:
        UserError: the file is missing, damaged, needs code to load, is not one of ours, or says
            something of another kind than expected.
    """
    value = models.read_weights_file(path)
    content = value if isinstance(value, dict) else {}
    if {"state", "options"} <= content.keys():
        raise UserError(f"{path} is for resuming; use NAME_STEP.pth or NAME_best.pth beside it")
    needed = [key for key in SHAPE if key is not ... and not key.endswith("?")]
    if absent := [key for key in needed if key not in content]:
        raise UserError(
            f"{path} is not a segshift checkpoint (without {', '.join(absent)}); "
            "give --model and load it as weights"
        )
    if type(content["format"]) is int and content["format"] > FORMAT:
        raise UserError(f"{path} is of format {content['format']}; this is {FORMAT}")
    fault = misfit(content, SHAPE) or normalisation.wrong(content["normalisation"])
    if fault is not None:
        raise UserError(f"{path}: {fault}")
    classes, count = content["classes"], content["arch"]["num_classes"]
    if len(classes) != count or len(set(classes)) != count:
        raise UserError(f"{path}: {len(set(classes))} names of classes, {count} classes in arch")
    if content.get("temperature", 1) <= 0:
        raise UserError(f"{path}: temperature is {content['temperature']}; above 0 expected")
    if isinstance(content.get("input_size"), list):
        content["input_size"] = tuple(content["input_size"])
    _check_arch(path, content["arch"])
    return content


def _check_arch(path: str | Path, arch: dict[str, Any]) -> None:
    """Raise UserError for an option of a network that its keywords do not allow."""
    if len(repr(arch)) > MAX_ARCH:
        raise UserError(f"{path}: arch is longer than any network's")
    if arch["name"] not in models.MODELS:
        there = ", ".join(models.MODELS)
        raise UserError(f"{path}: arch.name is {arch['name']!r}, must be one of {there}")
    known = models.MODELS[arch["name"]]
    options = {models.RENAMED.get(key, key): value for key, value in arch.items()}
    given = {k: v for k, v in options.items() if k not in ("name", "num_classes")}
    words.check(f"{path}: arch: model {arch['name']}", known, given)


def load_model(path: str | Path, device: torch.device) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Rebuild the model a checkpoint of ours describes, in eval mode on `device`.

    It is first built without memory, and the file's tensors are compared with its: a small file
    cannot ask for a large network.

    Returns:
        the model and the checkpoint without its tensors' key "model".
    """
    checkpoint = load_checkpoint(path)
    tensors = {"model": checkpoint.pop("model")}
    try:
        with torch.device("meta"):
            model = models.build_model(**checkpoint["arch"])
        fit_state(model, tensors, str(path), strict=True)
        model = models.build_model(**checkpoint["arch"])
    except (UserError, RuntimeError) as error:  # RuntimeError: sizes that overflow
        cause = str(error).splitlines()[0]
        raise UserError(cause if cause.startswith(str(path)) else f"{path}: {cause}") from error
    models.load_state(model, tensors, str(path), strict=True)
    model.normalisation = checkpoint["normalisation"]
    model.align_corners = checkpoint.get("align_corners", model.align_corners)
    return model.eval().to(device, memory_format=torch.channels_last), checkpoint
