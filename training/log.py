"""What a training run writes down as it goes: loss terms, in log.jsonl and on the terminal."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine import processes
from engine.errors import UserError
from engine.files import append_line, read_regular, write_text
from engine.shapes import misfit, parse_json
from training.boards import BOARDS


def say(line: str) -> None:
    """Print a line at once, above the progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


class Log:
    """The log of one run: terms are kept on their device and read once an interval.

    Args:
        folder: where `log.jsonl` is, one JSON object a line; it is appended to.
        images_per_step: of all processes together, to be logged; None leaves it out.
    """

    def __init__(self, folder: Path, images_per_step: int | None = None):
        self._images_per_step = images_per_step
        self.folder, self.path = folder, folder / "log.jsonl"
        self._terms: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._flushed = time.monotonic()
        self._rate: float | None = None
        self._boards: list[Any] = []

    def record(self, step: int, terms: dict[str, torch.Tensor], share: float = 1.0) -> None:
        """Keep a batch's loss terms.

        Args:
            step: that the batch belongs to; a step's terms are added up.
            terms: name -> scalar, on any device.
            share: of the step that the batch is.

        Raises:
            UserError: a term on the CPU is not finite. On a GPU, where looking would make the host
                wait, this is found by the next `flush`.
        """
        if not self._terms or self._terms[-1][0] != step:
            self._terms.append((step, {}))
        kept = self._terms[-1][1]
        for name, value in terms.items():
            kept[name] = kept.get(name, 0.0) + share * value.detach()
        if all(value.device.type == "cpu" for value in kept.values()):
            self._read(self._terms[-1:])

    def flush(self, step: int, rate: float | None = None, stop: int | None = None) -> None:
        """Read the terms kept since the last flush, log their means, and print them as a line.

        Args:
            step: steps done.
            rate: the learning rate of the first parameter group; None repeats the last one.
            stop: the last step, for the time that is left.

        Raises:
            UserError: a term is NaN or infinite; says which, and at which step.
        """
        if not self._terms:
            return
        self._rate = rate = self._rate if rate is None else rate
        means = self._read(self._terms)
        if means:  # every process has the same terms, of images of its own
            total = processes.add_up(torch.tensor(list(means.values()), dtype=torch.float64))
            means = dict(zip(means, (total / processes.world_size()).tolist(), strict=True))
        now = time.monotonic()
        steps_per_second = len(self._terms) / max(now - self._flushed, 1e-9)
        self._terms, self._flushed = [], now
        entry = {"step": step, "learning_rate": rate}
        entry["steps_per_second"] = round(steps_per_second, 3)
        entry["images_per_step"] = self._images_per_step
        if torch.cuda.is_initialized():
            entry["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.write({**{k: v for k, v in entry.items() if v is not None}, **means})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        left = "" if stop is None else f", {duration((stop - step) / steps_per_second)} left"
        say(f"step {step}  {shown}  {steps_per_second:.2f} steps/s{left}")

    def _read(self, kept: list[tuple[int, dict[str, torch.Tensor]]]) -> dict[str, float]:
        """Return the mean of each term kept, or raise UserError for one that is not finite."""
        values: dict[str, list[float]] = {}
        for step, terms in kept:
            for name, term in terms.items():
                value = term.item()
                if not math.isfinite(value):
                    raise UserError(f"step {step}: loss term {name} is {value}; {self._what_is()}")
                values.setdefault(name, []).append(value)
        return {name: sum(seen) / len(seen) for name, seen in values.items()}

    def _what_is(self) -> str:
        path = self.folder / "last.pth"
        return f"{path} is as it was" if path.exists() else "no checkpoint had been written"

    def write(self, entry: dict) -> None:
        """Append one JSON object, as numbers for the boards too; process 0 alone does."""
        if processes.rank() != 0:
            return
        append_line(self.path, json.dumps(entry))
        numbers = {k: v for k, v in entry.items() if isinstance(v, (int, float)) and k != "step"}
        for board in self._boards:
            board.numbers(entry["step"], numbers)

    def cut(self, step: int) -> None:
        """Drop the lines of steps after `step`: they will be done again."""
        if processes.rank() != 0 or not self.path.exists():
            return
        kept = []
        for line in read_regular(self.path).split(b"\n"):
            with contextlib.suppress(ValueError):  # torn by a kill, or no text at all
                entry = parse_json(line)
                if misfit(entry, {"step": int, ...: object}) is None and entry["step"] <= step:
                    kept.append(line.decode() + "\n")
        write_text(self.path, "".join(kept))

    def open_boards(self, names: Iterable[str], options: Mapping[str, Any]) -> None:
        """Let programs draw the run too, in process 0; see `training.boards`.

        Args:
            names: of `BOARDS`.
            options: of the run, which they show.

        Raises:
            UserError: a package is not installed.
        """
        if processes.rank() == 0:
            self._boards = [BOARDS[name](self.folder, options) for name in names]

    def show(self, step: int, score: dict, picture: Callable[[], np.ndarray]) -> None:
        """Show the IoU of every class, and a picture, where there are boards.

        Args:
            step: steps done.
            score: of `ConfusionMatrix.summary`.
            picture: makes uint8 [H,W,3]; called only where it is shown.
        """
        if not self._boards:
            return
        pixels = picture()
        classes = {f"iou/{name}": iou for name, iou in score["iou"].items() if iou is not None}
        for board in self._boards:
            board.numbers(step, classes)
            board.picture(step, "validation", pixels)

    def close(self) -> None:
        """End what the boards read."""
        for board in self._boards:
            board.close()


def duration(seconds: float) -> str:
    """Return a time as people say it: 45 s, 3:20 min, 2:05 h, 3.2 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"
    return f"{seconds / 86400:.1f} days"
