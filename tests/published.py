"""DeepLabv2 of AdaptSegNet and ADVENT, from the names and shapes in their files alone."""

from collections import OrderedDict

import torch
import torch.nn.functional as F


def pattern(*shape: int) -> torch.Tensor:
    """Numbers in -1..1 that need no random generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel()) * 0.1).reshape(shape)


def published_weights(num_classes: int, multi_level: bool, blocks: tuple = (3, 4, 6, 3)) -> dict:
    """Random weights under the names and shapes of AdaptSegNet's and ADVENT's files."""
    generator = torch.Generator().manual_seed(1)
    weights = OrderedDict()

    def conv(name: str, *shape: int) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * fan_in**-0.5

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5

    conv("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    inplanes = 64
    for layer, count in enumerate(blocks, start=1):
        planes = 32 * 2**layer
        for i in range(count):
            block = f"layer{layer}.{i}"
            for n, shape in enumerate(
                [(planes, inplanes, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)], 1
            ):
                conv(f"{block}.conv{n}", *shape)
                norm(f"{block}.bn{n}", shape[0])
            if i == 0:
                conv(f"{block}.downsample.0", 4 * planes, inplanes, 1, 1)
                norm(f"{block}.downsample.1", 4 * planes)
            inplanes = 4 * planes
    for head, channels in (
        {"layer5": 1024, "layer6": 2048}.items() if multi_level else [("layer5", 2048)]
    ):
        for branch in range(4):
            conv(f"{head}.conv2d_list.{branch}", num_classes, channels, 3, 3)
            weights[f"{head}.conv2d_list.{branch}.bias"] = torch.randn(
                num_classes, generator=generator
            )
    return weights


def published_forward(
    weights: dict, images: torch.Tensor, dilations: tuple, style: str = "caffe"
) -> dict:
    """DeepLabv2 from its weights alone: logits of every classifier by its name."""

    def conv_norm(x, conv, norm, stride=1, padding=0, dilation=1):
        x = F.conv2d(x, weights[f"{conv}.weight"], None, stride, padding, dilation)
        statistics = [weights[f"{norm}.{k}"] for k in ("running_mean", "running_var")]
        return F.batch_norm(x, *statistics, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    x = conv_norm(images, "conv1", "bn1", stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=style == "caffe")
    logits = {}
    before = 1
    for layer, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)], start=1):
        i = 0
        while f"layer{layer}.{i}.conv1.weight" in weights:
            block = f"layer{layer}.{i}"
            s = stride if i == 0 else 1
            d = before if i == 0 and style == "torchvision" else dilation
            s1, s2 = (s, 1) if style == "caffe" else (1, s)
            y = conv_norm(x, f"{block}.conv1", f"{block}.bn1", s1).relu()
            y = conv_norm(y, f"{block}.conv2", f"{block}.bn2", s2, d, d).relu()
            y = conv_norm(y, f"{block}.conv3", f"{block}.bn3")
            if i == 0:
                x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", s)
            x = (x + y).relu()
            i += 1
        before = dilation
        for head in ("layer5", "layer6"):
            kernel = weights.get(f"{head}.conv2d_list.0.weight")
            on_this_layer = {1024: 3, 2048: 4}[kernel.shape[1]] if kernel is not None else None
            if on_this_layer == layer:
                logits[head] = sum(
                    F.conv2d(
                        x,
                        weights[f"{head}.conv2d_list.{branch}.weight"],
                        weights[f"{head}.conv2d_list.{branch}.bias"],
                        padding=d,
                        dilation=d,
                    )
                    for branch, d in enumerate(dilations)
                )
    return logits
