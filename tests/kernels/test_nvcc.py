"""Compile each CUDA source as torch would, for the architectures that this nvcc knows.

SEGSHIFT_CUDA_TORCH names the folder of a torch with CUDA's headers, where the one in use has none.
"""

import re
import shutil
import subprocess

import pytest

from kernels import build
from tools.benchmark import sass

ARCHITECTURES = ("80", "90", "100")


def test_every_cuda_source_is_built():
    found = sorted(path.name for path in build.HERE.glob("*.cu"))
    assert sorted(build.SOURCES["cuda"]) == found


@pytest.mark.parametrize("source", build.SOURCES["cuda"])
def test_nvcc_compiles(source, tmp_path):
    if sass.torch_folder() is None:
        pytest.skip("this torch has no CUDA headers, and SEGSHIFT_CUDA_TORCH is not set")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on the PATH")
    asked = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True)
    known = [sm for sm in ARCHITECTURES if f"compute_{sm}" in asked.stdout.split()]
    assert known
    command = [
        "nvcc",
        "-c",
        "--threads=0",
        "-Xcompiler=-fPIC",
        "-Xptxas=-v",
        "-o",
        str(tmp_path / "object.o"),
    ]
    command += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in known]
    command += [*sass.nvcc_flags(sass.torch_folder()), str(build.HERE / source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spilled = set(re.findall(r"(\d+) bytes spill stores", done.stderr))
    assert spilled == {"0"}, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
