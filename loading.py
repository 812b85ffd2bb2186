"""From datasets to batches: the order of the steps, loader workers, several sources, statistics."""

import atexit
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

import distributed
from checkpoint import write_text
from datasets.cache import fingerprint
from engine import seed_for
from errors import UserError

# Of an image's pixels, those of a class that make it worth drawing for that class: DAFormer's 3000
# of GTA5's own size, as a share, so that other sizes need no other number.
RARE_CLASS_SHARE = 3000 / (1914 * 1052)


class StepBatches:
    """Batches of indices for the steps `start`, `start + 1`, ...: epoch after epoch, shuffled.

    Batch `s` depends on (seed, s) alone: the loader's position is the step number.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0):
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.batch_size
        epoch, order = -1, []
        while True:
            batch = []
            while len(batch) < self.batch_size:
                if position // self.length != epoch:
                    epoch = position // self.length
                    shuffle = np.random.Generator(np.random.PCG64(seed_for(self.seed, epoch)))
                    order = shuffle.permutation(self.length).tolist()
                batch.append(order[position % self.length])
                position += 1
            yield batch


class RareClasses:
    """Draw a class, the rarer the likelier, then an image with enough of it.

    A class c of frequency f_c is drawn with probability softmax((1 - f_c) / T). An image has
    enough of it from `RARE_CLASS_SHARE` of its pixels on; where none has, the one with the most.

    Args:
        counts: int64 [N,C], see `class_counts`.
        size: W, H of the labels.
        temperature: T > 0; the higher, the more equal the classes.

    Attributes:
        probability: float64 [C]; 0 for classes that never occur.

    Source: DAFormer (Hoyer et al. 2022), section 3.3, eq. 8 and 9; its crops are chosen in
    `augment.warp`. Deviations: labels are counted in the size they are loaded in; its code fails
    on a class without an image.
    """

    def __init__(self, counts: torch.Tensor, size: tuple[int, int], temperature: float):
        total = counts.sum(0).double()
        score = ((1 - total / total.sum()) / temperature).masked_fill(total == 0, -torch.inf)
        self.probability = score.softmax(0).numpy()
        enough = counts.amax(0).double().clamp(max=RARE_CLASS_SHARE * size[0] * size[1])
        self.images = [column.nonzero().flatten().numpy() for column in (counts >= enough).T]

    def draw(self, number: int, seed: int, step: int) -> tuple[list[int], list[int]]:
        """Return the indices of images, and the class that each was drawn for.

        Args:
            number: of images.
            seed, step: all that the draw depends on.
        """
        random = np.random.Generator(np.random.PCG64(seed_for(seed, "rare classes", step)))
        classes = random.choice(len(self.probability), number, p=self.probability).tolist()
        return [int(random.choice(self.images[c])) for c in classes], classes


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
    dataset: Dataset,
    *,
    num_workers: int,
    timeout_seconds: float = 0,
    pin_memory: bool = False,
    **how,
) -> DataLoader:
    """Return a loader of samples, in order unless a sampler says otherwise.

    Args:
        dataset: of segshift.
        num_workers: processes that decode; 0 decodes in this one.
        timeout_seconds: of one batch, with workers; 0 waits for ever. A batch that takes longer
            ends the script with an error.
        pin_memory: copy batches to page-locked memory, for a GPU.
        **how: further arguments of DataLoader: batch_sampler, or batch_size and collate_fn.
    """
    return DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_shielded_worker,
        timeout=timeout_seconds if num_workers else 0,
        # a generator of its own: by default making an iterator draws from the global one
        generator=torch.Generator(),
        pin_memory=pin_memory,
        # forkserver, Python 3.14's default, ends on a SIGTERM of its own
        multiprocessing_context="fork" if num_workers else None,
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
    rare_classes: RareClasses | None = None,
    **loading,
) -> Iterator[dict]:
    """Yield for ever the batches of the steps from `start` on, copied to `device`.

    Args:
        dataset: whose images have one size.
        batch_size: N images a batch. Of several processes, each takes its own N of one order.
        seed: of the order; see `StepBatches`.
        start: number of the first batch.
        device: where `image`, uint8 [N,3,H,W], and `label`, uint8 [N,H,W], go.
        rare_classes: draws the images instead of `StepBatches`; batches then also hold
            `rare_class`, int64 [N], the class that each image was drawn for.
        **loading: num_workers and timeout_seconds of `make_loader`.

    Raises:
        UserError: an unreadable image or label; the message names the file.
    """
    everyones = batch_size * distributed.world_size()
    own = slice(distributed.rank() * batch_size, (distributed.rank() + 1) * batch_size)

    def drawn(step: int) -> tuple[list[int], list[int]]:
        return rare_classes.draw(everyones, seed, step)

    if rare_classes is None:
        sampler = iter(StepBatches(len(dataset), everyones, seed, start))
    else:
        sampler = (drawn(step)[0] for step in itertools.count(start))
    sampler = (batch[own] for batch in sampler)
    loader = make_loader(
        dataset, batch_sampler=sampler, pin_memory=device.type == "cuda", **loading
    )

    def batches() -> Iterator[dict]:
        for step, batch in enumerate(loader, start):
            if rare_classes is not None:  # drawn again: loader workers are given indices alone
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
        if other.class_names != first.class_names:
            raise UserError(f"{first.name} and {other.name} have different classes")
    if len(datasets) == 1:
        return first
    joined = ConcatDataset(datasets)
    for key in ("name", "num_classes", "class_names", "palette", "ignore_index"):
        setattr(joined, key, getattr(first, key))
    return joined


# ------------------------------------------------------------------ class statistics


class _CountedLabels(Dataset):
    """How many pixels of each class each label has, int64 [C]; no image is decoded."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        label = self.dataset.resized(self.dataset.read_label(index))
        counts = np.bincount(label.ravel(), minlength=256)
        return torch.from_numpy(counts[: self.dataset.num_classes])


def class_counts(dataset: Dataset, folder: str | Path, **loading) -> torch.Tensor:
    """Return the pixels of each class in each label, int64 [N,C], counted only the first time.

    Args:
        dataset: labelled, one or several joined.
        folder: where a file keeps the counts of each, under a name that changes with the data.
        **loading: num_workers and timeout_seconds of `make_loader`.

    Raises:
        UserError: an unreadable label, or nothing but ignored pixels in all of them.
    """
    if isinstance(dataset, ConcatDataset):
        return torch.cat([class_counts(part, folder, **loading) for part in dataset.datasets])
    path = Path(folder) / f"{fingerprint(dataset)}.class_counts.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        return torch.tensor(json.loads(path.read_text()))
    loader = make_loader(_CountedLabels(dataset), batch_size=8, **loading)
    counts = torch.cat(list(tqdm(loader, desc="counting classes", disable=None, leave=False)))
    if not counts.any():
        raise UserError(f"the labels of {dataset.name} hold no class, every pixel is ignored")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(counts.tolist()) + "\n")
    return counts


def class_statistics(
    dataset: Dataset,
    folder: str | Path,
    size: tuple[int, int],
    *,
    balance: bool,
    temperature: float | None,
    **loading,
) -> tuple[torch.Tensor | None, RareClasses | None]:
    """Return what training takes from the frequencies of classes; counts only if it takes any.

    Args:
        dataset, folder, loading: see `class_counts`.
        size: W, H of the labels.
        balance: whether the loss weighs the classes.
        temperature: of the sampling of rare classes; None for none.

    Returns:
        `class_weights` and `RareClasses`, each None if it is not wanted.
    """
    if not balance and temperature is None:
        return None, None
    counts = class_counts(dataset, folder, **loading)
    weight = class_weights(counts) if balance else None
    return weight, None if temperature is None else RareClasses(counts, size, temperature)


def class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return float32 [C]: sqrt(median frequency / frequency) of each class, within 0.3 to 4.

    Classes that never occur weigh 1.

    Args:
        counts: int64 [N,C], see `class_counts`.

    Source: Eigen and Fergus 2015, section 4.2 (median frequency balancing), with a square root and
    bounds, as the raw weights of rare classes destabilise small batches.
    """
    total = counts.sum(0).double().numpy()
    seen = total > 0
    weights = np.ones_like(total)
    weights[seen] = np.sqrt(np.median(total[seen]) / total[seen]).clip(0.3, 4.0)
    return torch.from_numpy(weights).float()
