"""Files of weights are read without code, in bounded memory, and end in one line where spoilt."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.files import file_digest
from models import read_weights_file
from worlds import ROOT

NUMBERS = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.25),
    "float16": np.float16(2),
    "big-endian": np.frombuffer(b"\x3f\x80\0\0", ">f4")[0],
    "int64": np.int64(-7),
    "uint8": np.uint8(200),
    "bool": np.bool_(True),
    "complex": np.complex128(1 + 2j),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights(kind: str, zipped: bool, tmp_path: Path):
    path, number = tmp_path / "w.pth", NUMBERS[kind]
    value = {"model": {"a": torch.ones(2)}, "best": [number], "step": number}
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    read = read_weights_file(path)
    assert read["best"] == [number]
    assert type(read["step"]) in (bool, int, float, complex)


def test_numpy_named_its_module_otherwise_before(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"step": np.int64(5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert read_weights_file(path) == {"step": 5}


@pytest.mark.parametrize(
    "value",
    [
        np.ones(3),
        np.array([None]),
        np.array(["text"])[0],
        np.datetime64("2020-01-01"),
        np.zeros(1, [("a", "f4")])[0],
        np.random.default_rng(0),
        Path("x"),
        print,
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_is_accepted(value: object, tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"model": {"a": torch.ones(2)}, "other": value}, path)
    with pytest.raises(
        UserError, match=rf"^{path} (refused|is no checkpoint|is truncated)"
    ) as error:
        read_weights_file(path)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def packed(path: Path, source: Path) -> None:
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for info in whole.infolist():
            out.writestr(info.filename, whole.read(info))


def test_a_compressed_archive_is_refused(tmp_path: Path):
    """Five kB that would become five MB, and so on."""
    torch.save({"a": torch.zeros(1_250_000)}, tmp_path / "whole.pth")
    packed(tmp_path / "w.pth", tmp_path / "whole.pth")
    assert (tmp_path / "w.pth").stat().st_size < 20_000
    with pytest.raises(UserError, match=r"w\.pth is refused: it is compressed"):
        read_weights_file(tmp_path / "w.pth")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path}: not a regular file"):
            read_weights_file(path)
        with pytest.raises(UserError, match=f"{path}: not a regular file"):
            file_digest(path)
    words = ["--restore-from", str(tmp_path / "pipe.pth"), "--data-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "evaluate.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path}/pipe.pth: not a regular file"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle(protocol: int, tmp_path: Path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": [1.0]}, protocol=protocol))
    with pytest.raises(UserError, match=rf"^{path} is"):
        read_weights_file(path)
