"""What a dataset holds, to be said before the first step: used, left out, missing, ignored."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import ConcatDataset, Dataset

from datasets.walk import summary
from engine.parsing import show_size

SAMPLE = 64  # files whose headers are looked at for their sizes
SQUASHED = 1.05  # a change of the ratio of width to height that is said


class Facts(NamedTuple):
    """What a dataset holds.

    Attributes:
        name: of the dataset, and its split.
        images: that are used.
        links: of these, links or files in linked folders; 0 for lists.
        left_out: files and folders that are no data, by reason; empty for lists.
        sizes: (width, height) of the images as they are looked at -> how many of `looked_at`.
        looked_at: images whose headers were read.
        num_classes: of the class table.
        missing: names of classes that no label holds; None where labels were not counted.
        ignored: share of the pixels that is ignored; None where labels were not counted.
        resized: what images are resized to, see `build_dataset`.
    """

    name: str
    images: int
    links: int
    left_out: dict[str, int]
    sizes: dict[tuple[int, int], int]
    looked_at: int
    num_classes: int
    missing: list[str] | None
    ignored: float | None
    resized: tuple[int, int] | int | None = None

    def line(self) -> str:
        """Return one line to print."""
        parts = [f"{self.images} image{'s' * (self.images != 1)}"]
        if self.links:
            parts[0] += f" ({self.links} through links)"
        common = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        if common:
            shown = ", ".join(f"{width}x{height}" for (width, height), _ in common[:3])
            more = f" and {len(common) - 3} more sizes" if len(common) > 3 else ""
            of = f" in the first {self.looked_at}" if self.looked_at < self.images else ""
            parts.append(f"{shown}{more}{of}{self._how_resized()}")
        if self.left_out:
            parts.append(f"left out: {summary(Counter(self.left_out))}")
        if self.missing is not None:
            found = self.num_classes - len(self.missing)
            lacking = f" (none: {', '.join(self.missing)})" if self.missing else ""
            parts.append(f"labels hold {found} of {self.num_classes} classes{lacking}")
        if self.ignored is not None:
            parts.append(f"{100 * self.ignored:.1f} % of the pixels ignored")
        return f"{self.name}: {'; '.join(parts)}"

    def _how_resized(self) -> str:
        """Say what sizes become, where that is not just a smaller or larger picture."""
        if isinstance(self.resized, int):
            return f" to {show_size(self.resized)}"
        if self.resized is None:
            return ""
        changes = {h * self.resized[0] / (w * self.resized[1]) for w, h in self.sizes}
        if all(1 / SQUASHED <= change <= SQUASHED for change in changes):
            return ""
        keeping = f"--input-size {max(self.resized)} keeps the ratio"
        return f" squashed to {show_size(self.resized)} ({keeping})"


def say_facts(datasets: Mapping[str, tuple[Dataset, torch.Tensor | None]]) -> None:
    """Print a line for each dataset, by process 0.

    Args:
        datasets: name -> dataset and the counts of its classes; see `dataset_facts`.
    """
    for name, (dataset, counts) in datasets.items():
        for facts in dataset_facts(dataset, counts):
            print(f"{name} images: {facts.line()}", flush=True)


def dataset_facts(dataset: Dataset, counts: torch.Tensor | None = None) -> list[Facts]:
    """Return what each dataset holds, one for each that was joined.

    Args:
        dataset: one, cached or not, or several joined.
        counts: int64 [N,C] of `statistics.class_counts`, of the same dataset; None where labels
            were not counted.
    Raises:
        UserError: an image whose header cannot be read.
    """
    if not isinstance(dataset, ConcatDataset):
        return [_facts(dataset, counts)]
    lengths = [len(part) for part in dataset.datasets]
    parts = [None] * len(lengths) if counts is None else counts.split(lengths)
    return [_facts(part, own) for part, own in zip(dataset.datasets, parts, strict=True)]


def _facts(dataset: Any, counts: torch.Tensor | None) -> Facts:
    """Return what one dataset holds."""
    looked_at = range(min(len(dataset), SAMPLE))
    heights_and_widths = [dataset.full_size(index) for index in looked_at]
    missing = ignored = None
    if counts is not None:
        seen = counts.sum(0) > 0
        missing = [name for name, there in zip(dataset.class_names, seen, strict=True) if not there]
        pixels = _label_pixels(dataset)
        ignored = (pixels - int(counts.sum())) / pixels
    return Facts(
        f"{dataset.name} {dataset.split}",
        len(dataset),
        dataset.links,
        dict(+dataset.left_out),
        dict(Counter((width, height) for height, width in heights_and_widths)),
        len(looked_at),
        dataset.num_classes,
        missing,
        ignored,
        dataset.size,
    )


def _label_pixels(dataset: Any) -> int:
    """Return the pixels of all labels in the size that they are counted in."""
    if isinstance(dataset.size, tuple) and dataset.resize_label:
        return len(dataset) * dataset.size[0] * dataset.size[1]
    own = (dataset.full_size(index)[::-1] for index in range(len(dataset)))
    sizes = map(dataset.fitted, own) if dataset.resize_label else own
    return sum(width * height for width, height in sizes)
