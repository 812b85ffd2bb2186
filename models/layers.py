"""Pieces that more than one architecture uses."""

from __future__ import annotations

import copy
import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError

NORMS = ("batch", "group")


def choose(what: str, given: object, allowed: object) -> None:
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


def norm(kind: str, channels: int) -> nn.Module:
    """Build a normalisation layer.

    Args:
        kind: "batch" or "group". Groups have 8 channels: statistics of one image, no running
            averages, so the layer is the same in training and in evaluation.
        channels: C of the [N,C,H,W] input; a multiple of 8 for "group".

    Raises:
        UserError: unknown kind, or channels that do not split into groups of 8.
    """
    choose("norm", kind, NORMS)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if channels % 8:
        raise UserError(f"norm 'group' makes groups of 8 channels, width gives {channels}")
    return nn.GroupNorm(channels // 8, channels)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, kind: str, **conv):
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


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Resize [N,C,h,w] bilinearly (corners not aligned) to the height and width of `reference`."""
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Copy a model for inference with every batch norm folded into the convolution before it.

    The convention of models/: a BatchNorm2d registered right after a Conv2d in the same module is
    applied right after it. The scale is computed in float64, so the outputs differ from the
    original's in evaluation mode by float32 rounding only.

    Args:
        model: any model of this folder; left as it is.

    Returns:
        A copy in evaluation mode, without gradients.

    Source: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, section 3.2 (the same fold, here without quantisation).
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in folded.modules():
        children = list(module.named_children())
        for (_, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                _fold(conv, bn)
                setattr(module, bn_name, nn.Identity())
    return folded


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shift = bn.bias.double() + (bias - bn.running_mean.double()) * scale
    weight = conv.weight
    conv.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
    conv.bias = nn.Parameter(shift.to(weight.dtype))
    conv.requires_grad_(False)
