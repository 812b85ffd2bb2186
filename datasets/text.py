"""Read text that people wrote: one decoder, lists of images, JSON of an expected shape."""

import codecs
import json
from pathlib import Path
from typing import Any

from datasets.opening import read_regular
from engine.errors import UserError

MAX_TEXT_BYTES = 2**28
MAX_LINE = 8192  # characters: two paths, as long as any system allows
MARKS = (  # the longer first: UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: str | Path, what: str) -> str:
    """Return a file's text: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Args:
        path: the file.
        what: is read, for messages: `list`.
    Raises:
        UserError: cannot be read, is too large, or is in another encoding.
    """
    try:
        content = read_regular(path, MAX_TEXT_BYTES)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot read this {what}: {reason}") from error
    mark, encoding = next((m for m in MARKS if content.startswith(m[0])), (b"", "utf-8"))
    cure = "save it as UTF-8"
    if encoding == "UTF-32":
        raise UserError(f"{path}: cannot read this {what}: its mark says UTF-32; {cure}")
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = error.start + len(mark)
        raise UserError(
            f"{path}: cannot read this {what}: byte {content[at]:#04x} at {at} is not "
            f"{encoding.upper()} (Latin-1, Windows-1252?); {cure}"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}: cannot read this {what}: it holds zero bytes (UTF-16 without its mark, or no "
            f"text at all?); {cure}"
        )
    return text


def read_list(path: str | Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a list that are not blank.

    Lines end at a line feed, with or without a carriage return. Fields are separated by tabs where
    the line holds a tab, else by blanks: a name with blanks needs a tab after it. No other
    character separates anything (a no-break space belongs to its name).

    Args:
        path: text file of `image` or `image label` lines.
    Returns:
        (line number from 1, one or two fields) of each line.
    Raises:
        UserError: unreadable or empty; a line that is too long or has more fields.
    """
    entries = []
    for number, line in enumerate(read_text(path, "list").split("\n"), start=1):
        if len(line) > MAX_LINE:
            raise UserError(f"{path}, line {number}: {len(line)} characters; {MAX_LINE} at most")
        fields = line.rstrip("\r").split("\t" if "\t" in line else " ")
        fields = [field for field in (field.strip(" ") for field in fields) if field]
        if len(fields) > 2:
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields, `image` or `image label` expected "
                "(names with spaces are separated by a tab)"
            )
        if fields:
            entries.append((number, fields))
    if not entries:
        raise UserError(f"{path}: this list is empty")
    return entries


def read_json(path: str | Path, shape: Any, what: str = "file") -> Any:
    """Read JSON and check it against the shape that is expected, before anything uses it.

    A shape is a type (`int`, `float`, `str`, `bool`, `dict`, `list`; `object` is anything, a bool
    is no int, an int is a float), `[shape]` for a list of any length, `(shape, shape)` for a list
    of just these, `{"key": shape}` for an object of these keys (`"key?"` may be absent, `...` is
    every other key), or `Either(shape, shape)`.

    Args:
        path: the file.
        shape: what is expected.
        what: is read, for messages.
    Raises:
        UserError: unreadable, no JSON, nested too deeply, a key twice, or of another shape; says
            where, what stands there and what is expected.
    """
    text = read_text(path, what)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: cannot read this {what}: {reason}") from error
    if fault := _misfit(value, shape, ""):
        raise UserError(f"{path}: {fault}")
    return value


class Either(tuple):
    """Shapes of which one is expected."""

    def __new__(cls, *shapes: Any) -> "Either":
        """Take the shapes as arguments."""
        return super().__new__(cls, shapes)


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


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    """Return what does not fit the shape, and where; None where all does."""
    if isinstance(shape, Either):
        if any(_misfit(value, one, where) is None for one in shape):
            return None
        return _expected(value, shape, where)
    if isinstance(shape, type):
        fits = shape is object or type(value) is shape
        if shape is float:
            fits = type(value) in (int, float) and abs(value) < float("inf")
        return None if fits else _expected(value, shape, where)
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
    elif not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
        return _expected(value, shape, where)
    else:
        shapes = shape if isinstance(shape, tuple) else shape * len(value)
        parts = [(f"{where}[{i}]", v, shapes[i]) for i, v in enumerate(value)]
    return next(filter(None, (_misfit(one, inner, place) for place, one, inner in parts)), None)


def _expected(value: Any, shape: Any, where: str) -> str:
    return f"{where or 'the file'} is {shorten(value)}; {_described(shape)} expected"


def shorten(value: Any, most: int = 60) -> str:
    """Return a value as JSON, its end cut off where it is long."""
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _described(shape: Any) -> str:
    """Return a shape in words."""
    if isinstance(shape, Either):
        return " or ".join(map(_described, shape))
    if isinstance(shape, type):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        return words.get(shape, {list: "a list", dict: "an object"}.get(shape, "anything"))
    if isinstance(shape, dict):
        return "{" + ", ".join(str(key) for key in shape if key is not ...) + "}"
    return f"a list of {_described(shape[0])}" + (
        f" ({len(shape)} of them)" if isinstance(shape, tuple) else ""
    )
