"""Checkpoints of ours: enough to rebuild the network from."""

from pathlib import Path

import torch

import models
from engine.errors import UserError

FORMAT = 1
# what a published checkpoint must hold to be rebuilt; `Run.publish` says what else there is
PARTS = {"format": int, "model": dict, "arch": dict, "normalisation": dict, "classes": list}


def load_checkpoint(path: str | Path) -> dict:
    """Return a checkpoint of ours.

    Raises:
        UserError: the file is missing, damaged, needs code to load, or is not one of ours.
    """
    value = models.read_weights_file(path)
    content = value if isinstance(value, dict) else {}
    if {"state", "options"} <= content.keys():
        raise UserError(f"{path} is for resuming; use NAME_STEP.pth or NAME_best.pth beside it")
    wrong = [key for key, kind in PARTS.items() if not isinstance(content.get(key), kind)]
    if not wrong and not {"name", "num_classes"} <= content["arch"].keys():
        wrong = ["arch"]
    if wrong:
        raise UserError(
            f"{path} is not a segshift checkpoint ({', '.join(wrong)} missing or wrong); "
            "give --model and load it as weights"
        )
    if content["format"] > FORMAT:
        raise UserError(f"{path} is of format {content['format']}; this is {FORMAT}")
    return content


def load_model(path: str | Path, device: torch.device) -> tuple[torch.nn.Module, dict]:
    """Rebuild the model a checkpoint of ours describes, in eval mode on `device`.

    Returns:
        the model and the checkpoint without its tensors' key "model".
    """
    checkpoint = load_checkpoint(path)
    model = models.build_model(**checkpoint["arch"])
    models.load_state(model, checkpoint, str(path), strict=True)
    model.normalisation = checkpoint["normalisation"]
    model.align_corners = checkpoint.get("align_corners", model.align_corners)
    del checkpoint["model"]
    return model.eval().to(device, memory_format=torch.channels_last), checkpoint
