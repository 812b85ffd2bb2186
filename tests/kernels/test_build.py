"""Check how the kernels are built and kept: processes at once, faults of machines, other users."""

import os
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

import kernels
from kernels import cache, toolkit
from worlds import ROOT

BUILD_TINY = """
import sys
from kernels import build
build.SOURCES["cpu"] = [sys.argv[1]]
if sys.argv[2:] == ["load"]:
    print(build._load("cpu", "C++", "auto"))
else:
    print(build._find_or_compile("cpu"))
"""


@pytest.fixture
def tiny(tmp_path):
    """Return a source that compiles at once, and an environment in which builds are logged."""
    source, compiler = tmp_path / "tiny.cpp", tmp_path / "compiler"
    source.write_text("int nothing() { return 0; }\n")
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/runs\n$BEFORE\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "SEGSHIFT_KERNELS": "reference",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"),
    }
    return source, environment


def start(command, environment):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output, errors


def test_processes_at_once_build_once(tiny, tmp_path):
    source, environment = tiny
    started = [start(["-c", BUILD_TINY, source], environment) for _ in range(4)]
    paths = {finish(process)[0] for process in started}
    assert len(paths) == 1
    assert Path(paths.pop().strip()).is_file()
    assert (tmp_path / "runs").read_text().count(f"-c {source}") == 1


def test_build_after_a_killed_one(tiny, tmp_path):
    source, environment = tiny
    killed = start(["-c", BUILD_TINY, source], {**environment, "BEFORE": "sleep 600"})
    while not (tmp_path / "runs").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob("cache/*/build-*/lock"))  # which torch alone would wait for, for ever
    assert Path(finish(start(["-c", BUILD_TINY, source], environment))[0].strip()).is_file()
    assert not list(tmp_path.glob("cache/*/build-*"))  # nor does anything stay


def test_build_without_home_or_ninja_on_the_path(tiny, tmp_path):
    if not Path(sysconfig.get_path("scripts"), "ninja").exists():
        pytest.skip("this environment has no ninja of its own")
    source, environment = tiny
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("c++", "as", "ld", "sh", "which"):
        found = subprocess.run(["which", tool], capture_output=True, text=True).stdout.strip()
        (tools / tool).symlink_to(found)
    environment.update(PATH=str(tools), HOME="/dev/null/nowhere", TMPDIR=str(tmp_path))
    del environment["TORCH_EXTENSIONS_DIR"]
    path, _ = finish(start(["-c", BUILD_TINY, source], environment))
    assert Path(path).is_relative_to(tmp_path)


def test_failed_build_warns_or_raises(tmp_path):
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    auto = start(["-m", "kernels"], {**environment, "SEGSHIFT_KERNELS": "auto"})
    require = start(["-m", "kernels"], {**environment, "SEGSHIFT_KERNELS": "require"})
    output, errors = finish(auto)
    assert "cpu: reference: C++ failed to build: " in output
    assert "/nowhere/c++: not found" in output
    assert errors.count("UserWarning") == 1
    assert "/nowhere/c++" in errors
    assert "SEGSHIFT_KERNELS=reference silences this" in errors
    _, errors = require.communicate(timeout=60)
    assert require.returncode != 0
    assert "SEGSHIFT_KERNELS=require, but no C++ kernels" in errors


def test_modes_and_the_cost_of_a_warm_import():
    if not kernels.backend("cpu").startswith("C++"):
        pytest.skip("the C++ kernels are not compiled")
    report = "import sys, kernels; print(kernels.backend('cpu'), 'setuptools' in sys.modules,"
    report += "'torch.utils.cpp_extension' in sys.modules)"
    processes = {
        mode: start(["-c", report], {**os.environ, "SEGSHIFT_KERNELS": mode})
        for mode in ("require", "auto", "reference", "fast")
    }
    for mode in ("require", "auto"):  # one file in both: what is tested in one holds in the other
        assert finish(processes[mode])[0].strip() == f"{kernels.backend('cpu')} False False"
    output, errors = finish(processes["reference"])
    assert output.startswith("reference: SEGSHIFT_KERNELS=reference")
    assert errors == ""
    _, errors = processes["fast"].communicate(timeout=60)
    assert "SEGSHIFT_KERNELS=fast: choose one of auto, reference, require" in errors


# ---- what is kept: whole, and ours --------------------------------------------------------------


def build_tiny(tiny, *words, **environment):
    """Build, or load where asked to, and return what is printed on both streams."""
    source, ours = tiny
    output, errors = finish(start(["-c", BUILD_TINY, source, *words], {**ours, **environment}))
    return output.strip(), errors


def test_a_damaged_library_is_built_again(tiny, tmp_path):
    library = Path(build_tiny(tiny)[0])
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    whole = library.read_bytes()
    library.write_bytes(whole[:4096])  # its code would be mapped and end the process by SIGBUS
    served_by, errors = build_tiny(tiny, "load")
    sentence = f"{library} had 4096 bytes, not {len(whole)}"
    assert served_by == f"C++ ({library}), rebuilt: {sentence}"
    assert f"again, as {sentence}" in errors
    assert build_tiny(tiny, "load") == (served_by, "")  # known from then on, and not again
    assert library.read_bytes() == whole


def test_faults_of_a_finished_library(tmp_path):
    built, library = tmp_path / "built", tmp_path / "library.so"
    assert cache.fault(library) is None
    built.write_bytes(b"whole library")
    cache.finish(built, library, rebuilt="")
    assert cache.fault(library) == ""
    note = (tmp_path / "complete").read_text()
    for content, sentence in (
        (b"", f"{library} had 0 bytes, not 13"),
        (b"whole library and more", f"{library} had 22 bytes, not 13"),
        (b"whole libraRy", f"{library} had other bytes than were written"),
    ):
        library.write_bytes(content)
        assert cache.fault(library) == sentence
    library.unlink()
    assert cache.fault(library) == f"{library} was gone"
    os.mkfifo(library, 0o700)  # is not waited for
    assert cache.fault(library) == f"{library} is no regular file"
    library.unlink()
    library.write_bytes(b"whole library")
    library.chmod(0o770)
    assert cache.fault(library).startswith(f"{library} can be written by other users")
    library.chmod(0o700)
    for spoilt in ("", "{", "[]", '{"size": 13}', "[" * 50000, note[:40], note.replace("13", "[]")):
        (tmp_path / "complete").write_text(spoilt)
        assert cache.fault(library)
    (tmp_path / "complete").write_text(note)
    assert cache.fault(library) == ""


def test_a_library_that_fails_to_load_is_built_once_more(tiny, tmp_path):
    source, _ = tiny
    source.write_text("void missing(); int nothing() { missing(); return 0; }\n")
    sentence = "reference: C++ failed to load: "
    served_by, errors = build_tiny(tiny, "load")
    assert served_by.startswith(sentence)
    assert "undefined symbol" in served_by
    assert errors.count("compiling segshift_cpu") == 2
    assert "again, as it failed to load: " in errors
    served_by, errors = build_tiny(tiny, "load")
    assert served_by.startswith(sentence)
    assert "compiling" not in errors
    assert errors.count("UserWarning") == 1
    (tmp_path / "mend.cpp").write_text("void missing() {}\n")
    mend = str(tmp_path / "mend.so")
    subprocess.run(["c++", "-shared", "-fPIC", tmp_path / "mend.cpp", "-o", mend], check=True)
    served_by, _ = build_tiny(tiny, "load", LD_PRELOAD=mend)
    assert served_by.startswith("C++ (")
    assert "rebuilt: it failed to load: " in served_by


def made(folder, mode=0o700, owner=None):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    if owner is not None:
        os.chown(folder, owner, -1)
    return folder


@pytest.fixture
def two_roots(tiny, tmp_path):
    """Return the cache's folder and the one below the temporary folder, not made yet."""
    _, environment = tiny
    environment["TMPDIR"] = str(made(tmp_path / "temporary"))
    return tmp_path / "cache", tmp_path / f"temporary/segshift-{os.getuid()}"


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
def test_a_folder_that_others_can_write_is_not_used(tiny, two_roots, mode):
    chosen, temporary = two_roots
    made(chosen, mode)
    path, errors = build_tiny(tiny)
    assert Path(path).is_relative_to(temporary)
    assert errors.count(f"{chosen} can be written by other users: chmod go-w {chosen}") == 1
    chosen.chmod(0o755)
    assert Path(build_tiny(tiny)[0]).is_relative_to(temporary)  # where it is by now


def test_a_folder_where_nobody_can_rename_is_used(tiny, two_roots):
    chosen, _ = two_roots
    made(chosen, 0o1777)
    path, errors = build_tiny(tiny)
    assert Path(path).is_relative_to(chosen)
    assert "warning" not in errors
    Path(path).parent.chmod(0o777)  # but not the folder below it
    path, errors = build_tiny(tiny)
    assert not Path(path).is_relative_to(chosen)
    assert "can be written by other users" in errors


@as_root
@pytest.mark.parametrize("which", ["root", "sticky root", "folder", "link", "library", "complete"])
def test_what_another_user_owns_is_never_loaded(tiny, two_roots, which):
    chosen, temporary = two_roots
    library = Path(build_tiny(tiny)[0])
    assert library.is_relative_to(chosen)
    if which == "link":
        theirs = library.parent.rename(chosen / "theirs")
        os.chown(theirs, 12345, -1)
        library.parent.symlink_to(theirs)
    else:
        parts = {"folder": library.parent, "library": library, "complete": library.parent / which}
        part = parts.get(which, chosen)
        part.chmod(0o1777 if which == "sticky root" else 0o700)
        os.chown(part, 12345, -1)
    path, errors = build_tiny(tiny)
    if which in ("library", "complete"):  # in a folder of ours: it makes place for ours
        assert path == str(library)
    else:
        assert Path(path).is_relative_to(temporary)
    assert Path(path).stat().st_uid == os.getuid()
    sentence = f"{library.parent} is a link" if which == "link" else "belongs to user 12345, not to"
    assert errors.count(sentence) == 1
    assert "compiling" in errors


@as_root
def test_without_a_folder_of_ours_the_reference_serves(tiny, two_roots):
    for folder in two_roots:
        made(folder, owner=12345)
    served_by, errors = build_tiny(tiny, "load")
    assert served_by.startswith("reference: C++ failed to build: none of ")
    assert errors.count("belongs to user 12345, not to you (0)") == 2


# ---- without locks ------------------------------------------------------------------------------

WITHOUT = {
    "module": "import sys; sys.modules['fcntl'] = None\n",
    "lock": "import errno, fcntl, os\n"
    "def flock(*_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
    "fcntl.flock = flock\n",
}


@pytest.mark.parametrize("without", WITHOUT)
def test_processes_without_locks_each_build(tiny, tmp_path, without):
    source, environment = tiny
    script = tmp_path / "script.py"
    script.write_text(WITHOUT[without] + BUILD_TINY)
    environment["PYTHONPATH"] = str(ROOT)
    started = [start([script, source], environment) for _ in range(3)]
    paths = {finish(process)[0] for process in started}
    assert len(paths) == 1
    assert build_tiny(tiny) == (paths.pop().strip(), "")


# ---- the CUDA toolkit ---------------------------------------------------------------------------


@pytest.fixture
def toolkits(tmp_path, monkeypatch):
    """Make two toolkits of scripts; return a function that puts one's nvcc on the PATH."""
    for version in ("cuda-12", "cuda-13"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "lib64").mkdir()
        (tmp_path / version / "lib64/libcudart.so").touch()
        nvcc = tmp_path / version / "bin/nvcc"
        listed = "\n".join(f"compute_{sm}" for sm in (80, 90, 120))
        nvcc.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = --list-gpu-arch ]; then echo "{listed}"; exit; fi\n'
            'echo "#\\$ _NVVM_BRANCH_=nvvm" >&2\n'
            'echo "#\\$ _HERE_=${0%/*}" >&2\n'  # as nvcc itself: no link is followed
        )
        nvcc.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolkit, "USUAL_HOME", str(tmp_path / "cuda-13"))
    tools = tmp_path / "usr/bin"
    tools.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tools))
    return tools


@pytest.mark.parametrize("how", ["wrapper", "link", "wrapper of a link", "link to a wrapper"])
def test_the_toolkit_behind_the_nvcc_on_the_path(toolkits, tmp_path, how):
    nvcc = tmp_path / "cuda-12/bin/nvcc"
    steps = {
        "wrapper": ["wrapper"],
        "link": ["link"],
        "wrapper of a link": ["link", "wrapper"],
        "link to a wrapper": ["wrapper", "link"],
    }
    for number, step in enumerate(steps[how], start=1):
        last = number == len(steps[how])
        place = toolkits / "nvcc" if last else tmp_path / f"step{number}/bin/nvcc"
        place.parent.mkdir(parents=True, exist_ok=True)
        if step == "link":
            place.symlink_to(nvcc)
        else:
            place.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
            place.chmod(0o755)
        nvcc = place
    assert toolkit.home() == str(tmp_path / "cuda-12")


def test_other_places_of_the_toolkit(toolkits, tmp_path, monkeypatch):
    assert toolkit.home() == str(tmp_path / "cuda-13")  # no nvcc on the PATH but the machine's own
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda-12"))
    assert toolkit.home() == str(tmp_path / "cuda-12")
    (tmp_path / "cuda-12/lib64").rename(tmp_path / "cuda-12/lib")  # conda's
    assert toolkit.home() == str(tmp_path / "cuda-12")
    (tmp_path / "cuda-12/lib/libcudart.so").unlink()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(RuntimeError, match=r"no lib64/libcudart.so .*cuda-12\): set CUDA_HOME"):
        toolkit.home()
    linker = tmp_path / "linker"  # one that knows where it is
    linker.write_text("#!/bin/sh\n")
    linker.chmod(0o755)
    monkeypatch.setenv("CXX", str(linker))
    assert toolkit.home() == str(tmp_path / "cuda-12")


@pytest.mark.parametrize(
    ("listed", "wanted", "known"),
    [
        ("7.5 8.0 9.0+PTX", "8.0;9.0+PTX", "8.0;9.0+PTX"),
        ("7.0;7.5", "", None),
        ("8.0,9.0a 10.0f", "8.0;9.0a;10.0f", "8.0;9.0a"),
        ("12.1", "12.1", "12.0+PTX"),  # newer than the toolkit
        ("Turing Ampere Volta+Tegra", "Ampere", "Ampere"),
        ("9.0;9.0", "9.0", "9.0"),
        ("", "", None),
    ],
)
def test_architectures(toolkits, tmp_path, monkeypatch, listed, wanted, known):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert toolkit.architectures() == wanted
    if known is not None:
        assert toolkit.known_architectures(wanted, str(tmp_path / "cuda-12")) == known


def test_what_a_cuda_build_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert toolkit.why_not() == "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert toolkit.why_not() == "no CUDA device, and TORCH_CUDA_ARCH_LIST is not set"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert toolkit.why_not() == "TORCH_CUDA_ARCH_LIST=7.5 names none from 8.0 on"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0")
    monkeypatch.setattr(toolkit, "USUAL_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert toolkit.why_not() == "no nvcc: install the CUDA toolkit or set CUDA_HOME"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolkit.why_not() == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    capabilities = [(9, 0), (7, 5)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert toolkit.why_not() == "GPU 1 is of compute capability 7.5, the kernels need 8.0"
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    capabilities[1] = (8, 6)
    assert toolkit.architectures() == "8.6;9.0"
    assert toolkit.why_not() == ""
