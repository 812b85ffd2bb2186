"""Encoders beside those of the packages that people have: equal outputs for the same weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import peers
from engine.errors import UserError
from models import build_model
from models.encoders import ENCODERS, Encoder, build_encoder

LIMIT = 1e-9
SMP = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "se_resnext50_32x4d": "se_resnext50_32x4d",
    "vgg11": "vgg11",
    "vgg11_bn": "vgg11_bn",
    "vgg13": "vgg13",
    "vgg13_bn": "vgg13_bn",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
    "vgg19": "vgg19",
    "vgg19_bn": "vgg19_bn",
    "mobilenet_v2": "mobilenet_v2",
    "xception": "xception",
    "densenet121": "densenet121",
    "densenet161": "densenet161",
    "densenet169": "densenet169",
    "densenet201": "densenet201",
    **{f"efficientnet_b{n}": f"efficientnet-b{n}" for n in range(8)},
    **{f"timm_efficientnet_b{n}": f"timm-efficientnet-b{n}" for n in range(8)},
    **{f"mit_b{n}": f"mit_b{n}" for n in range(6)},
    **{f"timm_efficientnet_lite{n}": f"timm-tf_efficientnet_lite{n}" for n in range(5)},
}
# What makes an encoder timm's where it is another's by itself
NAMED_AS_THEIRS = {"convnext": {"norms": False}}
# Of timm, for images of any size: their maps of strides 4 to 32
TIMM = {
    "wide_resnet50": "wide_resnet50_2",
    "xception65": "xception65",
    "seresnext50_32x4d": "seresnext50_32x4d",
    **{f"efficientnet_lite{n}": f"tf_efficientnet_lite{n}" for n in range(5)},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
}


@pytest.fixture(autouse=True)
def packages():
    peers.need()


def carry(theirs: nn.Module, ours: Encoder) -> None:
    """Give our encoder their weights, all of them but their classifier's."""
    state = ours.convert_weights(theirs.state_dict())
    own = ours.state_dict()
    known = {n: t for n, t in state.items() if n in own or not n.startswith(ours.classifier)}
    ours.load_state_dict(known)


def compare(ours: list[Tensor], theirs: list[Tensor], record: Callable) -> None:
    """Compare maps of float64, where rounding says nothing, and record the largest difference."""
    pairs = zip(ours, theirs, strict=True)
    worst = max(peers.difference(own, other) for own, other in pairs)
    record("difference", worst)
    assert worst <= LIMIT


@pytest.mark.parametrize("name", SMP)
@torch.no_grad()
def test_smp(name: str, record_property: Callable):
    theirs = peers.randomise(peers.smp_encoder(SMP[name])).double()
    ours = build_encoder(name, 32).eval().double()
    carry(theirs, ours)
    images = torch.randn(1, 3, 64, 96).double()
    compare(ours.features(images), theirs(images)[1:][-len(ours.channels) :], record_property)


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str, record_property: Callable):
    theirs = peers.randomise(peers.timm_network(TIMM[name], features_only=True)).double()
    how = NAMED_AS_THEIRS.get(name.rpartition("_")[0], {})
    ours = build_encoder(name, 32, **how).eval().double()
    carry(theirs, ours)
    # theirs leaves out the pixels behind the last whole patch
    even = "norms" in how
    images = torch.randn(1, 3, 64, 96) if even else torch.randn(1, 3, 97, 131)
    images = images.double()
    compare(ours.features(images)[-4:], theirs(images)[-4:], record_property)


@pytest.mark.parametrize("name", ["hrnet_w18", "hrnet_w32", "hrnet_w48"])
@torch.no_grad()
def test_hrnet_of_timm(name: str, record_property: Callable):
    """Its four branches; timm resizes to the nearest pixel, and has a classifier behind them."""
    theirs = peers.randomise(peers.timm_network(name)).double()
    ours = build_encoder(name, 32, resize="nearest").eval().double()
    carry(theirs, ours)
    images = torch.randn(1, 3, 64, 96).double()
    x = theirs.act1(theirs.bn1(theirs.conv1(images)))
    x = theirs.act2(theirs.bn2(theirs.conv2(x)))
    compare(ours.features(images)[-4:], theirs.stages(x), record_property)


@pytest.mark.parametrize("name", ["beit_base", "beit_large"])
@torch.no_grad()
def test_beit_of_timm(name: str, record_property: Callable):
    """What the third map is made of, the tokens at stride 16; timm has no others."""
    theirs = peers.randomise(peers.timm_network(f"{name}_patch16_224")).double()
    ours = build_encoder(name, 32, image_size=224).eval().double()
    state = ours.convert_weights(theirs.state_dict())
    report = ours.load_state_dict(state, strict=False)
    assert all(n.startswith("fpn") for n in report.missing_keys)
    assert all(n.startswith(ours.classifier) for n in report.unexpected_keys)
    images = torch.randn(1, 3, 224, 224).double()
    tokens = theirs.forward_intermediates(
        images, indices=[ours.taps[2]], norm=False, intermediates_only=True
    )
    compare([ours.features(images)[2]], tokens, record_property)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("swin_")])
@torch.no_grad()
def test_swin_of_transformers(name: str, record_property: Callable):
    """On maps smaller than a window, too."""
    transformers = pytest.importorskip("transformers", reason="make test-peers")
    how = ENCODERS[name].arguments
    config = transformers.SwinConfig(
        embed_dim=how["channels"],
        depths=list(how["blocks"]),
        num_heads=[how["heads"] * 2**i for i in range(4)],
        window_size=how["window"],
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    theirs = peers.randomise(transformers.SwinBackbone(config)).double()
    ours = build_encoder(name, 32).eval().double()
    carry(theirs, ours)
    images = torch.randn(1, 3, 97, 131).double()
    compare(ours.features(images), theirs(images).feature_maps, record_property)


@torch.no_grad()
def test_swin_of_timm(record_property: Callable):
    """Where windows fit into its maps."""
    how = {"features_only": True, "img_size": 448}
    theirs = peers.randomise(peers.timm_network("swin_tiny_patch4_window7_224", **how)).double()
    ours = build_encoder("swin_tiny", 32, norms=False).eval().double()
    carry(theirs, ours)
    images = torch.randn(1, 3, 448, 448).double()
    expected = [x.permute(0, 3, 1, 2) for x in theirs(images)]
    compare(ours.features(images), expected, record_property)


@torch.no_grad()
def test_swin_of_torchvision(record_property: Callable):
    from torchvision.models import swin_t

    theirs = peers.randomise(swin_t()).double()
    ours = build_encoder("swin_tiny", 32, norms=False).eval().double()
    carry(theirs, ours)
    x = images = torch.randn(1, 3, 256, 292).double()
    expected = []
    for layer in theirs.features:
        x = layer(x)
        expected.append(x.permute(0, 3, 1, 2))
    compare(ours.features(images), expected[1::2], record_property)


@torch.no_grad()
def test_torchvisions_names_of_convnext(record_property: Callable):
    from torchvision.models import convnext_tiny

    theirs = peers.randomise(convnext_tiny()).double()
    ours = build_encoder("convnext_tiny", 32, norms=False).eval().double()
    carry(theirs, ours)
    x = images = torch.randn(1, 3, 64, 96).double()
    expected = []
    for i, layer in enumerate(theirs.features):
        x = layer(x)
        expected += [x] if i % 2 else []
    compare(ours.features(images), expected, record_property)


@pytest.mark.parametrize("name", ["resnet26d", "convnext_pico", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_any_network_of_timm(name: str):
    torch.manual_seed(0)
    network = build_model("deeplabv3plus", 3, encoder=f"timm:{name}", output_stride=32, width=8)
    network.eval()
    size = (224, 224) if "swin" in name else (97, 131)
    maps = network.encoder.features(torch.randn(1, 3, *size))
    strides = network.encoder.strides
    assert strides[-4:] == [4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == network.encoder.channels
    assert [tuple(m.shape[-2:]) for m in maps] == [
        tuple(-(-side // stride) for side in size) for stride in strides
    ]
    names = peers.timm_network(name).state_dict()  # a published file's
    assert set(network.encoder.convert_weights(names)) >= set(network.encoder.state_dict())
    assert network.normalisation["mean"] == pytest.approx([123.675, 116.28, 103.53])


def test_what_timm_has_not():
    with pytest.raises(UserError, match=r"timm 1\.\S+ has no network 'resnet49'"):
        build_encoder("timm:resnet49", 32)
    with pytest.raises(UserError, match="encoder timm:vit_tiny_patch16_224: its maps have strides"):
        build_encoder("timm:vit_tiny_patch16_224", 32)
    with pytest.raises(UserError, match="output_stride 16"):
        build_encoder("timm:swin_tiny_patch4_window7_224", 16)
