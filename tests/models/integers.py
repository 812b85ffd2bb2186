"""Weights from an integer formula, so that a published network's output can be stated as numbers.

For a key with n elements, j = 0..n-1 in row-major order, u is a hash of j and the key's CRC in
[-1, 1); batch norms get variances around 1, matrices a scale that keeps activations in range.
"""

import hashlib
import math
import zlib
from collections.abc import Iterable

import torch

CHUNK, MASK = 2**17, 2**32 - 1


def uniform(key: str, count: int) -> torch.Tensor:
    """Return float64 [count] in [-1, 1), from integer arithmetic alone."""
    start, u = zlib.crc32(key.encode()), torch.empty(count, dtype=torch.float64)
    for part in u.split(CHUNK):  # in place and in pieces that stay in the cache
        x = torch.arange(start, start + 2654435761 * len(part), 2654435761).bitwise_and_(MASK)
        start += 2654435761 * len(part)
        for _ in range(2):
            x.bitwise_xor_(x >> 16).mul_(0x45D9F3B).bitwise_and_(MASK)
        part.copy_(x.bitwise_xor_(x >> 16)).mul_(2 / 2**32).sub_(1)
    return u


def tensor(key: str, shape: torch.Size, gain: float = 6.0) -> torch.Tensor:
    """Return the tensor that a state dict holds under a key."""
    kind, count = key.rpartition(".")[2], math.prod(shape)
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    u = uniform(key, count)
    if kind == "running_var":
        u = 1 + 0.25 * u
    elif kind == "weight" and len(shape) == 1:
        u = 1 + 0.1 * u
    elif len(shape) >= 2:
        u.mul_(math.sqrt(gain / (count / shape[0])))
    else:
        u = 0.1 * u
    return u.float().view(shape)


def state(shapes: Iterable[tuple[str, torch.Size]], gain: float = 6.0) -> dict[str, torch.Tensor]:
    """Return a state dict of these keys and shapes."""
    return {key: tensor(key, shape, gain) for key, shape in shapes}


def digest(shapes: Iterable[tuple[str, torch.Size]]) -> str:
    """Return 16 hexadecimal digits that tell lists of keys and shapes apart."""
    lines = "".join(f"{key} {'x'.join(map(str, shape))}\n" for key, shape in shapes)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
