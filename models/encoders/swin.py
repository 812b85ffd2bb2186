"""Swin Transformer: attention in windows, which shift by half from block to block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row, join_qkv, move, renamed
from models.layers import choose, in_float32
from models.transforms import Block

PATCH, EXPANSION = 4, 4
COMPUTED = ("relative_position_index", "attn_mask")
STRIDES = (32,)


def relative_places(window: int) -> Tensor:
    """Return which entry of the table belongs to each pair of a window's pixels.

    Returns:
        int64 [window**2,window**2]: the row's distance times 2 window - 1, and the column's, each
        counted from the most negative one.
    """
    side = torch.arange(window)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    down, right = (x[:, None] - x + window - 1 for x in (rows, columns))
    return down * (2 * window - 1) + right


def to_windows(x: Tensor, window: int) -> Tensor:
    """[N,H,W,C] -> [N,windows,window**2,C]; the sides are multiples of the window's."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(n, -1, window**2, c)


def from_windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Undo `to_windows`, to [N,H,W,C] of this H and W."""
    h, w = size
    x = x.view(len(x), h // window, w // window, window, window, -1)
    return x.transpose(2, 3).reshape(len(x), h, w, -1)


def together(size: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Return which pixels of a shifted window lie together in the map, too.

    The map was rolled by half a window, so that the last windows hold pixels of both its ends.

    Returns:
        bool [windows,window**2,window**2].
    """
    ends = []
    for side in size:
        place = torch.arange(side, device=device)
        ends.append((place >= side - window).int() + (place >= side - window // 2))
    part = (3 * ends[0][:, None] + ends[1])[None, :, :, None]
    part = to_windows(part, window)[0, :, :, 0]
    return part[:, :, None] == part[:, None]


class WindowAttention(nn.Module):
    """Attention among the pixels of a window, biased by how they lie to each other."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.register_buffer("relative_position_index", relative_places(window), persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Return [N,windows,P,C] of the same; `seen` is bool [windows,P,P], None for everything."""
        n, windows, count, c = x.shape
        q, k, v = self.qkv(x).view(n * windows, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table
        bias = table[self.relative_position_index].permute(2, 0, 1)[None].to(q.dtype)
        if seen is not None:
            bias = bias.masked_fill(~seen[:, None], -torch.inf)  # [windows,heads,P,P]
            bias = bias.expand(n, -1, -1, -1, -1).flatten(0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(n, windows, count, c))


class Mlp(nn.Module):
    """Two layers per pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, EXPANSION * channels)
        self.fc2 = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(Block):
    """Attention in windows, then two layers per pixel, each beside its input; [N,H,W,C].

    Args:
        channels, heads: of the attention.
        window: side of its windows, in pixels of the map.
        shifted: whether they begin half a window further down and right, around the map's ends.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool):
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        y = F.pad(self.norm1(x), (0, 0, 0, -w % self.window, 0, -h % self.window))
        size, seen = y.shape[1:3], None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            seen = together(size, self.window, x.device)
        y = from_windows(self.attn(to_windows(y, self.window), seen), self.window, size)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y[:, :h, :w]
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Halve the size: the four pixels of a square beside each other, reduced to twice the channels.

    Down before right; where a side is odd, a pixel of zeros follows.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, 3)))


class Swin(Encoder):
    """Swin Transformer without its classifier; its finest map has stride 4.

    Args:
        channels: of the first stage, doubled from stage to stage.
        blocks: of the four stages.
        heads: of the first stage, doubled likewise.
        window: side of the windows, in pixels of a map.
        norms: whether maps are normalised, as networks for segmentation have them (Mask2Former).
        output_stride: 32.

    Raises:
        UserError: another output stride.

    Source: Liu et al., 2021, Swin Transformer, sections 3.1 to 3.3; microsoft/Swin-Transformer for
    the key names; those of timm, torchvision and transformers are read too. Deviations: no
    stochastic depth; windows are full and shift on a small map too, as in the authors' code for
    segmentation. timm, which rolls a map before it fills it up to whole windows, gives the same
    where these fit (448x448 pixels), torchvision wherever a map is larger than a window.
    """

    classifier = ("norm.", "head.")

    def __init__(
        self,
        *,
        channels: int,
        blocks: tuple[int, ...],
        heads: int,
        window: int,
        output_stride: int,
        norms: bool = True,
    ):
        super().__init__()
        choose("output_stride", output_stride, STRIDES)
        self.channels, self.strides = [channels * 2**i for i in range(4)], [4, 8, 16, 32]
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, channels, PATCH, PATCH), "norm": nn.LayerNorm(channels)}
        )
        self.layers = nn.ModuleList()
        for i, (planes, count) in enumerate(zip(self.channels, blocks, strict=True)):
            stage = (SwinBlock(planes, heads * 2**i, window, j % 2 == 1) for j in range(count))
            layer = nn.ModuleDict({"blocks": nn.Sequential(*stage)})
            if i < len(blocks) - 1:
                layer["downsample"] = PatchMerging(planes)
            self.layers.append(layer)
        self.norms = norms
        if norms:
            for i, planes in enumerate(self.channels):
                self.add_module(f"norm{i}", nn.LayerNorm(planes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of the four stages.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Four tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        h, w = images.shape[-2:]
        images = F.pad(images, (0, -w % PATCH, 0, -h % PATCH))
        x = in_float32(self.patch_embed["proj"], images).permute(0, 2, 3, 1)
        x = self.patch_embed["norm"](x)
        for i, layer in enumerate(self.layers):
            x = layer["blocks"](x)
            yield (getattr(self, f"norm{i}")(x) if self.norms else x).permute(0, 3, 1, 2)
            if "downsample" in layer:
                x = layer["downsample"](x)

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names of timm, torchvision and transformers to the authors'."""
        state = move(state, "model.", "")
        named = {renamed(name, NAMES): tensor for name, tensor in state.items()}
        # which a window's side determines
        converted = {name: t for name, t in named.items() if not name.endswith(COMPUTED)}
        if "layers.3.downsample.norm.weight" in converted:  # timm halves where a stage begins
            for i in range(3):
                before, after = (f"layers.{stage}.downsample." for stage in (i + 1, i))
                converted = move(converted, before, after)
        join_qkv(converted, ".attn.q.", ".attn.qkv.")
        return converted


# Names of timm's `features_only`, of torchvision, and of transformers, in its files and in memory
NAMES = {
    r"^layers_(\d)\.": r"layers.\1.",
    r"^features\.0\.0\.": "patch_embed.proj.",
    r"^features\.0\.2\.": "patch_embed.norm.",
    **{rf"^features\.{2 * i + 1}\.": f"layers.{i}.blocks." for i in range(4)},
    **{rf"^features\.{2 * i + 2}\.": f"layers.{i}.downsample." for i in range(3)},
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.3\.": ".mlp.fc2.",
    r"^(swin\.)?embeddings\.norm\.": "patch_embed.norm.",
    r"^(swin\.)?embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^(swin\.)?encoder\.layers\.": "layers.",
    r"^(swin\.)?layernorm\.": "norm.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.attention\.(self\.)?(relative_position_bias\.)?": ".attn.",
    r"\.attn\.(q|k|v)(uery|ey|alue|_proj)\.": r".attn.\1.",
    r"\.attn\.(output\.dense|o_proj)\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
    **{rf"^hidden_states_norms\.stage{i + 1}\.": f"norm{i}." for i in range(4)},
}


def _row(channels: int, heads: int, deep: bool, window: int = 7, file: str | None = None) -> Row:
    blocks = (2, 2, 18 if deep else 6, 2)
    arguments = {"channels": channels, "blocks": blocks, "heads": heads, "window": window}
    address = f"https://download.pytorch.org/models/{file}.pth" if file else None
    return Row(Swin, arguments, "torchvision", address, STRIDES)


# Published weights: torchvision's. Windows of 12 are of the networks trained on 384 x 384 pixels.
ENCODERS = {
    "swin_tiny": _row(96, 3, False, file="swin_t-704ceda3"),
    "swin_small": _row(96, 3, True, file="swin_s-5e29d889"),
    "swin_base": _row(128, 4, True, file="swin_b-68c6b09e"),
    "swin_large": _row(192, 6, True),
    "swin_base_window12": _row(128, 4, True, 12),
    "swin_large_window12": _row(192, 6, True, 12),
}
