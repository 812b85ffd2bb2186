"""Any network of timm that makes maps of strides 4 to 32, where timm is installed."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor

from engine.errors import UserError
from models.encoders.base import Encoder, Row

PREFIX = "timm:"
COARSEST = 32


class TimmEncoder(Encoder):
    """A network of timm, as its `features_only` makes it.

    Images are filled with zeros to a multiple of 32 pixels, since many of timm's networks leave out
    what no whole patch covers; the maps are cut to size. Weights are named as in timm behind
    `model.`, as segmentation_models_pytorch has them too (its `tu-` encoders).

    Args:
        name: of timm.list_models().
        output_stride: 32, or 8 or 16 where timm can dilate that network.

    Raises:
        UserError: timm is not installed or does not know the name or stride, or the network has
            maps of other strides.
    """

    def __init__(self, *, name: str, output_stride: int):
        super().__init__()
        how = {} if output_stride == COARSEST else {"output_stride": output_stride}
        try:
            self.model = load_timm(name).create_model(name, features_only=True, **how)
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"timm cannot build it at output_stride {output_stride}: {reason}"
            ) from None
        self.channels = list(self.model.feature_info.channels())
        self.strides = list(self.model.feature_info.reduction())
        expected = [4, 8, min(16, output_stride), output_stride]
        if self.strides not in (expected, [2, *expected]):
            found = ", ".join(map(str, self.strides))
            raise UserError(f"its maps have strides {found}, where 4, 8, 16 and 32 are needed")

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield its maps.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % COARSEST, 0, -height % COARSEST))
        for x, channels, stride in zip(
            self.model(images), self.channels, self.strides, strict=True
        ):
            if x.shape[1] != channels:  # some have the channels last
                x = x.permute(0, 3, 1, 2)
            yield x[..., : -(-height // stride), : -(-width // stride)]

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put `model.` before timm's names, `stages.0.` being `stages_0.` in some."""
        own, converted = self.state_dict(), {}
        for name, tensor in state.items():
            names = (name, f"model.{name}", f"model.{name.replace('.', '_', 1)}")
            converted[next((n for n in names if n in own), name)] = tensor
        return converted


def load_timm(name: str) -> ModuleType:
    """Import timm.

    Raises:
        UserError: it is not there, or does not work beside this torch.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"encoder {PREFIX}{name} needs timm: pip install timm ({reason})") from None
    return timm


def timm_row(name: str) -> Row:
    """Return the row of `timm:NAME`.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    name = name.removeprefix(PREFIX)
    timm = load_timm(name)
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no network {name!r}: see timm.list_models()")
    published = timm.models.get_pretrained_cfg(name)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if published is not None:
        mean, std = published.mean, published.std
    scaled = {"mean": [255 * v for v in mean], "std": [255 * v for v in std]}
    return Row(TimmEncoder, {"name": name}, {"order": "RGB", **scaled})
