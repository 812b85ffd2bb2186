"""DINOv2 and DINOv3 under every project's names, and the heads on them: the authors' outputs."""

import re
from pathlib import Path

import pytest
import torch

import integers
from engine.errors import UserError
from golden import Golden, check
from models import build_model, load_weights
from models.encoders import build_encoder, dino

Shapes = dict[str, torch.Size]
State = dict[str, torch.Tensor]


def authors(name: str, state: State) -> State:
    """Return an encoder's tensors as its authors' files have them."""
    if name.startswith("dinov2"):
        return state
    theirs = {}
    for key, tensor in state.items():
        if key == "register_tokens":
            key = "storage_tokens"
            tensor = integers.tensor(key, tensor.shape)
        theirs[key] = tensor
        if key.endswith("attn.qkv.bias"):
            mask = torch.tensor([1.0, 0.0, 1.0])
            theirs[f"{key}_mask"] = mask.repeat_interleave(len(tensor) // 3)
    theirs["rope_embed.periods"] = 100 ** (torch.arange(16) / 16)
    return theirs


# facebookresearch/dinov2@b8931f7 and dinov3@6876159: digest of the file, the image's size, and of
# the normalised tokens [1,L,C] mean, deviation, first, middle and last value
ENCODERS = {
    "dinov2_vits14": (
        *("1a61a9438baf12fd", (70, 98)),
        (-0.000121, 1.00286, -1.14979, 1.07555, 1.8918),
    ),
    "dinov2_vits14_reg": (
        *("971598bb8f99fc9f", (70, 98)),
        (-0.000015, 1.00271, -1.14653, 1.05664, 1.86509),
    ),
    "dinov3_vits16": (
        *("315ce8e16364fdff", (64, 96)),
        (0.000747, 1.00383, 2.16592, -0.88912, -0.42873),
    ),
    "dinov3_vits16plus": (
        *("58fee4b591eef4ee", (64, 96)),
        (0.000797, 1.00293, 2.12935, -0.35474, -0.58036),
    ),
}


def golden_state(name: str) -> State:
    shapes = {key: value.shape for key, value in build_encoder(name, 32).state_dict().items()}
    return integers.state(shapes.items())


@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_are_the_authors(name: str, tmp_path: Path):
    digest, size, (mean, std, *values) = ENCODERS[name]
    state = authors(name, golden_state(name))
    assert integers.digest(sorted((key, t.shape) for key, t in state.items())) == digest
    torch.save({"model": state}, tmp_path / "theirs.pth")
    network = build_model("linear", 19, encoder=name).eval()
    report = load_weights(network, tmp_path / "theirs.pth")
    assert report.missing == ["head.weight", "head.bias"]
    image = integers.uniform("input", 3 * size[0] * size[1]).float().view(1, 3, *size)
    with torch.no_grad():
        tokens = network.encoder.tokens(image)[0].flatten(2).transpose(1, 2)
    flat = tokens.flatten()
    shown = [v.item() for v in (tokens.mean(), flat[0], flat[len(flat) // 2], flat[-1])]
    assert shown == pytest.approx([mean, *values], abs=1e-3 * std, rel=0)
    assert tokens.std().item() == pytest.approx(std, rel=1e-3)


def split(state: State, queries: str) -> State:
    """Return tensors with queries, keys and values apart, named by a format of kind and part."""
    theirs = {}
    for key, tensor in state.items():
        before, together, kind = key.partition("attn.qkv.")
        if not together:
            theirs[key] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            theirs[before + queries.format(part=part) + kind] = piece
    return theirs


def renamed(state: State, pairs: tuple[tuple[str, str], ...]) -> State:
    theirs = {}
    for key, tensor in state.items():
        for ours, other in pairs:
            key = re.sub(ours, other, key)
        theirs[key] = tensor
    return theirs


def timm(name: str, state: State) -> State:
    """timm 1.0.31: no token for what is hidden; with registers, positions without the class."""
    state = {key: tensor for key, tensor in state.items() if key != "mask_token"}
    if name.startswith("dinov2"):
        if "register_tokens" in state:
            positions = state["pos_embed"]
            state["cls_token"] = state["cls_token"] + positions[:, :1]
            state["pos_embed"] = positions[:, 1:]
        return renamed(state, (("register_tokens", "reg_token"),))
    state = {key: tensor for key, tensor in state.items() if not key.endswith("qkv.bias")}
    gates = ((r"mlp\.w1", "mlp.fc1_g"), (r"mlp\.w2", "mlp.fc1_x"), (r"mlp\.w3", "mlp.fc2"))
    names = ((r"ls(\d)\.gamma", r"gamma_\1"), ("register_tokens", "reg_token"))
    return renamed(state, names + gates)


OUTSIDE = (
    (r"^(cls_token|mask_token|register_tokens)", r"embeddings.\1"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
)


def transformers_4(name: str, state: State) -> State:
    """The files on transformers' hub; `mask_token` of DINOv3 has three dimensions there."""
    if name.startswith("dinov3"):
        return transformers_5(name, state)
    state = split(state, "attention.attention.{part}.")
    parts = tuple((rf"attention\.{p[0]}\.", f"attention.{p}.") for p in ("query", "key", "value"))
    names = (
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"attn\.proj", "attention.output.dense"),
        (r"^blocks", "encoder.layer"),
        (r"^norm", "layernorm"),
    )
    return renamed(state, OUTSIDE + names + parts)


def transformers_5(name: str, state: State) -> State:
    """transformers 5.24 in memory."""
    state = split(state, "attention.{part}_proj.")
    names = ((r"attn\.proj", "attention.o_proj"),)
    if name.startswith("dinov2"):
        names += (
            (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
            (r"^blocks", "encoder.layer"),
            (r"^norm", "layernorm"),
        )
        return renamed(state, OUTSIDE + names)
    state = {key: t for key, t in state.items() if not key.endswith("k_proj.bias")}
    state["mask_token"] = state["mask_token"][None]
    names += (
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
        (r"^blocks", "model.layer"),
        (r"mlp\.(fc1|w2)", "mlp.up_proj"),
        (r"mlp\.(fc2|w3)", "mlp.down_proj"),
        (r"mlp\.w1", "mlp.gate_proj"),
    )
    return renamed(state, OUTSIDE + names)


@pytest.mark.parametrize("naming", [timm, transformers_4, transformers_5])
@pytest.mark.parametrize("name", ENCODERS)
def test_other_namings_give_the_same_tensors(name: str, naming, tmp_path: Path):
    state = golden_state(name)
    for key in state:
        if name.startswith("dinov3") and key.endswith("qkv.bias"):
            state[key].view(3, -1)[1] = 0  # only the authors' files hold one of keys, masked
    theirs = naming(name, state)
    torch.save(theirs, tmp_path / "theirs.pth")
    network = build_model("linear", 19, encoder=name)
    report = load_weights(network, tmp_path / "theirs.pth")
    assert report.missing == ["head.weight", "head.bias"]
    if naming is timm:
        state["mask_token"] = torch.zeros_like(state["mask_token"])
        if name.startswith("dinov3"):
            state |= {k: torch.zeros_like(t) for k, t in state.items() if k.endswith("qkv.bias")}
        elif name.endswith("_reg"):
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"].clone()
            state["pos_embed"][:, 0] = 0
    for key, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_fused_gate_and_blocks_in_chunks_are_read():
    how = {"channels": 8, "depth": 12, "heads": 2, "registers": 0, "hidden": 16, "gated": True}
    encoder = dino.DinoV2(**how, output_stride=32)
    state = encoder.state_dict()
    theirs = {}
    for key, tensor in state.items():
        if ".mlp.w2." in key:
            continue
        if ".mlp.w1." in key:
            tensor = torch.cat([tensor, state[key.replace("w1", "w2")]])
            key = key.replace("w1", "w12")
        theirs[re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", key)] = tensor
    converted = encoder.convert_weights(theirs)
    assert converted.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in converted.items())


def test_positions_of_another_period_are_refused():
    encoder = build_encoder("dinov3_vits16", 32)
    state = authors("dinov3_vits16", encoder.state_dict())
    state["rope_embed.periods"] = 10000 ** (torch.arange(16) / 16)
    with pytest.raises(UserError, match="other periods"):
        encoder.convert_weights(state)


def test_turns_by_hand():
    """Two rows and one column, heads of 4: one period of 1 for rows and one for columns."""
    encoder = dino.DinoV3(channels=4, depth=12, heads=1, registers=0, hidden=4, output_stride=32)
    sine, cosine = encoder.turn((2, 1), torch.device("cpu"))
    # coordinates -0.5 and 0.5 of rows, 0 of columns: half a turn either way, and none
    assert sine == pytest.approx(torch.zeros(2, 4), abs=1e-6)
    assert torch.allclose(cosine, torch.tensor([[-1.0, 1.0, -1.0, 1.0]] * 2))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 3, 4)
    quarter = torch.stack([torch.ones(2, 4), torch.zeros(2, 4)])  # a quarter of a turn
    y = dino.turned(x, quarter)
    assert torch.equal(y[0, 0, 0], x[0, 0, 0])  # the token before lies nowhere
    assert y[0, 0, 1].tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_keys_of_dinov3_have_no_bias():
    attention = dino.Attention(8, 2, bias=True, key_bias=False)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        before = attention(x, None)
        attention.qkv.bias[8:16] = 100.0
        assert torch.equal(attention(x, None), before)
        attention.qkv.bias[:8] = 100.0
        assert not torch.equal(attention(x, None), before)


def test_hidden_patches_are_not_looked_at():
    network = build_model("vfm", 3, encoder="dinov2_vits14").eval()
    rows, columns = network.grid((64, 128))
    assert (rows, columns) == (5, 10)  # 70.4 and 140.8 pixels, down to whole patches of 14
    first, second = torch.randn(2, 1, 3, 64, 128)
    hidden = torch.ones(1, rows * columns, dtype=torch.bool)
    with torch.no_grad():
        outs = [network(x, hidden=hidden)["out"] for x in (first, second)]
        assert torch.equal(*outs)
        hidden[0, 0] = False
        outs = [network(x, hidden=hidden)["out"] for x in (first, second)]
    assert not torch.equal(*outs)


def vfm_uda(shapes: Shapes) -> Shapes:
    return shapes | {"token_masking.mask_token": shapes["encoder.mask_token"]}


def backbone(shapes: Shapes) -> Shapes:
    return {re.sub("^encoder", "backbone", key): shape for key, shape in shapes.items()}


# tue-mps/vfm-uda@e154d8f, lhoyer/MIC@2f932a9 and LiheYoung/UniMatch-V2@f6afb4d
NETWORKS = {
    "vfmuda_vits14_19": Golden(
        ("vfm", {"encoder": "dinov2_vits14"}),
        22_510_752,
        "bf6cf8cc5b9ad646",
        (0.031279, 0.94116, -2.65081, 0.01714, 0.25798),
        size=(128, 128),
        resized=True,
        rename=vfm_uda,
    ),
    "daformer_mit_b0_19": Golden(
        ("daformer", {"encoder": "mit_b0"}),
        6_900_595,
        "eb41f0cd8507fdc7",
        (0.327480, 1.20521, 0.60039, 0.24376, -0.49919),
        rename=backbone,
    ),
    "unimatchv2_dpt_small_19": Golden(
        ("dpt", {}),
        24_795_507,
        "7cd386ac73fa46e8",
        (4.627215, 28.22854, 5.89823, 9.65853, -17.58114),
        size=(70, 98),
        resized=True,
        rename=backbone,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_the_authors(name: str, tmp_path: Path):
    check(NETWORKS[name], tmp_path)


PARAMETERS = {
    ("daformer", "mit_b5"): 85_155_283,
    ("segformer", "mit_b5"): 84_610_406 - 19 * 129,  # the authors' unused classifier
    **{("vfm", f"dinov2_vit{s}14"): n for s, n in (("b", 88_392_000), ("l", 307_586_816))},
    **{("dpt", f"dinov2_vit{s}14"): n for s, n in (("b", 97_528_531), ("l", 335_578_643))},
}


@pytest.mark.parametrize(("network", "encoder"), PARAMETERS)
def test_parameters_of_networks(network: str, encoder: str):
    with torch.device("meta"):
        built = build_model(network, 19, encoder=encoder)
    assert sum(p.numel() for p in built.parameters()) == PARAMETERS[network, encoder]


def test_a_linear_head_by_hand_and_in_dinov3s_names(tmp_path: Path):
    network = build_model("linear", 2, encoder="dinov2_vits14", batch_norm=True).eval()
    norm = {f"batch_norm.{k}": torch.rand(384) + 0.5 for k in ("weight", "bias", "running_mean")}
    norm["batch_norm.running_var"] = torch.rand(384) + 0.5
    weight, bias = torch.randn(2, 384), torch.randn(2)
    theirs = {f"segmentation_model.1.batchnorm_layer.{k[11:]}": t for k, t in norm.items()}
    theirs["segmentation_model.1.conv.weight"] = weight[:, :, None, None]
    theirs["segmentation_model.1.conv.bias"] = bias
    torch.save(theirs, tmp_path / "head.pth")
    load_weights(network, tmp_path / "head.pth")
    image = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        (x,) = network.encoder.tokens(image)
        out = network(image)["out"]
    x = x[0, :, 1, 2]
    x = (x - norm["batch_norm.running_mean"]) / (norm["batch_norm.running_var"] + 1e-5).sqrt()
    expected = weight @ (x * norm["batch_norm.weight"] + norm["batch_norm.bias"]) + bias
    assert torch.allclose(out[0, :, 1, 2], expected, atol=1e-4)


@pytest.mark.parametrize("network", ["dpt", "linear", "vfm"])
def test_an_encoder_without_tokens_is_refused(network: str):
    with pytest.raises(UserError, match=f"{network} decodes tokens: take encoder dinov2_"):
        build_model(network, 3, encoder="resnet18")


def test_any_decoder_takes_tokens_as_maps():
    network = build_model("fpn", 3, encoder="dinov3_vits16", output_stride=32)
    images = torch.randn(1, 3, 97, 131)
    maps = network.encoder.features(images)
    sizes = [tuple(-(-side // stride) for side in (97, 131)) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape[2:]) for x in maps] == sizes
    assert network(images)["out"].shape[2:] == (25, 33)
