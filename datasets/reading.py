"""What people say of their files where a header cannot: bands, ranges, transparency, labels."""

from typing import Any, NamedTuple

from datasets.opening import MAX_MEGAPIXELS
from engine.errors import UserError

# Options of every dataset that reads files; a tuple holds the allowed values, the default first.
OPTIONS: dict[str, Any] = {
    "bands": None,
    "value_range": None,
    "alpha": ("refuse", "drop"),
    "max_megapixels": MAX_MEGAPIXELS,
    "label_bits": (8, 16),
    "label_values": ("auto", "ids", "colours"),
}


class Reading(NamedTuple):
    """How image files are read.

    Attributes:
        bands: which are red, green and blue, or grey; from 1. None: the file's own colours.
        value_range: what becomes 0 and what 255, of samples of more than 8 bits; None refuses them.
        drop_alpha: take transparent pixels' colours as they are stored instead of refusing them.
        max_megapixels: of what is decoded at once.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    drop_alpha: bool = False
    max_megapixels: float = MAX_MEGAPIXELS


class LabelReading(NamedTuple):
    """How label files are read.

    Attributes:
        bits: 16 allows grey samples of 16 bits.
        values: `auto` takes a palette's indices, unless its colours say that a program renumbered
            them, and looks the colours of RGB up in the table; `ids` takes the indices whatever
            their colours; `colours` looks every colour up.
        max_megapixels: of one file.
    """

    bits: int = 8
    values: str = "auto"
    max_megapixels: float = MAX_MEGAPIXELS


PLAIN, PLAIN_LABEL = Reading(), LabelReading()


def from_options(option: dict[str, Any]) -> tuple[Reading, LabelReading]:
    """Return how a dataset's options say that its files are read.

    Args:
        option: a value for each of `OPTIONS`; `bands` and `value_range` as text or numbers.
    Raises:
        UserError: names the option, what was given and what is allowed.
    """
    bands = _numbers(option["bands"], int)
    if bands is not None and (len(bands) not in (1, 3) or min(bands) < 1):
        raise UserError(f"bands must be one number or three, from 1 on; got {option['bands']!r}")
    value_range = _numbers(option["value_range"], float)
    if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        given = option["value_range"]
        raise UserError(f"value_range must be LOW,HIGH with LOW below HIGH; got {given!r}")
    limit = option["max_megapixels"]
    if type(limit) not in (int, float) or not 0 < limit < float("inf"):
        raise UserError(f"max_megapixels must be a number above 0; got {limit!r}")
    reading = Reading(bands, value_range, option["alpha"] == "drop", limit)
    return reading, LabelReading(option["label_bits"], option["label_values"], limit)


def _numbers(given: Any, kind: type) -> tuple | None:
    """Return the numbers of a text `1,2,3`, of one number or of several; () for anything else."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given
    try:
        return tuple(
            kind(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])
        )
    except (ValueError, TypeError, OverflowError):
        return ()
