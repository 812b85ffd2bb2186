"""BEiT with four maps made of its tokens, as its authors segment with it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from models.encoders.base import Encoder, Row
from models.layers import choose, in_float32
from models.transforms import Block

PATCH = 16  # pixels of its side
EPS = 1e-6
STRIDES = (32,)
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


class Attention(nn.Module):
    """Attention between tokens, with a bias for how far they are apart.

    Args:
        channels: of a token.
        heads: that share them.
        window: rows and columns of tokens that the table of biases is for.
    """

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))  # keys have none
        self.v_bias = nn.Parameter(torch.zeros(channels))
        table = torch.zeros((2 * window - 1) ** 2 + 3, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Return float [N,L,C] of the same; `index` [L,L] is that of the table's rows."""
        n, count, c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (
            F.linear(x, self.qkv.weight, bias)
            .view(n, count, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        mask = self.relative_position_bias_table[index].permute(2, 0, 1).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
        return self.proj(y.transpose(1, 2).reshape(n, count, c))


class BeitBlock(Block):
    """Attention, then two layers per token, each scaled by channel and beside its input."""

    def __init__(self, channels: int, heads: int, window: int, layer_scale: float):
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((channels,), layer_scale))
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = Attention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        fc1, fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        """Return tokens [N,L,C] of such tokens and the index of their biases."""
        x, index = given
        x = x + self.gamma_1 * self.attn(self.norm1(x), index)
        return x + self.gamma_2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Beit(Encoder):
    """BEiT without its classifier; four of its layers become maps of strides 4, 8, 16 and 32.

    Args:
        channels: of a token.
        depth: blocks.
        heads: of the attention.
        taps: the blocks, from 0, whose tokens become the maps.
        layer_scale: what a block's two outputs are multiplied by at first.
        image_size: side of the images that it was trained on, whose distances the biases are for;
            weights of another size are brought to it. A pair of tokens further apart takes the bias
            of the furthest.
        output_stride: 32.

    Raises:
        UserError: another output stride, an image size of no whole patches.

    Source: Bao et al., 2022, BEiT; microsoft/unilm beit/semantic_segmentation for the key names and
    the maps (fpn1 to fpn4). Deviations: images are filled with zeros to whole patches; theirs takes
    images of one size alone; no stochastic depth.
    """

    classifier = ("norm.", "fc_norm.", "head.", "lm_head.", "mask_token")

    def __init__(
        self,
        *,
        channels: int,
        depth: int,
        heads: int,
        taps: tuple[int, int, int, int],
        layer_scale: float,
        image_size: int = 640,
        output_stride: int,
    ):
        super().__init__()
        choose("output_stride", output_stride, STRIDES)
        if image_size < PATCH or image_size % PATCH:
            raise UserError(f"image_size of BEiT is {image_size}, must be a multiple of {PATCH}")
        self.channels, self.strides, self.taps = [channels] * 4, [4, 8, 16, 32], taps
        self.window = image_size // PATCH
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        projection = nn.Conv2d(3, channels, PATCH, PATCH)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.blocks = nn.ModuleList(
            BeitBlock(channels, heads, self.window, layer_scale) for _ in range(depth)
        )
        up = [nn.ConvTranspose2d(channels, channels, 2, 2) for _ in range(3)]
        self.fpn1 = nn.Sequential(up[0], nn.BatchNorm2d(channels), nn.GELU(), up[1])
        self.fpn2 = nn.Sequential(up[2])
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for i, block in enumerate(self.blocks, 1):
            for layer in (block.attn.proj, block.mlp["fc2"]):
                layer.weight.data.div_(math.sqrt(2 * i))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield four maps made of the tokens after four blocks.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Four tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % PATCH, 0, -height % PATCH))
        x = in_float32(self.patch_embed["proj"], images)
        size = tuple(x.shape[-2:])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        index = self._index(*size, x.device)
        reshape = (self.fpn1, self.fpn2, nn.Identity(), _halve)
        for i, block in enumerate(self.blocks):
            x = block((x, index))
            for tap, to_stride, stride in zip(self.taps, reshape, self.strides, strict=True):
                if tap == i:
                    y = to_stride(x[:, 1:].transpose(1, 2).unflatten(2, size))
                    yield y[..., : -(-height // stride), : -(-width // stride)]

    def _index(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return int64 [1+h*w,1+h*w]: the row of the table of biases, by pair of tokens."""
        side = 2 * self.window - 1
        y, x = (
            (torch.arange(size, device=device)[:, None] - torch.arange(size, device=device))
            .clamp(1 - self.window, self.window - 1)
            .add(self.window - 1)
            for size in (height, width)
        )
        pairs = (y[:, None, :, None] * side + x[None, :, None, :]).reshape(height * width, -1)
        index = F.pad(pairs, (1, 0, 1, 0))
        index[0], index[:, 0], index[0, 0] = side**2, side**2 + 1, side**2 + 2
        return index

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what follows from the size, and bring tables of biases to this one's."""
        rows = (2 * self.window - 1) ** 2 + 3
        return {
            name: _resized(tensor, 2 * self.window - 1)
            if name.endswith(TABLE) and len(tensor) != rows
            else tensor
            for name, tensor in state.items()
            if not name.endswith(INDEX)
        }


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def _resized(table: Tensor, side: int) -> Tensor:
    """Interpolate biases [s*s+3,heads] to [side*side+3,heads], bicubically by distance."""
    old = math.isqrt(len(table) - 3)
    grid = table[:-3].T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=True)
    return torch.cat([grid[0].flatten(1).T.to(table.dtype), table[-3:]])


ENCODERS = {
    # in ADE20K's published networks the pixel values are ImageNet's
    "beit_base": Row(
        Beit,
        {"channels": 768, "depth": 12, "heads": 12, "taps": (3, 5, 7, 11), "layer_scale": 0.1},
        "torchvision",
        output_strides=STRIDES,
    ),
    "beit_large": Row(
        Beit,
        {"channels": 1024, "depth": 24, "heads": 16, "taps": (7, 11, 15, 23), "layer_scale": 1e-5},
        "torchvision",
        output_strides=STRIDES,
    ),
}
