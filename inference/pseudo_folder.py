"""A folder of pseudo labels: never anyone else's, written whole, gone on with after a kill."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets import write_label_png
from datasets.text import list_fields, read_json
from datasets.walk import walk_files
from engine import processes
from engine.errors import UserError
from engine.files import UNFINISHED, refuse_replacing, save_tensors, write_text
from engine.shapes import Within, misfit
from inference.label_folders import stems
from inference.outputs import ENDS, Look, at_once, check_data_stay, file_of
from models import read_weights_file

OWN = ("checkpoints", "classes", "image_names")  # what pseudo.json holds in every folder of ours
SAVE_EVERY_SECONDS = 10.0  # what a killed run does again


class PseudoFolder:
    """Labels in the shape of `outputs`, their list, what they were made with, how far that came.

    pseudo.json says with which settings the folder is made, and that it is ours; list.txt is
    written when everything else is there. The same settings go on with an unfinished folder.

    Args:
        path: of the folder, which this process has (`outputs.held`).
        dataset: the images.
        settings: plain values that decide what is written.
        maps: which 8-bit maps are written too, for instance confidence.
        overwrite: begin anew, whatever settings the folder was made with.

    Attributes:
        finished: whether the folder is complete.

    Raises:
        UserError: the folder holds files that are not ours, was made with other settings, or lacks
            labels that were written; a name that no list can hold.
    """

    def __init__(
        self,
        path: str,
        dataset: Dataset,
        settings: dict[str, Any],
        maps: Iterable[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.look = Look(dataset.palette)
        self.stems = stems(dataset)
        self.labels = {image: f"train_ids/{stem}.png" for image, stem in self.stems.items()}
        self.maps = list(maps)
        self.settings = json.loads(json.dumps(settings))  # as a file holds them
        self._about, self._list = self.path / "pseudo.json", self.path / "list.txt"
        list_text(self.labels)  # refuses names, before the work
        if processes.rank() > 0:  # process 0 has made the folder
            processes.barrier()
            overwrite = False
        check_data_stay(self.path, self._kinds(), dataset)
        refuse_replacing([self._list, self._about], filter(None, [dataset.list_file]))
        before = self._read_about()
        again = before is not None and not overwrite
        if again:
            self._check_settings(before)
        self._check_surplus()
        if processes.rank() == 0:
            self._sweep(before, again)
            processes.barrier()
        self.finished = self._list.exists()
        self.written = Sums(self.path / f".written_{processes.rank()}.pth")
        images = list(self.labels)
        own = [images[i] for i in processes.share(len(images))]
        if not own:
            raise UserError(f"{len(self.labels)} images are too few for as many processes")
        images = own[: None if self.finished else self.written.done]
        missing = [file for image in images for file in self._files(image) if not file.is_file()]
        if missing:
            raise UserError(f"{missing[0]} was written and is gone: --overwrite begins anew")

    def _kinds(self) -> list[str]:
        """Return what is written of an image, its label last."""
        return [*self.maps, *self.look.kinds]

    def _files(self, image: str) -> list[Path]:
        """Return the files of one image, the label last."""
        return [file_of(self.path, kind, self.stems[image]) for kind in self._kinds()]

    def _read_about(self) -> dict[str, Any] | None:
        """Return the settings that an earlier run left, which say that the folder is ours.

        Raises:
            UserError: there are files of ours by their names, and nothing that says so; or settings
                that pseudo_label.py did not write.
        """
        if self._about.exists() or self._about.is_symlink():
            try:
                return read_json(self._about, {key: object for key in OWN} | {...: object})
            except UserError as error:
                raise UserError(
                    f"{self._about}: not what pseudo_label.py writes: {error}"
                ) from None
        kinds = [kind for kind in self._kinds() if (self.path / kind).is_dir()]
        files = (file_of(self.path, kind, stem) for stem in self.stems.values() for kind in kinds)
        for file in (self._list, *files):
            if os.path.lexists(file):
                raise UserError(f"{file} would be written over: give --save a folder of its own")
        return None

    def _check_surplus(self) -> None:
        """Refuse files that would lie among the labels or maps and be none of them."""
        for kind in self._kinds():
            wanted = {stem + ENDS[kind] for stem in self.stems.values()}
            for path in walk_files(self.path / kind, {".png"}).files:
                if path not in wanted:
                    raise UserError(
                        f"{self.path / kind / path} is of no image to be labelled: remove it, or "
                        "save apart"
                    )

    def _sweep(self, before: dict[str, Any] | None, again: bool) -> None:
        """Remove what a killed run of ours left half written, and all that is begun anew."""
        if before is not None:
            for parent, _, names in os.walk(self.path):
                for name in names:
                    if name.startswith(UNFINISHED) and name.endswith(".tmp"):
                        os.unlink(os.path.join(parent, name))
        if not again:
            if before is not None:
                for stale in (self._list, *self.path.glob(".written_*.pth")):
                    stale.unlink(missing_ok=True)
            self._write_about({})

    def _check_settings(self, before: dict[str, Any]) -> None:
        """Raise UserError that names what the folder was made with and is not made with now."""
        differing = [key for key in self.settings if before.get(key) != self.settings[key]]
        if differing:
            was, now = (
                ", ".join(f"{key} {_shown(values.get(key))}" for key in differing)
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
        for kind, values in zip(self.maps, maps, strict=True):
            write_label_png(file_of(self.path, kind, self.stems[image]), values)
        self.look.write(at_once, self.path, self.stems[image], ids)

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
        if fault := misfit(state, {"done": Within(0), "sums": {...: torch.Tensor}}):
            raise UserError(f"{path}: {fault}; --overwrite begins anew")
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


def list_text(labels: dict[str, str]) -> str:
    """Return `image label` lines, with tabs if a name holds a space.

    Raises:
        UserError: a name that would not be read back as it is.
    """
    space = "\t" if any(" " in name for name in labels) else " "
    lines = [f"{image}{space}{label}" for image, label in labels.items()]
    for line, pair in zip(lines, labels.items(), strict=True):
        try:
            line.encode()
            same = list_fields(line) == list(pair) and "\n" not in line
        except UnicodeEncodeError:
            same = False
        if not same:
            raise UserError(f"{pair[0]!r}: no list can hold this name; rename it")
    return "\n".join([*lines, ""])


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
