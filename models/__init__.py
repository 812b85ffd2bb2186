"""Segmentation networks: one architecture per file, chosen by the name of the file."""

from __future__ import annotations

import inspect

from engine.errors import UserError
from models.acfnet import ACFNet
from models.attention_unet import AttentionUNet
from models.base import Network
from models.compact import Compact
from models.daformer import DAFormer
from models.deeplabv1 import DeepLabV1
from models.deeplabv2 import DeepLabV2
from models.deeplabv3 import DeepLabV3
from models.deeplabv3plus import DeepLabV3Plus
from models.dpt import DPT
from models.fcn import FCN
from models.fcn8s import FCN8s, FCN16s, FCN32s
from models.fpn import FPN
from models.hrnet import HRNet
from models.layers import choose
from models.linear import Linear
from models.linknet import LinkNet
from models.mask2former import Mask2Former
from models.normalisation import NORMALISATIONS, mean_colour, normalise
from models.ocrnet import OCRNet
from models.pidnet import PIDNet
from models.pspnet import PSPNet
from models.reading import read_weights_file
from models.segformer import SegFormer
from models.segnet import SegNet
from models.transforms import (
    SyncBatchNorm2d,
    checkpoint_activations,
    fold_batchnorm,
    sync_batchnorm,
)
from models.unet import UNet
from models.unetplusplus import UNetPlusPlus
from models.upernet import UPerNet
from models.vfm import VFM
from models.weights import LoadReport, check_values, load_state, load_weights

__all__ = [
    "MODELS",
    "NORMALISATIONS",
    "LoadReport",
    "Network",
    "SyncBatchNorm2d",
    "build_model",
    "check_values",
    "checkpoint_activations",
    "fold_batchnorm",
    "load_state",
    "load_weights",
    "mean_colour",
    "normalise",
    "read_weights_file",
    "sync_batchnorm",
]

MODELS: dict[str, type[Network]] = {
    "acfnet": ACFNet,
    "attention_unet": AttentionUNet,
    "compact": Compact,
    "daformer": DAFormer,
    "deeplabv1": DeepLabV1,
    "deeplabv2": DeepLabV2,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "dpt": DPT,
    "fcn": FCN,
    "fcn8s": FCN8s,
    "fcn16s": FCN16s,
    "fcn32s": FCN32s,
    "fpn": FPN,
    "hrnet": HRNet,
    "linear": Linear,
    "linknet": LinkNet,
    "mask2former": Mask2Former,
    "ocrnet": OCRNet,
    "pidnet": PIDNet,
    "pspnet": PSPNet,
    "segformer": SegFormer,
    "segnet": SegNet,
    "unet": UNet,
    "unetplusplus": UNetPlusPlus,
    "upernet": UPerNet,
    "vfm": VFM,
}
# keywords of earlier versions, in their checkpoints and on command lines
RENAMED = {"backbone": "encoder"}


def build_model(name: str, num_classes: int, **options) -> Network:
    """Build a network with random weights.

    Args:
        name: a name of MODELS.
        num_classes: C, classes predicted; 1 to 255, as 255 is the ignored label.
        **options: what the class of that name takes; `build_model(**model.arch)` builds it again.

    Returns:
        A network whose `forward(images, aux=True)` turns float [N,3,H,W], normalised, into {"out":
        logits [N,C,h,w] at the network's own stride, and "aux" if it has an auxiliary classifier
        and aux is True}; see `Network`.

    Raises:
        UserError: a name, option or value that does not exist; the message lists what does.
    """
    choose("model", name, MODELS)
    if not 1 <= num_classes <= 255:
        raise UserError(f"num_classes is {num_classes}, must be 1 to 255")
    options = {RENAMED.get(key, key): value for key, value in options.items()}
    signature = inspect.signature(MODELS[name])
    known = [key for key in signature.parameters if key != "num_classes"]
    for option in options:
        if option not in known:
            raise UserError(f"model {name} has no option {option!r}, it has {', '.join(known)}")
    bound = signature.bind(num_classes, **options)
    bound.apply_defaults()
    model = MODELS[name](*bound.args, **bound.kwargs)
    model.arch = {"name": name, **bound.arguments}
    return model
