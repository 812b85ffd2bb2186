"""Segmentation networks: one architecture per file, chosen by the name of the file."""

from __future__ import annotations

import inspect

from torch import nn

from engine.errors import UserError
from models.compact import Compact
from models.deeplabv2 import DeepLabV2
from models.deeplabv3plus import DeepLabV3Plus
from models.layers import choose, fold_batchnorm
from models.normalisation import NORMALISATIONS, normalise
from models.pidnet import PIDNet
from models.recompute import checkpoint_activations
from models.sync_batchnorm import SyncBatchNorm2d, sync_batchnorm
from models.weights import LoadReport, load_state, load_weights, read_weights_file

__all__ = [
    "MODELS",
    "NORMALISATIONS",
    "LoadReport",
    "SyncBatchNorm2d",
    "build_model",
    "checkpoint_activations",
    "fold_batchnorm",
    "load_state",
    "load_weights",
    "normalise",
    "read_weights_file",
    "sync_batchnorm",
]

MODELS = {
    "compact": Compact,
    "deeplabv2": DeepLabV2,
    "deeplabv3plus": DeepLabV3Plus,
    "pidnet": PIDNet,
}


def build_model(name: str, num_classes: int, **options) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a name of MODELS.
        num_classes: C, classes predicted; 1 to 255, as 255 is the ignored label.
        **options: what the class of that name takes; `build_model(**model.arch)` builds it again.

    Returns:
        A module with

        - `forward(images, aux=True)`: float [N,3,H,W], normalised -> {"out": logits [N,C,h,w] at
          the network's own stride, and "aux" if it has an auxiliary classifier and aux is True};
        - `param_groups(lr)`: the trainable parameters exactly once, for an optimizer;
        - `arch` and `normalisation`: plain dicts for the checkpoint. See `normalise`.

    Raises:
        UserError: a name, option or value that does not exist; the message lists what does.
    """
    choose("model", name, MODELS)
    if not 1 <= num_classes <= 255:
        raise UserError(f"num_classes is {num_classes}, must be 1 to 255")
    known = [p for p in inspect.signature(MODELS[name]).parameters if p != "num_classes"]
    for option in options:
        if option not in known:
            raise UserError(f"model {name} has no option {option!r}, it has {', '.join(known)}")
    return MODELS[name](num_classes, **options)
