"""Plant faults into the CUDA sources: the emulator is worth what it notices of them."""

import os
import re
import subprocess
import sys

import pytest
import torch

import emulate
from kernels import build, reference
from worlds import ROOT

CONFUSION = build.HERE / "confusion_cuda.cu"
FAULTS = {
    "guard": ("i < pixels; i += kThreads", "i < pixels + 9; i += kThreads", "differs"),
    "sync": ("counters[i] = 0;\n  __syncthreads();", "counters[i] = 0;", "differs"),
    "sync of some": ("counters[i] = 0;\n  __syncthreads();",
                     "counters[i] = 0;\n  if (threadIdx.x % 2) __syncthreads();", "wait for ever"),
    "pack": ("return aligned ? result : result.clone();", "return result;", "not aligned"),
    "shared": ("copies * bytes,", "copies * bytes - 4,", "past its end"),
    "mask": ("__shfl_up_sync(kAllLanes,", "__shfl_up_sync(kAllLanes << 1,", "the mask lacks"),
    "lanes": ("const int before =", "if (run == 1) __syncthreads();\n  const int before =",
              "wait for ever"),
    "stream": ("c10::cuda::getCurrentCUDAStream()", "{nullptr}", "another stream"),
    "device": ("const c10::cuda::CUDAGuard guard(pred.device());", "", "without a device guard"),
    "check": ("C10_CUDA_KERNEL_LAUNCH_CHECK();", "", "was not checked"),
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty():
    names = {name: f"segshift_faulty_{name.replace(' ', '_')}" for name in FAULTS}
    emulate.serve([emulate.Unit(names[n], CONFUSION, FAULTS[n][:2]) for n in FAULTS])
    return {name: getattr(torch.ops, names[name]) for name in FAULTS}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(faulty, name):
    memory = torch.randint(0, 9, (10_000,), dtype=torch.uint8, generator=torch.manual_seed(0))
    pred, label = memory[1:5001], memory[2:5002]  # not aligned, and more behind the end

    def count_twice(operators):  # the second call finds out what the first did not check
        operators.confusion_matrix(pred, label, 5, 255)
        return operators.confusion_matrix(pred, label, 5, 255)

    expected = reference.confusion_matrix(pred, label, 5, 255)
    if FAULTS[name][2] == "differs":
        assert not torch.equal(count_twice(faulty[name]), expected)
    else:
        with pytest.raises(RuntimeError, match=FAULTS[name][2]):
            count_twice(faulty[name])
    assert torch.equal(count_twice(emulate.operators()), expected)


def run_sanitized(*command):
    """Run Python with the address sanitizer loaded before everything else, as it wants to be."""
    compiler = os.environ.get("CXX", "c++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(map(os.path.isabs, found)):
        pytest.skip(f"{compiler} has no libasan.so to load")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "SEGSHIFT_EMULATOR": "sanitized",
        "SEGSHIFT_KERNELS": "reference",
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tests", ROOT / "tests/kernels"])),
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )


@pytest.mark.slow
def test_kernels_under_sanitizers():
    done = run_sanitized(*"-m pytest -s tests/kernels/test_kernels.py -k emulated".split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{3} passed", done.stdout), done.stdout


@pytest.mark.slow
def test_a_write_past_the_end_is_noticed_by_sanitizers():
    done = run_sanitized(
        "-c",
        "import torch, kernels, emulate;"
        "fault = ('if (number >= stretches_x) continue;', '');"
        "source = kernels.build.HERE / 'upsample_cuda.cu';"
        "emulate.serve([emulate.Unit('segshift_faulty', source, fault)]);"
        "torch.ops.segshift_faulty.argmax_upsample(torch.rand(1, 2, 2, 2), [3, 3], False, False)",
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
