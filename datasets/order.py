"""Which images a step takes: epoch after epoch, by their rare classes, or every class in turn."""

from collections.abc import Iterator

import numpy as np
import torch

from engine.seeds import seed_for

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
        self.images = images_of_classes(counts, size)

    def draw(self, number: int, seed: int, step: int) -> tuple[list[int], list[int]]:
        """Return the indices of images, and the class that each was drawn for.

        Args:
            number: of images.
            seed, step: all that the draw depends on.
        """
        random = np.random.Generator(np.random.PCG64(seed_for(seed, "rare classes", step)))
        classes = random.choice(len(self.probability), number, p=self.probability).tolist()
        return [int(random.choice(self.images[c])) for c in classes], classes


class ClassesInTurn:
    """Draw an image for every class in turn, so that batches hold the classes equally often.

    The classes that occur are shuffled round after round; their images are those of `RareClasses`.

    Args:
        counts: int64 [N,C], see `class_counts`.
        size: W, H of the labels.

    Source: class-aware sampling (Shen et al. 2016, section 3.2). Deviation: images of a class are
    drawn with replacement.
    """

    def __init__(self, counts: torch.Tensor, size: tuple[int, int]):
        self.classes = counts.any(0).nonzero().flatten().tolist()
        self.images = images_of_classes(counts, size)

    def draw(self, number: int, seed: int, step: int) -> tuple[list[int], list[int]]:
        """Return the indices of images, and the class of each; see `RareClasses.draw`."""
        random = np.random.Generator(np.random.PCG64(seed_for(seed, "classes in turn", step)))
        classes = []
        for position in range(step * number, (step + 1) * number):
            turn, place = divmod(position, len(self.classes))
            shuffle = np.random.Generator(np.random.PCG64(seed_for(seed, "turn", turn)))
            classes.append(self.classes[shuffle.permutation(len(self.classes))[place]])
        return [int(random.choice(self.images[c])) for c in classes], classes


def images_of_classes(counts: torch.Tensor, size: tuple[int, int]) -> list[np.ndarray]:
    """Return the indices of the images with enough of each class; none for one that never occurs.

    Args:
        counts: int64 [N,C], see `class_counts`.
        size: W, H of the labels.
    """
    enough = counts.amax(0).double().clamp(min=1, max=RARE_CLASS_SHARE * size[0] * size[1])
    return [column.nonzero().flatten().numpy() for column in (counts >= enough).T]
