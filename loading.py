"""From datasets to batches: the order of the steps, loader workers, several sources, statistics."""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from engine import seed_for
from errors import UserError


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


def _quiet_worker(_worker_id: int) -> None:
    """Leave Ctrl-C to the main process: it stops at a step boundary and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        worker_init_fn=_quiet_worker,
        timeout=timeout_seconds if num_workers else 0,
        # a generator of its own: by default making an iterator draws from the global one
        generator=torch.Generator(),
        pin_memory=pin_memory,
        # forkserver, Python 3.14's default, ends on a SIGTERM of its own
        multiprocessing_context="fork" if num_workers else None,
        **how,
    )


def step_batches(
    dataset: Dataset, batch_size: int, *, seed: int, start: int, device: torch.device, **loading
) -> Iterator[dict]:
    """Yield for ever the batches of the steps from `start` on, copied to `device`.

    Args:
        dataset: whose images have one size.
        batch_size: N images a batch.
        seed: of the order; see `StepBatches`.
        start: number of the first batch.
        device: where `image`, uint8 [N,3,H,W], and `label`, uint8 [N,H,W], go.
        **loading: num_workers and timeout_seconds of `make_loader`.

    Raises:
        UserError: an unreadable image or label; the message names the file.
    """
    sampler = StepBatches(len(dataset), batch_size, seed, start)
    loader = make_loader(
        dataset, batch_sampler=sampler, pin_memory=device.type == "cuda", **loading
    )
    for batch in loader:
        yield {
            key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }


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


def class_weights(dataset: Dataset, **loading) -> torch.Tensor:
    """Return float32 [C]: sqrt(median frequency / frequency) of each class, within 0.3 to 4.

    Reads every label once. Classes that never occur weigh 1.

    Args:
        dataset: labelled.
        **loading: num_workers and timeout_seconds of `make_loader`.

    Source: Eigen and Fergus 2015, section 4.2 (median frequency balancing), with a square root and
    bounds, as the raw weights of rare classes destabilise small batches.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    loader = make_loader(dataset, batch_size=1, **loading)
    for batch in tqdm(loader, desc="counting classes", disable=None, leave=False):
        counts += torch.bincount(batch["label"].flatten(), minlength=256)
    counts = counts[: dataset.num_classes].double().numpy()
    seen = counts > 0
    weights = np.ones_like(counts)
    weights[seen] = np.sqrt(np.median(counts[seen]) / counts[seen]).clip(0.3, 4.0)
    return torch.from_numpy(weights).float()
