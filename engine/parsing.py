"""What the values of command-line flags may be: parsers for argparse's `type`.

Each returns the value or raises ArgumentTypeError, whose text argparse shows with the flag's name.
"""

import argparse
import contextlib
from collections.abc import Callable


def width_height(text: str) -> tuple[int, int]:
    """Parse `W,H` in pixels."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected W,H in pixels, for instance 1024,512: {text!r}")
    return int(parts[0]), int(parts[1])


def image_size(text: str) -> tuple[int, int] | int:
    """Parse `W,H` in pixels, or `N`, the longer side of images that keep their ratio."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    try:
        return width_height(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or N, the longer side") from None


def show_size(size: tuple[int, int] | int | None) -> str:
    """Return the size that images are resized to, for people."""
    if size is None:
        return "own"
    return f"longer side {size}" if isinstance(size, int) else "{}x{}".format(*size)


def numbers(kind: type) -> Callable:
    """Return a parser of comma-separated numbers of one kind."""

    def parse_numbers(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            message = f"expected {kind.__name__}s separated by commas: {text!r}"
            raise argparse.ArgumentTypeError(message) from None

    return parse_numbers


def at_least(low: float, kind: type = int) -> Callable:
    """Return a parser of one number that is not below `low`."""

    def parse_number(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= low:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__} >= {low}: {text!r}")
        return value

    return parse_number


def between(low: float, high: float) -> Callable:
    """Return a parser of one number within `low` and `high`, both allowed."""

    def parse_number(text: str) -> float:
        value = at_least(low, float)(text)
        if value > high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}: {text!r}")
        return value

    return parse_number


def truth(text: str) -> bool:
    """Parse yes or no."""
    answers = {"yes": True, "true": True, "no": False, "false": False}
    if text.lower() not in answers:
        raise argparse.ArgumentTypeError(f"expected yes or no: {text!r}")
    return answers[text.lower()]


def count_or_all(text: str) -> int | str:
    """Parse a number of at least 1, or `all`."""
    return text if text == "all" else at_least(1)(text)


def scale_range(text: str) -> tuple[float, float]:
    """Parse `LOW,HIGH`, two factors above 0."""
    factors = numbers(float)(text)
    if len(factors) != 2 or not 0 < factors[0] <= factors[1] < float("inf"):
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH, 0 < LOW <= HIGH: {text!r}")
    return factors


def span(low: float, high: float) -> Callable:
    """Return a parser of `LOW,HIGH` within two bounds; one number is both."""

    def parse_span(text: str) -> tuple[float, float]:
        found = numbers(float)(text)
        found = found * 2 if len(found) == 1 else found
        if len(found) != 2 or not low <= found[0] <= found[1] <= high:
            bounds = f"{low:g} <= LOW <= HIGH <= {high:g}"
            raise argparse.ArgumentTypeError(f"expected LOW,HIGH or one number, {bounds}: {text!r}")
        return found

    return parse_span


def swing(limit: float) -> Callable:
    """Return a parser of `LOW,HIGH` within -limit and limit; one number X is -X,X."""

    def parse_swing(text: str) -> tuple[float, float]:
        found = numbers(float)(text)
        return span(-limit, limit)(text if len(found) != 1 else f"{-abs(found[0])},{abs(found[0])}")

    return parse_swing


def named_images(text: str) -> str:
    """Check `DATASET:SPLIT[:FOLDER][:KEY=VALUE...]`, see `split_named`; the text is kept."""
    split_named(text)
    return text


def split_named(text: str) -> tuple[str, str, str | None, dict[str, str | float]]:
    """Return the dataset, split, folder (which may hold colons) and options of one --val."""
    dataset, _, rest = text.partition(":")
    split, *rest = rest.split(":")
    options = []
    while rest and "=" in rest[-1] and "/" not in rest[-1].partition("=")[0]:
        options.insert(0, key_value(rest.pop()))
    if not dataset or not split:
        raise argparse.ArgumentTypeError(
            f"expected DATASET:SPLIT:FOLDER:KEY=VALUE, the last two where needed: {text!r}"
        )
    return dataset, split, ":".join(rest) or None, dict(options)


def key_value(text: str) -> tuple[str, str | float]:
    """Parse `KEY=VALUE`; a value that is a number becomes one."""
    key, _, value = text.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE: {text!r}")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return key, kind(value)
    return key, value
