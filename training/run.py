"""One training run: its folder, log, checkpoints, signals and steps."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

import models
from engine import processes
from engine.errors import UserError
from engine.files import UNFINISHED, save_tensors
from engine.locks import FolderLock
from engine.seeds import seed_everything
from engine.shapes import Either, Within, misfit
from engine.values import Saving
from models.checkpoint import FORMAT, save_checkpoint
from training.identity import Identity
from training.log import Log, say

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", what the batch scripts requeue on
# files of a run, see `Run`; NAME may be any
WRITTEN = re.compile(r"(.+_(\d+|best|finished)|last|previous)\.(pth|safetensors)")
# what a file to resume from holds; no score before the first validation, no digests in an old run
_SCORE = {"step": Within(0), "miou": float, ...: object}
SHAPE = {
    "format": int,
    "state": dict,
    "options": {...: object},
    "step": Within(0),
    "best?": Either(None, _SCORE),
    "last?": Either(None, {"step": Within(0), ...: object}),
    "digests?": Either(None, {...: str}),
    ...: object,
}


# what load_state_dict raises where a state is another's
FAULTS_OF_A_STATE = (LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def describe(
    dataset: Dataset, align_corners: bool, precision: str, average: float | None = None
) -> dict[str, Any]:
    """Return what a published checkpoint says beside its network: how it was scored, on what.

    Args:
        dataset: that it was scored on or, where it was not, that it is made for.
        align_corners, precision: how the network runs.
        average: the momentum of the average of weights that it is; None where it is none.
    """
    averaged = {} if average is None else {"weight_average": average}
    return averaged | {
        "dataset": dataset.name,
        "classes": dataset.class_names,
        "palette": dataset.palette,
        "ids": dataset.train_to_raw[: dataset.num_classes].tolist(),
        "data": dataset.arguments,
        "input_size": dataset.size,
        "align_corners": align_corners,
        "precision": precision,
    }


def make_folder(folder: str | Path, *start: str | None) -> None:
    """Make a snapshot folder, before anything else is done.

    Args:
        folder: of the run.
        start: files that the run begins with.

    Raises:
        UserError: it cannot be made, is a file, or the run would replace what it begins with.
    """
    for path in filter(None, start):
        if (
            WRITTEN.fullmatch(Path(path).name)
            and Path(path).resolve().parent == Path(folder).resolve()
        ):
            raise UserError(
                f"{path} would be written over by this run: give another --snapshot-dir"
            )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --snapshot-dir {folder}: {error.strerror}") from error


class Run:
    """One training run in one snapshot folder: its lock, log, checkpoints, signals and steps.

    The folder holds `log.jsonl` (a line an interval), `last.pth` (everything, to resume from),
    `previous.pth` (the one before, should `last.pth` be damaged), `NAME_STEP.pth` and
    `NAME_best.pth` (models alone, for evaluate.py). Of several processes the first one writes.

    Args:
        folder: snapshot folder, made if absent.
        name: prefix of the published checkpoints, the source's name.
        identity: what must be equal for the run to be resumed.
        meta: what a published checkpoint says beside the model; see `describe`.
        saving: what is written, and how often.

    Raises:
        UserError: the folder cannot be written or another run holds it.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        identity: Identity,
        meta: dict,
        saving: Saving = Saving(),  # noqa: B008 -- frozen
    ):
        self.folder, self.name, self.meta = Path(folder), name, meta
        self.saving, self.identity = saving, identity
        self.state: dict[str, Any] = {}
        problem = None
        if processes.rank() == 0:
            try:
                self._take_folder()
            except UserError as error:
                problem = str(error)
        problem = processes.gather(problem)[0]
        if problem is not None:
            raise UserError(problem)
        self._saved = time.monotonic()
        self._last_is_whole = True  # else `previous.pth` must stay the one before it
        self.best: dict | None = None
        self.last: dict | None = None
        self.step = self.stop = 0
        self.stopped: int | None = None
        self.log = Log(self.folder, identity.images_per_step)
        self.log.open_boards(saving.boards, identity.options)

    def _take_folder(self) -> None:
        """Make the folder, lock it and sweep what a killed process left half written."""
        make_folder(self.folder)
        try:
            self._lock = FolderLock(self.folder)
        except OSError as error:
            cause = f"cannot write --snapshot-dir {self.folder}: {error.strerror}"
            raise UserError(cause) from error
        for stale in self.folder.glob(f"{UNFINISHED}*.tmp"):
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the folder."""
        if processes.rank() == 0:
            self._lock.release()
        self.log.close()

    # -- state

    def resume(self, state: dict, new_schedule: bool = False) -> int:
        """Restore every object of `state` from `last.pth` and return the step to go on from.

        Args:
            state: what `save` writes from now on; `model` and whatever else has a state_dict.
            new_schedule: whether the number of steps may be another one.
        """
        self.state = state
        path, saved = self._newest()
        if saved is None:
            return 0
        self._check_parts(path, saved)
        if new_schedule:
            self.identity.take_schedule(saved["options"], saved["step"])
        self.identity.check(path, saved["options"], saved.get("digests") or {})
        try:
            for key, item in state.items():
                item.load_state_dict(saved["state"][key])
        except FAULTS_OF_A_STATE as error:
            cause = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise UserError(f"{path} does not fit this run's networks: {cause}") from error
        models.check_values(state["model"].state_dict(), str(path))
        self.best, self.last, self.step = saved.get("best"), saved.get("last"), saved["step"]
        self.log.cut(self.step)
        say(f"resuming {path} at step {self.step}")
        return self.step

    def _check_parts(self, path: Path, saved: object) -> None:
        """Raise UserError where a file is not a run of ours to resume."""
        content = saved if isinstance(saved, dict) else {}
        if not {"state", "options", "step"} <= content.keys():
            raise UserError(f"{path} is not a run of ours to resume")
        if content.get("format") != FORMAT:
            raise UserError(f"{path} is of format {content.get('format')}; this is {FORMAT}")
        if fault := misfit(content, SHAPE):
            raise UserError(f"{path}: its {fault}")

    def _newest(self) -> tuple[Path, dict | None]:
        """Return `last.pth` and what is in it, or `previous.pth` where the last one is damaged."""
        path, previous = self.folder / "last.pth", self.folder / "previous.pth"
        if not path.exists() and not previous.exists():
            return path, None
        try:
            return path, models.read_weights_file(path)
        except UserError as error:
            if not previous.exists():
                raise
            say(f"warning: {error}; going on from {previous}")
            self._last_is_whole = False
            return previous, models.read_weights_file(previous)

    def save(self) -> None:
        """Write `last.pth`: the state_dict of every object of the state, and where the run is.

        Raises:
            UserError: a loss since the last look or a weight is not finite, or the file cannot be
                written. The old file is untouched.
        """
        self.log.flush(self.step)  # the log is whole up to every step that can be resumed from
        self._refuse_not_finite(self.state["model"])
        self._saved = time.monotonic()
        if processes.rank() != 0:
            return
        value = {
            "format": FORMAT,
            "state": {key: item.state_dict() for key, item in self.state.items()},
            "step": self.step,
            "best": self.best,
            "last": self.last,
            "options": self.identity.options,
            "digests": self.identity.digests,
        }
        self._lock.renew()  # who deletes its file lets another run in
        keep = self.folder / "previous.pth" if self._last_is_whole else None
        save_tensors(value, self.folder / "last.pth", keep=keep)
        self._last_is_whole = True

    def publish(self, model: torch.nn.Module, suffix: str, score: dict | None) -> Path:
        """Write the model alone as `NAME_suffix`, enough for evaluate.py.

        Raises:
            UserError: a parameter or buffer is not finite; nothing is written.
        """
        self._refuse_not_finite(model)
        path = self.folder / f"{self.name}_{suffix}.{self.saving.format}"
        if processes.rank() != 0:
            return path
        checkpoint = {
            "format": FORMAT,
            "model": model.state_dict(),
            "arch": model.arch,
            "normalisation": model.normalisation,
            "step": self.step,
            "score": score,
            **self.meta,
        }
        save_checkpoint(checkpoint, path)
        return path

    def _refuse_not_finite(self, model: torch.nn.Module) -> None:
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(f"step {self.step}: {key} is not finite; no checkpoint is written")

    def scored(
        self,
        model: torch.nn.Module,
        score: dict | None,
        picture: Callable[[], np.ndarray] | None = None,
    ) -> None:
        """Record a validation and publish the model, as best too when it is.

        Args:
            model: in any mode.
            score: of `ConfusionMatrix.summary`; None where nothing is scored.
            picture: of the validation, for TensorBoard; see `Log.show`.
        """
        self.last = {"step": self.step, **(score or {})}
        path = self.publish(model, str(self.step), score)
        self._forget_old()
        if score is None:
            say(f"step {self.step}  wrote {path}, not scored")
            return
        if self.best is None or score["miou"] > self.best["miou"]:
            self.best = self.last
            self.publish(model, "best", score)
        also = {name: other["miou"] for name, other in score.get("also", {}).items()}
        entry = {"val_on": score["on"], "val_also": also} if also else {}
        entry |= {"step": self.step, "val_miou": score["miou"], "val_iou": score["iou"]}
        self.log.write(entry)
        if picture is not None:
            self.log.show(self.step, score, picture)
        of = f"({score['classes_scored']} of {len(score['iou'])} classes)"
        best = f"best {self.best['miou']:.2f}" + (f" on {score['on']}" if "on" in score else "")
        others = "".join(f"; {name} {miou:.2f}" for name, miou in also.items())
        say(f"step {self.step}  val mIoU {score['miou']:.2f} {of}  {best}{others}")

    def _forget_old(self) -> None:
        """Remove the published steps that are not among the newest `keep_last`."""
        if self.saving.keep_last is None or processes.rank() != 0:
            return
        steps = {path.stem.removeprefix(f"{self.name}_") for path in self.published()}
        for step in sorted(map(int, filter(str.isdecimal, steps)))[: -self.saving.keep_last]:
            for path in self.published(str(step)):
                path.unlink(missing_ok=True)

    def published(self, suffix: str = "*") -> list[Path]:
        """Return the checkpoints for evaluate.py that are in the folder, in either format."""
        names = (f"{self.name}_{suffix}.{ending}" for ending in ("pth", "safetensors"))
        return [path for name in names for path in self.folder.glob(name)]

    # -- steps

    def record(self, terms: dict[str, torch.Tensor], share: float = 1.0) -> None:
        """Keep a batch's loss terms of this step; see `Log.record`."""
        self.log.record(self.step, terms, share)

    def flush(self, rate: float) -> None:
        """Log and print the means of the terms kept; see `Log.flush`."""
        self.log.flush(self.step, rate, self.stop)

    @property
    def prints(self) -> bool:
        """Whether the log is due after the step in hand."""
        return self.step % self.saving.print_every == 0 or self.step == self.stop

    @property
    def scores(self) -> bool:
        """Whether a validation is due after the step in hand."""
        return self.step % self.saving.score_every == 0 or self.step == self.stop

    def steps(self, stop: int, seed: int) -> Iterator[int]:
        """Yield the steps left, each after reseeding; end early when a signal asked for it.

        While the body of step s runs, `self.step` is s + 1: the steps done once it ends. SIGINT,
        SIGTERM and SIGUSR2 only set a flag, looked at between steps and agreed on by all
        processes: `self.stopped` is then the exit status to end with. A second Ctrl-C stops at
        once. Every so many minutes the state is saved between two steps.
        """
        self.stop, asked = stop, 0

        def ask(number: int, _frame) -> None:
            nonlocal asked
            if number == signal.SIGINT and asked:
                raise KeyboardInterrupt
            asked = 130 if number == signal.SIGINT else EXIT_PREEMPTED
            say("stopping after this step; Ctrl-C again stops at once")

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        before = {number: signal.signal(number, ask) for number in handled}
        quiet = None if processes.rank() == 0 else True  # None: on a terminal only
        bar = tqdm(total=stop, initial=self.step, unit="step", disable=quiet)
        rank = processes.rank()
        try:
            while True:
                stopped, due = processes.largest(asked, self._save_is_due())
                self.stopped = stopped or None
                if self.step >= stop or stopped:
                    break
                if due:
                    self.save()
                # every process draws for images of its own
                seed_everything(seed, "step", self.step, *([rank] if rank else []))
                self.step += 1
                yield self.step - 1
                bar.update()
        finally:
            bar.close()
            if self.stopped is None:  # else `end_if_stopped` still saves: a second SIGTERM may come
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _save_is_due(self) -> bool:
        passed = time.monotonic() - self._saved
        return 0 < 60 * self.saving.every_minutes <= passed

    def end_if_stopped(self) -> None:
        """Where a signal asked for it, save, say how to go on, and exit with its status."""
        if self.stopped is None:
            return
        self.save()
        processes.stop()  # together: the first to exit makes srun end the one that still writes
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what srun then sends is no other end
        say(f"stopped after step {self.step}; the same command resumes")
        sys.exit(self.stopped)
