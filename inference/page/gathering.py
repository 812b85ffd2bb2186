"""What one network sees of images, gathered for a page while it runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import kernels
from engine import processes
from engine.errors import UserError
from engine.files import write_text
from inference.outputs import Writers
from inference.page import pictures

FORMAT = "segshift report 1"
FOLDERS = ("photographs", "thumbs", "maps")


class Gathering:
    """What one network sees, written to a folder while it runs.

    Used as a context, which ends when every file is written.

    Args:
        folder: empty; several processes write into it.
        classes: names of the C classes.
        palette: (r, g, b) of each.
        ignore: the train id that is not scored.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        ignore: int = 255,
    ) -> None:
        self.folder, self.classes, self.ignore = folder, list(classes), ignore
        self.palette = [[int(v) for v in colour] for colour in palette[: len(classes)]]
        self._rows: list[tuple] = []
        self._write = Writers()

    def add(
        self,
        place: tuple[int, str],
        photograph: Callable[[], Image.Image],
        pred: Tensor,
        label: Tensor | None = None,
        confidence: Tensor | None = None,
    ) -> None:
        """Take an image; its files are written in the background.

        Args:
            place: its number and its name.
            photograph: returns it, RGB; called in another thread.
            pred: uint8 [H,W], train ids.
            label: the same, None where there is none.
            confidence: float32 [H,W], 0 to 1.
        """
        side = len(self.classes) + 1
        if label is None:
            counts = torch.zeros(side, side, dtype=torch.int64)
            found = pred.flatten().long().clamp_max(side - 1).bincount(minlength=side)
            counts[-1] = found.cpu()
        else:
            counts = kernels.confusion_matrix(pred, label, side - 1, self.ignore)
        sure = None if confidence is None else round(float(confidence.mean()), 4)
        number, name = place
        size = pictures.shown_size(*pred.shape)
        self._rows.append((number, name, size, label is not None, sure, packed(counts)))
        arrays = [None if x is None else x.cpu().numpy() for x in (pred, label, confidence)]
        self._write(self._write_files, number, photograph, size, *arrays)

    def _write_files(self, number: int, photograph: Callable, size: tuple, *maps) -> None:
        pred, label, confidence = maps
        image, place = photograph(), f"{number}_0"
        small = pictures.write_photograph(self.folder, number, image, size)
        pictures.write_seen(self.folder, place, pred, confidence, size)
        weight = None if confidence is None else 1 - confidence
        if label is not None:
            pictures.write_truth(self.folder, number, label, size)
            weight = (pred != label) & (label != self.ignore)
        if weight is not None:
            pictures.write_mistakes(self.folder, place, small, weight)

    def finish(
        self,
        name: str,
        about: dict[str, Any],
        scored: list[int] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write report.json, in process 0, when the files are written.

        Args:
            name: of the network.
            about: what is to be said of it, texts and numbers.
            scored: classes of the mean; None for all.
            more: to be drawn; see `Calibration.summary`.
        """
        rows = sorted(row for rows in processes.gather(self._rows) for row in rows)
        if processes.rank() != 0:
            return
        report = {
            "format": FORMAT,
            "classes": self.classes,
            "palette": self.palette,
            "scored": scored,
            "images": [
                {"number": number, "name": title, "size": list(size), "labelled": labelled}
                for number, title, size, labelled, *_ in rows
            ],
            "runs": [{"name": name, "about": about, "rows": [list(row[-2:]) for row in rows]}],
        }
        report["runs"][0] |= more or {}
        write_text(self.folder / "report.json", json.dumps(report))

    def __enter__(self) -> "Gathering":
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._write.__exit__(*error)


def packed(counts: Tensor) -> list[int]:
    """Return the entries of a matrix that are not zero, each after its distance from the last."""
    flat = counts.flatten().cpu()
    places = flat.nonzero().flatten()
    gaps = torch.diff(places, prepend=places.new_tensor([-1]))
    return torch.stack([gaps, flat[places]], 1).flatten().tolist()


def unpacked(row: list[int], side: int) -> Tensor:
    """Return the matrix of `packed`, int64 [side,side].

    Raises:
        UserError: the row does not fit.
    """
    pairs = torch.tensor(row, dtype=torch.int64)
    places = pairs[0::2].cumsum(0) - 1
    fits = len(row) % 2 == 0 and bool((pairs >= 0).all())
    if not fits or (len(places) and not 0 <= places.max() < side * side):
        raise UserError("a report's counts are damaged: write it anew")
    counts = torch.zeros(side * side, dtype=torch.int64)
    counts[places] = pairs[1::2]
    return counts.view(side, side)
