"""From datasets to batches: the order of the steps, loader workers, several sources."""

import atexit
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from datasets.order import ClassesInTurn, RareClasses, StepBatches
from engine import processes
from engine.errors import UserError
from engine.values import Loading

# Set when the main process ends: from then on a worker ends when it is asked to.
_closing = multiprocessing.get_context("fork").RawValue("b", 0)


@atexit.register  # runs before multiprocessing's own hook, which sends SIGTERM and waits
def _close() -> None:
    _closing.value = 1


def _shielded_worker(_worker_id: int) -> None:
    """Leave signals to the main process: it stops at a step boundary and ends its workers.

    A worker that died of a SIGTERM sent to the whole job would raise an error in the middle of the
    main process's step; one that ignored it would keep the main process from ending.
    """

    def end_if_closing(_number: int, _frame) -> None:
        if _closing.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, end_if_closing)
    torch.set_num_threads(1)


def make_loader(
    dataset: Dataset, loading: Loading, *, pin_memory: bool = False, **how
) -> DataLoader:
    """Return a loader of samples, in order unless a sampler says otherwise.

    Args:
        dataset: of segshift.
        loading: processes that decode, and how long one batch may take them.
        pin_memory: copy batches to page-locked memory, for a GPU.
        **how: further arguments of DataLoader: batch_sampler, or batch_size and collate_fn.
    """
    return DataLoader(
        dataset,
        num_workers=loading.num_workers,
        worker_init_fn=_shielded_worker,
        timeout=loading.timeout_seconds if loading.num_workers else 0,
        # a generator of its own: by default making an iterator draws from the global one
        generator=torch.Generator(),
        pin_memory=pin_memory,
        # forkserver, Python 3.14's default, ends on a SIGTERM of its own
        multiprocessing_context="fork" if loading.num_workers else None,
        **how,
    )


def on_device(batches: Iterable[dict], device: torch.device) -> Iterator[dict]:
    """Yield batches on `device`, each already under way while the one before it is worked on.

    Args:
        batches: tensors and other values by name; for a GPU in page-locked memory.
        device: on a GPU the copies have a stream of their own, which the current one waits for.
    """
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    sent = []
    for batch in batches:
        with torch.cuda.stream(copies):  # of None: as if it was not there
            batch = {
                key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                for key, value in batch.items()
            }
            sent.append((batch, copies.record_event() if copies else None))
        if len(sent) > 1:
            yield _arrived(*sent.pop(0))
    yield from (_arrived(*last) for last in sent)


def _arrived(batch: dict, copied: torch.cuda.Event | None) -> dict:
    """Make the current stream wait for a batch, and its memory for the current stream."""
    if copied is not None:
        current = torch.cuda.current_stream()
        current.wait_event(copied)
        for value in filter(torch.is_tensor, batch.values()):
            value.record_stream(current)
    return batch


def step_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    device: torch.device,
    loading: Loading,
    by_class: RareClasses | ClassesInTurn | None = None,
) -> Iterator[dict]:
    """Yield for ever the batches of the steps from `start` on, copied to `device`.

    Args:
        dataset: whose images have one size.
        batch_size: N images a batch. Of several processes, each takes its own N of one order.
        seed: of the order; see `StepBatches`.
        start: number of the first batch.
        device: where `image`, uint8 [N,3,H,W], and `label`, uint8 [N,H,W], go.
        loading: see `make_loader`.
        by_class: draws the images instead of `StepBatches`; batches then also hold
            `rare_class`, int64 [N], the class that each image was drawn for.

    Raises:
        UserError: an unreadable image or label; the message names the file.
    """
    batch_of_all = batch_size * processes.world_size()
    own = slice(processes.rank() * batch_size, (processes.rank() + 1) * batch_size)

    def drawn(step: int) -> tuple[list[int], list[int]]:
        return by_class.draw(batch_of_all, seed, step)

    if by_class is None:
        sampler = iter(StepBatches(len(dataset), batch_of_all, seed, start))
    else:
        sampler = (drawn(step)[0] for step in itertools.count(start))
    sampler = (batch[own] for batch in sampler)
    pinned = device.type == "cuda"
    loader = make_loader(dataset, loading, batch_sampler=sampler, pin_memory=pinned)

    def batches() -> Iterator[dict]:
        for step, batch in enumerate(loader, start):
            if by_class is not None:  # drawn again: loader workers are given indices alone
                batch["rare_class"] = torch.tensor(drawn(step)[1][own])
            yield batch

    yield from on_device(batches(), device)


def join_datasets(datasets: list[Dataset]) -> Dataset:
    """Return one dataset of several with the same classes.

    Raises:
        UserError: the class names differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        require_same_classes(first, other)
    if len(datasets) == 1:
        return first
    joined = ConcatDataset(datasets)
    for key in ("name", "num_classes", "class_names", "palette", "ignore_index"):
        setattr(joined, key, getattr(first, key))
    return joined


def require_same_classes(one: Dataset, other: Dataset) -> None:
    """Raise UserError that names the first class in which two datasets differ."""
    if one.class_names == other.class_names:
        return
    roots = [getattr(part, "datasets", [part])[0].root for part in (one, other)]
    raise UserError(
        f"{one.name} ({roots[0]}) and {other.name} ({roots[1]}) have different classes: "
        f"{first_difference(one.class_names, other.class_names)}"
    )


def first_difference(one: list[str], other: list[str]) -> str:
    """Return, for people, the first class in which two tables that are not equal differ."""
    pairs = itertools.zip_longest(one, other, fillvalue="none")
    c, (a, b) = next((c, pair) for c, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {c} is {a} in the one, {b} in the other"
