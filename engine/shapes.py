"""Shapes of plain values that come from outside: JSON and checkpoints are checked before use.

A shape is

- a type: `int`, `float`, `str`, `bool`, `dict`, `list`. A bool is no int; an int is a float; a
  float is finite. `object` is anything, `None` is None.
- `[shape]`: a list of any length; `(shape, shape)`: a list of just these. A tuple is a list.
- `{"key": shape}`: an object of these keys; `"key?"` may be absent, `...` is every other key.
- `Either(shape, shape)`: one of these. `Within(low, high)`: a whole number from low to high.
- `OneOf("RGB", "BGR")`: one of these values.
"""

import json
from typing import Any, NamedTuple


class Either(tuple):
    """Shapes of which one is expected."""

    def __new__(cls, *shapes: Any) -> "Either":
        """Take the shapes as arguments."""
        return super().__new__(cls, shapes)


class OneOf(Either):
    """Values of which one is expected."""


class Within(NamedTuple):
    """A whole number from `low` to `high`."""

    low: int
    high: int = 2**53


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: no JSON, not UTF-8, nested too deeply, a key twice in one object, or a number
            that is none; says which.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys are unlike each other."""
    value: dict[str, Any] = {}
    for name, one in pairs:
        if name in value:
            raise ValueError(f"{name!r} stands twice in one object")
        value[name] = one
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """Return what does not fit a shape, and where; None where all does.

    Args:
        value: of any kind, it may contain itself.
        shape: see above.
        where: it stands, for the sentence.
    """
    if shape is None or isinstance(shape, (type, OneOf, Within, Either)):
        return None if _fits(value, shape) else _expected(value, shape, where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _expected(value, shape, where)
        known = {key.rstrip("?"): one for key, one in shape.items() if key is not ...}
        for key in shape:
            if key is not ... and not key.endswith("?") and key not in value:
                return f"{where or 'the file'} lacks {key!r}"
        for key in value.keys() - known.keys() if ... not in shape else ():
            return f"{where or 'the file'} has an unknown {key!r}; known: {', '.join(known)}"
        others = shape.get(...)
        parts = [(f"{where}.{k}".lstrip("."), v, known.get(k, others)) for k, v in value.items()]
    elif not isinstance(value, (list, tuple)) or (
        isinstance(shape, tuple) and len(value) != len(shape)
    ):
        return _expected(value, shape, where)
    else:
        shapes = shape if isinstance(shape, tuple) else shape * len(value)
        parts = [(f"{where}[{i}]", v, shapes[i]) for i, v in enumerate(value)]
    return next(filter(None, (misfit(one, inner, place) for place, one, inner in parts)), None)


def _fits(value: Any, shape: Any) -> bool:
    """Return whether a value is of one of several shapes, a number of a range, or of a type."""
    if isinstance(shape, OneOf):
        return any(type(value) is type(one) and value == one for one in shape)
    if isinstance(shape, Either):
        return any(misfit(value, one) is None for one in shape)
    if isinstance(shape, Within):
        return type(value) is int and shape.low <= value <= shape.high
    if shape is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    if shape in (dict, list):
        return isinstance(value, dict if shape is dict else (list, tuple))
    return value is None if shape is None else shape is object or type(value) is shape


def _expected(value: Any, shape: Any, where: str) -> str:
    return f"{where or 'the file'} is {shorten(value)}; {_described(shape)} expected"


def shorten(value: Any, most: int = 60) -> str:
    """Return a value as JSON, its end cut off where it is long; what is no JSON by its type."""
    try:
        text = json.dumps(value, default=lambda one: f"a {type(one).__name__}")
    except (TypeError, ValueError, RecursionError):  # it contains itself, or keys are no text
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _described(shape: Any) -> str:
    """Return a shape in words."""
    if isinstance(shape, OneOf):
        return f"one of {', '.join(map(str, shape))}"
    if isinstance(shape, Either):
        return " or ".join(map(_described, shape))
    if isinstance(shape, Within):
        most = f" to {shape.high}" if shape.high < 2**53 else ""
        return f"a whole number from {shape.low}{most}"
    if isinstance(shape, type):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        return words.get(shape, {list: "a list", dict: "an object"}.get(shape, "anything"))
    if isinstance(shape, dict):
        return "{" + ", ".join(str(key) for key in shape if key is not ...) + "}"
    if shape is None:
        return "nothing"
    return f"a list of {_described(shape[0])}" + (
        f" ({len(shape)} of them)" if isinstance(shape, tuple) else ""
    )
