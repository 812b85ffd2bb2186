"""Make what a test server takes of a folder of predictions, as evaluate.py and others write them.

    python -m tools.submission csv seen --like sample_submission.csv --save submission.csv
    python -m tools.submission rle seen --num-classes 5 --columns id,rle --save submission.csv
    python -m tools.submission cityscapes snapshots/test --save cityscapes.zip
    python -m tools.submission loveda snapshots/test --save loveda.zip

csv: a row an image, the ids of its map in 256x256 (`--size`; nearest), which `ensemble.py --csv`
votes over. rle: a row for each image and class, `start length ...` from 1 down the columns; two
`--columns` are IMAGE_CLASS and the runs, three are image, class and the runs. `--like` gives the
images, their order and their ids as the server writes them. cityscapes and loveda are archives of
PNGs under the names, and with the ids, that their servers expect.
"""

import argparse
import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.files import read_label
from datasets.walk import composed, split_ending
from engine import options, parsing, start, zips
from engine.errors import UserError
from engine.files import refuse_replacing, whole
from inference import submissions, votes
from inference.label_folders import VOID, find_labels
from inference.outputs import writable_folder

SIDE = 256
CITYSCAPES = re.compile(r"[A-Za-z-]+_\d{6}_\d{6}")
LIMITS = {"cityscapes": 34, "loveda": 7}  # ids of label maps are below


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options.parser(__doc__)
    flag = parser.add_argument
    flag("format", choices=["csv", "rle", *LIMITS])
    flag("predictions", metavar="DIR", help="of predictions")
    flag("--save", required=True, metavar="FILE", help="a CSV, or a zip archive")
    flag("--like", metavar="FILE.csv", help="csv, rle: the server's example")
    flag(
        "--columns",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="NAME,NAME",
        help="csv, rle: default image_id,PredictionString",
    )
    flag("--ending", default="", metavar=".jpg", help="csv, rle: of the images' ids without --like")
    flag("--size", type=parsing.width_height, metavar="W,H", help="default: csv 256,256, rle own")
    flag("--num-classes", type=parsing.at_least(2), metavar="N", help="rle: classes are 0..N-1")
    flag("--without", type=parsing.numbers(int), default=(0,), metavar="ID,ID",
         help="rle: ids that have no rows; default 0")  # fmt: skip
    flag("--foreground", action="store_true", help="rle: one row an image, of all other ids")
    flag("--skip-empty", action="store_true", help="rle: no row for what has no pixel")
    flag("--row-major", action="store_true", help="rle: along the rows")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Find, read, write."""
    check(args)
    own = args.format != "loveda" and zips.is_dir(Path(args.predictions, "label_ids"))
    found = find_labels(args.predictions, "label" if own else "train")
    refuse_replacing([args.save], [*found.values(), *filter(None, [args.like])])
    writable_folder(Path(args.save).parent)
    archive = args.format in LIMITS
    count = (write_archive if archive else write_table)(args, found)
    print(f"wrote {args.save}: {count} {'files' if archive else 'rows'}")


def check(args: argparse.Namespace) -> None:
    """Refuse flags that would do nothing, and columns that are not the format's.

    Raises:
        UserError: says which.
    """
    idle = {"like": None, "columns": None, "ending": "", "size": None}
    rle = {"num_classes": None, "without": (0,), "foreground": False}
    rle |= {"skip_empty": False, "row_major": False}
    if args.format != "rle":
        idle = rle if args.format == "csv" else idle | rle
        for dest, value in idle.items():
            if getattr(args, dest) != value:
                raise UserError(f"--{dest.replace('_', '-')} means nothing for {args.format}")
    elif not (args.foreground or args.num_classes):
        raise UserError("rle needs --num-classes, or --foreground")
    counts = (2,) if args.format == "csv" or args.foreground else (2, 3)
    args.columns = args.columns or ["image_id", "PredictionString"]
    if len(set(args.columns)) not in counts or len(set(args.columns)) < len(args.columns):
        raise UserError(f"--columns: {' or '.join(map(str, counts))} names are expected")
    if args.like and args.ending:
        raise UserError("--ending means nothing beside --like, which has the images' ids")


def read_ids(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """Return a label map, resized without new ids, uint8 [h,w]."""
    ids = read_label(path)
    if size is not None and ids.shape != size[::-1]:
        ids = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    return ids


def read_all(paths: list[Path], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    """Return the label maps of files one after another, read ahead."""
    ahead = votes.read_ahead(lambda path: read_ids(path, size), paths)
    return tqdm(ahead, total=len(paths), disable=None, leave=False)


# ------------------------------------------------------------------ tables


def write_table(args: argparse.Namespace, found: dict[str, Path]) -> int:
    """Write a CSV; return how many rows it has below its header."""
    rows = images_of(args, found)
    size = args.size or ((SIDE, SIDE) if args.format == "csv" else None)
    count = 0
    header = [name.encode() for name in args.columns]
    with submissions.writing(args.save, header) as write:
        paths = [path for _, path in rows]
        for (image, path), ids in zip(rows, read_all(paths, size), strict=True):
            if args.format == "csv":
                if (ids == VOID).any():
                    raise UserError(f"{path}: holds {VOID}, which is no class")
                cells = [image.encode(), submissions.format_ids(ids.ravel())]
                write(submissions.join_fields(cells))
                count += 1
                continue
            for cells in run_rows(args, image, ids):
                write(submissions.join_fields([cell.encode() for cell in cells]))
                count += 1
    return count


def images_of(args: argparse.Namespace, found: dict[str, Path]) -> list[tuple[str, Path]]:
    """Return the images' ids in the order of the rows, with their predictions.

    Raises:
        UserError: an image of --like has no prediction, or stands twice.
    """
    if not args.like:
        return [(stem + args.ending, path) for stem, path in found.items()]
    by_name: dict[str, list[str]] = {}
    for stem in found:
        by_name.setdefault(stem.rpartition("/")[2], []).append(stem)
    rows, used = [], set()
    for number, image in read_images(args.like, args.columns[0], args.format):
        stem = composed(split_ending(image)[0])
        near = by_name.get(stem.rpartition("/")[2], [])
        stem = next((one for one in (stem, composed(image)) if one in found), None) or (
            near[0] if len(near) == 1 else stem
        )
        if stem not in found:
            raise UserError(f"{args.like}, line {number}: {args.predictions} has no {image}")
        rows.append((image, found[stem]))
        used.add(stem)
    if surplus := len(found) - len(used):
        print(f"warning: {surplus} predictions are of no image in {args.like} (left out)")
    return rows


def read_images(path: str, column: str, form: str) -> list[tuple[int, str]]:
    """Return line and image of a server's example, each image once.

    Raises:
        UserError: unreadable, without this column or any row; an image twice, for csv.
    """
    lines: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if column not in (reader.fieldnames or ()):
                known = ", ".join((reader.fieldnames or ())[:5])
                raise UserError(f"{path}: no column {column!r}; its own: {known} (see --columns)")
            for row in reader:
                image = (row[column] or "").strip()
                if not image:
                    raise UserError(f"{path}, line {reader.line_num}: no {column}")
                if form == "csv" and image in lines:
                    raise UserError(f"{path}, line {reader.line_num}: {image!r} stands twice")
                lines.setdefault(image, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read this table: {error}") from error
    if not lines:
        raise UserError(f"{path}: no row below the header")
    return [(number, image) for image, number in lines.items()]


def run_rows(args: argparse.Namespace, image: str, ids: np.ndarray) -> Iterator[list[str]]:
    """Yield the cells of an image's rows.

    Raises:
        UserError: an id that is no class.
    """
    if args.foreground:
        ids = (~np.isin(ids, [*args.without, VOID])).view(np.uint8)
        found = runs(ids, args.row_major).get(1, "")
        if found or not args.skip_empty:
            yield [image, found]
        return
    found = runs(ids, args.row_major)
    highest = max(found.keys() - {VOID}, default=0)
    if highest >= args.num_classes:
        raise UserError(f"{image}: the id {highest} is outside 0..{args.num_classes - 1}")
    for number in range(args.num_classes):
        if number in args.without or (args.skip_empty and number not in found):
            continue
        ids_of_row = [image, str(number)] if len(args.columns) == 3 else [f"{image}_{number}"]
        yield [*ids_of_row, found.get(number, "")]


def runs(ids: np.ndarray, row_major: bool = False) -> dict[int, str]:
    """Return where the runs of every id start, from 1, and how long they are, as text.

    Args:
        ids: uint8 [H,W].
        row_major: along the rows; else down the columns.
    """
    flat = (ids if row_major else ids.T).reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    pairs = np.stack([starts + 1, np.diff(starts, append=len(flat))], 1)
    held = flat[starts]
    return {
        number: " ".join(map(str, pairs[held == number].ravel().tolist()))
        for number in np.unique(held).tolist()
    }


# ------------------------------------------------------------------ archives


def write_archive(args: argparse.Namespace, found: dict[str, Path]) -> int:
    """Write a flat archive of PNGs; return how many it has.

    Raises:
        UserError: a name that the server does not know, two of one name, an id that it has not.
    """
    names: dict[str, Path] = {}
    for stem, path in found.items():
        name = stem.rpartition("/")[2]
        fits = CITYSCAPES.match(name) if args.format == "cityscapes" else name.isdecimal()
        if not fits or name in names:
            expected = "CITY_123456_123456..." if args.format == "cityscapes" else "a number"
            raise UserError(f"{path}: the server expects {expected} as its name, each once")
        names[name] = path
    limit = LIMITS[args.format]
    with whole(args.save) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for (name, path), ids in zip(names.items(), read_all([*names.values()], None), strict=True):
            void = VOID if args.format == "cityscapes" else -1  # which its server does not score
            highest = int(ids[ids != void].max(initial=0))
            if highest >= limit:
                raise UserError(f"{path}: the id {highest} is outside 0..{limit - 1}")
            # a date of its own would make the same predictions another file
            archive.writestr(zipfile.ZipInfo(f"{name}.png"), grey_png(ids))
    return len(names)


def grey_png(ids: np.ndarray) -> bytes:
    """Return a label map as a grey PNG without anything else in it."""
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png", compress_type=zlib.Z_RLE)
    return file.getvalue()


if __name__ == "__main__":
    start.run(main, parse_args)
