"""Mix Transformer (MiT-B0..5), the encoder of SegFormer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, Row
from models.layers import DepthwiseConv2d, choose, in_float32
from models.transforms import Block

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # of height and width, for keys and values
EXPANSION = 4
IMAGE_CHANNELS = 3
STRIDES = (32,)
EPS = 1e-6


def to_tokens(x: Tensor) -> Tensor:
    """[N,C,h,w] -> [N,h*w,C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[N,h*w,C] -> [N,C,h,w]."""
    return x.transpose(1, 2).unflatten(2, size)


class PatchEmbedding(nn.Module):
    """Embed overlapping patches: float [N,c,h,w] -> [N,C,ceil(h/stride),ceil(w/stride)]."""

    def __init__(self, inplanes: int, planes: int, size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(inplanes, planes, size, stride, size // 2)
        self.norm = nn.LayerNorm(planes)

    def forward(self, x: Tensor) -> Tensor:
        x = in_float32(self.proj, x) if x.shape[1] == IMAGE_CHANNELS else self.proj(x)
        return to_map(self.norm(to_tokens(x)), x.shape[-2:])


class EfficientAttention(nn.Module):
    """Attend from every pixel to those of a reduced map (the paper's section 3.1)."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [N,h*w,C] of the same; `size` is (h, w)."""
        n, count, c = x.shape
        seen = x
        if self.reduction > 1:
            h, w = (max(self.reduction - side, 0) for side in size)
            grid = to_map(x, size)
            grid = F.pad(grid, (0, w, 0, h)) if h or w else grid  # at least one window
            seen = self.norm(to_tokens(self.sr(grid)))
        q = self.q(x).view(n, count, self.heads, -1).transpose(1, 2)
        k, v = self.kv(seen).view(n, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, count, c))


class MixFeedForward(nn.Module):
    """Two layers per pixel, a 3x3 filter per channel between them: it tells where a pixel is."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = EXPANSION * channels
        self.fc1 = nn.Linear(channels, hidden)
        # by its name in the authors' files
        self.dwconv = nn.ModuleDict({"dwconv": DepthwiseConv2d(hidden, 3, bias=True)})
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [N,h*w,C] of the same; `size` is (h, w)."""
        y = self.dwconv["dwconv"](to_map(self.fc1(x), size))
        return self.fc2(F.gelu(to_tokens(y)))


class MixBlock(Block):
    """Attention, then the layers per pixel, each beside its input; maps in, maps out."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = EfficientAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MixFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        tokens = to_tokens(x)
        tokens = tokens + self.attn(self.norm1(tokens), size)
        tokens = tokens + self.mlp(self.norm2(tokens), size)
        return to_map(tokens, size)


class MixTransformer(Encoder):
    """MiT without its classifier; its finest map has stride 4, each map is normalised.

    Args:
        channels: of the four stages.
        blocks: of the four stages.
        output_stride: 32.

    Raises:
        UserError: another output stride.

    Source: Xie et al., 2021, SegFormer, section 3.1 and table 6; NVlabs/SegFormer for the key names
    (segmentation_models_pytorch has the same); the names of transformers are read too. Deviations:
    no stochastic depth; a map smaller than the window of the reduction is filled with zeros.
    """

    classifier = ("head.",)

    def __init__(self, *, channels: tuple[int, ...], blocks: tuple[int, ...], output_stride: int):
        super().__init__()
        choose("output_stride", output_stride, STRIDES)
        self.channels, self.strides = list(channels), [4, 8, 16, 32]
        inplanes = IMAGE_CHANNELS
        for i, (planes, count) in enumerate(zip(channels, blocks, strict=True)):
            embedding = PatchEmbedding(inplanes, planes, *((7, 4) if i == 0 else (3, 2)))
            stage = (MixBlock(planes, HEADS[i], REDUCTIONS[i]) for _ in range(count))
            self.add_module(f"patch_embed{i + 1}", embedding)
            self.add_module(f"block{i + 1}", nn.Sequential(*stage))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(planes, eps=EPS))
            inplanes = planes
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the normalised outputs of the four stages.

        Args:
            images: float [N,3,H,W], normalised.

        Yields:
            Four tensors of `self.channels` channels and ceil(size / stride) pixels.
        """
        x = images
        for i in range(1, 5):
            x = getattr(self, f"block{i}")(getattr(self, f"patch_embed{i}")(x))
            # the next stage reads what is normalised, as in the authors' code
            x = to_map(getattr(self, f"norm{i}")(to_tokens(x)), x.shape[-2:])
            yield x

    @staticmethod
    def convert_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring transformers' names, in its files and in memory, to the authors'."""
        converted = {_from_transformers(name): tensor for name, tensor in state.items()}
        for name in [name for name in converted if ".attn.k." in name]:
            value = name.replace(".attn.k.", ".attn.v.")
            if value in converted:  # one layer makes both in the authors' files, keys first
                both = torch.cat([converted.pop(name), converted.pop(value)])
                converted[name.replace(".attn.k.", ".attn.kv.")] = both
        return converted


# Names of transformers -> the authors': in its files, and since version 5 in memory
PLACES = re.compile(
    r"(?:segformer\.)?(?:"
    r"(?:encoder\.)?(?P<kind>patch_embeddings|block|layer_norm)\.(?P<stage>\d)"
    r"|stages\.(?P<stage5>\d)\.(?P<kind5>patch_embeddings|blocks|layer_norm)"
    r")\.(?P<rest>.+)"
)
KINDS = {
    "patch_embeddings": "patch_embed",
    "block": "block",
    "blocks": "block",
    "layer_norm": "norm",
}
LAYERS = {
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.sequence_reduction.layer_norm": "attn.norm",
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "layer_norm": "norm",
}


def _from_transformers(name: str) -> str:
    match = PLACES.fullmatch(name)
    if match is None:
        return name
    kind, stage = match["kind"] or match["kind5"], match["stage"] or match["stage5"]
    rest = match["rest"]
    for theirs, ours in LAYERS.items():
        if theirs in rest:
            rest = rest.replace(theirs, ours)
            break
    return f"{KINDS[kind]}{int(stage) + 1}.{rest}"


NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)


def _row(channels: tuple[int, ...], *blocks: int) -> Row:
    arguments = {"channels": channels, "blocks": blocks}
    return Row(MixTransformer, arguments, "torchvision", output_strides=STRIDES)


ENCODERS = {
    "mit_b0": _row(NARROW, 2, 2, 2, 2),
    "mit_b1": _row(WIDE, 2, 2, 2, 2),
    "mit_b2": _row(WIDE, 3, 4, 6, 3),
    "mit_b3": _row(WIDE, 3, 4, 18, 3),
    "mit_b4": _row(WIDE, 3, 8, 27, 3),
    "mit_b5": _row(WIDE, 3, 6, 40, 3),
}
