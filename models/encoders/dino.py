"""DINOv2 and DINOv3: plain vision transformers that were trained without labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from models.encoders.base import Encoder, Row
from models.layers import choose, in_float32
from models.transforms import Block

STRIDES = (32,)
MAPS = (4, 8, 16, 32)  # strides of the maps that tokens are resized to
GRID = 37  # rows and columns of DINOv2's positions: images of 518 pixels
OFFSET = 0.1  # that DINOv2's authors add to a grid's size, where there are no registers
# blocks of an encoder -> those, from 0, after which its authors read tokens
TAPS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 32: (7, 15, 23, 31), 40: (9, 19, 29, 39)}
BASE = 100.0  # the longest period of DINOv3's positions


class Attention(nn.Module):
    """Attention between all tokens.

    Args:
        channels: of a token.
        heads: that share them.
        bias: whether queries, keys and values have one.
        key_bias: whether that of the keys counts.
    """

    def __init__(self, channels: int, heads: int, bias: bool, key_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.proj = nn.Linear(channels, channels)
        counts = torch.ones(3, channels)
        counts[1] = float(key_bias)
        self.register_buffer("bias_mask", counts.flatten(), persistent=False)

    def forward(self, x: Tensor, turn: Tensor | None) -> Tensor:
        """Return float [N,L,C] of the same; `turn`: see `turned`."""
        n, count, c = x.shape
        bias = None if self.qkv.bias is None else self.qkv.bias * self.bias_mask
        qkv = F.linear(x, self.qkv.weight, bias).view(n, count, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, count, c))


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the last tokens of x, float [N,heads,L,D], by where they lie in the image.

    Args:
        x: queries or keys; the tokens that lie nowhere come first.
        turn: sine and cosine, float [2,P,D] of the P tokens that lie somewhere.

    Source: Su et al. 2021, RoFormer, equation 34, the halves of D being the pairs.
    """
    sine, cosine = turn
    nowhere, x = x.tensor_split([x.shape[2] - sine.shape[0]], dim=2)
    first, second = x.float().chunk(2, 3)
    y = x * cosine + torch.cat([-second, first], 3) * sine
    return torch.cat([nowhere, y.to(nowhere.dtype)], 2)


class Mlp(nn.Module):
    """Two layers per token."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """Two layers per token, the first one gated by another (Shazeer 2020, SwiGLU)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(channels, hidden), nn.Linear(channels, hidden)
        self.w3 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class DinoBlock(Block):
    """Attention, then layers per token, each scaled by channel and beside its input."""

    def __init__(self, attention: Attention, mlp: nn.Module, eps: float, scale: float):
        super().__init__()
        channels = attention.proj.out_features
        self.norm1, self.attn = nn.LayerNorm(channels, eps=eps), attention
        self.ls1 = nn.ParameterDict({"gamma": torch.full((channels,), scale)})
        self.norm2, self.mlp = nn.LayerNorm(channels, eps=eps), mlp
        self.ls2 = nn.ParameterDict({"gamma": torch.full((channels,), scale)})

    def forward(self, given: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return tokens [N,L,C] of such tokens and what they are turned by."""
        x, turn = given
        x = x + self.ls1["gamma"] * self.attn(self.norm1(x), turn)
        return x + self.ls2["gamma"] * self.mlp(self.norm2(x))


class Dino(Encoder):
    """A vision transformer whose tokens, after four of its blocks, become maps.

    Networks that read tokens call `tokens`. For all others four maps of strides 4 to 32 are the
    tokens after `taps`, normalised and resized bilinearly: nothing new is to be learned for them.

    Images are resized bilinearly to whole patches, to the nearest number of them.

    Args:
        channels: of a token.
        depth: blocks.
        heads: of the attention.
        registers: tokens that stand for nothing.
        hidden: of the layers per token; `gated` says which kind.
        bias: whether queries, keys and values have one.
        output_stride: 32.

    Raises:
        UserError: another output stride.

    Attributes:
        patch: pixels of a patch's side.
        taps: the blocks, from 0, whose tokens become the maps.
    """

    classifier = ("local_cls_norm.", "dino_head.", "ibot_head.")
    patch: int
    eps: float
    scale: float  # of a block's two outputs at first
    key_bias: bool

    def __init__(
        self,
        *,
        channels: int,
        depth: int,
        heads: int,
        registers: int,
        hidden: int,
        gated: bool = False,
        bias: bool = True,
        output_stride: int,
    ):
        super().__init__()
        choose("output_stride", output_stride, STRIDES)
        self.channels, self.strides, self.heads = [channels] * 4, list(MAPS), heads
        self.taps = TAPS[depth]
        self.gated, self.registers = gated, registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, channels))
        # in place of what is hidden; trained by who hides something
        self.mask_token = nn.Parameter(torch.zeros(1, channels), requires_grad=False)
        projection = nn.Conv2d(3, channels, self.patch, self.patch)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        layers = GatedMlp if gated else Mlp
        self.blocks = nn.ModuleList(
            DinoBlock(
                Attention(channels, heads, bias, self.key_bias),
                layers(channels, hidden),
                self.eps,
                self.scale,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels, eps=self.eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor, _size: tuple[int, int]) -> Tensor:
        """Return the tokens [N,1+h*w,C] with positions of this grid of patches added."""
        return x

    def turn(self, _size: tuple[int, int], _device: torch.device) -> Tensor | None:
        """Return what queries and keys are turned by, see `turned`; None: by nothing."""
        return None

    def tokens(
        self, images: Tensor, taps: Sequence[int] | None = None, hidden: Tensor | None = None
    ) -> list[Tensor]:
        """Return the patches' tokens after some blocks, normalised, as maps float [N,C,h,w].

        Args:
            images: float [N,3,H,W], normalised.
            taps: blocks from 0, in rising order; None for the last one alone.
            hidden: bool [N,h*w], patches that are not shown; None hides none.
        """
        rows, columns = (max(1, round(side / self.patch)) for side in images.shape[-2:])
        whole = (rows * self.patch, columns * self.patch)
        if tuple(images.shape[-2:]) != whole:
            images = F.interpolate(images, whole, mode="bilinear", align_corners=False)
        x = in_float32(self.patch_embed["proj"], images).flatten(2).transpose(1, 2)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        x = self.embed(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1), (rows, columns))
        if self.registers:  # they lie nowhere
            own = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1:]], 1)
        turn, found = self.turn((rows, columns), x.device), []
        taps = [len(self.blocks) - 1] if taps is None else taps
        for i, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block((x, turn))
            if i in taps:
                patches = self.norm(x)[:, 1 + self.registers :]
                found.append(patches.transpose(1, 2).unflatten(2, (rows, columns)))
        return found

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield four maps of `self.channels` channels and ceil(size / stride) pixels.

        Args:
            images: float [N,3,H,W], normalised.
        """
        height, width = images.shape[-2:]
        for x, stride in zip(self.tokens(images, self.taps), self.strides, strict=True):
            size = (-(-height // stride), -(-width // stride))
            yield F.interpolate(x, size, mode="bilinear", align_corners=False)

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names of the authors, of timm and of transformers (4 and 5) to these.

        What a file does not hold because it is 0 (a bias of the keys, a token for what is hidden)
        is put in as that.

        Raises:
            UserError: positions of another period.
        """
        converted: dict[str, Tensor] = {}
        for name, tensor in state.items():
            for theirs, ours in NAMES + (GATED_NAMES if self.gated else PLAIN_NAMES):
                name = re.sub(theirs, ours, name)
            converted[name] = tensor
        if "patch_embed.proj.weight" not in converted:
            return converted
        converted = {n: t for n, t in converted.items() if not n.endswith(".bias_mask")}
        for name in [n for n in converted if n.endswith("attn.q.weight")]:
            _merge(converted, name.removesuffix("q.weight"))
        for name in [n for n in converted if ".mlp.w12." in n]:
            halves = converted.pop(name).chunk(2)
            for part, half in zip(("w1", "w2"), halves, strict=True):
                converted[name.replace("w12", part)] = half
        if self.blocks[0].attn.qkv.bias is not None:
            for name in [n for n in converted if n.endswith("attn.qkv.weight")]:
                _complete_bias(converted, name.removesuffix("qkv.weight"))
        converted.setdefault("mask_token", torch.zeros_like(self.mask_token))
        converted["mask_token"] = converted["mask_token"].view(1, -1)
        return converted


def _merge(state: dict[str, Tensor], before: str) -> None:
    """Put the query's, key's and value's layers of one block into one, in place."""
    for kind in ("weight", "bias"):
        parts = {part: state.pop(f"{before}{part}.{kind}", None) for part in "qkv"}
        there = next((t for t in parts.values() if t is not None), None)
        if there is not None:
            parts = [torch.zeros_like(there) if t is None else t for t in parts.values()]
            state[f"{before}qkv.{kind}"] = torch.cat(parts)


def _complete_bias(state: dict[str, Tensor], before: str) -> None:
    """Give one block's queries, keys and values the bias that timm keeps apart or leaves out."""
    q, v = state.pop(f"{before}q_bias", None), state.pop(f"{before}v_bias", None)
    weight = state[f"{before}qkv.weight"]
    if q is not None and v is not None:
        state[f"{before}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    state.setdefault(f"{before}qkv.bias", torch.zeros(len(weight)))


# What the files call the parts: the authors' with blocks in chunks, timm's, transformers'
NAMES: tuple[tuple[str, str], ...] = (
    (r"^embeddings\.", ""),
    (r"^(model\.|encoder\.)?layer\.", "blocks."),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"^position_embeddings$", "pos_embed"),
    (r"^patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(reg_token|storage_tokens)$", "register_tokens"),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
)
PLAIN_NAMES = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
GATED_NAMES = (
    (r"\.mlp\.(fc1|weights_in)\.", ".mlp.w12."),
    (r"\.mlp\.(fc1_g|gate_proj)\.", ".mlp.w1."),
    (r"\.mlp\.(fc1_x|up_proj)\.", ".mlp.w2."),
    (r"\.mlp\.(fc2|weights_out|down_proj)\.", ".mlp.w3."),
)


class DinoV2(Dino):
    """DINOv2: positions are learned for a grid of 37x37 patches, and interpolated to others.

    Source: Oquab et al. 2023; Darcet et al. 2023 for the registers; facebookresearch/dinov2
    (Apache 2.0) for the names and for the two ways in which positions are interpolated. Deviation:
    no stochastic depth.
    """

    patch, eps, scale, key_bias = 14, 1e-6, 1.0, True

    def __init__(self, **how):
        super().__init__(**how)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, self.channels[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Add positions: with registers the grid is resized, without it is scaled."""
        if size == (GRID, GRID):
            return x + self.pos_embed
        own, grid = self.pos_embed.float().tensor_split([1], dim=1)
        grid = grid.view(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        if self.registers:
            how = {"size": size, "antialias": True}
        else:  # the sums are what the published weights were trained with
            how = {"scale_factor": tuple((side + OFFSET) / GRID for side in size)}
        grid = F.interpolate(grid, mode="bicubic", align_corners=False, **how)
        return x + torch.cat([own, grid.flatten(2).transpose(1, 2)], 1).to(x.dtype)

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Dino`; timm adds the class's position to its token where there are registers."""
        converted = super().convert_weights(state)
        positions = converted.get("pos_embed")
        if positions is not None and positions.shape[1:2] == (GRID**2,):
            converted["pos_embed"] = F.pad(positions, (0, 0, 1, 0))
        return converted


class DinoV3(Dino):
    """DINOv3: queries and keys are turned by the place of their patch.

    Source: Siméoni et al. 2025, section 3.2; facebookresearch/dinov3 for the names. Deviations:
    coordinates are never scaled at random in training, which the authors' module does; no
    stochastic depth.
    """

    patch, eps, scale, key_bias = 16, 1e-5, 1e-5, False

    def turn(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Return sine and cosine, float32 [2,h*w,D] for heads of D channels."""
        angles = [
            ((torch.arange(side, device=device) + 0.5) / side * 2 - 1)[:, None]
            * (2 * math.pi / self._periods().to(device))
            for side in size
        ]
        rows = angles[0][:, None].expand(-1, size[1], -1)
        columns = angles[1][None].expand(size[0], -1, -1)
        angle = torch.cat([rows, columns], 2).flatten(0, 1).repeat(1, 2)
        return torch.stack([angle.sin(), angle.cos()])

    def _periods(self) -> Tensor:
        count = self.channels[0] // self.heads // 4
        return BASE ** (torch.arange(count) / count)

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Dino`."""
        converted = super().convert_weights(state)
        theirs = converted.pop("rope_embed.periods", None)
        if theirs is not None and not torch.allclose(
            theirs.float().cpu(), self._periods(), rtol=0.01
        ):
            raise UserError("its positions have other periods than DINOv3's 1 to 100")
        return converted


def _row(build: type[Dino], channels: int, depth: int, heads: int, **how) -> Row:
    """Return a row; its layers per token have four times its channels unless `hidden` is given."""
    sizes = {"channels": channels, "depth": depth, "heads": heads}
    arguments = sizes | {"hidden": 4 * channels, "registers": 0} | how
    return Row(build, arguments, "torchvision", output_strides=STRIDES)


# of satellite images: the pixel values that DINOv3's authors name for their SAT-493M
_SATELLITE = {
    "order": "RGB",
    "mean": [109.65, 104.805, 75.48],
    "std": [54.315, 39.78, 36.465],
}

ENCODERS = {
    "dinov2_vits14": _row(DinoV2, 384, 12, 6),
    "dinov2_vits14_reg": _row(DinoV2, 384, 12, 6, registers=4),
    "dinov2_vitb14": _row(DinoV2, 768, 12, 12),
    "dinov2_vitb14_reg": _row(DinoV2, 768, 12, 12, registers=4),
    "dinov2_vitl14": _row(DinoV2, 1024, 24, 16),
    "dinov2_vitl14_reg": _row(DinoV2, 1024, 24, 16, registers=4),
    "dinov2_vitg14": _row(DinoV2, 1536, 40, 24, hidden=4096, gated=True),
    "dinov2_vitg14_reg": _row(DinoV2, 1536, 40, 24, hidden=4096, gated=True, registers=4),
    "dinov3_vits16": _row(DinoV3, 384, 12, 6, registers=4),
    "dinov3_vits16plus": _row(DinoV3, 384, 12, 6, gated=True, registers=4),
    "dinov3_vitb16": _row(DinoV3, 768, 12, 12, registers=4),
    "dinov3_vitl16": _row(DinoV3, 1024, 24, 16, registers=4),
    "dinov3_vitl16_sat": _row(DinoV3, 1024, 24, 16, registers=4)._replace(normalisation=_SATELLITE),
    "dinov3_vitl16plus": _row(DinoV3, 1024, 24, 16, gated=True, registers=4),
    "dinov3_vith16plus": _row(DinoV3, 1280, 32, 20, gated=True, registers=4),
    "dinov3_vit7b16": _row(DinoV3, 4096, 40, 32, hidden=8192, gated=True, registers=4, bias=False),
}
