"""What every method is, what it is told of the run, and what it sees of a step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import kernels
from training.batch import Batch
from training.student import Student


def _as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class Setting:
    """Facts of the run that methods are built with.

    Attributes:
        num_classes: C.
        heads: the network's maps of class logits: out and, where it has one, aux.
        align_corners: how logits are resized.
        autocast: returns the context in which networks run.
        class_weight: float [C] of the source's loss, or None.
        iter_size: batches of a step.
        augment: changes images that a method mixes, as --augment says of `mixed:`.
        mean: of red, green and blue, 0 to 255, that the network takes for nothing.
    """

    num_classes: int
    heads: tuple[str, ...] = ("out",)
    align_corners: bool = False
    autocast: Callable[[], AbstractContextManager] = torch.enable_grad
    class_weight: Tensor | None = None
    iter_size: int = 1
    augment: Callable[[Batch], Batch] = _as_it_is
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass
class Seen:
    """One batch of every domain, forwarded once for all methods together.

    Attributes:
        step: how many were done.
        source: image, label, and outputs without gradients.
        target: image; outputs where a method needs them.
        labelled: image and label of `--target-labels`; outputs where needed.
        pseudo: image, label and perhaps weight of `--pseudo-labels`; outputs where needed.
        teacher: the teacher's outputs on the target's image.
    """

    step: int
    source: Batch
    target: Batch | None = None
    labelled: Batch | None = None
    pseudo: Batch | None = None
    teacher: dict[str, Tensor] | None = None


class Method(nn.Module):
    """What a method does when it does nothing.

    A method is an nn.Module, so that one state_dict holds its networks and, as extra state, its
    optimiser. Its constructor takes a `Setting`, and keywords that are its command-line flags.

    Attributes:
        mixes: whether it trains on images of its own making, which it gives to `Setting.augment`.
        needs: what `Seen` must hold beside the source: target, labelled, pseudo for a domain's
            images; DOMAIN_out for the student's outputs on them, too; DOMAIN_detached for the same,
            without gradients unless another method needs DOMAIN_out; teacher_out.
    """

    needs: frozenset[str] = frozenset()
    mixes = False

    def check(self, network: nn.Module) -> None:
        """Raise UserError where the method cannot work on a network, before any step."""

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the weighted loss terms of one batch, by names that no other method has."""
        return {}

    def after_step(self, rate: float) -> dict[str, Tensor]:
        """Train what is the method's own; `rate` is the schedule's factor. Return losses to log."""
        return {}

    def diagnose(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return values to log and warnings, of the time since the last call."""
        return {}, []

    def finish(self, network: nn.Module, target: Callable[[], Iterable[Tensor]]) -> bool:
        """Change the trained network once, at the end; return whether it was changed.

        Args:
            network: in training mode.
            target: starts a pass over the target's images, float [N,3,H,W], normalised.
        """
        return False


class Watch:
    """Counts of what a teacher is sure of, kept on the device and read once an interval.

    Args:
        name: of the method, begins the values' names and the warnings.
        num_classes: C.
    """

    def __init__(self, name: str, num_classes: int):
        self.name, self.num_classes = name, num_classes
        self._pixels: int = 0
        self._counts: Tensor | int = 0

    def count(self, pseudo: Tensor, sure: Tensor, source_label: Tensor) -> None:
        """Count a batch; does not make the host wait.

        Args:
            pseudo: uint8 [N,H,W], the teacher's classes.
            sure: bool [N,H,W], where its confidence reaches the threshold.
            source_label: uint8 [N,H,W], 255 = ignore.
        """
        counts = []
        for label in (pseudo.masked_fill(~sure, 255), source_label):
            matrix = kernels.confusion_matrix(label, label, self.num_classes)
            counts.append(matrix.diagonal()[: self.num_classes])
        self._counts = self._counts + torch.stack(counts)
        self._pixels += pseudo.numel()

    def read(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return what was counted since the last call: values to log, and a warning or none.

        The values are the share of confident pixels, and among those the number of classes and
        the share of the most frequent one. The warnings are for a teacher that is never sure, and
        for pseudo labels that hold one class alone or less than half of the source's classes.
        """
        if not self._pixels:
            return {}, []
        sure, source = self._counts.tolist()
        share = sum(sure) / self._pixels
        largest = max(sure) / max(sum(sure), 1)
        classes, expected = (sum(n > 0 for n in counts) for counts in (sure, source))
        self._pixels, self._counts = 0, 0
        values = {"confident": share, "largest_class": largest, "classes": float(classes)}
        warning = None
        if share < 0.01:
            warning = f"the teacher never becomes confident: {share:.2%} of the pixels count"
        elif largest > 0.95:
            warning = f"the pseudo labels collapse: {largest:.1%} are class {sure.index(max(sure))}"
        elif 2 * classes < expected:
            warning = f"the pseudo labels collapse to {classes} classes; the source has {expected}"
        values = {f"{self.name}_{key}": torch.tensor(value) for key, value in values.items()}
        return values, [f"{self.name}: {warning}"] if warning else []


class Consistency(Method):
    """A method whose changed images are held to the classes that plain ones are sure to show.

    Args:
        name: of the method and its term.
        setting: of the run.
        weight: of the term.
        threshold: confidence from which a pixel is sure.
    """

    mixes = True

    def __init__(self, name: str, setting: Setting, weight: float, threshold: float):
        super().__init__()
        self.name, self.weight, self.threshold = name, weight, threshold
        self.align_corners, self.augment = setting.align_corners, setting.augment
        self.watch = Watch(name, setting.num_classes)

    def labels_of(self, outputs: dict[str, Tensor], seen: Seen) -> tuple[Tensor, Tensor]:
        """Return the classes of the target's images, uint8 [N,H,W], and where they are sure, bool.

        Args:
            outputs: on these images, without gradients.
            seen: whose target they are of.
        """
        label, confidence = kernels.argmax_upsample(
            outputs["out"], seen.target.image.shape[-2:], self.align_corners, True
        )
        sure = confidence >= self.threshold
        self.watch.count(label, sure, seen.source.label)
        return label, sure

    def term(self, batch: Batch, student: Student) -> dict[str, Tensor]:
        """Return the weighted cross-entropy on changed images, the mean over all their pixels."""
        how = {"pixel_weight": batch.weight, "balanced": False}
        terms = student.loss(student(batch.image), batch.label, self.name, **how)
        return {name: self.weight * term for name, term in terms.items()}

    def diagnose(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return how sure the classes were."""
        return self.watch.read()
