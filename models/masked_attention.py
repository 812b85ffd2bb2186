"""Attention of queries inside of the masks that they predict, as Mask2Former has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deformable_attention import sine_positions

HEADS, LEVELS = 8, 3


class Attention(nn.Module):
    """Attention of several heads; parameters as torch's `nn.MultiheadAttention` names them."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None):
        """Return float [N,Q,C]; query [N,Q,C], key and value [N,S,C], `seen` bool [N,Q,S]."""
        layers = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(x, *layer).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for x, layer in zip((query, key, value), layers, strict=True)
        )
        seen = None if seen is None else seen[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class MaskedLayer(nn.Module):
    """Queries look at the pixels of their masks, then at each other, then think; norms after."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.cross_attn, self.self_attn = Attention(width), Attention(width)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, own: Tensor, pixels: Tensor, where: Tensor, seen: Tensor):
        """Return queries, float [N,Q,C].

        Args:
            x: float [N,Q,C].
            own: float [Q,C], which tells the queries apart.
            pixels: float [N,S,C] of one map; `where`, float [S,C], tells their places.
            seen: bool [N,Q,S], what each may look at.
        """
        y = self.cross_attn(x + own, pixels + where, pixels, seen)
        x = self.cross_attn_layer_norm(x + y)
        x = self.self_attn_layer_norm(x + self.self_attn(x + own, x + own, x))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class MaskedDecoder(nn.Module):
    """Queries that look at one map after the other, inside of the masks that they predict.

    Args:
        queries: how many.
        width, hidden: channels of a query, and of the layers that it thinks in.
        layers: of attention.

    Source: Cheng et al. 2022, section 3.2.1 and equations 1 to 3.
    """

    def __init__(self, queries: int, width: int, hidden: int, layers: int):
        super().__init__()
        self.queries_embedder = nn.Embedding(queries, width)
        self.queries_features = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        embedder = nn.ModuleList(nn.ModuleList([nn.Linear(width, width)]) for _ in range(3))
        self.decoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(MaskedLayer(width, hidden) for _ in range(layers)),
                "layernorm": nn.LayerNorm(width),
                "mask_predictor": nn.ModuleDict({"mask_embedder": embedder}),
            }
        )

    def forward(self, pixels: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return normalised queries, float [L,N,Q,C], and masks, float [L,N,Q,h,w].

        Args:
            pixels: float [N,C,h,w], what masks are compared with.
            maps: three of them, that the layers look at in turn.

        Returns:
            Both before the first layer and after each; masks as logits.
        """
        n, width = pixels.shape[:2]
        tokens, places = [], []
        for x, own in zip(maps, self.level_embed.weight, strict=True):
            tokens.append(x.flatten(2).transpose(1, 2) + own)
            places.append(sine_positions(tuple(x.shape[-2:]), width, x.device))
        own = self.queries_embedder.weight
        x = self.queries_features.weight.expand(n, -1, -1)
        states, masks = [self.decoder["layernorm"](x)], []
        masks.append(self.predict(states[0], pixels))
        for i, layer in enumerate(self.decoder["layers"]):
            level = i % LEVELS
            seen = inside(masks[-1], maps[level].shape[-2:])
            x = layer(x, own, tokens[level], places[level], seen)
            states.append(self.decoder["layernorm"](x))
            masks.append(self.predict(states[-1], pixels))
        return torch.stack(states), torch.stack(masks)

    def predict(self, x: Tensor, pixels: Tensor) -> Tensor:
        """Return the logits of masks, float [N,Q,h,w], of normalised queries [N,Q,C]."""
        (first,), (second,), (third,) = self.decoder["mask_predictor"]["mask_embedder"]
        embedding = third(F.relu(second(F.relu(first(x)))))
        return torch.einsum("nqc,nchw->nqhw", embedding, pixels)


@torch.no_grad()
def inside(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels of a map lie in masks, bool [N,Q,h*w]; all of them do in empty ones."""
    resized = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    seen = resized.flatten(2) >= 0
    return seen | ~seen.any(2, keepdim=True)
