"""Mask2Former in the files of its authors and of transformers, and what it gives with them."""

import re
from pathlib import Path

import pytest
import torch

import integers
from models import build_model, load_weights
from test_mask2former import SMALL

Shapes = dict[str, torch.Size]


def theirs(shapes: Shapes) -> Shapes:
    """Return transformers' names and shapes of ours: queries, keys and values are three layers."""
    names = {}
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            rename = swin_name if "layers." in rest or rest[:4] in ("norm", "patc") else resnet_name
            start, rest = "model.pixel_level_module.encoder.", rename(rest)
        else:
            start = f"model.{PARTS[part]}." if part in PARTS else f"{part}."
        together = re.search(r"(\.self_attn)\.in_proj_|(\.attention)\.qkv\.", rest)
        if together is None:
            names[start + rest] = shape
            continue
        for kind in "qkv":
            layer = f"{together[1] or together[2]}.{kind}_proj."
            third = torch.Size((shape[0] // 3, *shape[1:]))
            names[start + rest.replace(together[0], layer)] = third
    return names | {"criterion.empty_weight": shapes["class_predictor.bias"]}


PARTS = {"pixel_decoder": "pixel_level_module.decoder", "transformer": "transformer_module"}


def resnet_name(name: str) -> str:
    *place, layer, rest = name.split(".")
    kind = "normalization" if layer.startswith("bn") else "convolution"
    if not place:
        return f"embedder.embedder.{kind}.{rest}"
    start = f"encoder.stages.{int(place[0][5]) - 1}.layers.{place[1]}"
    if "downsample" in place:
        kind = ("convolution", "normalization")[int(layer)]
        return f"{start}.shortcut.{kind}.{rest}"
    return f"{start}.layer.{int(layer[-1]) - 1}.{kind}.{rest}"


def swin_name(name: str) -> str:
    norm = re.fullmatch(r"norm(\d)\.(\w+)", name)
    if norm is not None:
        return f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}"
    name = re.sub(r"^layers\.", "encoder.layers.", name)
    name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
    name = name.replace("patch_embed.norm.", "embeddings.norm.")
    name = name.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
    name = name.replace(".attn.proj.", ".attention.o_proj.").replace(".attn.", ".attention.")
    return "swin." + name.replace("_bias_table", "_bias.relative_position_bias_table")


def swin_file_name(name: str) -> str:
    """Return what transformers calls a tensor in its files, from the name in memory."""
    name = name.replace("encoder.swin.", "encoder.")
    if "transformer_module" in name or "pixel_level_module.decoder" in name:
        return name
    for kind, long in (("q", "query"), ("k", "key"), ("v", "value")):
        name = name.replace(f".attention.{kind}_proj.", f".attention.self.{long}.")
    name = name.replace(".attention.relative_position_bias.", ".attention.self.")
    name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    return name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")


# transformers 5.24.0, Mask2FormerForUniversalSegmentation: digest of its names and shapes, then of
# queries and masks mean, deviation, first, middle and last value
OUTPUTS = {
    "resnet18": (
        "f70c2624d75841bf",
        (0.104598, 0.934035, -0.126792, -0.0801615, -0.305747),
        (-1.12982, 1.64522, 0.874541, 0.934007, -2.20596),
    ),
    "swin_tiny": (
        "4675965711155966",
        (0.0110338, 0.960136, -0.243568, -0.535063, -0.322699),
        (-1.16539, 1.6015, -0.63315, -0.79431, 0.00182441),
    ),
}


@pytest.mark.parametrize("encoder", OUTPUTS)
def test_a_file_of_transformers_gives_its_output(encoder: str, tmp_path: Path):
    digest, *expected = OUTPUTS[encoder]
    network = build_model("mask2former", 19, **SMALL | {"encoder": encoder}).eval()
    shapes = theirs({name: value.shape for name, value in network.state_dict().items()})
    if encoder == "swin_tiny":
        shapes |= SWINS_OWN
    assert integers.digest(sorted(shapes.items())) == digest
    torch.save(integers.state(shapes.items(), gain=3.0), tmp_path / "theirs.pth")
    report = load_weights(network, tmp_path / "theirs.pth", strict=True)
    assert report.missing == []
    assert "criterion.empty_weight" in report.skipped
    image = integers.uniform("input", 3 * 64 * 96).float().view(1, 3, 64, 96)
    with torch.no_grad():
        outputs = network(image)
    for name, (mean, std, *values) in zip(("queries", "masks"), expected, strict=True):
        flat = outputs[name][-1].flatten()
        shown = (flat.mean(), flat[0], flat[len(flat) // 2], flat[-1])
        assert [v.item() for v in shown] == pytest.approx([mean, *values], abs=1e-4 * std), name
        assert flat.std().item() == pytest.approx(std, rel=1e-4), name


HEAD = r"sem_seg_head.predictor."
PIXELS = r"sem_seg_head.pixel_decoder."
LAYER = r"^transformer\.decoder\.layers\.(\d+)\."
# our names -> those of facebookresearch/Mask2Former@9b0651c, on detectron2's ResNets
AUTHORS = {
    r"^encoder\.(conv1|bn1)\.": r"encoder.stem.\1.",
    r"^encoder\.layer(\d)\.": lambda found: f"encoder.res{int(found[1]) + 1}.",
    r"^(encoder\..+)\.bn(\d)\.": r"\1.conv\2.norm.",
    r"\.downsample\.0\.": ".shortcut.",
    r"\.downsample\.1\.": ".shortcut.norm.",
    r"^encoder\.": "backbone.",
    r"^pixel_decoder\.(level_embed|encoder)": rf"{PIXELS}transformer.\1",
    r"^pixel_decoder\.input_projections\.": f"{PIXELS}input_proj.",
    r"^pixel_decoder\.mask_projection\.": f"{PIXELS}mask_features.",
    r"^pixel_decoder\.(\w+_1)\.0\.": rf"{PIXELS}\1.",
    r"^pixel_decoder\.(\w+_1)\.1\.": rf"{PIXELS}\1.norm.",
    rf"^({PIXELS}.+)\.self_attn_layer_norm\.": r"\1.norm1.",
    rf"^({PIXELS}.+)\.final_layer_norm\.": r"\1.norm2.",
    rf"^({PIXELS}.+)\.fc(\d)\.": r"\1.linear\2.",
    rf"{LAYER}self_attn\.": rf"{HEAD}transformer_self_attention_layers.\1.self_attn.",
    rf"{LAYER}self_attn_layer_norm\.": rf"{HEAD}transformer_self_attention_layers.\1.norm.",
    rf"{LAYER}cross_attn\.": rf"{HEAD}transformer_cross_attention_layers.\1.multihead_attn.",
    rf"{LAYER}cross_attn_layer_norm\.": rf"{HEAD}transformer_cross_attention_layers.\1.norm.",
    rf"{LAYER}fc(\d)\.": rf"{HEAD}transformer_ffn_layers.\1.linear\2.",
    rf"{LAYER}final_layer_norm\.": rf"{HEAD}transformer_ffn_layers.\1.norm.",
    r"^transformer\.decoder\.layernorm\.": f"{HEAD}decoder_norm.",
    r"^transformer\.decoder\.\w+\.mask_embedder\.(\d)\.0\.": rf"{HEAD}mask_embed.layers.\1.",
    r"^transformer\.queries_embedder\.": f"{HEAD}query_embed.",
    r"^transformer\.queries_features\.": f"{HEAD}query_feat.",
    r"^transformer\.level_embed\.": f"{HEAD}level_embed.",
    r"^class_predictor\.": f"{HEAD}class_embed.",
}


def authors_name(name: str, encoder: str) -> str:
    for ours, theirs_ in AUTHORS.items():
        if encoder == "resnet18" or not name.startswith("encoder.") or ours == r"^encoder\.":
            name = re.sub(ours, theirs_, name)
    return name


@pytest.mark.parametrize("encoder", OUTPUTS)
def test_the_authors_names_are_read(encoder: str, tmp_path: Path):
    """Older files of theirs leave out `pixel_decoder.` and call the queries otherwise."""
    network, again = (build_model("mask2former", 4, **SMALL | {"encoder": encoder}) for _ in "ab")
    content = {authors_name(n, encoder): value for n, value in network.state_dict().items()}
    assert len(content) == len(network.state_dict())
    assert all(name.startswith(("backbone.", HEAD, PIXELS)) for name in content)
    content["criterion.empty_weight"] = torch.ones(5)
    older = {
        name.replace(".pixel_decoder.", ".").replace("query_feat", "static_query"): value
        for name, value in content.items()
    }
    for state in (content, older):
        torch.save({"model": state, "iteration": 1}, tmp_path / "theirs.pth")
        again.class_predictor.reset_parameters()
        assert load_weights(again, tmp_path / "theirs.pth", strict=True).missing == []
        assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))


# of the classifier, which no network reads
SWINS_OWN = {
    f"model.pixel_level_module.encoder.swin.layernorm.{kind}": torch.Size((768,))
    for kind in ("weight", "bias")
}


def test_the_published_network_has_these_names_and_its_files_others(tmp_path: Path):
    """Mask2FormerConfig(num_labels=19) of transformers 5.24.0: Swin with 2, 2, 18 and 2 blocks."""
    with torch.device("meta"):
        network = build_model("mask2former", 19, encoder="swin_small")
    shapes = theirs({name: value.shape for name, value in network.state_dict().items()}) | SWINS_OWN
    assert integers.digest(sorted(shapes.items())) == "f2b646e1ddca011a"
    ours = []
    for rename in (str, swin_file_name):
        content = {rename(name): torch.empty(shape) for name, shape in shapes.items()}
        indices = [name.replace("bias_table", "index") for name in content if "bias_table" in name]
        content |= dict.fromkeys(indices, torch.empty(49, 49))
        state, skipped = network.convert_weights(content)
        ours.append({name: tensor.shape for name, tensor in state.items()})
        assert len(skipped) == 3
    expected = {name: value.shape for name, value in network.state_dict().items()}
    assert ours[0] == ours[1] == expected
