"""Where the weights are in a checkpoint, and what wrappers put before their names."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor

Named = dict[str, Tensor]

# Names under which a checkpoint keeps its weights, in the order in which they are meant
FIRST = ("model", "state_dict", "model_state_dict", "net", "network", "student", "weights")
AVERAGED = ("ema", "teacher", "swa", "average")  # parts of names: taken where nothing else fits
NO_WEIGHTS = ("optim", "sched", "scaler", "rng")  # parts of names
# What wrappers put before all names; of the last two only where nothing else fits, for an encoder
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "student", "backbone", "encoder")
# What they put into the middle
INNER = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
HOLDERS = (dict, list, tuple, Tensor)
DEEPEST = 8  # dicts in dicts, wrappers in wrappers


def find_entries(content: object) -> dict[str, Named]:
    """Find the dicts of tensors in a checkpoint, itself one perhaps.

    Args:
        content: what a file held; it may contain itself.

    Returns:
        The tensors of each by its place ("" is the whole, "model.ema" the entry ema of the entry
        model), the one that is most likely meant first.
    """
    found, seen, waiting = {}, set(), deque([("", content, 0)] * isinstance(content, HOLDERS))
    while waiting:
        place, value, depth = waiting.popleft()
        if isinstance(value, Tensor) or id(value) in seen or depth > DEEPEST:
            continue
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        items = [(str(key), one) for key, one in items if isinstance(one, HOLDERS)]
        tensors = {key: one for key, one in items if isinstance(one, Tensor)}
        if tensors and isinstance(value, dict):
            found[place] = tensors
        for key, one in items:
            if not any(word in key.lower() for word in NO_WEIGHTS):
                waiting.append((f"{place}.{key}".lstrip("."), one, depth + 1))
    return dict(sorted(found.items(), key=_meant))


def _meant(entry: tuple[str, Named]) -> tuple:
    """Sort entries: averages last, known names first, else the one of the most tensors."""
    place, tensors = entry
    parts = place.lower().split(".")
    averaged = any(word in part for word in AVERAGED for part in parts)
    known = min((FIRST.index(part) for part in parts if part in FIRST), default=len(FIRST))
    return averaged, known, -len(tensors)


def under(state: Named, prefix: str) -> Named:
    """Return what stands under a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def peeled(state: Named) -> Iterator[tuple[Named, str]]:
    """Yield the tensors under shorter and shorter names, each time without one more wrapper.

    A prefix is taken off if it is a known wrapper's or all names share it; names that do not have
    it are then left out.

    Yields:
        the tensors by name, and all that was taken off ("module.model.").
    """
    state, taken = _without_inner(state), ""
    for _ in range(DEEPEST):
        yield state, taken
        firsts = {name.partition(".")[0] for name in state}
        common = [*firsts] if len(firsts) == 1 else []
        prefix = next((w for w in (*WRAPPERS, *common) if w in firsts), None)
        state = under(state, f"{prefix}.")
        if prefix is None or not state:
            return
        taken += f"{prefix}."


def _without_inner(state: Named) -> Named:
    """Take wrappers out of the middle of names, unless two names became one."""
    shorter = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        shorter[".".join([first, *(part for part in rest if part not in INNER)])] = tensor
    return shorter if len(shorter) == len(state) else state
