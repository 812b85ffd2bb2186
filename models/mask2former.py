"""Mask2Former: queries that each find a mask and say its class; a pixel is what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.words import Count
from models.base import PixelLoss
from models.deformable_attention import DeformableLayer, pixel_centres, sine_positions
from models.encoded import EncodedNetwork
from models.encoders.base import join_qkv, renamed
from models.layers import require_positive, upsample_to, without_autocast
from models.masked_attention import HEADS, LEVELS, MaskedDecoder
from models.set_loss import POINTS, set_loss

GROUPS, PLACES = 32, 4  # of group norms; of each map, that a head looks at
AT_ONCE = 10  # masks at the image's size, of which scores are added up


class PixelDecoder(nn.Module):
    """Deformable attention over the three coarsest maps, then one step up to stride 4.

    Args:
        channels: of the encoder's four maps, the finest first.
        width: channels that every map is brought to.
        hidden: of the layers per pixel.
        layers: of deformable attention.

    Source: Cheng et al. 2022, section 3.2.2 and appendix: MSDeformAttn as the pixel decoder.
    """

    def __init__(self, channels: Sequence[int], width: int, hidden: int, layers: int):
        super().__init__()
        self.width = width
        self.level_embed = nn.Parameter(torch.randn(LEVELS, width))
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1), nn.GroupNorm(GROUPS, width))
            for count in reversed(channels[1:])  # the coarsest first
        )
        self.encoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    DeformableLayer(width, hidden, HEADS, LEVELS, PLACES) for _ in range(layers)
                )
            }
        )
        self.adapter_1 = nn.Sequential(
            nn.Conv2d(channels[0], width, 1, bias=False), nn.GroupNorm(GROUPS, width)
        )
        self.layer_1 = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width)
        )
        self.mask_projection = nn.Conv2d(width, width, 1)
        for projection, _ in self.input_projections:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for conv in (self.adapter_1[0], self.layer_1[0], self.mask_projection):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_projection.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return what masks are compared with, float [N,width,h,w], and three maps for queries.

        Args:
            features: the encoder's four maps, the finest first.

        Returns:
            A map of the size of the finest one, and the others, the coarsest first.
        """
        finest, device = features[0], features[0].device
        maps = [
            project(x) for project, x in zip(self.input_projections, features[:0:-1], strict=True)
        ]
        sizes = [tuple(x.shape[-2:]) for x in maps]
        tokens = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)
        positions = torch.cat(
            [
                sine_positions(size, self.width, device) + own
                for size, own in zip(sizes, self.level_embed, strict=True)
            ]
        )
        centres = torch.cat([pixel_centres(size, device) for size in sizes])
        for layer in self.encoder["layers"]:
            tokens = layer(tokens, positions, sizes, centres)
        parts = tokens.transpose(1, 2).split([h * w for h, w in sizes], 2)
        maps = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        side = self.adapter_1(finest)
        fused = F.relu(self.layer_1(side + upsample_to(maps[-1], side)))
        return self.mask_projection(fused), maps


def class_scores(queries: Tensor, masks: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return what queries add up to for each class, float32 [N,C,h,w]: not of sum 1.

    Args:
        queries: float [N,Q,C+1], logits of the classes and of "no object".
        masks: float [N,Q,h,w], logits.
        size: H, W that masks are resized to before.

    Source: Cheng et al. 2021 (MaskFormer), section 3.4, semantic inference.
    """
    with without_autocast(masks):
        probs, scores = queries.float().softmax(2)[..., :-1], 0.0
        step = masks.shape[1] if size is None else AT_ONCE
        for share, part in zip(probs.split(step, 1), masks.split(step, 1), strict=True):
            part = part.float()
            if size is not None:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            scores = scores + torch.einsum("nqc,nqhw->nchw", share, part.sigmoid())
    return scores


class Mask2Former(EncodedNetwork):
    """Mask2Former for semantic segmentation.

    Its logits are logarithms of the scores that the queries add up to: in evaluation at the size of
    the image, as in the authors' code, in training at stride 4.

    Args:
        num_classes: C, classes predicted.
        encoder: a name of `models.encoders.ENCODERS`.
        output_stride: of the encoder's deepest features.
        queries: how many masks are predicted.
        width: channels of pixels and queries, a multiple of 32.
        pixel_layers: of deformable attention over pixels.
        layers: of masked attention.
        points: at which the loss compares a mask; small images need fewer than the published ones.

    Raises:
        UserError: a number that cannot be.

    Source: Cheng et al. 2022, Masked-attention Mask Transformer for Universal Image Segmentation.
    The authors' files load (facebookresearch/Mask2Former) and those of transformers, whose names
    these are (facebook/mask2former-*). Deviation: no mask of padding, as the images of a batch are
    of one size here.
    """

    default_loss: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Annotated[str, "a name of models.encoders.ENCODERS"] = "resnet50",
        output_stride: Annotated[int, "of the deepest features: 8, 16 or 32"] = 32,
        queries: Annotated[Count, "masks that are predicted"] = 100,
        width: Annotated[Count, "channels of pixels and queries"] = 256,
        pixel_layers: Annotated[Count, "of deformable attention over pixels"] = 6,
        layers: Annotated[Count, "of masked attention"] = 9,
        points: Annotated[Count, "at which the loss compares a mask"] = POINTS,
    ):
        super().__init__(encoder, output_stride, norms=True)
        require_positive("queries, layers, points", [queries, pixel_layers, layers, points])
        if width < 1 or width % GROUPS:
            raise UserError(f"width is {width}, must be a multiple of {GROUPS}")
        self.points = points
        channels = self.encoder.channels[-4:]
        self.pixel_decoder = PixelDecoder(channels, width, 4 * width, pixel_layers)
        self.transformer = MaskedDecoder(queries, width, 8 * width, layers)
        self.class_predictor = nn.Linear(width, num_classes + 1)

    def forward(self, images: Tensor, aux: bool = True) -> dict[str, Tensor]:
        """Predict classes, and the queries that they are made of.

        Args:
            images: float [N,3,H,W], normalised.
            aux: also return what the queries of all L layers say.

        Returns:
            "out": float32 [N,C,H,W], in training [N,C,ceil(H/4),ceil(W/4)]; "queries": float
            [L,N,Q,C+1]; "masks": float [L,N,Q,ceil(H/4),ceil(W/4)].
        """
        pixels, maps = self.pixel_decoder(self.encoder.features(images)[-4:])
        states, masks = self.transformer(pixels, maps)
        queries = self.class_predictor(states)
        size = None if self.training else tuple(images.shape[-2:])
        scores = class_scores(queries[-1], masks[-1], size)
        outputs = {"out": scores.clamp_min(torch.finfo(scores.dtype).tiny).log()}
        return outputs | ({"queries": queries, "masks": masks} if aux else {})

    def loss(
        self, outputs: dict[str, Tensor], label: Tensor, pixel_loss: PixelLoss, **weights
    ) -> dict[str, Tensor]:
        """Return the terms of the set of masks, see `set_loss`, that of their classes as "out".

        To the last one, words of --loss add what they say of the map that the queries add up to.
        """
        said = (outputs["queries"], outputs["masks"])
        terms = set_loss(*said, label, count=self.points, **weights)
        return {"out": terms.pop("class") + pixel_loss(outputs["out"], label)} | terms

    def convert_weights(self, state: dict[str, Tensor]) -> tuple[dict, dict[str, str]]:
        """Bring the names of the authors and of transformers to this network's."""
        ours: dict[str, Tensor] = {}
        skipped = {}
        for name, tensor in state.items():
            if name.endswith("criterion.empty_weight"):
                skipped[name] = "weights of classes in the loss"
            else:
                ours[renamed(name, NAMES)] = tensor
        join_qkv(ours, ".self_attn.q_proj.", ".self_attn.in_proj_")
        converted, others = super().convert_weights(ours)
        return converted, skipped | others


# What transformers calls the parts; then the authors, whose older files lack `pixel_decoder.`
NAMES = {
    r"^(model\.)?pixel_level_module\.encoder\.": "encoder.",
    r"^(model\.)?pixel_level_module\.decoder\.": "pixel_decoder.",
    r"^(model\.)?transformer_module\.": "transformer.",
    r"^sem_seg_head\.predictor\.": "transformer.",
    r"^sem_seg_head\.(pixel_decoder\.)?": "pixel_decoder.",
    r"^pixel_decoder\.transformer\.": "pixel_decoder.",
    r"^pixel_decoder\.input_proj\.": "pixel_decoder.input_projections.",
    r"^pixel_decoder\.mask_features\.": "pixel_decoder.mask_projection.",
    r"^pixel_decoder\.(adapter_1|layer_1)\.weight$": r"pixel_decoder.\1.0.weight",
    r"^pixel_decoder\.(adapter_1|layer_1)\.norm\.": r"pixel_decoder.\1.1.",
    r"^(pixel_decoder\..+)\.norm1\.": r"\1.self_attn_layer_norm.",
    r"^(pixel_decoder\..+)\.norm2\.": r"\1.final_layer_norm.",
    r"^transformer\.transformer_self_attention_layers\.(\d+)\.norm\.": (
        r"transformer.decoder.layers.\1.self_attn_layer_norm."
    ),
    r"^transformer\.transformer_cross_attention_layers\.(\d+)\.norm\.": (
        r"transformer.decoder.layers.\1.cross_attn_layer_norm."
    ),
    r"^transformer\.transformer_ffn_layers\.(\d+)\.norm\.": (
        r"transformer.decoder.layers.\1.final_layer_norm."
    ),
    r"^transformer\.transformer_\w+_layers\.": "transformer.decoder.layers.",
    r"^(transformer\..+)\.multihead_attn\.": r"\1.cross_attn.",
    r"^(pixel_decoder|transformer)\.(.+)\.linear([12])\.": r"\1.\2.fc\3.",
    r"^transformer\.(query_feat|static_query)\.": "transformer.queries_features.",
    r"^transformer\.query_embed\.": "transformer.queries_embedder.",
    r"^transformer\.decoder_norm\.": "transformer.decoder.layernorm.",
    r"^transformer\.class_embed\.": "class_predictor.",
    r"^transformer\.mask_embed\.layers\.(\d)\.": (
        r"transformer.decoder.mask_predictor.mask_embedder.\1.0."
    ),
}
