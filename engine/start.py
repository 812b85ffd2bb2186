"""How every script begins and ends: parse, join other processes, run, one line for a mistake."""

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

# A loader worker that died or hangs, or another process that ended, is no bug of ours.
_WORKER = "DataLoader worker"
_MACHINE_FAULTS = ("DataLoader timed out", "/gloo/")


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
    """End with one line for what is no bug of ours; raise the error again where it is one.

    A `UserError` raised inside a loader worker arrives wrapped in the worker's traceback; its own
    line is the last one. A worker that dies is met as whatever the main process was doing with it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more
    if isinstance(error, UserError):
        in_worker = f"{UserError.__module__}.UserError: "
        _fail(str(error).strip().splitlines()[-1].removeprefix(in_worker))
    death = _death_of_a_worker(error)
    if death:
        for worker in multiprocessing.active_children():
            worker.kill()
        _fail(f"{death}; --num-workers 0 reads in this process", at_once=True)
    if isinstance(error, OSError):
        _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    if isinstance(error, RuntimeError) and any(fault in str(error) for fault in _MACHINE_FAULTS):
        _fail(str(error).splitlines()[0])
    raise error


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
    shown = f"error: {line} (process {processes.rank()})" if several else f"error: {line}"
    print(shown, file=sys.stderr, flush=True)
    if not (several or at_once):
        sys.exit(2)
    sys.stdout.flush()
    os._exit(2)
