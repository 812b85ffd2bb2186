"""Randomness: every draw depends on a seed and a step alone."""

import hashlib
import random

import numpy as np
import torch


def seed_for(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed Python, NumPy and torch (all devices) from `parts`.

    The training loops call this with (seed, step) at the start of every step. Whatever a step
    draws then depends on nothing that happened before, so that a resumed run, a run with more
    validations or a run beside its control draws the same numbers and no generator state needs
    to be stored.
    """
    seed = seed_for(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- other people's code may draw from it
    torch.manual_seed(seed)
