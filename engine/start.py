"""How every script begins and ends: parse, join other processes, run, one line for a mistake."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from engine import processes
from engine.errors import UserError

# A loader worker that died or hangs, or another process that ended, is no bug of ours.
_MACHINE_FAULTS = ("DataLoader worker", "DataLoader timed out", "/gloo/")


def run(main: Callable, parse_args: Callable) -> None:
    """Parse, run, and turn a user's mistake into one line and exit status 2.

    A `UserError` raised inside a loader worker arrives wrapped in the worker's traceback; its own
    line is the last one.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        print(
            f"warning: torch {torch.__version__} has known holes in loading checkpoints safely; "
            "2.10 or newer has not",
            file=sys.stderr,
        )
    try:
        args = parse_args()
        processes.start()
        if processes.rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- process 0 speaks for all
        main(args)
        processes.stop()
    except UserError as error:
        in_worker = f"{UserError.__module__}.UserError: "
        _fail(str(error).strip().splitlines()[-1].removeprefix(in_worker))
    except OSError as error:
        _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except RuntimeError as error:
        if not any(fault in str(error) for fault in _MACHINE_FAULTS):
            raise
        _fail(str(error).splitlines()[0])
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(line: str) -> NoReturn:
    """Print one line and exit with status 2."""
    if processes.world_size() == 1:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    print(f"error: {line} (process {processes.rank()})", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)  # at once: `processes.stop` would wait for processes that may never come
