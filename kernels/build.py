"""Compile and load the C++ and CUDA implementations, each at most once on a machine.

SEGSHIFT_KERNELS=auto (default) compiles what it can and falls back to the reference with one
warning; `reference` never compiles; `require` turns every reason to fall back into an error.

A library lives in a folder named by everything that shapes it (sources, torch, CUDA, flags,
architectures), below TORCH_EXTENSIONS_DIR, ~/.cache/segshift or the temporary folder, whichever
can be written first. A finished build is marked by a file `complete`: later imports neither lock
nor import torch's build system, which costs more than everything else here.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.errors import UserError

MODES = ("auto", "reference", "require")
HERE = Path(__file__).parent
LAST_LINES = 15
OPERATIONS = ("confusion", "confidence", "vote", "mix", "upsample")
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
    if {"-h", "--help"} & set(sys.argv[1:]):
        return dict.fromkeys(("cpu", "cuda"), "reference: --help compiles nothing")
    served_by = {"cpu": _load("cpu", "C++", mode)}
    absent = _why_no_cuda()
    if absent and mode == "require" and torch.cuda.is_available():
        raise RuntimeError(f"SEGSHIFT_KERNELS=require, but no CUDA kernels: {absent}")
    served_by["cuda"] = f"reference: {absent}" if absent else _load("cuda", "CUDA", mode)
    return served_by


def _why_no_cuda() -> str:
    """Name what is missing for a CUDA build; empty if nothing is."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return "no CUDA device, and TORCH_CUDA_ARCH_LIST is not set"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if not shutil.which("nvcc") and not any(Path(h, "bin/nvcc").exists() for h in homes if h):
        return "no nvcc: install the CUDA toolkit or set CUDA_HOME"
    return ""


def _load(device: str, language: str, mode: str) -> str:
    try:
        path = _find_or_compile(device)
        torch.ops.load_library(path)
    except Exception as error:  # whatever a toolchain can throw: the reference still serves
        reason = "\n".join(str(error).strip().splitlines()[-LAST_LINES:])
        if mode == "require":
            raise RuntimeError(
                f"SEGSHIFT_KERNELS=require, but no {language} kernels: {reason}"
            ) from error
        warnings.warn(
            f"slower plain-torch kernels serve {device}, as the {language} ones failed to build:\n"
            f"{reason}\nSEGSHIFT_KERNELS=reference silences this.",
            stacklevel=2,
        )
        return f"reference: {language} failed to build"
    return f"{language} ({path})"


def _find_or_compile(device: str) -> Path:
    name = f"segshift_{device}"
    sources = [HERE / file for file in SOURCES[device]]
    architectures = _architectures() if device == "cuda" else ""
    key = [torch.__version__, torch.version.cuda, sys.platform, os.uname().machine, architectures]
    key += CPU_FLAGS + CUDA_FLAGS
    key += [file.read_text() for file in [*sources, *sorted(HERE.glob("*.h"))]]
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    folders = [base / f"{name}_{digest}" for base in _cache_folders()]
    for folder in folders:
        if (folder / "complete").exists():
            return folder / f"{name}.so"
    folder = _first_writable(folders)
    with _locked(folder / "segshift.lock"):
        if not (folder / "complete").exists():  # else another process built while this one waited
            # torch waits for ever on its own lock if the process that made it was killed.
            (folder / "lock").unlink(missing_ok=True)
            print(f"compiling {name}, once on this machine", file=sys.stderr, flush=True)
            _compile(name, sources, folder, architectures)
            (folder / "complete").touch()
    return folder / f"{name}.so"


def _architectures() -> str:
    """Return TORCH_CUDA_ARCH_LIST, or the compute capabilities of the visible devices."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed
    devices = range(torch.cuda.device_count())
    return ";".join(sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in devices}))


def _cache_folders() -> list[Path]:
    folders = [Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/segshift").expanduser()]
    temporary = Path(tempfile.gettempdir()) / f"segshift-{os.getuid()}"
    # Anyone may have made that one: what another user put there must not be loaded.
    if not temporary.exists() or temporary.stat().st_uid == os.getuid():
        folders.append(temporary)
    return folders


def _first_writable(folders: list[Path]) -> Path:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise RuntimeError(f"none of {', '.join(map(str, folders))} can be written")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an operating system lock, which dies with its process."""
    import fcntl  # not on Windows, where the reference has to do

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(name: str, sources: list[Path], folder: Path, architectures: str) -> None:
    from torch.utils import cpp_extension  # half a second that a warm start does not pay

    # The virtual environment's ninja need not be on PATH, say under `.venv/bin/python train.py`.
    environment = {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
    if architectures:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    with _environment(environment):
        cpp_extension.load(
            name,
            [str(source) for source in sources],
            extra_cflags=CPU_FLAGS,
            extra_cuda_cflags=CUDA_FLAGS,
            extra_ldflags=["-fopenmp"] if "-fopenmp" in CPU_FLAGS else [],
            build_directory=str(folder),
            with_cuda=sources[0].suffix == ".cu",
            is_python_module=False,
        )


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
