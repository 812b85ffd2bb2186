"""One training run: its folder, log, checkpoints, signals and steps."""

import contextlib
import fcntl
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

import models
from checkpoint import FORMAT, save_atomic, write_text
from engine import seed_everything
from errors import UserError

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", what the batch scripts requeue on


def say(line: str) -> None:
    """Print a line at once, above the progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def describe(
    val: Dataset, input_size: tuple[int, int], align_corners: bool, precision: str
) -> dict[str, Any]:
    """Return what a published checkpoint says beside its network: how it was scored, on what."""
    return {
        "dataset": val.name,
        "classes": val.class_names,
        "palette": val.palette,
        "data": val.arguments,
        "input_size": input_size,
        "align_corners": align_corners,
        "precision": precision,
    }


class Run:
    """One training run in one snapshot folder: its lock, log, checkpoints, signals and steps.

    The folder holds `log.jsonl` (a line an interval), `last.pth` (everything, to resume from),
    `NAME_STEP.pth` and `NAME_best.pth` (models alone, for evaluate.py).

    Args:
        folder: snapshot folder, made if absent.
        name: prefix of the published checkpoints, the source's name.
        options: plain values; those not in `FREE` must be equal for a run to be resumed.
        meta: what a published checkpoint says beside the model; see `describe`.

    Raises:
        UserError: the folder cannot be written or another run holds it.
    """

    # options that change no number of the run
    FREE = frozenset(
        {"snapshot_dir", "device", "num_workers", "loader_timeout", "print_every", "tensorboard"}
        | {"save_pred_every", "num_steps_stop", "data_dir", "data_dir_target", "baseline", "recipe"}
    )

    def __init__(self, folder: str | Path, name: str, options: dict, meta: dict):
        self.folder, self.name, self.meta = Path(folder), name, meta
        self.options = options
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"cannot write --snapshot-dir {folder}: {error.strerror}") from error
        self._take_lock()
        for stale in self.folder.glob(".*.tmp"):  # left by a killed process
            stale.unlink(missing_ok=True)
        self.best: dict | None = None
        self.last: dict | None = None
        self.step = 0
        self.stopped: int | None = None
        self._terms: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._flushed = time.monotonic()
        self._board = None

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            raise UserError(f"{self.folder} is in use by another run: {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"host {socket.gethostname()}, pid {os.getpid()}")
        self._lock.flush()

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()
        if self._board is not None:
            self._board.close()

    # -- state

    def resume(self, state: dict) -> int:
        """Restore every object of `state` from `last.pth` and return the step to go on from."""
        path = self.folder / "last.pth"
        if not path.exists():
            return 0
        saved = models.read_weights_file(path)
        if not isinstance(saved, dict) or not {"state", "options", "step"} <= saved.keys():
            raise UserError(f"{path} is not a run of ours to resume")
        if saved.get("format") != FORMAT:
            raise UserError(f"{path} is of format {saved.get('format')}; this is {FORMAT}")
        theirs = saved["options"]
        changed = [
            f"--{key.replace('_', '-')} {theirs[key]} -> {value}"
            for key, value in self.options.items()
            if key not in self.FREE and key in theirs and theirs[key] != value
        ]
        if changed:
            raise UserError(
                f"{path} was made with other options ({'; '.join(changed)}): "
                "give the same ones to resume, or another --snapshot-dir"
            )
        try:
            for key, item in state.items():
                item.load_state_dict(saved["state"][key])
        except (KeyError, RuntimeError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise UserError(f"{path} does not fit this run's networks: {cause}") from error
        self.best, self.last, self.step = saved["best"], saved["last"], saved["step"]
        self._cut_log(self.step)
        print(f"resuming {path} at step {self.step}", flush=True)
        return self.step

    def _cut_log(self, step: int) -> None:
        """Drop the log lines of steps that will be done again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            kept = []
            for line in log.read_text().splitlines(keepends=True):
                with contextlib.suppress(json.JSONDecodeError):  # torn by a kill
                    if json.loads(line).get("step", 0) <= step:
                        kept.append(line)
            write_text(log, "".join(kept))

    def save(self, state: dict) -> None:
        """Write `last.pth`: the state_dict of every object of `state`, and where the run is.

        Raises:
            UserError: a loss since the last look or a weight is not finite, or the file cannot be
                written. The old file is untouched.
        """
        self._read_terms(self._terms)
        self._refuse_not_finite(state["model"])
        value = {
            "format": FORMAT,
            "state": {key: item.state_dict() for key, item in state.items()},
            "step": self.step,
            "best": self.best,
            "last": self.last,
            "options": self.options,
        }
        save_atomic(value, self.folder / "last.pth")

    def publish(self, model: torch.nn.Module, suffix: str, score: dict | None) -> Path:
        """Write the model alone as `NAME_suffix.pth`, enough for evaluate.py.

        Raises:
            UserError: a parameter or buffer is not finite; nothing is written.
        """
        self._refuse_not_finite(model)
        path = self.folder / f"{self.name}_{suffix}.pth"
        checkpoint = {
            "format": FORMAT,
            "model": model.state_dict(),
            "arch": model.arch,
            "normalisation": model.normalisation,
            "step": self.step,
            "score": score,
            **self.meta,
        }
        save_atomic(checkpoint, path)
        return path

    def _refuse_not_finite(self, model: torch.nn.Module) -> None:
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(f"step {self.step}: {key} is not finite; no checkpoint is written")

    def scored(self, model: torch.nn.Module, score: dict) -> None:
        """Record a validation and publish the model, as best too when it is."""
        self.last = {"step": self.step, **score}
        self.publish(model, str(self.step), score)
        if self.best is None or score["miou"] > self.best["miou"]:
            self.best = self.last
            self.publish(model, "best", score)
        self.write_log({"step": self.step, "val_miou": score["miou"]})
        say(f"step {self.step}  val mIoU {score['miou']:.2f}  best {self.best['miou']:.2f}")

    # -- steps

    def steps(self, stop: int, seed: int) -> Iterator[int]:
        """Yield the steps left, each after reseeding; end early when a signal asked for it.

        While the body of step s runs, `self.step` is s + 1: the steps done once it ends. SIGINT,
        SIGTERM and SIGUSR2 only set a flag, looked at between steps: `self.stopped` is then the
        exit status to end with. A second Ctrl-C stops at once.
        """

        def ask(number: int, _frame) -> None:
            if number == signal.SIGINT and self.stopped is not None:
                raise KeyboardInterrupt
            self.stopped = 130 if number == signal.SIGINT else EXIT_PREEMPTED
            say("stopping after this step; Ctrl-C again stops at once")

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        before = {number: signal.signal(number, ask) for number in handled}
        bar = tqdm(total=stop, initial=self.step, unit="step", disable=None)  # on a terminal only
        try:
            while self.step < stop and self.stopped is None:
                seed_everything(seed, "step", self.step)
                self.step += 1
                yield self.step - 1
                bar.update()
        finally:
            bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def record(self, terms: dict[str, torch.Tensor], share: float = 1.0) -> None:
        """Keep a batch's loss terms; they are read once an interval (`flush`).

        Args:
            terms: name -> scalar, on any device.
            share: of the step that the batch is; a step's terms are added up.

        Raises:
            UserError: a term on the CPU is not finite. On a GPU, where looking would make the host
                wait, this is found by the next `flush` or `save`.
        """
        if not self._terms or self._terms[-1][0] != self.step:
            self._terms.append((self.step, {}))
        kept = self._terms[-1][1]
        for name, value in terms.items():
            kept[name] = kept.get(name, 0.0) + share * value.detach()
        if all(value.device.type == "cpu" for value in terms.values()):
            self._read_terms(self._terms[-1:])

    def _read_terms(self, kept: list[tuple[int, dict[str, torch.Tensor]]]) -> dict[str, float]:
        """Return the mean of each term kept, or raise UserError for one that is not finite."""
        values: dict[str, list[float]] = {}
        for step, terms in kept:
            for name, term in terms.items():
                value = term.item()
                if not math.isfinite(value):
                    raise UserError(f"step {step}: loss term {name} is {value}; {self._kept()}")
                values.setdefault(name, []).append(value)
        return {name: sum(seen) / len(seen) for name, seen in values.items()}

    def _kept(self) -> str:
        path = self.folder / "last.pth"
        return f"{path} is as it was" if path.exists() else "no checkpoint had been written"

    def stop_here(self, state: dict) -> None:
        """Save, say how to go on, and exit with the status that the signal asked for."""
        self.save(state)
        self.flush()
        say(f"stopped after step {self.step}; the same command resumes")
        sys.exit(self.stopped)

    def flush(self, rate: float | None = None) -> None:
        """Read the terms kept since the last flush, log their means, and print them as a line.

        Args:
            rate: the schedule's factor of the learning rate, to log.

        Raises:
            UserError: a term is NaN or infinite; says which, and at which step.
        """
        if not self._terms:
            return
        means = self._read_terms(self._terms)
        now = time.monotonic()
        steps_per_second = len(self._terms) / max(now - self._flushed, 1e-9)
        self._terms, self._flushed = [], now
        entry = {"step": self.step, "rate": rate, "steps_per_second": round(steps_per_second, 3)}
        self.write_log({**{k: v for k, v in entry.items() if v is not None}, **means})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        say(f"step {self.step}  {shown}  {steps_per_second:.2f} steps/s")

    def open_board(self) -> None:
        """Write scalars for TensorBoard too.

        Raises:
            UserError: the package is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard") from None
        self._board = SummaryWriter(str(self.folder))

    def write_log(self, entry: dict) -> None:
        """Append one JSON object to log.jsonl."""
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for key, value in entry.items():
                if key != "step":
                    self._board.add_scalar(key, value, entry["step"])
