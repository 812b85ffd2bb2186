"""The images of an adaptation: source, target, its labelled or pseudo-labelled part, validation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from datasets import DATASETS, open_images, open_pseudo_labelled
from datasets.base import NoLabels
from datasets.folder import own_root, table_of
from datasets.loading import join_datasets, require_same_classes, step_batches
from datasets.statistics import NOTHING_KNOWN, Statistics
from engine import zips
from engine.errors import UserError
from engine.seeds import seed_for
from engine.values import Images, Loading, Validation


@dataclass
class Domains:
    """The datasets of a run; those of the target that are not there are None.

    Attributes:
        source: labelled, one or several joined.
        target: images alone.
        val: labelled, labels in their own size; None where nothing is scored.
        labelled: target images whose labels may be used.
        pseudo: target images with pseudo labels.
        known: of the source's labels.
        val_sets: of --val, by name; `val` is the first of them.
    """

    source: Dataset
    target: Dataset
    val: Dataset | None
    labelled: Dataset | None = None
    pseudo: Dataset | None = None
    known: Statistics = NOTHING_KNOWN
    val_sets: dict[str, Dataset] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Dataset]:
        """The datasets that are there, by what they are called to people."""
        names = {"source": self.source, "target": self.target, "labelled target": self.labelled}
        names |= {
            "pseudo-labelled target": self.pseudo,
            **named_validation(self.val, self.val_sets),
        }
        return {name: dataset for name, dataset in names.items() if dataset is not None}

    @property
    def about(self) -> Dataset:
        """The images that a published network is about: scored on or, without labels, made for."""
        return self.target if self.val is None else self.val

    @property
    def there(self) -> set[str]:
        """The domains beside the source that have images."""
        return {key for key in ("target", "labelled", "pseudo") if getattr(self, key) is not None}

    def some_target_images(self, count: int = 16) -> torch.Tensor:
        """Read some of the target's images, uint8 [M,3,h,w], all in the first's size."""
        chosen = torch.linspace(0, len(self.target) - 1, min(count, len(self.target)))
        images: list[torch.Tensor] = []
        for index in chosen.round().int().tolist():
            sample = self.target[index]
            width, height = sample.get("extent", sample["image"].shape[:0:-1])
            image = sample["image"][:, :height, :width]
            size = images[0].shape[1:] if images else image.shape[1:]
            images.append(F.interpolate(image[None], size, mode="bilinear", antialias=True)[0])
        return torch.stack(images)

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
                by_class=self.known.by_class,
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
    validation: Validation,
    *,
    target_labels: int | str | None = None,
    pseudo_labels: str | None = None,
    pseudo_confidence: bool = False,
) -> Domains:
    """Open the images of an adaptation.

    Args:
        sources: one or several of the same classes.
        target: whose labels are not read. A folder without a class table has the source's.
        validation: on which images; on source: on those of the first one.
        target_labels: how many target images may be used with their labels, "all", or None.
        pseudo_labels: a folder that pseudo_label.py wrote, or None.
        pseudo_confidence: weigh the pseudo labels by the folder's confidence.

    Raises:
        UserError: datasets that cannot be opened, or that differ in their classes.
    """
    val, val_sets = None, open_sets(validation)
    if val_sets:
        val = next(iter(val_sets.values()))
    elif validation.on == "source":
        first, val = open_divided(sources[0], validation)
        sources = [first, *sources[1:]]
    source = join_datasets([open_images(images) for images in sources])
    if _lacks_table(target):
        target = replace(target, options={**target.options, "classes": table_of(source)})
    if validation.on in ("auto", "target") and not val_sets:
        target, val = _open_target_divided(target, validation)
    domains = Domains(source, open_images(target, labelled=False), val, val_sets=val_sets)
    for other in val_sets.values() or [domains.target if val is None else val]:
        require_same_classes(source, other)
    if target_labels:
        count = target.num_images if target_labels == "all" else target_labels
        domains.labelled = open_images(replace(target, num_images=count))
    if pseudo_labels:
        whole = replace(target, num_images=None)
        domains.pseudo = open_pseudo_labelled(whole, pseudo_labels, pseudo_confidence)
    elif pseudo_confidence:
        raise UserError("--pseudo-confidence goes with --pseudo-labels")
    return domains


def open_sets(validation: Validation) -> dict[str, Dataset]:
    """Open the images of --val by name, their labels in their own size; none where it is not given.

    Raises:
        UserError: they cannot be opened.
    """
    return {
        name: open_images(images, resize_label=False) for name, images in validation.sets.items()
    }


def named_validation(
    val: Dataset | None, val_sets: Mapping[str, Dataset]
) -> dict[str, Dataset | None]:
    """Return the images that are validated on, by what they are called to people."""
    return {f"validation {name}": one for name, one in val_sets.items()} or {"validation": val}


def open_divided(images: Images, validation: Validation) -> tuple[Images, Dataset]:
    """Return which images are trained on, and open those that are validated on.

    These are a list's, a split's or, where none is named and there is no split val, every tenth
    image of those to train on, which then are the others.

    Raises:
        UserError: they cannot be opened.
    """
    split, list_file = validation.split, validation.list_file
    val = replace(images, split=split or "val", list_file=list_file, num_images=None)
    if split is None and list_file is None and not _has_split(images, "val"):
        val = replace(images, num_images=None, options={**images.options, "holdout": "only"})
        images = replace(images, options={**images.options, "holdout": "leave"})
    return images, open_images(val, resize_label=False)


def _open_target_divided(target: Images, validation: Validation) -> tuple[Images, Dataset | None]:
    """Do as `open_divided`; a target without any label is not scored where that is not asked."""
    try:
        return open_divided(target, validation)
    except NoLabels as error:
        if validation != Validation():
            raise
        print(
            f"warning: {str(error).split(';')[0]}: nothing is scored, no checkpoint is the best; "
            "--val-on source scores on labelled images of the source",
            flush=True,
        )
        return target, None


def _has_split(images: Images, split: str) -> bool:
    return images.dataset not in DATASETS or DATASETS[images.dataset].has_split(images.root, split)


def _lacks_table(images: Images) -> bool:
    """Return whether these are people's own images without a table of their classes."""
    if images.dataset != "folder" or images.root is None or "classes" in images.options:
        return False
    return not zips.is_file(own_root(images.root) / "classes.json")
