"""Compile and load the C++ and CUDA implementations, each at most once on a machine.

SEGSHIFT_KERNELS=auto (default) compiles what it can and falls back to the reference with one
warning; `reference` never compiles; `require` turns every reason to fall back into an error.

A library lives in a folder named by everything that shapes it (sources, torch, CUDA, flags,
architectures), below TORCH_EXTENSIONS_DIR, ~/.cache/segshift or the temporary folder: the first
that can be written and that nobody else can write. A finished one (see `cache`) is loaded without
a lock and without importing torch's build system, which costs more than everything else here; one
that is damaged, or that fails to load, is built once again.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from engine import locks
from engine.errors import UserError
from kernels import cache, toolkit

MODES = ("auto", "reference", "require")
HERE = Path(__file__).parent
LAST_LINES = 15
OPERATIONS = ("boundary", "confidence", "confusion", "mix", "soft_vote", "upsample", "vote")
FORMAT = 2  # of what lies beside a library
FAILED_TO_LOAD = "it failed to load"
SOURCES = {
    "cpu": [f"{name}_cpu.cpp" for name in OPERATIONS],
    "cuda": [f"{name}_cuda.cu" for name in OPERATIONS],
}

# Contraction into fused multiply-adds would make results depend on the machine.
CPU_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
if sys.platform == "linux":
    CPU_FLAGS.append("-fopenmp")
CUDA_FLAGS = ["-O3", "--fmad=false"]


def load() -> dict[str, str]:
    """Load what can be compiled and say for each device type what serves it.

    Returns:
        {"cpu": ..., "cuda": ...} as `kernels.backend` returns them.

    Raises:
        RuntimeError: if SEGSHIFT_KERNELS is `require` and a present device lacks its library.
        UserError: if it is none of the three modes.
    """
    mode = os.environ.get("SEGSHIFT_KERNELS", "auto")
    if mode not in MODES:
        raise UserError(f"SEGSHIFT_KERNELS={mode}: choose one of {', '.join(MODES)}")
    if mode == "reference":
        return dict.fromkeys(("cpu", "cuda"), "reference: SEGSHIFT_KERNELS=reference")
    if not hasattr(os, "getuid"):
        return dict.fromkeys(("cpu", "cuda"), "reference: no kernels are written for Windows")
    if {"-h", "--help"} & set(sys.argv[1:]):
        return dict.fromkeys(("cpu", "cuda"), "reference: --help compiles nothing")
    served_by = {"cpu": _load("cpu", "C++", mode)}
    absent = toolkit.why_not()
    if absent and mode == "require" and torch.cuda.is_available():
        raise RuntimeError(f"SEGSHIFT_KERNELS=require, but no CUDA kernels: {absent}")
    served_by["cuda"] = f"reference: {absent}" if absent else _load("cuda", "CUDA", mode)
    return served_by


def _load(device: str, language: str, mode: str) -> str:
    try:
        path = _find_or_compile(device)
        try:
            torch.ops.load_library(path)
        except OSError as error:
            path = _find_or_compile(device, f"{FAILED_TO_LOAD}: {_innermost(error)}")
            torch.ops.load_library(path)
    except Exception as error:  # whatever a toolchain can throw: the reference still serves
        lines = str(_innermost(error)).strip().splitlines() or [repr(error)]
        reason = "\n".join(lines[-LAST_LINES:])
        if mode == "require":
            raise RuntimeError(
                f"SEGSHIFT_KERNELS=require, but no {language} kernels: {reason}"
            ) from error
        failed = f"{language} failed to {'load' if isinstance(error, OSError) else 'build'}"
        warnings.warn(
            f"slower plain-torch kernels serve {device}, as {failed}:\n"
            f"{reason}\nSEGSHIFT_KERNELS=reference silences this.",
            stacklevel=2,
        )
        return f"reference: {failed}: {_cause(lines)}"
    rebuilt = (cache.record(path.parent) or {}).get("rebuilt")
    return f"{language} ({path})" + (f", rebuilt: {rebuilt}" if rebuilt else "")


def _innermost(error: BaseException) -> BaseException:
    """Return what the system said: torch names only the library that it could not load."""
    while isinstance(error, OSError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _cause(lines: list[str]) -> str:
    """Return the line that names the cause: of a compiler's many, the first that says so."""
    named = [line for line in lines if re.search(r"error: |not found|[Cc]annot (find|open)", line)]
    return " ".join((named or lines[-1:])[0].split())


def _find_or_compile(device: str, fault: str = "") -> Path:
    """Return the library of a device, built if there is none or the one there is not whole.

    Args:
        device: a key of SOURCES.
        fault: why the one that is there has to be built again, which is done once.
    """
    name = f"segshift_{device}"
    sources = [HERE / file for file in SOURCES[device]]
    architectures = toolkit.architectures() if device == "cuda" else ""
    key = [
        FORMAT,
        torch.__version__,
        torch.version.cuda,
        sys.platform,
        platform.machine(),
        architectures,
    ]
    key += CPU_FLAGS + CUDA_FLAGS
    key += [file.read_text() for file in [*sources, *sorted(HERE.glob("*.h"))]]
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    folders = [root / f"{name}_{digest}" for root in cache.roots()]
    if not fault:
        for folder in filter(_may_be_used, folders):
            if cache.fault(folder / f"{name}.so") == "":
                return folder / f"{name}.so"
    folder = _first_writable(folders)
    library = folder / f"{name}.so"
    with (folder / "segshift.lock").open("a") as lock, locks.waited_for(lock) as alone:
        found = cache.fault(library)
        if found == "" and not _rebuilt_for(fault, library):
            found = fault
        if found != "":  # else another process built while this one waited
            again = f" again, as {found}" if found else ""
            for left in folder.glob("build-*") if alone else ():  # by builds that were killed
                shutil.rmtree(left, ignore_errors=True)
            print(f"compiling {name}, once on this machine{again}", file=sys.stderr, flush=True)
            _compile(name, sources, library, architectures, found or "")
    return library


def _rebuilt_for(fault: str, library: Path) -> bool:
    noted = cache.record(library.parent) or {}
    return not fault or str(noted.get("rebuilt")).startswith(FAILED_TO_LOAD)


def _may_be_used(folder: Path) -> bool:
    """Say whether libraries may be loaded from a folder; warn where others could have put them."""
    try:
        cache.check(folder)
    except cache.Refused as refusal:
        _warn(f"no library is kept or loaded there: {refusal}")
        return False
    except OSError:  # none there yet, or none that can be read
        return False
    return True


@functools.cache
def _warn(sentence: str) -> None:
    print(f"warning: kernels: {sentence}", file=sys.stderr, flush=True)


def _first_writable(folders: list[Path]) -> Path:
    for folder in folders:
        try:
            cache.make(folder)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except cache.Refused as refusal:
            _warn(f"no library is kept or loaded there: {refusal}")
        except OSError:
            continue
    raise RuntimeError(f"none of {', '.join(map(str, folders))} can be used to keep the library")


def _compile(
    name: str, sources: list[Path], library: Path, architectures: str, rebuilt: str
) -> None:
    """Build a library in a folder of its own, and put it into its place."""
    from torch.utils import cpp_extension  # half a second that a warm start does not pay

    # The virtual environment's ninja need not be on PATH, say under `.venv/bin/python train.py`.
    environment = {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
    if sources[0].suffix == ".cu":
        cpp_extension.CUDA_HOME = toolkit.home()
        kept = toolkit.known_architectures(architectures, cpp_extension.CUDA_HOME)
        environment["TORCH_CUDA_ARCH_LIST"] = kept
        print(f"with {cpp_extension.CUDA_HOME} for {kept}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder,
        _environment(environment),
    ):
        try:
            cpp_extension.load(
                name,
                [str(source) for source in sources],
                extra_cflags=CPU_FLAGS,
                extra_cuda_cflags=CUDA_FLAGS,
                extra_ldflags=["-fopenmp"] if "-fopenmp" in CPU_FLAGS else [],
                build_directory=folder,
                with_cuda=sources[0].suffix == ".cu",
                is_python_module=False,
            )
        except OSError:  # built, but it cannot be loaded: our caller says so
            if not list(Path(folder).glob("*.so")):
                raise
        (built,) = Path(folder).glob("*.so")  # torch numbers the second one of a process
        cache.finish(built, library, rebuilt)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
