"""A folder of pseudo labels: never anyone else's, written whole, gone on with after a kill."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets import write_label_png
from datasets.text import read_json
from engine import processes
from engine.errors import UserError
from engine.files import save_tensors, write_text
from inference.label_folders import stems, writable_folder
from models import read_weights_file

SAVE_EVERY_SECONDS = 10.0  # what a killed run does again


class PseudoFolder:
    """Labels as FOLDER/NAME.png, their list, what they were made with, and how far that came.

    pseudo.json says with which settings the folder is made, and that it is ours; list.txt is
    written when everything else is there. The same settings go on with an unfinished folder.

    Args:
        path: of the folder; made if absent.
        dataset: the images. A label has its image's relative path, with the suffix .png.
        settings: plain values that decide what is written.
        maps: folders of 8-bit maps beside the labels, for instance confidence.
        overwrite: begin anew, whatever settings the folder was made with.

    Attributes:
        finished: whether the folder is complete.

    Raises:
        UserError: the folder cannot be written, holds files that are not ours, was made with other
            settings, or lacks labels that were written.
    """

    def __init__(
        self,
        path: str,
        dataset: Dataset,
        settings: dict[str, Any],
        maps: Iterable[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.path = writable_folder(path)
        self.palette = dataset.palette
        self.labels = {image: f"{stem}.png" for image, stem in stems(dataset).items()}
        self.maps = list(maps)
        self.settings = json.loads(json.dumps(settings))  # as a file holds them
        self._about, self._list = self.path / "pseudo.json", self.path / "list.txt"
        if processes.rank() > 0:  # process 0 has made the folder
            processes.barrier()
            overwrite = False
        again = self._about.exists() and not overwrite
        self._check_owner(dataset.root)
        if again:
            self._check_settings()
        self._check_surplus()
        if not again:
            for stale in (self._list, *self.path.glob(".*.pth")):
                stale.unlink(missing_ok=True)
            self._write_about({})
        if processes.rank() == 0:
            for unfinished in self.path.rglob("*.tmp"):
                unfinished.unlink()
            processes.barrier()
        self.finished = self._list.exists()
        self.written = Sums(self.path / f".written_{processes.rank()}.pth")
        own = [list(self.labels)[i] for i in processes.share(len(self.labels))]
        if not own:
            raise UserError(f"{len(self.labels)} images are too few for as many processes")
        images = own[: None if self.finished else self.written.done]
        missing = [file for image in images for file in self._files(image) if not file.is_file()]
        if missing:
            raise UserError(f"{missing[0]} was written and is gone: --overwrite begins anew")

    def _files(self, image: str) -> list[Path]:
        """Return the files of one image, the label last."""
        folders = [*(self.path / name for name in self.maps), self.path]
        return [folder / self.labels[image] for folder in folders]

    def _check_owner(self, root: Path) -> None:
        """Refuse to write over an image, or over any file where pseudo.json does not say ours."""
        images = {(root / image).resolve() for image in self.labels}
        ours = self._about.exists()
        for file in (self._list, *(file for image in self.labels for file in self._files(image))):
            if file.resolve() in images or (file.exists() and not ours):
                raise UserError(f"{file} would be written over: give --save a folder of its own")

    def _check_surplus(self) -> None:
        """Refuse PNGs that would lie among the labels and be none of them."""
        wanted = [file for image in self.labels for file in self._files(image)]
        if len(set(wanted)) < len(wanted):
            raise UserError(f"an image lies in a folder called {' or '.join(self.maps)}: rename it")
        surplus = sorted(set(self.path.rglob("*.png")) - set(wanted))
        if surplus:
            raise UserError(f"{surplus[0]} is of no image to be labelled: remove it, or save apart")

    def _check_settings(self) -> None:
        """Raise UserError that names what the folder was made with and is not made with now."""
        try:
            before = read_json(self._about, {...: object} | dict.fromkeys(self.settings, object))
        except UserError as error:
            raise UserError(f"{self._about}: not what pseudo_label.py writes: {error}") from error
        differing = [key for key in self.settings if before[key] != self.settings[key]]
        if differing:
            was, now = (
                ", ".join(f"{key} {_shown(values[key])}" for key in differing)
                for values in (before, self.settings)
            )
            raise UserError(f"{self.path} was made with {was}, not {now}: --overwrite begins anew")

    def write(self, image: str, ids: np.ndarray, maps: list[np.ndarray]) -> None:
        """Write the maps of one image, then its label.

        Args:
            image: its name.
            ids: uint8 [H,W], train ids and 255.
            maps: uint8 [H,W] for each of the folder's `maps`.
        """
        *others, label = self._files(image)
        for file, values in zip(others, maps, strict=True):
            write_label_png(file, values)
        write_label_png(label, ids, self.palette)

    def finish(self, results: dict[str, Any]) -> None:
        """Write what came out into pseudo.json, then list.txt, which says that all is there."""
        processes.barrier()
        if processes.rank() == 0:
            self._write_about(results)
            write_text(self._list, list_text(self.labels))
        processes.barrier()
        self.written.forget()

    def _write_about(self, results: dict[str, Any]) -> None:
        write_text(self._about, json.dumps({**self.settings, **results}, indent=1) + "\n")


class Sums:
    """Tensors summed over images in order, kept in a file so that a killed run can go on.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        state = read_weights_file(path) if path.exists() else {"done": 0, "sums": {}}
        self.done, self.sums = state["done"], state["sums"]

    def over(
        self, batches: Iterable[tuple], before_saving: Callable = lambda: None
    ) -> Iterator[tuple]:
        """Yield batches, count their images as done afterwards, and save every few seconds.

        Args:
            batches: tuples whose first entry is a dict with the images' `name`.
            before_saving: called to wait until what is counted as done is on the disk.
        """
        saved = time.monotonic()
        for batch in batches:
            yield batch
            self.done += len(batch[0]["name"])
            if time.monotonic() - saved >= SAVE_EVERY_SECONDS:
                before_saving()
                self.save()
                saved = time.monotonic()
        before_saving()
        self.save()

    def add(self, **tensors: torch.Tensor) -> None:
        """Add to the sums by name, without waiting for the device."""
        for name, value in tensors.items():
            before = self.sums.get(name)
            self.sums[name] = value if before is None else before.to(value.device) + value

    def total(self, name: str) -> torch.Tensor:
        """Return a sum over the images of all processes, on the CPU."""
        return processes.add_up(self.sums[name].cpu().clone())

    def save(self) -> None:
        """Write the file, whole or not at all."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        save_tensors({"done": self.done, "sums": sums}, self._path)

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def fingerprint(content: bytes) -> str:
    """Return 16 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def list_text(labels: dict[str, str]) -> str:
    """Return `image label` lines, with tabs if a name holds a space."""
    space = "\t" if any(" " in name for name in labels) else " "
    return "".join(f"{image}{space}{label}\n" for image, label in labels.items())


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
