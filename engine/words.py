"""Flags and words from signatures: a value is declared once, as a keyword of what takes it.

A keyword's annotation says what it may be and what it is for:

    lambda_mix: Annotated[Weight, "weight of its term"] = 1.0

`add_flags` makes the flag --lambda-mix of it, and `bind` reads `KEY=VALUE` words, as those of
`--model NAME KEY=VALUE ...`, into the arguments of a function.
"""

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from engine.errors import UserError
from engine.parsing import at_least, between, numbers, truth

Share = Annotated[float, between(0, 1)]
Weight = Annotated[float, at_least(0, float)]
Count = Annotated[int, at_least(1)]
Steps = Annotated[int, at_least(0)]
HueTurns = Annotated[float, between(0, 0.5)]  # half a turn either way is every hue

METAVARS = {int: "N", float: "X", bool: "yes|no"}


class Keyword(NamedTuple):
    """A keyword-only argument of a function, by its annotation."""

    name: str
    parse: Callable[[str], Any]
    choices: tuple[str, ...] | None
    default: Any
    text: str
    kind: Any


def keywords(function: Callable) -> dict[str, Keyword]:
    """Return the keyword-only arguments of a function or class, in their order."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    return {
        name: _keyword(name, hints.get(name, str), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _keyword(name: str, hint: Any, default: Any) -> Keyword:
    kind, text, parse = hint, "", None
    if typing.get_origin(kind) is Annotated:
        kind, *extras = typing.get_args(kind)
        text = next((extra for extra in extras if isinstance(extra, str)), "")
        parse = next((extra for extra in extras if callable(extra)), None)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        if typing.get_origin(kind) is Annotated:
            return _keyword(name, kind, default)._replace(text=text)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    if parse is None:
        item = (*typing.get_args(kind), str)[0]
        several = typing.get_origin(kind) in (tuple, Sequence)
        parse = numbers(item) if several else {bool: truth}.get(kind, kind)
        parse = str if choices else parse
    return Keyword(name, parse, choices, default, text, kind)


def add_flags(group: argparse._ArgumentGroup, function: Callable, taken: set[str]) -> None:
    """Add a flag for each keyword-only argument of a function.

    Args:
        group: of the parser.
        function: or a class.
        taken: names that have a flag already, as two methods may share one; is added to.
    """
    for name, keyword in keywords(function).items():
        if name in taken:
            continue
        taken.add(name)
        flag, how = f"--{name.replace('_', '-')}", {"default": keyword.default}
        how["help"] = f"{keyword.text}; default %(default)s"
        if keyword.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **how)
        elif keyword.choices:
            group.add_argument(flag, choices=keyword.choices, **how)
        else:
            metavar = METAVARS.get(keyword.kind, "VALUE")
            group.add_argument(flag, type=keyword.parse, metavar=metavar, **how)


def bind(what: str, function: Callable, given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turn `KEY=VALUE` words into arguments of a function.

    Args:
        what: the words belong to, for messages: "model deeplabv2".
        function: whose keyword-only arguments the keys are.
        given: pairs of key and value as text; `none` is None where that is the default.

    Raises:
        UserError: a key that does not exist (lists those that do), or a value of another kind.
    """
    known, result = keywords(function), {}
    for key, text in given:
        if key not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"{what} has no option {key!r}; it has: {there}")
        keyword = known[key]
        try:
            value = None if text == "none" and keyword.default is None else keyword.parse(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{what}: {key}={text}: {_wanted(keyword, error)}") from None
        if keyword.choices and value not in (*keyword.choices, keyword.default):
            allowed = ", ".join(map(str, keyword.choices))
            raise UserError(f"{what}: {key}={text}: must be one of {allowed}")
        result[key] = value
    return result


def grouped(words: Iterable[str], names: Container[str]) -> list[str]:
    """Join each [SIDE:]NAME[=VALUE] with the KEY=VALUE words that follow it, which name no NAME.

    Args:
        words: or several of them in one, with spaces between.
        names: what there is.
    """
    groups: list[str] = []
    for word in " ".join(words).split():
        name, equals, _ = word.partition("=")
        if groups and equals and ":" not in name and name not in names:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return groups


def check(what: str, function: Callable, given: dict[str, Any]) -> None:
    """Check arguments that come from a file: each must be what `bind` would have made of words.

    Args:
        what: has them, for messages.
        function: whose keyword-only arguments they are.
        given: by name; a list stands for a tuple.

    Raises:
        UserError: an argument that does not exist, of another kind, or out of its range.
    """
    for name, value in given.items():
        made = bind(what, function, [(name, _as_word(value))])[name]
        listed = tuple(value) if isinstance(value, list) else value
        whole = type(listed) is int and type(made) is float
        if listed != made or not (whole or type(listed) is type(made)):
            raise UserError(f"{what}: {name} is {value!r}; {made!r} or the like expected")


def _as_word(value: Any) -> str:
    """Return the word that stands for a value on the command line."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _wanted(keyword: Keyword, error: Exception) -> str:
    """Say what a value should have been."""
    if isinstance(error, argparse.ArgumentTypeError):
        return str(error)
    return f"expected {getattr(keyword.kind, '__name__', keyword.kind)}"
