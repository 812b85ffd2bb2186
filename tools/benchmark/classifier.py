"""DeepLabv2's classifier beside the convolutions that others write."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from engine.device import autocast, pick_precision
from models.deeplabv2 import DilatedSum
from tools.benchmark.scenes import NUM_CLASSES
from tools.benchmark.timing import alternate, compare, exact_convolutions


class ConvolutionSum(DilatedSum):
    """The same classifier, one dilated convolution after another."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N,C,h,w]."""
        return sum(conv(x) for conv in self.conv2d_list)


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a DeepLabv2, or of its classifier, in NCHW and with convolutions."""
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in plain.modules():
        if isinstance(module, DilatedSum):
            module.__class__ = ConvolutionSum  # same parameters, another forward
    return plain


def run(
    device: torch.device, *, size: tuple[int, int], batch_size: int, repeats: int
) -> Iterator[tuple[dict, str]]:
    """Yield a row and a remark for each level of the network, forward alone and with backward.

    Both sides run in the device's own precision, ours in channels_last; they are first compared in
    float32, values and gradients.

    Args:
        device: where they run.
        size: W, H of the images in pixels; the classifier sees an eighth.
        batch_size: images.
        repeats: rounds.
    """
    precision = pick_precision("auto", device)
    h, w = (-(-side // 8) for side in reversed(size))
    for channels in (1024, 2048):
        torch.manual_seed(0)
        ours = DilatedSum(channels, NUM_CLASSES, (6, 12, 18, 24)).to(device)
        plain = plain_copy(ours)
        ours = ours.to(memory_format=torch.channels_last)
        nchw = torch.randn(batch_size, channels, h, w, device=device).relu().requires_grad_()
        nhwc = nchw.detach().to(memory_format=torch.channels_last).requires_grad_()
        with exact_convolutions():
            check_close(both_ways(ours, nhwc, "fp32"), both_ways(plain, nchw, "fp32"))
        for name, call in (("forward", forward), ("with backward", both_ways)):
            sides = [partial(call, ours, nhwc, precision), partial(call, plain, nchw, precision)]
            seconds = alternate(sides, device, repeats)
            row = {"name": f"classifier of {channels} channels, {w}x{h}, {name}"}
            yield {**row, **compare(*seconds), "precision": precision}, precision


def check_close(ours: list[Tensor], plain: list[Tensor]) -> None:
    """Stop unless each tensor is the plain one within the rounding of fp32, and not all zero."""
    for own, other in zip(ours, plain, strict=True):
        largest = other.abs().max()
        error = (own - other).abs().max()
        assert largest > 0, "zeros only: not worth timing"
        assert error <= 1e-4 * largest, f"ours is {error} off where the largest is {largest}"


@torch.no_grad()
def forward(classifier: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Return the logits."""
    with autocast(precision, x.device):
        return classifier(x)


def both_ways(classifier: nn.Module, x: Tensor, precision: str) -> list[Tensor]:
    """Return the logits and the gradients of their squares' sum, half of it."""
    with autocast(precision, x.device):
        logits = classifier(x)
    inputs = [x, *classifier.parameters()]
    return [logits, *torch.autograd.grad(logits, inputs, logits.detach())]
