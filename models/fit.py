"""What of a checkpoint fits a network: by name, shape and kind; nothing is set here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from models.classes import rows_by_name
from models.entries import Named, find_entries, peeled, under
from models.pretrained import title

# Batch norm's counter: absent before PyTorch 0.4.1, of the same shape everywhere, read by nothing
COUNTER = "num_batches_tracked"
NAMES_SHOWN = 5
Tables = tuple[Sequence[str], Sequence[str]]  # the classes of the file and of the network
MOST_REPEATED = 4  # times that tensors may hold what the file holds once


@dataclass
class Fit:
    """What of one entry of a checkpoint fits a network.

    Attributes:
        entry: its place in the file.
        loaded: tensors that fit, by the network's names.
        mismatched: name of the network's -> why the file's tensor of that name does not fit.
        unknown: the file's tensors that the network does not have.
        skipped: name in the file -> why it is left out.
        notes: what is to be said.
    """

    entry: str
    loaded: Named = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    unknown: Named = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def something(self) -> bool:
        """Whether anything but counters fits."""
        return not all(name.endswith(COUNTER) for name in self.loaded)

    def missing(self, model: nn.Module) -> list[str]:
        """Return the names of the network's tensors that the file does not have."""
        found = self.loaded.keys() | self.mismatched.keys()
        own = model.state_dict()
        return [name for name in own if name not in found and not name.endswith(COUNTER)]


def fit_state(
    model: nn.Module,
    content: Any,
    origin: str,
    strict: bool = False,
    *,
    entry: str | None = None,
    classes: Sequence[str] = (),
) -> Fit:
    """Find in a checkpoint what fits a network, and set nothing.

    Of several entries the first that fits is taken, in the order of `find_entries`, with as few
    wrappers taken off its names as that needs.

    Args:
        model: its tensors may be on "meta", as names, shapes and dtypes alone are looked at.
        content: what a file held.
        origin: the file, for messages.
        strict: whether everything must fit.
        entry: of the file; None for the one that is most likely meant.
        classes: names of the network's; () for unknown ones.

    Raises:
        UserError: the file holds no weights, or not that entry; nothing, or, where that is asked
            for, not everything fits.
    """
    theirs = content.get("classes") if isinstance(content, dict) else None
    known = classes and isinstance(theirs, list) and all(isinstance(one, str) for one in theirs)
    tables = (theirs, classes) if known else ((), ())
    fits, tried = [], []
    for place, tensors in _entries(content, origin, entry).items():
        for state, taken in peeled(tensors):
            tried.append(_match(model, state, place, tables))
            if tried[-1].something:
                fits.append((tried[-1], tensors, taken))
                break
    if not fits:
        # a name of ours, though of another shape, tells more than none
        nearest = max(tried, key=lambda fit: len(fit.mismatched))
        raise UserError(f"{origin} fits nothing in {title(model)}: {_differences(model, nearest)}")
    fit, tensors, taken = fits[0]
    outside = {name: t for name, t in tensors.items() if taken and not name.startswith(taken)}
    fit.skipped |= dict.fromkeys(outside, f"not under {taken}")
    others = [other.entry or "the names without an entry" for other, *_ in fits[1:]]
    others += [first for first in _firsts(outside) if _fits_under(model, tensors, first)]
    if others:
        chosen = ".".join(part for part in (fit.entry, taken.rstrip(".")) if part)
        there = ", ".join(others)
        fit.notes.insert(0, f"taken: {chosen or 'the names themselves'}; also there: {there}")
        fit.notes[0] += " (--weights-entry NAME takes it)"
    if strict and (fit.mismatched or fit.unknown or fit.missing(model)):
        raise UserError(f"{origin} does not fit {title(model)}: {_differences(model, fit)}")
    _refuse_repeated(fit, origin)
    return fit


def _entries(content: object, origin: str, entry: str | None) -> dict[str, Named]:
    """Return the dicts of tensors in a checkpoint by their places, or the one that is asked for."""
    entries = find_entries(content)
    if not entries:
        found = f"the keys {some(map(str, content))}" if isinstance(content, dict) else "no dict"
        raise UserError(f"{origin} holds no weights by name, but {found}")
    if entry is None:
        return entries
    chosen = {place: one for place, one in entries.items() if place == entry}
    for place, one in entries.items() if not chosen else ():
        if place.rpartition(".")[2] == entry:
            chosen[place] = one
        elif tensors := under(one, f"{entry}."):
            chosen[f"{place}.{entry}".lstrip(".")] = tensors
    if not chosen:
        firsts = [first for one in entries.values() for first in _firsts(one)]
        there = some(dict.fromkeys([place for place in entries if place] + firsts))
        raise UserError(f"{origin}: no --weights-entry {entry}; there are: {there}")
    return chosen


def _firsts(names: Iterable[str]) -> list[str]:
    """Return what names begin with, before their first dot."""
    return sorted({name.partition(".")[0] for name in names if "." in name})


def _fits_under(model: nn.Module, tensors: Named, first: str) -> bool:
    states = peeled(under(tensors, f"{first}."))
    return any(_match(model, state, "", ((), ())).something for state, _ in states)


def _match(model: nn.Module, state: Named, place: str, tables: Tables) -> Fit:
    """Compare an entry's tensors with a network's."""
    fit, own = Fit(place), model.state_dict()
    state, fit.skipped = model.convert_weights(state)
    if tables[1]:
        state, others, fit.notes = rows_by_name(model, state, *tables)
        fit.skipped |= others
    for name, tensor in state.items():
        if name not in own:
            fit.unknown[name] = tensor
        elif reason := _unlike(tensor, own[name]):
            fit.mismatched[name] = reason
        else:
            fit.loaded[name] = tensor
    return fit


def _unlike(tensor: Tensor, own: Tensor) -> str | None:
    """Return why a tensor of a file cannot be a network's; None where it can."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_nested:
        return "no plain tensor in the file"
    if tensor.shape != own.shape:
        return f"{tuple(tensor.shape)} in the file, {tuple(own.shape)} here"
    real = tensor.is_floating_point() or not (own.is_floating_point() or tensor.is_complex())
    if not real:
        kinds = (str(kind.dtype).removeprefix("torch.") for kind in (tensor, own))
        return "{} in the file, {} here".format(*kinds)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "said to be larger than what the file holds of it"
    return None


def _differences(model: nn.Module, fit: Fit) -> str:
    """Say what does not fit: other shapes, then some of our names and some of the file's."""
    own = model.state_dict()
    missing = [f"{name} {tuple(own[name].shape)}" for name in fit.missing(model)]
    unknown = [f"{name} {tuple(tensor.shape)}" for name, tensor in fit.unknown.items()]
    parts = [some(f"{name} {reason}" for name, reason in fit.mismatched.items())]
    parts += [f"{some(missing)} missing"] if missing else []
    parts += [f"{some(unknown)} in the file, not in this network"] if unknown else []
    return "; ".join(part for part in parts if part)


def _refuse_repeated(fit: Fit, origin: str) -> None:
    """Raise UserError where many names mean the same few values: a small file, a huge network."""
    tensors = fit.loaded.values()
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    if sum(t.numel() * t.element_size() for t in tensors) > MOST_REPEATED * sum(kept.values()):
        raise UserError(f"{origin} is refused: its names share the same few values")


def some(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
