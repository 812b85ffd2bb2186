"""Files of the safetensors format, without its package.

Eight bytes (little-endian) say how long the header is. The header is JSON: under each name the
dtype, the shape and where the bytes begin and end in what follows; "__metadata__" holds texts.

Source: the format's README (github.com/huggingface/safetensors, section Format), whose rules are
kept: one entry a name, every byte belongs to one tensor, the header begins with "{" and may end
with blanks, 100 MB of it at most.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.shapes import OneOf, Within, misfit, parse_json

MAX_HEADER = 100_000_000  # bytes
METADATA = "__metadata__"
OURS = "segshift"  # the entry of the metadata with what our checkpoints say beside the weights
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ENTRY = {"dtype": OneOf(*DTYPES), "shape": [Within(0)], "data_offsets": (Within(0), Within(0))}
HEADER = {f"{METADATA}?": {...: str}, ...: ENTRY}


def meant(path: Path, start: bytes) -> bool:
    """Return whether a file that begins with these bytes is of this format, whole or not.

    torch.save's archives and pickles are known too, whatever their name.
    """
    others = start.startswith((b"PK", b"\x80"))
    return start[8:9] == b"{" or (path.suffix == ".safetensors" and not others)


def load(file: BinaryIO) -> dict[str, Any]:
    """Read a file.

    Args:
        file: open at its beginning.

    Returns:
        The tensors by name; or, of a file of `save`, "model" with these and what else was saved.

    Raises:
        ValueError: the file breaks a rule of the format; says which.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError(f"its header of {length} bytes is longer than the file or than allowed")
    header = parse_json(file.read(length))
    if fault := misfit(header, HEADER):
        raise ValueError(fault)
    metadata = header.pop(METADATA, {})
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    end = 0
    for name, entry in entries:
        begin, after = entry["data_offsets"]
        wanted = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        if begin != end or after - begin != wanted:
            raise ValueError(
                f"{name} is said to be bytes {begin} to {after}; {end} to {end + wanted} expected"
            )
        end = after
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length} bytes of tensors expected, the header names {end}")
    tensors = {name: _read_tensor(file, name, entry) for name, entry in entries}
    if OURS not in metadata:
        return tensors
    said = parse_json(metadata[OURS])
    if not isinstance(said, dict):
        raise ValueError(f"its metadata {OURS!r} is no object")
    return {**said, "model": tensors}


def _read_tensor(file: BinaryIO, name: str, entry: dict[str, Any]) -> Tensor:
    """Read the next tensor into memory of its own, so that any offset is aligned."""
    tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    content = tensor.reshape(-1).view(torch.uint8)
    if content.numel() and file.readinto(content.numpy()) != content.numel():
        raise ValueError(f"it ends within {name}")
    if tensor.dtype == torch.bool and content.numel() and content.max() > 1:
        raise ValueError(f"{name} holds a BOOL that is neither 0 nor 1")
    return tensor


def save(value: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint.

    Args:
        value: "model" with tensors by name, and plain values that JSON can hold; a tuple becomes
            a list.
        file: open for writing.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in value["model"].items()}
    said = {key: one for key, one in value.items() if key != "model"}
    header: dict[str, Any] = {METADATA: {"format": "pt", OURS: json.dumps(said, allow_nan=False)}}
    end = 0
    # by descending size of an element, as the package does: every tensor is then aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entry = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(tensors[name].reshape(-1).view(torch.uint8).numpy())
