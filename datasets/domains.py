"""The images of an adaptation: source, target, its labelled or pseudo-labelled part, validation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset

from datasets import open_images, open_pseudo_labelled
from datasets.loading import join_datasets, step_batches
from datasets.statistics import NOTHING_KNOWN, Statistics
from engine.errors import UserError
from engine.seeds import seed_for
from engine.values import Images, Loading


@dataclass
class Domains:
    """The datasets of a run; those of the target that are not there are None.

    Attributes:
        source: labelled, one or several joined.
        target: images alone.
        val: of the target, labelled, labels in their own size.
        labelled: target images whose labels may be used.
        pseudo: target images with pseudo labels.
        known: of the source's labels.
    """

    source: Dataset
    target: Dataset
    val: Dataset
    labelled: Dataset | None = None
    pseudo: Dataset | None = None
    known: Statistics = NOTHING_KNOWN

    @property
    def named(self) -> dict[str, Dataset]:
        """The datasets that are there, by what they are called to people."""
        names = {"source": self.source, "target": self.target, "labelled target": self.labelled}
        names |= {"pseudo-labelled target": self.pseudo, "validation": self.val}
        return {name: dataset for name, dataset in names.items() if dataset is not None}

    @property
    def there(self) -> set[str]:
        """The domains beside the source that have images."""
        return {key for key in ("target", "labelled", "pseudo") if getattr(self, key) is not None}

    def batches(
        self,
        domains: list[str],
        batch_size: int,
        *,
        seed: int,
        starts: tuple[int, int],
        device: torch.device,
        loading: Loading,
    ) -> dict[str, Iterator[dict]]:
        """Return endless batches of the source and of `domains`, by name; see `step_batches`.

        Args:
            domains: beside the source.
            batch_size: of each.
            seed: source and target have one order, each of the others an order of its own: where
                all hold the same images, a step should not draw them twice.
            starts: number of the first batch of the source, and of the others.
            device, loading: see `step_batches`.
        """
        how = {"device": device, "loading": loading}
        batches = {
            "source": step_batches(
                self.source,
                batch_size,
                seed=seed,
                start=starts[0],
                rare_classes=self.known.rare_classes,
                **how,
            )
        }
        for name in domains:
            own = seed if name == "target" else seed_for(seed, name)
            dataset = getattr(self, name)
            batches[name] = step_batches(dataset, batch_size, seed=own, start=starts[1], **how)
        return batches


def open_domains(
    sources: list[Images],
    target: Images,
    val: Images,
    *,
    target_labels: int | str | None = None,
    pseudo_labels: str | None = None,
    pseudo_confidence: bool = False,
) -> Domains:
    """Open the images of an adaptation.

    Args:
        sources: one or several of the same classes.
        target: whose labels are not read.
        val: of the target.
        target_labels: how many target images may be used with their labels, "all", or None.
        pseudo_labels: a folder that pseudo_label.py wrote, or None.
        pseudo_confidence: weigh the pseudo labels by the folder's confidence.

    Raises:
        UserError: datasets that cannot be opened, or that differ in their classes.
    """
    source = join_datasets([open_images(images) for images in sources])
    domains = Domains(
        source,
        open_images(target, labelled=False),
        open_images(val, resize_label=False),
    )
    if source.class_names != domains.val.class_names:
        raise UserError(f"{source.name} and {domains.val.name} have different classes")
    if target_labels:
        count = target.num_images if target_labels == "all" else target_labels
        domains.labelled = open_images(replace(target, num_images=count))
    if pseudo_labels:
        whole = replace(target, num_images=None)
        domains.pseudo = open_pseudo_labelled(whole, pseudo_labels, pseudo_confidence)
    elif pseudo_confidence:
        raise UserError("--pseudo-confidence goes with --pseudo-labels")
    return domains
