"""The safetensors format: what the package writes we read, and it reads what we write."""

import json
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from models import build_model, load_weights, read_weights_file, safetensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([True, False, True]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "c": torch.arange(5, dtype=torch.bfloat16),
    "d": torch.arange(5, dtype=torch.float16),
    "ü": torch.arange(3, dtype=torch.uint8),
    "double": torch.arange(3, dtype=torch.float64),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    **{str(kind): torch.ones(3).to(kind) for kind in safetensors.NAMES},
}


def write(value: dict, path: Path) -> None:
    with path.open("wb") as file:
        safetensors.save(value, file)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        bits = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(*bits), name


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_is_saved_is_read(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    said = {"step": 3, "classes": ["road", "ü"], "score": None}
    write({"model": TENSORS, **said}, path)
    read = read_weights_file(path)
    assert_same(read.pop("model"), TENSORS)
    assert read == said
    assert path.stat().st_size == 8 + int.from_bytes(path.read_bytes()[:8], "little") + sum(
        t.numel() * t.element_size() for t in TENSORS.values()
    )


def test_a_file_written_by_hand(tmp_path: Path):
    """Unaligned tensors, blanks after the header, texts of others."""
    path = tmp_path / "w.safetensors"
    header = {
        "__metadata__": {"format": "pt", "other": "{"},
        "byte": entry("U8", [1], 0, 1),
        "one": entry("F32", [1, 1], 1, 5),
        "none": entry("I64", [0], 5, 5),
    }
    path.write_bytes(file_of(json.dumps(header).encode() + b"   ", b"\x05\0\0\x80\x3f"))
    expected = {"byte": [5], "one": [[1.0]], "none": []}
    assert {name: t.tolist() for name, t in read_weights_file(path).items()} == expected


def test_the_package_and_we_agree(tmp_path: Path):
    torch_files = pytest.importorskip("safetensors.torch")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write({"model": TENSORS, "step": 3}, ours)
    assert_same(torch_files.load_file(ours), TENSORS)
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    torch_files.save_file(plain, theirs, {"note": "x"})
    assert_same(read_weights_file(theirs), TENSORS)


F32 = entry("F32", [2], 0, 8)
BROKEN = {
    "length beyond the file": (file_of({"a": F32}, bytes(8), 10_000), "longer than the file"),
    "length of 2**63": (file_of({"a": F32}, bytes(8), 2**63), "longer than the file"),
    "no length": (b"\x02\0\0", "longer than the file"),
    "no JSON": (file_of(b'{"a": }', b""), "Expecting value"),
    "brackets": (file_of(b'{"a":' * 100_000, b""), "nested too deeply"),
    "not UTF-8": (file_of(b'{"\xff": 1}', b""), "utf-8"),
    "name twice": (file_of(b'{"a": 1, "a": 2}', b""), "'a' stands twice"),
    "a list": (file_of([F32], bytes(8)), "the file is .*; {.*} expected"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "a lacks 'data_offsets'"),
    "dtype": (file_of({"a": entry("F33", [2], 0, 8)}, bytes(8)), 'a.dtype is "F33"'),
    "dtype of a list": (file_of({"a": entry(["F32"], [2], 0, 8)}, bytes(8)), "a.dtype is"),
    "shape": (file_of({"a": entry("F32", [-2], 0, 8)}, bytes(8)), r"a.shape\[0\] is -2"),
    "true shape": (file_of({"a": entry("U8", [True], 0, 1)}, bytes(1)), r"a.shape\[0\] is true"),
    "huge shape": (file_of({"a": entry("F32", [2**52, 2**52], 0, 8)}, bytes(8)), "a is said"),
    "offsets backwards": (file_of({"a": entry("F32", [2], 8, 0)}, bytes(8)), "a is said"),
    "overlap": (file_of({"a": F32, "b": entry("F32", [1], 4, 8)}, bytes(8)), "b is said"),
    "gap": (file_of({"a": F32, "b": entry("F32", [1], 12, 16)}, bytes(16)), "b is said"),
    "rest": (file_of({"a": F32}, bytes(9)), "9 bytes of tensors expected"),
    "cut": (file_of({"a": F32}, bytes(7)), "7 bytes of tensors expected"),
    "bool": (file_of({"a": entry("BOOL", [1], 0, 1)}, b"\x02"), "a holds a BOOL"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__.a is 1; a text"),
    "our metadata": (file_of({"__metadata__": {"segshift": "[" * 10**5}}), "nested too deeply"),
    "our list": (file_of({"__metadata__": {"segshift": "[]"}}), "no object"),
    "NaN": (file_of({"__metadata__": {"segshift": '{"a": NaN}'}}), "NaN is no number"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_in_one_line(kind: str, tmp_path: Path):
    content, reason = BROKEN[kind]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path} is no whole safetensors file: .*{reason}") as e:
        read_weights_file(path)
    assert "\n" not in str(e.value)


def test_wrappers_are_peeled_here_too(tmp_path: Path):
    torch.manual_seed(0)
    source, model = (build_model("compact", 3, width=8) for _ in range(2))
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / "w.safetensors"
    write({"model": state}, path)
    load_weights(model, path, strict=True)
    assert torch.equal(model.classifier.weight, source.classifier.weight)
