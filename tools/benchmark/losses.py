"""The Lovasz loss beside the way its authors wrote it: a sort of floats a class."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tools.benchmark.scenes import NUM_CLASSES
from tools.benchmark.timing import alternate, compare
from training.overlap import lovasz


def sorting_per_class(logits: Tensor, label: Tensor) -> Tensor:
    """Return the Lovasz-Softmax loss over the classes that occur; labels 255 are ignored."""
    probs = logits.softmax(1).movedim(1, -1)[label != 255]
    label, losses = label[label != 255], []
    for c in label.unique():
        fg = (label == c).float()
        errors, order = (fg - probs[:, c]).abs().sort(descending=True)
        fg = fg[order]
        jaccard = 1 - (fg.sum() - fg.cumsum(0)) / (fg.sum() + (1 - fg).cumsum(0))
        growth = torch.cat([jaccard[:1], jaccard.diff()])
        losses.append((errors * growth).sum())
    return torch.stack(losses).mean()


def both_ways(loss: Callable, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient."""
    value = loss(logits, label)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def run(
    device: torch.device, *, size: tuple[int, int], batch_size: int, repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield a row and a remark; the two ways are first compared.

    Args:
        device: where they run.
        size: W, H of the label in pixels.
        batch_size: images.
        repeats: rounds.
    """
    generator = torch.Generator().manual_seed(0)
    width, height = size
    shape = (batch_size, NUM_CLASSES, height, width)
    logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
    label = torch.randint(NUM_CLASSES, (batch_size, height, width), generator=generator).to(device)
    sides = [partial(both_ways, way, logits, label) for way in (lovasz, sorting_per_class)]
    (ours, slope), (plain, other) = (side() for side in sides)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    # the growth of a class is a difference of two losses there: seven digits less those of 1 / U
    torch.testing.assert_close(slope, other, rtol=0, atol=0.01 * float(slope.abs().max()))
    row = compare(*alternate(sides, device, repeats))
    yield {"name": f"lovasz {list(shape)}, with backward", **row}, ""
