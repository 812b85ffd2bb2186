"""CycleGAN's networks: a generator of residual blocks, and a discriminator of patches.

They translate images and are no segmentation networks: nothing here is in `MODELS`.

Source: Zhu et al. 2017, appendix 7.2; indices of the layers as in the authors' code
    (junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py), so that their files load.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.shapes import Within, misfit
from models.reading import read_weights_file

KIND = "cyclegan"  # what the checkpoints of ours say they are
SHAPE = {"name": str, "blocks": Within(1, 64), "width": Within(1, 1024)}
RESIDUAL = re.compile(r"model\.(\d+)\.conv_block\.")
STATISTICS = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")


def norm(channels: int) -> nn.Module:
    """Return an instance norm without parameters."""
    return nn.InstanceNorm2d(channels)


class Residual(nn.Module):
    """Two convolutions of 3x3 with mirrored borders, added to what they are given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Two strides down, residual blocks, two strides up.

    Args:
        blocks: 9 of the paper for images of 256x256, 6 for 128x128.
        width: channels of the first layer.
    """

    def __init__(self, blocks: int = 9, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7)]
        layers += [norm(width), nn.ReLU(inplace=True)]
        for more in (1, 2):
            layers += [nn.Conv2d(more * width, 2 * more * width, 3, stride=2, padding=1)]
            layers += [norm(2 * more * width), nn.ReLU(inplace=True)]
        layers += [Residual(4 * width) for _ in range(blocks)]
        for more in (2, 1):
            up = nn.ConvTranspose2d(
                2 * more * width, more * width, 3, stride=2, padding=1, output_padding=1
            )
            layers += [up, norm(more * width), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return images, float [N,3,H,W], -1 to 1, of images of the same kind; H, W in fours."""
        return self.model(images)


class Discriminator(nn.Module):
    """Judge patches of 70x70 pixels: a number for each, no sigmoid (PatchGAN)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1)]
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [nn.Conv2d(before * width, after * width, 4, stride=stride, padding=1)]
            layers += [norm(after * width), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(8 * width, 1, 4, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return float [N,1,h,w] for images [N,3,H,W], -1 to 1."""
        return self.model(images)


class Generators(nn.Module):
    """Both directions: `ab` translates the first domain's images, `ba` the second's.

    Attributes:
        arch: what a checkpoint says to build it again.
    """

    def __init__(self, blocks: int = 9, width: int = 64) -> None:
        super().__init__()
        self.ab, self.ba = Generator(blocks, width), Generator(blocks, width)
        self.arch: dict[str, Any] = {"name": KIND, "blocks": blocks, "width": width}
        self.normalisation = {"name": KIND}  # -1 to 1


def initialise(network: nn.Module) -> None:
    """Draw weights from a normal distribution of deviation 0.02, and set biases to 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def translate(generator: Generator, images: Tensor) -> Tensor:
    """Return translated images, uint8 [N,3,H,W] of any size, their borders mirrored to fours."""
    height, width = images.shape[-2:]
    scaled = images.float() / 127.5 - 1
    right, lower = -width % 4, -height % 4
    scaled = nn.functional.pad(scaled, (0, right, 0, lower), "reflect")
    done = generator(scaled)[..., :height, :width]
    return ((done + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def read_generator(path: str | Path, direction: str = "ab") -> Generator:
    """Return one generator of a checkpoint of ours, or that of a file of the authors.

    Files written before PyTorch 0.4 hold running statistics of the instance norms, which have
    never been used; they are left out, as the authors' code does.

    Args:
        path: NAME_STEP.pth of `python -m tools.cyclegan`, or N_net_G_A.pth and the like.
        direction: ab or ba, of ours; a file of the authors holds one alone.
    Raises:
        UserError: it holds no such generator.
    """
    value = read_weights_file(path)
    content = value if isinstance(value, dict) else {}
    if {"state", "options"} <= content.keys():
        raise UserError(f"{path} is for resuming; use cyclegan_STEP.pth beside it")
    arch = content.get("arch")
    if isinstance(arch, dict) and arch.get("name") == KIND:
        if fault := misfit(arch, SHAPE):
            raise UserError(f"{path}: arch: its {fault}")
        state, prefix = content.get("model"), f"{direction}."
        state = state if isinstance(state, dict) else {}
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        blocks, width = arch["blocks"], arch["width"]
    else:
        state = {str(key).removeprefix("module."): value for key, value in content.items()}
        state = {key: value for key, value in state.items() if not STATISTICS.search(key)}
        first = state.get("model.1.weight")
        if not (torch.is_tensor(first) and first.ndim == 4):
            raise UserError(f"{path} is no generator of CycleGAN: it has no weight model.1.weight")
        numbers = {int(found[1]) for key in state if (found := RESIDUAL.match(key))}
        blocks, width = len(numbers), len(first)
    generator = Generator(blocks, width)
    try:
        generator.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is no generator of {blocks} blocks: {cause}") from error
    return generator.eval()
