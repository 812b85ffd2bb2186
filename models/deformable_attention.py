"""Attention to a few points of maps of several resolutions, as Deformable DETR has it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import without_autocast

Sizes = Sequence[tuple[int, int]]  # h, w of each map

TEMPERATURE = 10_000
EPS = 1e-6


def sine_positions(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Return sines and cosines of where pixels are, float32 [h*w,channels].

    The first half of the channels tells the row, the other the column, each from 0 (excluded) to
    a full turn; sine and cosine take turns, at wavelengths that grow from pair to pair.

    Source: Carion et al. 2020 (DETR), appendix A.4, normalised.
    """
    half = channels // 2
    pair = torch.arange(half, device=device).div(2, rounding_mode="floor")
    wavelength = TEMPERATURE ** (2 * pair / half)
    angles = []
    for side in size:
        turn = torch.arange(1, side + 1, dtype=torch.float32, device=device) / (side + EPS)
        angle = (2 * math.pi * turn)[:, None] / wavelength
        angles.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1))
    rows, columns = angles
    h, w = size
    grid = torch.cat([rows[:, None].expand(h, w, half), columns.expand(h, w, half)], 2)
    return grid.flatten(0, 1)


def pixel_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return x and y of the centres of pixels as shares of width and height, float32 [h*w,2]."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1)


def attend_to_points(value: Tensor, sizes: Sizes, places: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of values at points between pixels, for every head.

    Args:
        value: float [N,S,M,D]: S pixels of all maps, one map after the other, for M heads.
        sizes: of the maps.
        places: float [N,Q,M,L,P,2]: x and y of P points in each of L maps, as shares of its width
            and height; what lies outside is 0.
        weights: float [N,Q,M,L,P].

    Returns:
        float [N,Q,M*D].

    Source: Zhu et al. 2021 (Deformable DETR), equation 3, the sum over maps and points.
    """
    n, _, heads, depth = value.shape
    total: Tensor | float = 0.0
    for level, part in enumerate(value.split([h * w for h, w in sizes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(n * heads, depth, *sizes[level])
        grid = 2 * places[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # [N*M,Q,P,2]
        seen = F.grid_sample(maps, grid, mode="bilinear", align_corners=False)  # [N*M,D,Q,P]
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # [N*M,1,Q,P]
        total = total + (seen * share).sum(3)
    return total.view(n, heads * depth, -1).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Let every pixel of several maps look at a few points of each, near its own place.

    Args:
        width: channels of a pixel.
        heads, levels, points: how many points each head looks at in each map.

    Source: Zhu et al. 2021 (Deformable DETR), section 4.1: before training, head m looks
    1 to P pixels away in its own of M directions, at all points alike.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.shape = (heads, levels, points)
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        angle = 2 * math.pi * torch.arange(heads) / heads
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        direction = direction / direction.abs().amax(1, keepdim=True)  # on a square
        steps = direction[:, None, None] * torch.arange(1.0, points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(heads, levels, points, 2).flatten())
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, x: Tensor, sizes: Sizes, centres: Tensor) -> Tensor:
        """Return float [N,S,C].

        Args:
            query: float [N,S,C], x and where its pixels are.
            x: float [N,S,C], the pixels of all maps.
            sizes: of the maps.
            centres: float32 [S,2], see `pixel_centres`.
        """
        n, count, _ = query.shape
        heads, levels, points = self.shape
        value = self.value_proj(x).view(n, count, heads, -1)
        offsets = self.sampling_offsets(query).view(n, count, heads, levels, points, 2)
        weights = self.attention_weights(query).view(n, count, heads, levels * points)
        # in bfloat16 a place would be off by a pixel from the 256th on
        with without_autocast(x):
            weights = weights.float().softmax(3).view(n, count, heads, levels, points)
            side = torch.tensor([(w, h) for h, w in sizes], device=x.device)[:, None]
            places = centres[:, None, None, None] + offsets.float() / side
            seen = attend_to_points(value.float(), sizes, places, weights)
        return self.output_proj(seen)


class DeformableLayer(nn.Module):
    """That attention, then two layers per pixel, each beside its input and normalised after it."""

    def __init__(self, width: int, hidden: int, heads: int, levels: int, points: int):
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, levels, points)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes, centres: Tensor) -> Tensor:
        """Return float [N,S,C]; `positions` float [S,C] tell where pixels are, and in which map."""
        x = self.self_attn_layer_norm(x + self.self_attn(x + positions, x, sizes, centres))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))
