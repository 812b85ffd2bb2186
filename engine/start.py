"""How every script begins and ends: parse, join other processes, run, one line for a mistake."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import torch

from engine import processes
from engine.errors import UserError

_WORKER = "DataLoader worker"
_HERE = "--num-workers 0 reads in this process"
_SMALLER = "a smaller batch, crop or --input-size needs less, and --checkpoint-activations"
# What a machine's faults are called by torch, none of them a bug of ours, and what helps.
FAULTS = {
    "shared memory": f"/dev/shm is full; {_HERE}",
    "</torch_": f"/dev/shm is full; {_HERE}",
    "out of memory": _SMALLER,
    "can't allocate memory": _SMALLER,
    "Cannot allocate memory": _SMALLER,
    "can't start new thread": "this machine allows no more threads (ulimit -u)",
    "DataLoader timed out": f"--loader-timeout allows more; {_HERE}",
    "/gloo/": "another process has ended or cannot be reached",
    "NCCL error": "another process has ended or cannot be reached",
}


def run(main: Callable, parse_args: Callable) -> None:
    """Parse, run, and turn a mistake or a machine's fault into one line and exit status 2."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        print(
            f"warning: torch {torch.__version__} has known holes in loading checkpoints safely; "
            "2.10 or newer has not",
            file=sys.stderr,
        )
    try:
        try:
            args = parse_args()
            processes.start()
            if processes.rank() > 0:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- process 0 speaks for all
            main(args)
            processes.stop()
        except Exception as error:
            _end(error)
    except RuntimeError as error:  # the news of a loader worker's death comes at any moment
        _end(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: Exception) -> NoReturn:
    """End with one line for what is no bug of ours; raise the error again where it is one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more
    if isinstance(error, UserError):
        _fail(_innermost(error, UserError))
    if not _raised_in_worker(error):
        death = _death_of_a_worker(error)
        if death:
            for worker in multiprocessing.active_children():
                worker.kill()
            _fail(f"{death}; {_HERE}", at_once=True)
    if isinstance(error, (MemoryError, OSError, RuntimeError)):
        cause = _innermost(error, type(error)) or "out of memory"
        helps = next((helps for fault, helps in FAULTS.items() if fault in cause), None)
        if helps is not None:
            _fail(f"{cause.splitlines()[0]}: {helps}")
    if isinstance(error, OSError) and not error.strerror:
        _fail(_innermost(error, type(error)))
    if isinstance(error, OSError):
        _fail(f"{error.filename or ''}: {error.strerror}".removeprefix(": "))
    raise error


def _raised_in_worker(error: Exception) -> bool:
    """Return whether an error was raised in a loader worker that lives: torch wraps it."""
    return str(error).startswith("Caught ") and _WORKER in str(error)


def _innermost(error: Exception, kind: type[Exception]) -> str:
    """Return an error's message; of one that was raised in a worker, what its traceback ends in."""
    if not _raised_in_worker(error):
        return str(error).strip()
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return str(error).rpartition(f"\n{name}")[2].strip(": \n")


def _death_of_a_worker(error: Exception) -> str:
    """Return what is known of a loader worker that died, empty where none did."""
    # a broken connection is known before the death itself is
    broken = isinstance(error, (ConnectionError, EOFError)) and multiprocessing.active_children()
    for _ in range(20 if broken else 1):
        try:
            torch._C._error_if_any_worker_fails()
        except RuntimeError as found:
            return str(found).strip().rstrip(".")
        time.sleep(0.05 if broken else 0)
    met: BaseException | None = error
    while met is not None:
        if _WORKER in str(met):
            return str(met).splitlines()[0].strip().rstrip(".")
        met = met.__cause__ or met.__context__
    return f"{_WORKER}: the connection to it broke" if broken else ""


def _fail(line: str, at_once: bool = False) -> NoReturn:
    """Print one line and exit with status 2.

    At once where something may be waited for in vain: a dead worker, or, of several processes, the
    others, whom `processes.stop` waits for.
    """
    several = processes.world_size() > 1
    line = printable(line)
    shown = f"error: {line} (process {processes.rank()})" if several else f"error: {line}"
    print(shown, file=sys.stderr, flush=True)
    _tell_launcher(shown)
    if not (several or at_once):
        sys.exit(2)
    sys.stdout.flush()
    os._exit(2)


def _tell_launcher(line: str) -> None:
    """Let torchrun say the line too, at the end of the forty lines that it prints of a failure."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": line, "timestamp": int(time.time())}, file)


def printable(text: str) -> str:
    """Return a text as one line: what a terminal would act on is written out, as in Python."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
