"""Rows of classifiers by the names of their classes, where those of a checkpoint are others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.entries import Named


def class_rows(model: nn.Module) -> set[str]:
    """Return the names of a network's tensors that have a row for each class, of every head.

    They are those that would be larger with one class more.
    """
    options = {key: value for key, value in model.arch.items() if key != "name"}
    options["num_classes"] += 1
    with torch.device("meta"):
        larger = type(model)(**options).state_dict()
    return {name for name, t in model.state_dict().items() if t.shape != larger[name].shape}


def rows_by_name(
    model: nn.Module, state: Named, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[Named, dict[str, str], list[str]]:
    """Move the rows of classifiers to where a network has the class of their name.

    Args:
        model: of `build_model`.
        state: tensors by the model's names.
        theirs, ours: names of the classes, in the order of the rows of `state` and of the model.

    Returns:
        the tensors, where a class that `theirs` lacks has the model's own row; those left out,
        with the reason; and what is to be said.
    """
    if list(theirs) == list(ours):
        return state, {}, []
    own, state, skipped = model.state_dict(), dict(state), {}
    shared = [name for name in ours if name in theirs]
    to, from_ = ([table.index(name) for name in shared] for table in (ours, theirs))
    for name in class_rows(model) & state.keys():
        tensor, rows = state[name], own[name]
        others = len(rows) - len(ours)  # rows of no class, behind the classes'
        if tensor.shape != (len(theirs) + others, *rows.shape[1:]):
            continue
        if not shared:
            del state[name]
            skipped[name] = "of other classes"
            continue
        state[name] = rows.to(tensor.dtype).clone()
        state[name][to] = tensor[from_]
        state[name][len(ours) :] = tensor[len(theirs) :]
    if set(theirs) == set(ours):
        return state, skipped, ["classes in another order: the classifiers' rows moved by name"]
    lacking = ", ".join(name for name in ours if name not in theirs) or "none"
    surplus = ", ".join(name for name in theirs if name not in ours) or "none"
    note = (
        f"classifiers' rows by name: {len(shared)} of {len(ours)} classes; "
        f"not in the file, left as they were: {lacking}; not here: {surplus}"
    )
    return state, skipped, [note]
