"""Which ids a label image holds: as values, as indices of a palette, or as colours."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.headers import Header
from datasets.reading import LabelReading
from engine.errors import UserError

IGNORE = 255
MARK = ("Software", "segshift")  # in PNGs that we write: the indices of their palette are ids
UNKNOWN, SHARED = 256, 257  # what a colour stands for: nothing, or several classes
ROWS_BYTES = 2**24  # of codes at once


@dataclass(frozen=True, eq=False)  # each is itself alone: what is derived from it is kept
class LabelTable:
    """What a class table says of label files.

    Attributes:
        colours: (colour, id) pairs; a colour may have several ids. Empty: colours are no ids.
        train_ids: the train id of each of 256 ids, 255 for those that are ignored.
    """

    colours: tuple[tuple[tuple[int, int, int], int], ...] = ()
    train_ids: tuple[int, ...] = tuple(range(256))


NO_TABLE = LabelTable()


def refuse_label(path: str | Path, header: Header) -> None:
    """Refuse a file whose header says that what Pillow makes of it are no ids.

    Raises:
        UserError: a lossy format, several pictures, a turned one, stretched or inverted greys.
    """
    reasons = {
        f"a label in {header.format} has blurred class ids; use PNG": header.lossy,
        "a label of several pages or frames; save the one that holds the ids": header.several,
        f"a label that is turned when it is looked at (orientation {header.orientation}); save it "
        "as its image is seen, without that tag": header.orientation != 1,
        f"a label of {header}: {header.fault}; save it as 8-bit PNG": header.fault,
        f"a label of {header}, whose samples stand for other greys: which are the ids is not said; "
        "save it as 8-bit PNG": header.scaled,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{path}: {reason}")


def ids_of(
    path: str | Path, image: Image.Image, header: Header, table: LabelTable, reading: LabelReading
) -> np.ndarray:
    """Return the ids of a decoded label image.

    Args:
        path: for messages.
        image: decoded, of a file that `refuse_label` let pass.
        header: of the file.
        table: of the classes.
        reading: how.
    Returns:
        uint8 or uint16 [H,W].
    Raises:
        UserError: pixels that are no ids, or indices that a program renumbered.
    """
    grey, by_colour = header.kind == "grey", reading.values == "colours"
    if header.bits > 8 or header.number != "unsigned":
        if grey and (header.bands, header.bits, reading.bits) == (1, 16, 16) and not by_colour:
            return np.asarray(image).astype(np.uint16)
        cure = "; option label_bits=16 allows grey of 16 bits" if grey and header.bands == 1 else ""
        raise _no_ids(path, image, header, cure)
    if header.bands not in (1, 3) and not (header.alpha and is_opaque(image)):
        raise _no_ids(path, image, header)
    if (grey or header.kind == "palette") and not by_colour:
        if header.kind == "palette" and reading.values == "auto":
            check_palette(path, image, table)
        ids = np.array(image if header.bands == 1 else image.getchannel(0))
        return ids.astype(np.uint8) if image.mode == "1" else ids
    if header.kind not in ("grey", "palette", "RGB") or reading.values == "ids":
        raise _no_ids(path, image, header)
    if not table.colours:
        raise _no_ids(path, image, header)
    image = image if image.mode == "RGB" else image.convert("RGB")
    return ids_of_colours(path, np.asarray(image), table)


def _no_ids(path: str | Path, image: Image.Image, header: Header, cure: str = "") -> UserError:
    return UserError(
        f"{path}: a label of mode {image.mode} holds no class ids ({header}); 8-bit greyscale (L) "
        f"or palette (P) expected, or the colours of the class table without transparency{cure}"
    )


def is_opaque(image: Image.Image) -> bool:
    """Return whether no pixel of a decoded image is transparent."""
    if not image.has_transparency_data:
        return True
    if image.mode == "La":
        image = image.convert("LA")
    if "A" not in image.getbands():  # one colour or entries of a palette are marked
        image = image.convert("RGBA")
    return image.getchannel("A").getextrema()[0] == 255


def check_palette(path: str | Path, image: Image.Image, table: LabelTable) -> None:
    """Refuse a palette that says that its indices are not the ids.

    Programs that make files smaller number the colours anew. Two kinds can be told from palettes
    that are there to be looked at: greys that were the ids, and the table's colours at other ids.
    What writes GIF does so always, so that there every colour must be that of its id.

    Raises:
        UserError: names an entry and the cure.
    """
    if image.info.get(MARK[0]) == MARK[1]:
        return
    palette = image.palette.tobytes() if image.palette.mode == "RGB" else bytes(image.getpalette())
    suspicion = _suspicion(palette, table, doubted=image.format == "GIF")
    if suspicion is None:
        return  # before the pixels are counted, which takes as long as reading some files
    palette, known, fits, greys = suspicion
    used = np.array(image.histogram()[: len(palette)]).nonzero()[0]
    differing = used[~fits[used]]
    what = "may be numbered anew, as programs do that write GIF"
    if image.format != "GIF":
        greys = greys and _distinct(palette[used])
        differing = used[~fits[used] & (palette[used, 0] != used)] if greys else []
        what = "are greys, as if these had been the ids"
    if not len(differing):
        scored = used[np.array(table.train_ids)[used] != IGNORE]
        differing = scored[known[scored] & ~fits[scored]]
        # a black or a white is in many tables; a colour that is met again at another id is not so
        # by chance, even beside a void colour that the table lacks
        coloured = (palette[differing] != palette[differing, :1]).any()
        if not _distinct(palette[scored]) or not (coloured or known[scored].all()):
            differing = []
        what = "are the class table's colours of other ids"
    if len(differing):
        entry = differing[0]
        raise UserError(
            f"{path}: the palette's colours {what} (entry {entry} is "
            f"{tuple(palette[entry].tolist())}): save the ids as 8-bit greyscale, or say what "
            "holds with the dataset option label_values=colours or label_values=ids"
        )


def _distinct(colours: np.ndarray) -> bool:
    """Return whether no two of uint8 [N,3] are equal, as after a renumbering."""
    return len(np.unique(colours, axis=0)) == len(colours)


@lru_cache(maxsize=64)
def _suspicion(content: bytes, table: LabelTable, doubted: bool) -> tuple | None:
    """Return what in a palette may say that it was numbered anew; None where nothing does.

    Returns:
        uint8 [N,3] the palette; bool [N] whether an entry's colour is one of the table; bool [N]
        whether it is one of that index; whether all entries are grey.
    """
    palette = np.frombuffer(content, np.uint8)[: len(content) // 3 * 3].reshape(-1, 3)
    classes: dict[tuple[int, ...], set[int]] = {}
    for colour, number in table.colours:
        classes.setdefault(colour, set()).add(table.train_ids[number])
    entries = list(map(tuple, palette.tolist()))[:256]
    known = np.array([entry in classes for entry in entries], bool)
    fits = np.array([table.train_ids[i] in classes.get(e, ()) for i, e in enumerate(entries)], bool)
    palette = palette[:256]
    greys = (palette == palette[:, :1]).all() and (palette[:, 0] != np.arange(len(palette))).any()
    suspicious = doubted or greys or (known & ~fits).any()
    return (palette, known, fits, greys) if suspicious else None


def ids_of_colours(path: str | Path, pixels: np.ndarray, table: LabelTable) -> np.ndarray:
    """Return the ids of colours that the class table holds.

    Args:
        path: for messages.
        pixels: uint8 [H,W,3].
        table: of the classes.
    Returns:
        uint8 [H,W].
    Raises:
        UserError: shows a colour that the table does not hold, or holds for several classes.
    """
    lookup = _colour_lookup(table)
    ids = np.empty(pixels.shape[:2], np.uint8)
    step = max(1, ROWS_BYTES // (4 * pixels.shape[1]))
    for row in range(0, len(pixels), step):
        part = pixels[row : row + step].astype(np.uint32)
        codes = part[..., 0] << 16 | part[..., 1] << 8 | part[..., 2]
        found = lookup[codes]
        if (found > 255).any():
            _refuse_colours(path, np.unique(codes[found > 255]), lookup, pixels)
        ids[row : row + step] = found
    return ids


def _refuse_colours(
    path: str | Path, codes: np.ndarray, lookup: np.ndarray, pixels: np.ndarray
) -> None:
    """Raise UserError that shows what colours have no id, or several."""
    shown = ", ".join(str((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in codes[:5])
    if (lookup[codes] == SHARED).all():
        raise UserError(f"{path}: the class table has several classes of colour {shown}; use ids")
    more = ""
    if (pixels == pixels[..., :1]).all():
        more = "; all three channels are equal: if these are ids, save them as 8-bit greyscale"
    raise UserError(f"{path}: label colours outside the class table: {shown}{more}")


@lru_cache(maxsize=4)
def _colour_lookup(table: LabelTable) -> np.ndarray:
    """Return uint16 [2**24]: colour -> id, `UNKNOWN` or `SHARED`."""
    lookup = np.full(2**24, UNKNOWN, np.uint16)
    for (red, green, blue), number in table.colours:
        code = red << 16 | green << 8 | blue
        before = lookup[code]
        if before == UNKNOWN:
            lookup[code] = number
        elif before == SHARED or table.train_ids[before] != table.train_ids[number]:
            lookup[code] = SHARED
    return lookup
