"""What a command does for its page: a part for each network, joined when all have run."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from engine import processes
from engine.values import Loading
from inference.loop import predict
from inference.page.gathering import Gathering
from inference.page.placing import placed
from inference.page.report import Part, join


class Page:
    """The parts of a page, each a network on the same images; without a folder nothing is done.

    Attributes:
        wanted: whether there is to be a page; predictions then come with their confidence.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.wanted = folder, folder is not None
        self._count = 0

    @contextlib.contextmanager
    def part(self, dataset: Dataset) -> Iterator["Seeing"]:
        """Yield what takes a network's predictions of a dataset, until its files are written."""
        if self.folder is None:
            yield Seeing(dataset, None)
            return
        folder = self.folder / "parts" / str(self._count)
        self._count += 1
        ignore = dataset.ignore_index
        with Gathering(folder, dataset.class_names, dataset.palette, ignore) as gathering:
            yield Seeing(dataset, gathering)

    def join(self, names: list[str]) -> None:
        """Make one page of the parts."""
        parts = [self.folder / "parts" / str(k) for k in range(self._count)]
        join(list(map(Part.read, parts)), self.folder, names, move=True)
        shutil.rmtree(self.folder / "parts")


class Seeing:
    """Hands a network's predictions of a dataset to its part of the page, where there is one."""

    def __init__(self, dataset: Dataset, gathering: Gathering | None) -> None:
        self.dataset, self.gathering = dataset, gathering
        self._numbers = {image: i for i, (image, _) in enumerate(dataset.pairs)}

    def batch(self, batch: dict[str, Any], preds: Tensor, confidences: Tensor | None) -> None:
        """Take a batch as `inference.loop.predict` yields it, on any device."""
        if self.gathering is None:
            return
        for i, name in enumerate(batch["name"]):
            label = batch["label"][i] if "label" in batch else None
            sure = None if confidences is None else confidences[i]
            self.one(name, partial(self._read, self._numbers[name]), preds[i], label, sure)

    def one(self, name: str, photograph: Any, *maps) -> None:
        """Take an image; see `Gathering.add`."""
        if self.gathering is not None:
            self.gathering.add((self._numbers[name], name), photograph, *maps)

    def finish(
        self,
        name: str,
        about: dict[str, Any],
        scored: list[int] | None,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write down what is known of the network; see `Gathering.finish`."""
        if self.gathering is not None:
            self.gathering.finish(name, about, scored, more)

    def _read(self, index: int) -> Any:
        return self.dataset.read(index)[0]


@contextlib.contextmanager
def opened(folder: str | None, sources: list[str]) -> Iterator[Page]:
    """Yield the page of a command, which is in its place when the block ends without an error.

    Args:
        folder: where the page goes; None for no page.
        sources: files or folders of the networks, in order; the page calls them by what differs.

    Raises:
        UserError: the folder is somebody else's, or cannot be written.
    """
    if folder is None:
        yield Page(None)
        return
    with placed(folder) as made:
        page = Page(made)
        yield page
        processes.barrier()
        if processes.rank() == 0:
            page.join(short_names(sources))
    print(f"to look at: {Path(folder, 'index.html')}", flush=True)


def write_page(
    folder: str, predictors: dict[str, Callable], dataset: Dataset, loading: Loading
) -> None:
    """Write a page of networks by name on a dataset.

    Args:
        folder: see `opened`.
        predictors: see `inference.loop.predict`.
        dataset: labelled, or not.
        loading: see `datasets.loading.make_loader`.

    Raises:
        UserError: see `opened`.
    """
    with opened(folder, list(predictors)) as page:
        for name, predictor in predictors.items():
            with page.part(dataset) as seen:
                for batch in predict(predictor, dataset, loading, with_confidence=True):
                    seen.batch(*batch[:3])
            seen.finish(name, {"images": dataset.split or dataset.list_file}, None)


def short_names(paths: list[str]) -> list[str]:
    """Return names that differ: the last part in which the paths do, more where it takes more."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    while len(parts) > 1 and len({part[-1:] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({i})" for i, path in enumerate(paths, start=1)]
