"""Read text that people wrote: one decoder, lists of images, JSON of an expected shape."""

import codecs
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.files import read_regular
from engine.shapes import misfit, parse_json

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
        fields = list_fields(line)
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


def list_fields(line: str) -> list[str]:
    """Return the fields of a list's line, see `read_list`."""
    fields = line.rstrip("\r").split("\t" if "\t" in line else " ")
    return [field for field in (field.strip(" ") for field in fields) if field]


def read_json(path: str | Path, shape: Any, what: str = "file") -> Any:
    """Read JSON and check it against the shape that is expected, before anything uses it.

    Args:
        path: the file.
        shape: what is expected; see `engine.shapes`.
        what: is read, for messages.
    Raises:
        UserError: unreadable, no JSON, nested too deeply, a key twice, or of another shape; says
            where, what stands there and what is expected.
    """
    text = read_text(path, what)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: cannot read this {what}: {error}") from error
    if fault := misfit(value, shape):
        raise UserError(f"{path}: {fault}")
    return value
