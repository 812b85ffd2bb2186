"""Mutate files and read them: each must end rightly or in one line, in bounded time and memory."""

import multiprocessing
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import UserError

MAX_SECONDS = 60  # of one file; a tenth of it is looked for by hand
MAX_BYTES = 2**30
EXTREMES = [
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x01\0\0\0",
    b"\0\x01",
]
# what reads a path, whole files, and what mutates one of them
Reader = tuple[Callable[[Path], object], list[bytes], Callable[[bytes, random.Random], bytes]]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes flipped, replaced, moved, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # headers are short: half of the changes fall into the first bytes
        place = (
            rng.randrange(min(len(data), 96) if rng.random() < 0.5 else len(data)) if data else 0
        )
        kind = rng.randrange(7)
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            extreme = rng.choice(EXTREMES)
            data[place : place + len(extreme)] = extreme
        elif kind == 3:
            del data[place : place + rng.choice((1, 2, 9, len(data)))]
        elif kind == 4:
            data[place:place] = rng.randbytes(rng.choice((1, 4, 30)))
        elif kind == 5:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.choice((4, 40, 400))]
        else:
            data[place : place + 4] = rng.randrange(2**32).to_bytes(
                4, rng.choice(("big", "little"))
            )
    return bytes(data)


def attack(name: str, reader: Reader, folder: Path, seeds: range, found) -> None:
    """Read mutated files and report what ends neither rightly nor in one line."""
    read, wholes, mutate = reader
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, faults, right = folder / "file", [], 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        path.write_bytes(mutate(rng.choice(wholes), rng))
        found.put(("at", seed))
        start = time.perf_counter()
        try:
            read(path)
            right += 1
        except UserError as error:
            if not str(error).startswith(str(path)) or "\n" in str(error):
                faults.append((seed, f"message {str(error)!r}"))
        except Exception as error:
            faults.append((seed, repr(error)))
        if (took := time.perf_counter() - start) > MAX_SECONDS:
            faults.append((seed, f"{took:.0f} s"))
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (now - before) * 1024 > MAX_BYTES:
            faults.append((seed, f"{(now - before) // 1024} MB"))
            before = now
    found.put(("end", (right, faults)))


def survive(name: str, reader: Reader, folder: Path, seeds: range) -> None:
    """Attack a reader in a process of its own, which a signal may end."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=attack, args=(name, reader, folder, seeds, found))
    process.start()
    last, end = None, None
    while end is None:
        try:
            kind, value = found.get(timeout=2 * MAX_SECONDS)
        except Exception:
            process.kill()
            pytest.fail(f"{name}: seed {last} ended by signal, or never")
        last, end = (value, None) if kind == "at" else (last, value)
    process.join()
    right, faults = end
    assert not faults, f"{name}: {len(faults)} of {len(seeds)}: {faults[:5]}"
    assert right < len(seeds)  # some were harmed
