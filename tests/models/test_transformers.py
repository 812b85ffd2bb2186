"""SegFormer and UPerNet on their authors' encoders: the files of each project give its output."""

import re
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from golden import Golden, check
from models import build_model, load_weights
from models.acfnet import class_centers

Shapes = dict[str, torch.Size]


def nvlabs(shapes: Shapes) -> Shapes:
    theirs = {re.sub("^encoder", "backbone", name): shape for name, shape in shapes.items()}
    theirs["decode_head.conv_seg.weight"] = torch.Size((19, 128, 1, 1))
    theirs["decode_head.conv_seg.bias"] = torch.Size((19,))
    return theirs


def smp_segformer(shapes: Shapes) -> Shapes:
    count = 1 + max(int(n[1]) for n in re.findall(r"linear_(c\d)", " ".join(shapes))) - 1
    theirs = {}
    for name, shape in shapes.items():
        name = re.sub(
            r"decode_head\.linear_c(\d)\.proj",
            lambda m: f"decoder.mlp_stage.{count - int(m[1])}.linear",
            name,
        )
        name = name.replace("decode_head.linear_fuse.conv", "decoder.fuse_stage.0")
        name = name.replace("decode_head.linear_fuse.bn", "decoder.fuse_stage.1")
        theirs[name.replace("decode_head.linear_pred", "segmentation_head.0")] = shape
    return theirs


def mmseg(shapes: Shapes) -> Shapes:
    patterns = (
        (r"^encoder\.", "backbone."),
        (r"^decoder\.psp\.blocks\.(\d)\.1\.", r"decode_head.psp_modules.\1.1."),
        (r"^decoder\.psp\.out_conv\.", "decode_head.bottleneck."),
        (r"^decoder\.fpn_lateral_blocks\.(\d)\.conv_norm_relu\.", r"decode_head.lateral_convs.\1."),
        (r"^decoder\.fpn_conv_blocks\.", "decode_head.fpn_convs."),
        (r"^decoder\.fusion_block\.", "decode_head.fpn_bottleneck."),
        (r"^segmentation_head\.0\.", "decode_head.conv_seg."),
        (r"^aux_classifier\.4\.", "auxiliary_head.conv_seg."),
        (r"^aux_classifier\.", "auxiliary_head.convs.0."),
    )
    theirs = {}
    for name, shape in shapes.items():
        before = name
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        if not before.startswith("encoder"):
            name = re.sub(r"\.0\.(\w+)$", r".conv.\1", re.sub(r"\.1\.(\w+)$", r".bn.\1", name))
        if re.search(r"(lateral|fpn)_convs\.\d", name):
            name = re.sub(r"convs\.(\d)", lambda m: f"convs.{2 - int(m[1])}", name)
        theirs[name] = shape
    return theirs


def beit(shapes: Shapes) -> Shapes:
    """Their blocks also hold where in its table of biases a pair of tokens finds its own."""
    theirs = mmseg(shapes)
    for i in range(12):
        index = f"backbone.blocks.{i}.attn.relative_position_index"
        theirs[index] = torch.Size((17, 17))  # of the class token and 4x4 patches
    return theirs


def huggingface(shapes: Shapes) -> Shapes:
    """Names in memory since transformers 5; keys and values are two layers there."""
    layers = {
        "attn.q": "attention.q_proj",
        "attn.proj": "attention.o_proj",
        "attn.sr": "attention.sequence_reduction.sequence_reduction",
        "attn.norm": "attention.sequence_reduction.layer_norm",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    theirs = {}
    for name, shape in shapes.items():
        name = name.replace("linear_fuse.conv", "linear_fuse")
        name = name.replace("linear_fuse.bn", "batch_norm").replace("linear_pred", "classifier")
        name = re.sub(r"linear_c(\d)", lambda m: f"linear_projections.{int(m[1]) - 1}", name)
        name = re.sub(
            r"encoder\.patch_embed(\d)\.",
            lambda m: f"segformer.stages.{int(m[1]) - 1}.patch_embeddings.",
            name,
        ).replace("patch_embeddings.norm", "patch_embeddings.layer_norm")
        name = re.sub(
            r"encoder\.norm(\d)", lambda m: f"segformer.stages.{int(m[1]) - 1}.layer_norm", name
        )
        block = re.fullmatch(r"encoder\.block(\d)\.(\d+)\.(.*)\.(weight|bias)", name)
        if block is None:
            theirs[name] = shape
            continue
        start = f"segformer.stages.{int(block[1]) - 1}.blocks.{block[2]}"
        if block[3] == "attn.kv":
            for part in ("k_proj", "v_proj"):
                theirs[f"{start}.attention.{part}.{block[4]}"] = torch.Size(
                    (shape[0] // 2, *shape[1:])
                )
        else:
            theirs[f"{start}.{layers.get(block[3], block[3])}.{block[4]}"] = shape
    return theirs


# NVlabs/SegFormer@65fa8cf, segmentation_models_pytorch 0.6.0, transformers 5.24.0,
# facebookresearch/ConvNeXt@048efce and microsoft/unilm@768a3c8 with mmsegmentation 0.x, 19 classes
OUTPUTS = {
    "segformer nvlabs": Golden(
        ("segformer", {}),
        3_719_027,
        "a79f56b7d451685b",
        (-0.350358, 2.01295, 0.802146, -2.89251, 1.0797),
        rename=nvlabs,
    ),
    "segformer transformers": Golden(
        ("segformer", {}),
        3_719_027,
        "bc4c6b7fcc0d4c5b",
        (-0.283118, 2.08039, 0.216101, -2.10213, -4.84497),
        rename=huggingface,
    ),
    "segformer smp": Golden(
        ("segformer", {"style": "smp"}),
        3_719_027,
        "22162559cd1cd90e",
        (-0.222036, 1.89134, -0.42044, 2.46524, 0.205949),
        resized=True,
        rename=smp_segformer,
    ),
    "segformer smp resnet34": Golden(
        ("segformer", {"encoder": "resnet34"}),
        21_881_171,
        "e305060eb1dfa361",
        (58.6141, 184.588, 275.294, 287.917, 147.832),
        resized=True,
        rename=smp_segformer,
    ),
    "upernet convnext": Golden(
        ("upernet", {"encoder": "convnext_tiny", "multi_level": True}),
        60_141_766,
        "7ad94566a5e157ae",
        (0.751057, 1.99986, -1.0339, 1.99726, 1.92805),
        rename=mmseg,
    ),
    "upernet beit": Golden(
        ("upernet", {"encoder": "beit_base", "multi_level": True, "image_size": 64}),
        162_381_926,
        "11fdb15d32f075e5",
        (-0.371454, 1.77264, 0.305949, -2.19632, 1.04201),
        rename=beit,
    ),
}


@pytest.mark.parametrize("which", OUTPUTS)
def test_a_project_s_file_gives_its_output(which: str, tmp_path: Path):
    check(OUTPUTS[which], tmp_path)


def test_what_a_file_is_of_is_said(tmp_path: Path):
    options = {"encoder": "mit_b0", "width": 16}
    right = build_model("segformer", 3, style="smp", **options)
    torch.save(smp_segformer(right.state_dict()), tmp_path / "smp.pth")
    assert load_weights(right, tmp_path / "smp.pth", strict=True).missing == []
    with pytest.raises(UserError, match="segformer style=smp"):
        load_weights(build_model("segformer", 3, **options), tmp_path / "smp.pth")


def test_an_auxiliary_head_that_the_network_lacks_is_left_out(tmp_path: Path):
    options = {"encoder": "convnext_tiny", "width": 8}
    both = build_model("upernet", 3, multi_level=True, **options)
    torch.save(mmseg(both.state_dict()), tmp_path / "upernet.pth")
    network = build_model("upernet", 3, **options)
    report = load_weights(network, tmp_path / "upernet.pth", strict=True)
    assert report.missing == []
    assert {name.split(".")[0] for name in report.skipped} == {"auxiliary_head"}


def test_a_class_center_is_the_mean_weighted_by_probability():
    """Two pixels, two classes: probabilities 3/4 and 1/4 of the first, 1/4 and 3/4 of the other."""
    logits = torch.log(torch.tensor([[[[3.0, 1.0]], [[1.0, 3.0]]]]))
    features = torch.tensor([[[[1.0, 5.0]]]])
    centers, probabilities = class_centers(features, logits)
    torch.testing.assert_close(centers, torch.tensor([[[2.0], [4.0]]]))
    torch.testing.assert_close(probabilities, torch.tensor([[[0.75, 0.25], [0.25, 0.75]]]))
