"""Find the CUDA toolkit, and what it can compile for."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

LOWEST = (8, 0)  # compute capability: older devices have no __reduce_add_sync
OLDER = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")  # names that TORCH_CUDA_ARCH_LIST knows
USUAL_HOME = "/usr/local/cuda"


def why_not() -> str:
    """Name what is missing for a CUDA build; empty if nothing is."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if (capability := torch.cuda.get_device_capability(index)) < LOWEST:
            return "{} is of compute capability {}.{}, the kernels need {}.{}".format(
                torch.cuda.get_device_name(index), *capability, *LOWEST
            )
    if not architectures():
        if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
            return "TORCH_CUDA_ARCH_LIST={} names none from {}.{} on".format(listed, *LOWEST)
        return "no CUDA device, and TORCH_CUDA_ARCH_LIST is not set"
    homes = [*_given_home(), USUAL_HOME]
    if not shutil.which("nvcc") and not any(Path(home, "bin/nvcc").exists() for home in homes):
        return "no nvcc: install the CUDA toolkit or set CUDA_HOME"
    return ""


def _given_home() -> list[str]:
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return [given] if given else []


def architectures() -> str:
    """Return what to compile for, as TORCH_CUDA_ARCH_LIST has it, in its order and without repeats.

    That is what the variable names, else what the visible devices are, less what the kernels do not
    run on; empty if nothing is left.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if listed and listed != "native":
        words = [word for word in re.split(r"[\s;,]+", listed) if word]
        return ";".join(dict.fromkeys(word for word in words if _runs(word)))
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    capabilities = sorted({torch.cuda.get_device_capability(index) for index in devices})
    return ";".join("{}.{}".format(*each) for each in capabilities if each >= LOWEST)


def _runs(word: str) -> bool:
    """Say whether the kernels run on an architecture; what is no known word is left to torch."""
    capability = _capability(word)
    return capability >= LOWEST if capability else not word.startswith(OLDER)


def _capability(word: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d)", word)
    return match and (int(match[1]), int(match[2]))


def known_architectures(wanted: str, home: str) -> str:
    """Leave out of a list what this nvcc does not know; if it knows none, take its newest as PTX.

    Args:
        wanted: as `architectures` returns it.
        home: the toolkit's folder.
    """
    answer = _output([f"{home}/bin/nvcc", "--list-gpu-arch"])
    known = {divmod(int(number), 10) for number in re.findall(r"compute_(\d+)", answer)}
    if not known:  # an nvcc before 11.2 does not list them
        return wanted
    words = wanted.split(";")
    kept = [word for word in words if _capability(word) is None or _capability(word) in known]
    return ";".join(kept) or "{}.{}+PTX".format(*max(known))


def home() -> str:
    """Return the folder of the toolkit to compile with.

    CUDA_HOME and CUDA_PATH decide where they are set. Else it is that of the nvcc on the PATH,
    behind whatever wrapper or link, or /usr/local/cuda: the first whose libraries are there. torch
    would take the parent of the folder in which the wrapper or link lies, compile for minutes and
    fail to link.

    Raises:
        RuntimeError: none holds the CUDA runtime library.
    """
    candidates = _given_home() or [*_homes_of_nvcc(), USUAL_HOME]
    candidates = [path for path in candidates if Path(path, "bin/nvcc").exists()]
    for path in candidates:
        if any(Path(path, folder, "libcudart.so").exists() for folder in ("lib64", "lib")):
            return path
    if candidates and _linker_finds_cudart(candidates[0]):  # in a folder of the system
        return candidates[0]
    raise RuntimeError(
        "no lib64/libcudart.so in the CUDA toolkit (looked in: "
        f"{', '.join(candidates) or 'none found'}): set CUDA_HOME to the folder that holds it"
    )


def _homes_of_nvcc() -> list[str]:
    """Return the toolkit's folder as nvcc itself names it, then with links followed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    said = re.search(r"_HERE_=(.+)", _output([nvcc, "--dryrun", "-c", "any.cu"]))
    programs = [Path(said[1].strip(), "nvcc")] if said else []
    programs += [program.resolve() for program in [*programs, Path(nvcc)]]
    return [str(program.parent.parent) for program in programs]


def _linker_finds_cudart(path: str) -> bool:
    command = [os.environ.get("CXX", "c++"), "-shared", "-x", "c++", os.devnull, "-o", os.devnull]
    command += [f"-L{path}/lib64", f"-L{path}/lib", "-lcudart"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(command: list[str]) -> str:
    """Return what a program prints, on either stream; nothing if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
