"""The page of predictions and mistakes: one or several networks joined.

    DIR/index.html     to be opened; the data are in it
    DIR/report.json    the same data, which `tools.gallery` reads again and by which DIR is ours
    DIR/photographs/, thumbs/, maps/     see `inference.page.pictures`

Counts of an image are those of its confusion matrix [C+1,C+1], row by row, as [gap, n, gap, n,
...]: how many places after the last one the next stands that is not zero, and what it is. The last
row holds what was predicted where an image has no label at all.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.text import read_json
from engine.errors import UserError
from engine.files import write_text
from engine.shapes import Either
from inference import intervals
from inference.metrics import ConfusionMatrix, plain
from inference.page import assemble, pictures
from inference.page.gathering import FOLDERS, FORMAT, unpacked

STYLES = ("common.css", "gallery.css")
SCRIPTS = ("common.js", "scores.js", "calibration.js", "gallery.js", "maps.js", "viewer.js")
IMAGE = {"name": str, "size": (int, int), "labelled": bool, ...: object}
ROW = (Either(float, None), [int])
RUN = {"name": str, "about": dict, "rows": [ROW], ...: object}
SHAPE = {
    "format": str,
    "classes": [str],
    "palette": [(int, int, int)],
    "scored": Either([int], None),
    "images": [IMAGE],
    "runs": [RUN],
    ...: object,
}


class Part(NamedTuple):
    """A folder with a report."""

    folder: Path
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Part":
        """Read a report.

        Raises:
            UserError: there is none, it is damaged, or of another version.
        """
        path = Path(folder, "report.json")
        if not path.is_file():
            raise UserError(
                f"{folder}: no report of evaluate.py --report, nor of its --save; of any other "
                f"predictions `evaluate.py --predictions {folder} --report DIR` makes one"
            )
        report = read_json(path, SHAPE, "report")
        if report["format"] != FORMAT:
            raise UserError(f"{path}: {report['format']!r} is not {FORMAT!r}: write it anew")
        if any(len(run["rows"]) != len(report["images"]) for run in report["runs"]):
            raise UserError(f"{path}: a network has other rows than there are images")
        return cls(Path(folder), report)


def join(
    parts: list[Part], folder: Path, names: Sequence[str] | None = None, move: bool = False
) -> None:
    """Write a page of all networks of all parts, of which each saw the same images.

    Args:
        parts: reports, the first of which has the order.
        folder: empty or absent.
        names: of the networks; None for those in the reports.
        move: take the files away from the parts instead of copying them.

    Raises:
        UserError: classes or images differ; names the first that does.
    """
    first = parts[0].report
    order = [image["name"] for image in first["images"]]
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    report = {**first, "images": [dict(image) for image in first["images"]], "runs": []}
    for part in parts:
        numbers = _matched(part, parts[0], order)
        for k, run in enumerate(part.report["runs"]):
            _bring(part, (k, len(report["runs"])), numbers, folder, move)
            rows = [run["rows"][i] for i in numbers]
            report["runs"].append({**run, "rows": rows})
    for number, image in enumerate(report["images"]):
        image["number"] = number
    for run, name in zip(report["runs"], names or (), strict=bool(names)):
        run["name"] = name
    _score(report)
    if len(report["runs"]) > 1:
        _compare(report, folder)
    write_text(folder / "report.json", json.dumps(report))
    write_text(folder / "index.html", assemble("segshift: predictions", STYLES, SCRIPTS, report))


def _matched(part: Part, first: Part, order: list[str]) -> list[int]:
    """Return the place in a part of each image of the first one."""
    for what, one, other in (
        ("classes", part.report["classes"], first.report["classes"]),
        ("images", sorted(image["name"] for image in part.report["images"]), sorted(order)),
    ):
        if one != other:
            odd = next(iter(sorted(set(one) ^ set(other))), "their order")
            raise UserError(f"{part.folder} and {first.folder} are of different {what}: {odd}")
    places = {image["name"]: i for i, image in enumerate(part.report["images"])}
    sizes = [part.report["images"][places[name]]["size"] for name in order]
    for name, size, image in zip(order, sizes, first.report["images"], strict=True):
        if size != image["size"]:
            raise UserError(f"{part.folder} and {first.folder} show {name} in different sizes")
    return [places[name] for name in order]


def _bring(part: Part, runs: tuple, numbers: list[int], folder: Path, move: bool) -> None:
    """Bring the files of a network, and of the images themselves with the first one."""
    (run, new_run), bring = runs, os.replace if move else shutil.copyfile
    for new, place in enumerate(numbers):
        old = part.report["images"][place]["number"]
        pairs = [("maps", f"{old}_{run}.js", f"{new}_{new_run}.js", True)]
        pairs.append(("thumbs", f"{old}_{run}.jpg", f"{new}_{new_run}.jpg", False))
        if new_run == 0:
            pairs += [
                (kind, f"{old}.jpg", f"{new}.jpg", True) for kind in ("photographs", "thumbs")
            ]
            labelled = part.report["images"][place]["labelled"]
            pairs.append(("maps", f"{old}.js", f"{new}.js", labelled))
        for kind, source, target, needed in pairs:
            try:
                bring(part.folder / kind / source, folder / kind / target)
            except FileNotFoundError as error:
                if needed:
                    raise UserError(f"{error.filename} is missing: write the report anew") from None
            except OSError as error:
                raise UserError(f"cannot copy {error.filename}: {error.strerror}") from error


def _score(report: dict[str, Any]) -> None:
    """Add each network's mIoU, its interval over images, and its gain over the first network."""
    side, scored, draws = len(report["classes"]) + 1, report["scored"], []
    for run in report["runs"]:
        each = [unpacked(counts, side) for _, counts in run["rows"]]
        each = [counts for counts in each if counts[:-1].any()]
        run |= {"miou": None, "interval": None, "gain": None, "p_value": None}
        draws.append(intervals.drawn_miou(each, scored) if len(each) > 1 else None)
        if each:
            matrix = ConfusionMatrix(side - 1, report["classes"], allow_void=True)
            matrix.counts = torch.stack(each).sum(0)
            matrix.counts[-1] = 0
            run["miou"] = plain(matrix.compute(scored)["miou"])
        if draws[-1] is not None and not draws[-1].isnan().all():
            run["interval"] = list(intervals.interval(draws[-1]))
    for run, own in zip(report["runs"][1:], draws[1:], strict=True):
        if run["interval"] and report["runs"][0]["interval"]:
            found = intervals.difference(own, draws[0])
            run |= {"gain": list(found.interval), "p_value": found.p_value}


def _compare(report: dict[str, Any], folder: Path) -> None:
    """Add to each image the share of its pixels in which networks differ from the first one."""
    for image in report["images"]:
        paths = [folder / "maps" / f"{image['number']}_{k}.js" for k in range(len(report["runs"]))]
        first, *others = (pictures.read_ids(path, "pred") for path in paths)
        if any(other.shape != first.shape for other in others):
            raise UserError(f"{folder}: predictions of {image['name']} differ in size")
        image["differs"] = round(float(np.any([o != first for o in others], 0).mean()), 4)
