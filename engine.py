"""What every script shares: errors, devices, seeds, loaders, schedules, checkpoints and runs."""

import fcntl
import hashlib
import json
import math
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import models
from errors import UserError

CHECKPOINT_FORMAT = 1
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", what the batch scripts requeue on
# A wait on a worker that died, or on a full disk, is the machine's fault and not a bug of ours.
_MACHINE_FAULTS = ("DataLoader worker", "DataLoader timed out")


def run(main: Callable, parse_args: Callable) -> None:
    """Parse, run, and turn a user's mistake into one line and exit status 2.

    A `UserError` raised inside a loader worker arrives wrapped in the worker's traceback; its own
    line is the last one.
    """
    args = parse_args()
    try:
        main(args)
    except UserError as error:
        line = str(error).strip().splitlines()[-1].removeprefix("errors.UserError: ")
        sys.exit(_fail(line))
    except OSError as error:
        sys.exit(_fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")))
    except RuntimeError as error:
        if not str(error).startswith(_MACHINE_FAULTS):
            raise
        sys.exit(_fail(str(error).splitlines()[0]))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return 2


# ------------------------------------------------------------------ device and precision


def pick_device(name: str) -> torch.device:
    """Return the device `name` means: auto, cpu, cuda or cuda:N."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32 for auto, bf16 or fp32.

    auto is bf16 on GPUs, and on CPUs that multiply bfloat16 in hardware (AVX512-BF16, AMX).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in `precision` (bf16 or fp32)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# ------------------------------------------------------------------ randomness


def seed_for(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed Python, NumPy and torch (all devices) from `parts`.

    The training loops call this with (seed, step) at the start of every step. Whatever a step
    draws then depends on nothing that happened before, so that a resumed run, a run with more
    validations or a run beside its control draws the same numbers and no generator state needs
    to be stored.
    """
    seed = seed_for(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- other people's code may draw from it
    torch.manual_seed(seed)


# ------------------------------------------------------------------ loading


class StepBatches:
    """Batches of indices for the steps `start`, `start + 1`, ...: epoch after epoch, shuffled.

    Batch `s` depends on (seed, s) alone: the loader's position is the step number.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0):
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.batch_size
        epoch, order = -1, []
        while True:
            batch = []
            while len(batch) < self.batch_size:
                if position // self.length != epoch:
                    epoch = position // self.length
                    shuffle = np.random.Generator(np.random.PCG64(seed_for(self.seed, epoch)))
                    order = shuffle.permutation(self.length).tolist()
                batch.append(order[position % self.length])
                position += 1
            yield batch


def _quiet_worker(_worker_id: int) -> None:
    """Leave Ctrl-C to the main process: it stops at a step boundary and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def make_loader(
    dataset: Dataset,
    *,
    num_workers: int,
    timeout_seconds: float = 0,
    pin_memory: bool = False,
    **how,
) -> DataLoader:
    """Return a loader; `how` is `batch_sampler=` or `batch_size=`."""
    return DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        timeout=timeout_seconds if num_workers else 0,
        # a generator of its own: by default making an iterator draws from the global one
        generator=torch.Generator(),
        pin_memory=pin_memory,
        # forkserver, Python 3.14's default, ends on a SIGTERM of its own
        multiprocessing_context="fork" if num_workers else None,
        **how,
    )


def step_batches(
    dataset: Dataset, batch_size: int, *, seed: int, start: int, device: torch.device, **loading
) -> Iterator[dict]:
    """Yield for ever the batches of the steps from `start` on, copied to `device`."""
    sampler = StepBatches(len(dataset), batch_size, seed, start)
    loader = make_loader(
        dataset, batch_sampler=sampler, pin_memory=device.type == "cuda", **loading
    )
    for batch in loader:
        yield {
            key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }


def join_datasets(datasets: list[Dataset]) -> Dataset:
    """Return one dataset of several with the same classes.

    Raises:
        UserError: the class names differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.class_names != first.class_names:
            raise UserError(f"{first.name} and {other.name} have different classes")
    if len(datasets) == 1:
        return first
    joined = ConcatDataset(datasets)
    for key in ("name", "num_classes", "class_names", "palette", "ignore_index"):
        setattr(joined, key, getattr(first, key))
    return joined


def class_weights(dataset: Dataset) -> torch.Tensor:
    """Return float32 [C]: sqrt(median frequency / frequency) of each class, within 0.3 to 4.

    Source: Eigen and Fergus 2015, section 4.2 (median frequency balancing), with a square root and
    bounds, as the raw weights of rare classes destabilise small batches. Classes that never occur
    weigh 1.
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset[index]["label"].numpy().ravel(), minlength=256)
    counts = counts[: dataset.num_classes].astype(np.float64)
    seen = counts > 0
    weights = np.ones_like(counts)
    weights[seen] = np.sqrt(np.median(counts[seen]) / counts[seen]).clip(0.3, 4.0)
    return torch.from_numpy(weights).float()


# ------------------------------------------------------------------ optimisation


def make_optimizer(
    name: str, groups: list[dict], *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD with momentum or AdamW over parameter groups that carry their own `lr`."""
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    if name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
    else:
        optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, weight_decay=weight_decay, fused=fused
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def poly_rate(step: int, num_steps: int, power: float, warmup_steps: int = 0) -> float:
    """Return the factor of the initial learning rate at `step`: linear warm-up, then poly.

    Source: (1 - step / num_steps) ** power, DeepLab (Chen et al. 2017, section 3.1).
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * (1 - min(step, num_steps) / num_steps) ** power


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate


@torch.no_grad()
def update_teacher(teacher: torch.nn.Module, student: torch.nn.Module, momentum: float, step: int):
    """Move the teacher to the student: t <- a t + (1 - a) s, a = min(1 - 1 / (step + 1), momentum).

    Source: Tarvainen and Valpola 2017 (mean teacher), with the ramp of DACS. Deviation from DACS:
    floating-point buffers (batch-norm statistics) are averaged too, integer ones copied; DACS
    leaves the teacher's buffers to its own forward passes.
    """
    momentum = min(1 - 1 / (step + 1), momentum)
    student_state = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(student_state[name], 1 - momentum)
        else:
            value.copy_(student_state[name])


# ------------------------------------------------------------------ models and checkpoints


def make_model(
    name: str,
    num_classes: int,
    model_options: dict,
    *,
    seed: int,
    device: torch.device,
    weights: tuple[str | None, ...] = (),
) -> torch.nn.Module:
    """Build a network for training, the same random weights for the same seed.

    Args:
        weights: what to load, one after the other: files, "imagenet", or None and "none" for
            nothing. What was loaded, skipped and missing is printed.
    """
    seed_everything(seed, "model")
    model = models.build_model(name, num_classes, **model_options)
    for source in weights:
        if source not in (None, "none"):
            print(models.load_weights(model, source), flush=True)
    return model.to(device, memory_format=torch.channels_last).train()


def save_atomic(value: dict, path: str | Path) -> None:
    """Write `value` with torch.save so that `path` holds either the old file or the whole new one.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(f"cannot write {path}: {cause}") from error


def load_checkpoint(path: str | Path) -> dict:
    """Return a checkpoint of ours.

    Raises:
        UserError: the file is missing, damaged, needs code to load, or is not one of ours.
    """
    value = models.read_weights_file(path)
    if not isinstance(value, dict) or "arch" not in value or "model" not in value:
        raise UserError(f"{path} is not a segshift checkpoint; give --model and load it as weights")
    if value.get("format", 0) > CHECKPOINT_FORMAT:
        raise UserError(f"{path} is of format {value['format']}; this is {CHECKPOINT_FORMAT}")
    return value


def load_model(path: str | Path, device: torch.device) -> tuple[torch.nn.Module, dict]:
    """Rebuild the model a checkpoint of ours describes, in eval mode on `device`.

    Returns:
        the model and the checkpoint without its tensors' key "model".
    """
    checkpoint = load_checkpoint(path)
    model = models.build_model(**checkpoint["arch"])
    models.load_state(model, checkpoint, str(path), strict=True)
    del checkpoint["model"]
    return model.eval().to(device, memory_format=torch.channels_last), checkpoint


# ------------------------------------------------------------------ a training run


class Run:
    """One training run in one snapshot folder: its lock, log, checkpoints, signals and steps.

    The folder holds `log.jsonl` (a line an interval), `last.pth` (everything, to resume from),
    `NAME_STEP.pth` and `NAME_best.pth` (models alone, for evaluate.py).

    Args:
        folder: snapshot folder, made if absent.
        name: prefix of the published checkpoints, the source's name.
        options: plain values; those not in `FREE` must be equal for a run to be resumed.
        meta: what a published checkpoint says beside the model (dataset, classes, palette, ...).

    Raises:
        UserError: the folder cannot be written or another run holds it.
    """

    # options that change no number of the run
    FREE = frozenset(
        {"snapshot_dir", "device", "num_workers", "loader_timeout", "print_every", "tensorboard"}
        | {"save_pred_every", "num_steps_stop", "data_dir", "data_dir_target"}
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
        theirs = saved["options"]
        changed = [
            f"--{key.replace('_', '-')} {theirs.get(key)} -> {value}"
            for key, value in self.options.items()
            if key not in self.FREE and theirs.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{path} was made with other options ({'; '.join(changed)}): "
                "give the same ones to resume, or another --snapshot-dir"
            )
        for key, item in state.items():
            item.load_state_dict(saved["state"][key])
        self.best, self.last, self.step = saved["best"], saved["last"], saved["step"]
        self._cut_log(self.step)
        print(f"resuming {path} at step {self.step}", flush=True)
        return self.step

    def _cut_log(self, step: int) -> None:
        """Drop the log lines of steps that will be done again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = log.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
            write_text(log, "".join(kept))

    def save(self, state: dict) -> None:
        """Write `last.pth`: the state_dict of every object of `state`, and where the run is.

        Raises:
            UserError: a loss since the last look was not finite, or the file cannot be written.
        """
        self._read_terms(self._terms)
        value = {
            "format": CHECKPOINT_FORMAT,
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
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(f"step {self.step}: {key} is not finite; no checkpoint is written")
        path = self.folder / f"{self.name}_{suffix}.pth"
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "model": model.state_dict(),
            "arch": model.arch,
            "normalisation": model.normalisation,
            "step": self.step,
            "score": score,
            **self.meta,
        }
        save_atomic(checkpoint, path)
        return path

    def scored(self, model: torch.nn.Module, score: dict) -> None:
        """Record a validation and publish the model, as best too when it is."""
        self.last = {"step": self.step, **score}
        self.publish(model, str(self.step), score)
        if self.best is None or score["miou"] > self.best["miou"]:
            self.best = self.last
            self.publish(model, "best", score)
        self.write_log({"step": self.step, "val_miou": score["miou"]})

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

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        before = {number: signal.signal(number, ask) for number in handled}
        try:
            while self.step < stop and self.stopped is None:
                seed_everything(seed, "step", self.step)
                self.step += 1
                yield self.step - 1
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def record(self, terms: dict[str, torch.Tensor]) -> None:
        """Keep this step's loss terms; they are read once an interval (`flush`).

        Raises:
            UserError: a term on the CPU is not finite. On a GPU, where looking would make the host
                wait, this is found by the next `flush` or `save`.
        """
        if self._terms and self._terms[-1][0] == self.step:
            self._terms[-1][1].update(terms)
        else:
            self._terms.append((self.step, dict(terms)))
        if all(value.device.type == "cpu" for value in terms.values()):
            self._read_terms(self._terms[-1:])

    def _read_terms(self, kept: list[tuple[int, dict[str, torch.Tensor]]]) -> dict[str, float]:
        """Return the mean of each term kept, or raise UserError for one that is not finite."""
        values: dict[str, list[float]] = {}
        for step, terms in kept:
            for name, term in terms.items():
                value = term.item()
                if not math.isfinite(value):
                    raise UserError(
                        f"step {step}: loss term {name} is {value}; "
                        f"the last good checkpoint is kept in {self.folder}"
                    )
                values.setdefault(name, []).append(value)
        return {name: sum(seen) / len(seen) for name, seen in values.items()}

    def flush(self, rate: float) -> str:
        """Read the terms kept since the last flush, log their means, and return them as a line.

        Raises:
            UserError: a term is NaN or infinite; says which, and at which step.
        """
        means = self._read_terms(self._terms)
        now = time.monotonic()
        steps_per_second = len(self._terms) / max(now - self._flushed, 1e-9)
        self._terms, self._flushed = [], now
        entry = {"step": self.step, "rate": rate, "steps_per_second": round(steps_per_second, 3)}
        self.write_log({**entry, **means})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        return f"step {self.step}  {shown}  rate {rate:.3f}  {steps_per_second:.2f} steps/s"

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


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
