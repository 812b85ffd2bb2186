"""What a run shares with the one that it goes on from: its options, and what is in its files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from engine import processes
from engine.command_line import plain
from engine.errors import UserError
from engine.files import digest, file_digest

# options that name files: what is in the files counts, wherever they lie
BY_CONTENT = {"weights", "restore_from", "data_list", "data_list_target", "val_list"}
BY_CONTENT |= {"pseudo_labels"}


@dataclass(frozen=True)
class Identity:
    """What must be equal for a run to be resumed.

    Attributes:
        options: plain values, by name.
        defaults: of the options; an option that an older run did not have was its default.
        free: names of the options that change no number.
        digests: of what is read, by name; see `identify`.
    """

    options: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def images_per_step(self) -> int | None:
        """Of the source, in all processes together; None where the options do not say it."""
        batch, batches = _batch(self.options), self.options.get("iter_size", 1)
        known = "batch_size" in self.options and isinstance(batches, int)
        return batch * batches if known and batch is not None else None

    def check(self, path: Path, theirs: dict[str, Any], digests: dict[str, str]) -> None:
        """Compare a run with the one that it is to go on from.

        The batch size and the number of processes may change where their product does not.

        Args:
            path: of the file, for messages.
            theirs, digests: of the other run.

        Raises:
            UserError: names what differs.
        """
        free = self.free | BY_CONTENT | {"world_size"}
        before, now = _batch(theirs), _batch(self.options)
        if before == now:
            free |= {"batch_size"}
        missing = object()
        changed = [
            f"--{key.replace('_', '-')} {theirs.get(key, self.defaults.get(key))} -> {value}"
            for key, value in self.options.items()
            if key not in free and theirs.get(key, self.defaults.get(key, missing)) != value
        ]
        if before != now and theirs.get("batch_size") == self.options.get("batch_size"):
            changed.append(f"{before} images a step in all processes together -> {now}")
        if changed:
            raise UserError(
                f"{path} was made with other options ({'; '.join(changed)}): give the same ones to "
                "resume, --change-num-steps for another --num-steps, or another --snapshot-dir"
            )
        for name, value in self.digests.items():
            if digests.get(name, value) != value:
                raise UserError(
                    f"{path} was made with other contents of {name}: give the same to resume, or "
                    "another --snapshot-dir"
                )

    def take_schedule(self, theirs: dict[str, Any], step: int) -> None:
        """Let the number of steps be another one, and say what that means."""
        before, now = theirs.get("num_steps"), self.options["num_steps"]
        if before != now and processes.rank() == 0:
            print(
                f"the schedule of {before} steps is now one of {now}: from step {step} on, the "
                "learning rate is that of the new one, which the steps before did not have"
            )
        theirs["num_steps"], theirs["epochs"] = now, self.options.get("epochs")


def _batch(options: Mapping[str, Any]) -> int | None:
    """Return the images of a step in all processes together."""
    one, several = options.get("batch_size", 1), options.get("world_size", 1)
    return one * several if isinstance(one, int) and isinstance(several, int) else None


def identify(args: Any, datasets: Mapping[str, Dataset | None], **options: Any) -> Identity:
    """Return what a training script's run is known by.

    Args:
        args: of `engine.options.parse`.
        datasets: by name; None for those that are not there. Their ordered pairs of images and
            labels count, not the folder that they lie in, which may move.
        **options: that take the place of those in `args`.

    Raises:
        UserError: a file that is named cannot be read.
    """
    digests = {
        f"the {name} images": digest(json.dumps(_contents(dataset)).encode())
        for name, dataset in datasets.items()
        if dataset is not None
    }
    digests |= {
        f"the {name} classes": digest(json.dumps(dataset.class_names).encode())
        for name, dataset in datasets.items()
        if dataset is not None
    }
    for dest in ("weights", "restore_from"):
        path = getattr(args, dest)
        if path is not None and Path(path).is_file():
            digests[f"--{dest.replace('_', '-')}"] = file_digest(path)
        elif path is not None:
            digests[f"--{dest.replace('_', '-')}"] = path  # imagenet, none
    if args.pseudo_labels:
        digests["--pseudo-labels"] = file_digest(Path(args.pseudo_labels, "pseudo.json"))
    known = plain(args) | options | {"world_size": processes.world_size()}
    return Identity(known, args.defaults, args.free, digests)


def _contents(dataset: Dataset) -> list:
    """Return what a dataset's files are called, in their order, and what their ids mean."""
    if isinstance(dataset, ConcatDataset):
        return [_contents(part) for part in dataset.datasets]
    return [dataset.pairs, dataset.class_names, dataset.lookup.tolist()]
