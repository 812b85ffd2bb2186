"""Compile kernels/*.cu for this CPU with emulator.h, into operators that tests call as others.

Of the sources only `kernel<<<launch>>>(...)`, `extern __shared__` and the c10/cuda headers are
changed. All of them are one file to the compiler, each in a namespace of its own together with our
headers: torch's, which cost most of the time, are read once, and a header can be changed for one
source (a fault that a test plants) and not for the others.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from kernels import build

EMULATOR = Path(__file__).with_name("emulator.h")
FLAGS = "-std=c++20 -shared -fPIC -fvisibility=hidden -O1 -ffp-contract=off".split()
FLAGS += ["-Wno-unknown-pragmas"]  # unroll
FORMS = {
    "checked": ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"],
    "sanitized": ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}
SYSTEM = re.compile(r"^#include <.+>$", re.M)
LAUNCH = re.compile(r"([\w:]+(?:<[^<>;]*>)?)<<<(.*?)>>>\(", re.S)
SHARED = re.compile(r"extern __shared__ (.+?) (\w+)\[\];")


class Unit(NamedTuple):
    """A source to compile: whose operators, and a fault to plant, as (its text, other text)."""

    operators: str
    source: Path
    planted: tuple[str, str] | None = None


@functools.cache
def operators() -> object:
    """Return what `torch.ops.segshift` offers, served by the emulated CUDA kernels.

    SEGSHIFT_EMULATOR=sanitized watches every access (test_emulator.py says how it is run).
    """
    name = "segshift_emulated"
    serve([Unit(name, build.HERE / source) for source in build.SOURCES["cuda"]])
    return getattr(torch.ops, name)


def serve(units: list[Unit]) -> None:
    """Compile sources and register their operators as `torch.ops.OPERATORS.NAME`."""
    texts = [_translate(unit) for unit in units]
    includes = dict.fromkeys(SYSTEM.findall("".join(texts)))
    text = "\n".join([*includes, f'#include "{EMULATOR}"', *(SYSTEM.sub("", t) for t in texts)])
    form = os.environ.get("SEGSHIFT_EMULATOR", "checked")
    library = _compile(text, FLAGS + FORMS[form])
    for unit, its_text in zip(units, texts, strict=True):
        schemas = torch.library.Library(unit.operators, "FRAGMENT")
        _kept.append(schemas)
        for name in re.findall(r'library\.impl\("(\w+)"', its_text):
            schema = str(getattr(torch.ops.segshift, name).default._schema)
            schemas.define(schema.removeprefix("segshift::"), tags=torch.Tag.pt2_compliant_tag)
    torch.ops.load_library(library)


_kept = []  # what is defined ends with its Library


def _expand(path: Path, seen: set[str]) -> str:
    """Put our own headers in the places where they are included."""
    text = path.read_text()

    def header(match: re.Match) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        line = text.count("\n", 0, match.start()) + 2
        return f'{_expand(build.HERE / match[1], seen)}\n#line {line} "{path}"'

    return f'\n#line 1 "{path}"\n' + re.sub(r'^#include "(.+)"$', header, text, flags=re.M)


def _translate(unit: Unit) -> str:
    text = _expand(unit.source, set())
    if unit.planted:
        assert text.count(unit.planted[0]) == 1, f"{unit.planted[0]!r} must stand there once"
        text = text.replace(*unit.planted)
    text = re.sub(r"^#(include <c10/cuda/.+>|pragma once)$", "", text, flags=re.M)
    text = LAUNCH.sub(r"emulator::launch([&](const auto&... x) { \1(x...); }, \2)(", text)
    text = SHARED.sub(r"\1* const \2 = reinterpret_cast<\1*>(emulator::shared);", text)
    top = f"#undef OPERATORS\n#define OPERATORS {unit.operators}\n"
    space = f"{unit.operators}_{unit.source.stem}"
    return f"{top}namespace {space} {{{text}\n}}  // namespace {space}\n"


def _compile(text: str, flags: list[str]) -> Path:
    """Return the library of a text: built once on a machine, by one process at a time."""
    import fcntl

    from torch.utils import cpp_extension

    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("the CUDA emulator needs a C++ compiler")
    shaped_by = repr([torch.__version__, compiler, flags, EMULATOR.read_text(), text])
    key = hashlib.sha256(shaped_by.encode()).hexdigest()[:16]
    home = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/segshift").expanduser()
    folder = home / f"segshift_emulated_{key}"
    folder.mkdir(parents=True, exist_ok=True)
    library, source = folder / "emulated.so", folder / "emulated.cpp"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            source.write_text(text)
            torch_library = Path(torch.__path__[0], "lib")
            command = [compiler, *flags, *(f"-isystem{p}" for p in cpp_extension.include_paths())]
            command += [str(source), f"-L{torch_library}", "-ltorch_cpu", "-lc10"]
            with tempfile.TemporaryDirectory(dir=folder) as new:
                command += ["-o", f"{new}/emulated.so"]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-5000:]
                Path(new, "emulated.so").replace(library)
    return library
