"""Pages to look at: one HTML file that opens from disk, with its styles, script and data inside.

A page asks for nothing over the network and needs no server. Browsers give a page from disk no
right to read other files: fetch() and modules fail, and a canvas that an image file was drawn on
cannot be read again. Pictures are therefore plain <img> files, and label maps, which the script
recolours, travel as base64 inside small scripts, which a page from disk may load
(`inference.page.pictures`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = '<meta name="generator" content="segshift">'  # a file with it is a page of ours


def assemble(title: str, styles: Sequence[str], scripts: Sequence[str], data: Any) -> str:
    """Return a whole HTML page.

    Args:
        title: of the window.
        styles, scripts: files in this folder, put into the page one after the other.
        data: what JSON can hold; the script finds it as the text of the element `data`.
    """
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "styles": "".join(map(read, styles)),
        "data": escaped(data),
        "scripts": "".join(map(read, scripts)),
    }
    page = read("page.html")
    before, after = page[: page.index("{{")], page[page.index("{{") :]
    for piece in after.split("{{")[1:]:  # never in what was filled in: names may hold braces
        name, _, rest = piece.partition("}}")
        before += parts[name] + rest
    return before


def read(name: str) -> str:
    """Return a file of this folder."""
    return Path(HERE, name).read_text(encoding="utf-8")


def escaped(data: Any) -> str:
    """Return data as JSON that no name in it can end or begin an element with."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
