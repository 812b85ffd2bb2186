"""Pieces that more than one architecture uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError

NORMS = ("batch", "group")


def choose(what: str, given: object, allowed: Collection) -> None:
    """Raise UserError unless an option's value is one that exists.

    Args:
        what: name of the option, as the user knows it.
        given: the value to check.
        allowed: container of the values that exist; its order is the order of the message.

    Raises:
        UserError: `given` is not in `allowed`.
    """
    if given not in allowed:
        raise UserError(f"{what} is {given!r}, must be one of {', '.join(map(str, allowed))}")


def require_positive(what: str, values: Sequence[int], count: int | None = None) -> tuple[int, ...]:
    """Return an option's whole numbers as a tuple.

    Raises:
        UserError: there are none, or not `count`, or one is below 1.
    """
    values = tuple(values)
    if count is not None and len(values) != count:
        raise UserError(f"{what} is {values}, must be {count} whole numbers")
    if not values or min(values) < 1:
        raise UserError(f"{what} is {values}, must be whole numbers from 1")
    return values


def norm(kind: str, channels: int) -> nn.Module:
    """Build a normalisation layer.

    Args:
        kind: "batch" or "group". Group norm (8 groups) has the statistics of one image and no
            running averages, so the layer is the same in training and in evaluation.
        channels: C of the [N,C,H,W] input; a multiple of 8 for "group".

    Raises:
        UserError: unknown kind, or channels that do not split into 8 groups.
    """
    choose("norm", kind, NORMS)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if channels % 8:
        raise UserError(f"norm 'group' makes 8 groups, {channels} channels do not split into them")
    return nn.GroupNorm(8, channels)


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each pixel of float [N,C,H,W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, kind: str, **conv: int
) -> nn.Sequential:
    """Build convolution (no bias, size kept at stride 1), normalisation and ReLU.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel_size: odd side of the kernel, in pixels.
        kind: see `norm`.
        **conv: stride and dilation of the convolution.
    """
    padding = conv.get("dilation", 1) * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False, **conv),
        norm(kind, out_channels),
        nn.ReLU(inplace=True),
    )


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that a single value a channel does not stop: that is normalised as in evaluation.

    For layers that average whole images: one image alone has no statistics there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def excite(
    x: Tensor,
    reduce: nn.Conv2d,
    expand: nn.Conv2d,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Weigh the channels of float [N,C,H,W] by two 1x1 convolutions of their means.

    Source: Hu et al., 2018, Squeeze-and-Excitation Networks, section 3.
    """
    return x * expand(activation(reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


def in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer in float32 under autocast too, and round its output only.

    For the convolutions whose filters look at one channel, or at the image itself: what a rounded
    weight adds has the sign of its input, which there is the same everywhere, and shifts the whole
    output. It is where bfloat16 costs mIoU (docs/performance.md), and hardly any arithmetic.

    Args:
        layer: its parameters are float32.
        x: float [N,C,H,W].
    """
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return layer(x)
    with torch.autocast(kind, enabled=False):
        return layer(x.float()).to(torch.get_autocast_dtype(kind))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context in which operations on `x`'s device keep the dtypes that they are given."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):  # "meta"
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Resize [N,C,h,w] bilinearly (corners not aligned) to the height and width of `reference`."""
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


def conv2d_same(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    before: int | None = None,
) -> Tensor:
    """Convolve with TensorFlow's "same" padding: ceil(size / stride) outputs, the odd pixel after.

    Args:
        x: float [N,C,H,W].
        weight: float [D,C/groups,k,k]; bias: float [D] or None.
        stride, dilation, groups: of the convolution.
        before: pixels of the padding that stand before the first; None for half of it.

    Source: tensorflow.org/api_docs/python/tf/nn, "Notes on padding".
    """
    reach = dilation * (weight.shape[-1] - 1)
    total_h, total_w = (
        max((-(-size // stride) - 1) * stride + reach + 1 - size, 0) for size in x.shape[-2:]
    )
    top, left = (total // 2 if before is None else before for total in (total_h, total_w))
    if total_h != 2 * top or total_w != 2 * left:
        x = F.pad(x, (left, max(total_w - left, 0), top, max(total_h - top, 0)))
        top = left = 0
    return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding; see `conv2d_same`, also for `before`."""

    before: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        before = self.before if stride > 1 else None
        return conv2d_same(x, self.weight, self.bias, stride, dilation, self.groups, before)


class DepthwiseConv2d(SameConv2d):
    """One filter per channel, "same" padding, in float32, without PyTorch's slow backward.

    PyTorch's backward of depthwise convolutions on the CPU falls back to generic code where they
    are dilated: up to 70 times the forward (measured with 2.13.0). There a dilated convolution is
    computed as a plain one on each of the dilation x dilation interleaved grids, which leaves the
    result as it is. (In bfloat16 the backward is as slow wherever the filter is not 3x3 of stride
    1; in float32, see `in_float32`, it is not.)

    Args:
        channels: C of input and output.
        kernel_size: odd side of the kernel, in pixels.
        stride, dilation: of the convolution.
        bias: whether a number is added to each channel.
        before: see `conv2d_same`, of a strided one.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        bias: bool = False,
        before: int | None = None,
    ):
        super().__init__(
            channels, channels, kernel_size, stride, 0, dilation, groups=channels, bias=bias
        )
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(self._convolve, x)

    def _convolve(self, x: Tensor) -> Tensor:
        dilation = self.dilation[0]
        if dilation == 1 or self.stride[0] > 1 or not (x.is_cpu and torch.is_grad_enabled()):
            return super().forward(x)
        grids = _split_grids(x, dilation)
        grids = conv2d_same(grids, self.weight, self.bias, 1, 1, self.groups)
        return _join_grids(grids, dilation, x.shape[2], x.shape[3])


class PairPool(nn.Module):
    """Pool 2x2 pixels: to half the size, rounded up, or `dilation` apart and keeping the size.

    At the end of an odd size the windows hold the pixels that there are.

    Args:
        kind: "max" or "mean".
        stride: 2 or 1.
        dilation: how far apart the pixels of a window are, with stride 1.
    """

    def __init__(self, kind: str, stride: int, dilation: int):
        super().__init__()
        self.kind, self.stride, self.dilation = kind, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N,C,ceil(H/stride),ceil(W/stride)] of float [N,C,H,W]."""
        if self.stride == 2:
            pool = F.max_pool2d if self.kind == "max" else F.avg_pool2d
            return pool(x, 2, 2, ceil_mode=True)
        d = self.dilation
        if self.kind == "max":
            return F.max_pool2d(F.pad(x, (0, d, 0, d), value=-math.inf), 2, 1, dilation=d)
        total, count = (
            sum(padded[..., i : i + h, j : j + w] for i in (0, d) for j in (0, d))
            for padded, h, w in (
                (F.pad(values, (0, d, 0, d)), *values.shape[-2:])
                for values in (x, x.new_ones(x.shape[-2:]))
            )
        )
        return total / count


def _split_grids(x: Tensor, step: int) -> Tensor:
    """[N,C,H,W] -> [N*step**2,C,ceil(H/step),ceil(W/step)], zeros where H or W does not fit."""
    n, c, h, w = x.shape
    x = F.pad(x, (0, -w % step, 0, -h % step)) if h % step or w % step else x
    h, w = x.shape[2] // step, x.shape[3] // step
    # Channels stay innermost: in channels_last memory each pixel is copied in one piece.
    x = x.permute(0, 2, 3, 1).reshape(n, h, step, w, step, c)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(n * step**2, h, w, c)
    return x.permute(0, 3, 1, 2)


def _join_grids(x: Tensor, step: int, height: int, width: int) -> Tensor:
    """Undo `_split_grids`, back to height x width."""
    m, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(m // step**2, step, step, h, w, c)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(m // step**2, h * step, w * step, c)
    # Cropped before the permutation, so that the gradient of the crop has this memory order too.
    return x[:, :height, :width].permute(0, 3, 1, 2)
