"""Class tables that are long, written as two lists."""

from datasets.base import Row


def numbered(names: str, colours: str, first: int = 0, ignored: int = 0) -> tuple[Row, ...]:
    """Return a row a class, with ids in the order of the names.

    Args:
        names: separated by a comma and a blank.
        colours: six hexadecimal digits each, separated by blanks.
        first: id of the first name; train ids begin at 0.
        ignored: how many at the end are not trained.
    """
    named = list(zip(names.split(", "), colours.split(), strict=True))
    trained = len(named) - ignored
    return tuple(
        Row(first + i, i if i < trained else 255, name, tuple(bytes.fromhex(colour)))
        for i, (name, colour) in enumerate(named)
    )
