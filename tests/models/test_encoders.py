"""Encoders: their published numbers of parameters and outputs, every row, every output stride."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import integers
from engine.errors import UserError
from models import build_model, load_weights
from models.encoders import ENCODERS, Encoder, beit, build_encoder
from models.layers import upsample_to
from published import pattern

# Trainable numbers without the classifier's: torchvision 0.28.0's, but se_resnext
# (segmentation_models_pytorch 0.6.0) and efficientnet (timm 1.0.31)
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "resnext101_32x8d": 88_791_336 - 2_049_000,
    "wide_resnet50": 68_883_240 - 2_049_000,
    "se_resnext50_32x4d": 25_510_896,
    "seresnext50_32x4d": 27_559_896 - 2_049_000,
    "vgg11": 9_220_480,
    "vgg11_bn": 9_225_984,
    "vgg13": 9_404_992,
    "vgg13_bn": 9_410_880,
    "vgg16": 14_714_688,
    "vgg16_bn": 14_723_136,
    "vgg19": 20_024_384,
    "vgg19_bn": 20_035_392,
    "mobilenet_v2": 3_504_872 - 1_281_000,
    "efficientnet_b0": 3_595_388,
    "efficientnet_b1": 6_101_024,
    "efficientnet_b2": 7_202_562,
    "efficientnet_b3": 10_103_336,
    "efficientnet_b4": 16_742_216,
    "efficientnet_b5": 27_288_112,
    "efficientnet_b6": 39_403_992,
    "efficientnet_b7": 62_143_440,
    "efficientnet_lite0": 2_958_848,
    "efficientnet_lite1": 3_723_520,
    "efficientnet_lite2": 4_357_952,
    "efficientnet_lite3": 6_422_016,
    "efficientnet_lite4": 11_149_568,
    "timm_efficientnet_b0": 3_595_388,
    "timm_efficientnet_b1": 6_101_024,
    "timm_efficientnet_b2": 7_202_562,
    "timm_efficientnet_b3": 10_103_336,
    "timm_efficientnet_b4": 16_742_216,
    "timm_efficientnet_b5": 27_288_112,
    "timm_efficientnet_b6": 39_403_992,
    "timm_efficientnet_b7": 62_143_440,
    "timm_efficientnet_lite0": 2_958_848,
    "timm_efficientnet_lite1": 3_723_520,
    "timm_efficientnet_lite2": 4_357_952,
    "timm_efficientnet_lite3": 6_422_016,
    "timm_efficientnet_lite4": 11_149_568,
    "densenet121": 7_978_856 - 1_025_000,
    "densenet161": 28_681_000 - 2_209_000,
    "densenet169": 14_149_480 - 1_665_000,
    "densenet201": 20_013_928 - 1_921_000,
    # with the four norms of the maps in place of the classifier
    "convnext_tiny": 28_589_128 - 770_536 + 2 * (96 + 192 + 384 + 768),
    "convnext_small": 50_223_688 - 770_536 + 2 * (96 + 192 + 384 + 768),
    "convnext_base": 88_591_464 - 1_027_048 + 2 * (128 + 256 + 512 + 1024),
    "convnext_large": 197_767_336 - 1_540_072 + 2 * (192 + 384 + 768 + 1536),
    "mit_b0": 3_319_392,
    "mit_b1": 13_151_424,
    "mit_b2": 24_196_288,
    "mit_b3": 44_072_128,
    "mit_b4": 60_842_688,
    "mit_b5": 81_443_008,
    # the segmentation networks' (19 classes) without their last layer
    "hrnet_w18": 9_641_119 - 270 * (270 + 1 + 2 + 19) - 19,
    "hrnet_w32": 29_305_536,
    "hrnet_w48": 65_859_379 - 720 * (720 + 1 + 2 + 19) - 19,
    "xception": 22_855_952 - 2_049_000,
    "xception65": 39_916_312 - 2_049_000,
    # timm's for 224 pixels; tables for 640; the three transposed convolutions and a norm
    "beit_base": 86_530_984 - 770_536 + 12 * 12 * (79**2 - 27**2) + 3 * 768 * (4 * 768 + 1) + 1536,
    "beit_large": 304_430_568
    - 1_027_048
    + 24 * 16 * (79**2 - 27**2)
    + 3 * 1024 * (4 * 1024 + 1)
    + 2048,
    # timm's, with the four norms of the maps in place of the classifier and its norm
    "swin_tiny": 28_288_354 - 770_536 + 2 * (96 + 192 + 384 + 768),
    "swin_small": 49_606_258 - 770_536 + 2 * (96 + 192 + 384 + 768),
    "swin_base": 87_768_224 - 1_027_048 + 2 * (128 + 256 + 512 + 1024),
    "swin_large": 196_532_476 - 1_540_072 + 2 * (192 + 384 + 768 + 1536),
    "swin_base_window12": 87_903_584 - 1_027_048 + 2 * (128 + 256 + 512 + 1024),
    "swin_large_window12": 196_735_516 - 1_540_072 + 2 * (192 + 384 + 768 + 1536),
    # facebookresearch/dinov2@b8931f7; dinov3@6876159, a norm of its training less in the last
    "dinov2_vits14": 22_056_576,
    "dinov2_vits14_reg": 22_058_112,
    "dinov2_vitb14": 86_580_480,
    "dinov2_vitb14_reg": 86_583_552,
    "dinov2_vitl14": 304_368_640,
    "dinov2_vitl14_reg": 304_372_736,
    "dinov2_vitg14": 1_136_480_768,
    "dinov2_vitg14_reg": 1_136_480_768 + 4 * 1536,
    "dinov3_vits16": 21_601_152,
    "dinov3_vits16plus": 28_697_472,
    "dinov3_vitb16": 85_669_632,
    "dinov3_vitl16": 303_154_176,
    "dinov3_vitl16_sat": 303_154_176,
    "dinov3_vitl16plus": 403_915_776,
    "dinov3_vith16plus": 840_633_600,
    "dinov3_vit7b16": 6_716_043_264 - 2 * 4096,
}
# The deepest map of packages' networks under weights of the integer formula, 64x64 pixels: mean,
# standard deviation, the first value, the middle one and the last
GOLDEN = {
    # segmentation_models_pytorch 0.6.0, torchvision 0.28.0
    "resnet18": (8.61526, 10.7907, 0.0, 0.0, 31.7081),
    "resnext50_32x4d": (342.601, 390.404, 0.0, 53.4213, 657.598),
    "se_resnext50_32x4d": (21.9889, 28.6489, 0.0, 54.9994, 0.0),
    "vgg11": (1.40189, 1.50972, 0.600411, 0.0, 2.64489),
    "vgg11_bn": (1.60005, 1.67475, 5.10806, 1.46496, 0.539738),
    "mobilenet_v2": (1.32599, 1.87646, 0.0, 0.0, 0.0),
    "efficientnet_b0": (0.0114844, 0.0939454, 0.041771, 0.0477866, 0.162639),
    "timm_efficientnet_b0": (-0.00347723, 0.102666, 0.0754534, -0.0577408, -0.113929),
    "densenet121": (-0.0407599, 1.11986, 1.4254, -0.383583, 0.0761692),
    "xception": (-340.577, 41009.1, 14334.2, 16002.1, 1325.72),
    # timm 1.0.31
    "xception65": (5445260.0, 8208660.0, 0.0, 0.0, 5852080.0),
    # NVlabs/SegFormer@65fa8cf
    "mit_b0": (0.00333001, 1.003, -1.16123, -1.41792, 0.674368),
}
# One of each class, and of each way to build it
FAMILIES = (
    "resnet18",
    "resnext50_32x4d",
    "se_resnext50_32x4d",
    "vgg11",
    "vgg11_bn",
    "mobilenet_v2",
    "efficientnet_b0",
    "efficientnet_lite0",
    "timm_efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "mit_b0",
    "hrnet_w18",
    "swin_tiny",
    "xception",
    "xception65",
    "dinov2_vits14",
    "dinov3_vits16plus",
)

# What makes the maps of strides 8 and 16 alone, which DeepLabv3+ does not look at
UNUSED = {
    "convnext_tiny": ("encoder.norm1.", "encoder.norm2."),
    "hrnet_w18": ("encoder.stage4.2.fuse_layers.1.", "encoder.stage4.2.fuse_layers.2."),
}


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


TIMM_LAYERS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def published(name: str, key: str) -> str:
    """Return the name in published files of a tensor of ours."""
    if key.startswith("body."):
        return "features." + key.removeprefix("body.")
    if name.startswith("efficientnet_b"):
        return "_" + re.sub(r"(blocks\.\d+)\.", r"\1._", key)
    if name == "timm_efficientnet_b0" and key.startswith("blocks."):
        _, block, layer, kind = key.split(".")
        stages = [
            f"{stage}.{i}"
            for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1))
            for i in range(count)
        ]
        layer = TIMM_LAYERS[layer]
        if block == "0":  # expands nothing, so the names move up
            layer = {"conv_pwl": "conv_pw", "bn2": "bn1", "bn3": "bn2"}.get(layer, layer)
        return f"blocks.{stages[int(block)]}.{layer}.{kind}"
    return key.replace("bn0.", "bn1.") if name.startswith("timm_") else key


def strides_of(name: str) -> tuple[int, ...]:
    return ENCODERS[name].output_strides


def test_every_row_is_listed():
    assert list(PARAMETERS) == list(ENCODERS)


def test_the_page_has_every_row():
    page = Path(__file__).parents[2].joinpath("docs/models.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d, ]+) \| (yes)? *\|", page, re.M)
    assert table == [
        (
            name,
            f"{PARAMETERS[name]:,}",
            ", ".join(map(str, row.output_strides)),
            "yes" if row.weights else "",
        )
        for name, row in ENCODERS.items()
    ]


@pytest.mark.parametrize("name", ENCODERS)
def test_parameters_and_shapes(name: str):
    with torch.device("meta"):
        encoder = build_encoder(name, 32)
        assert count(encoder) == PARAMETERS[name]
        maps = encoder.features(torch.empty(1, 3, 97, 131))
    assert [m.shape[1] for m in maps] == encoder.channels
    assert encoder.strides[-4:] == [4, 8, 16, 32]
    sizes = [(-(-97 // stride), -(-131 // stride)) for stride in encoder.strides]
    assert [tuple(m.shape[-2:]) for m in maps] == sizes
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def loaded(name: str, state: dict[str, torch.Tensor], folder: Path) -> Encoder:
    """Return a network's encoder, every tensor of it set from a file."""
    torch.save(state, folder / "theirs.pth")
    network = build_model("fpn", 2, encoder=name, pyramid_channels=8, width=32).eval()
    report = load_weights(network, folder / "theirs.pth")
    assert not [one for one in report.missing if one.startswith("encoder.")]
    return network.encoder


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, tmp_path: Path):
    mean, std, *values = GOLDEN[name]
    with torch.device("meta"):
        own = build_encoder(name, 32).state_dict()
    shapes = [(published(name, key), value.shape) for key, value in own.items()]
    encoder = loaded(name, integers.state(shapes), tmp_path)
    image = integers.uniform("input", 3 * 64 * 64).float().view(1, 3, 64, 64)
    with torch.no_grad():
        deepest = encoder.features(image)[-1]
    flat = deepest.flatten()
    assert deepest.std().item() == pytest.approx(std, rel=1e-3)
    shown = (deepest.mean(), flat[0], flat[len(flat) // 2], flat[-1])
    for ours, theirs in zip(shown, (mean, *values), strict=True):
        assert abs(ours.item() - theirs) <= 1e-3 * std


SMALL_BEIT = {"channels": 48, "depth": 3, "heads": 3, "taps": (0, 1, 2, 2), "layer_scale": 0.1}


def test_the_two_squeezing_resnexts_are_told_apart():
    """They differ in the stem's pooling alone, which no name tells."""
    theirs = build_encoder("seresnext50_32x4d", 32).state_dict()
    timms = {n.removeprefix("layer0.").replace(".se_module.", ".se."): t for n, t in theirs.items()}
    assert build_encoder("seresnext50_32x4d", 32).convert_weights(timms).keys() == theirs.keys()
    with pytest.raises(UserError, match="these are timm's weights: take encoder seresnext50_32x4d"):
        build_encoder("se_resnext50_32x4d", 32).convert_weights(timms)


def test_beit_gives_timms_tokens_and_its_files_fit_another_size():
    """Of timm 1.0.31's class Beit, three blocks of 48 channels, for images of 64 pixels."""
    encoder = beit.Beit(**SMALL_BEIT, image_size=64, output_stride=32).eval()
    shapes = [(key, value.shape) for key, value in encoder.state_dict().items()]
    state = integers.state(shapes)
    encoder.load_state_dict(encoder.convert_weights(state))
    image = integers.uniform("input", 3 * 64 * 64).float().view(1, 3, 64, 64)
    with torch.no_grad():
        tokens = encoder.features(image)[2]
        larger = encoder.features(image.repeat(1, 1, 2, 2)[..., :97, :])
    assert tokens.shape == (1, 48, 4, 4)
    flat = tokens.flatten()
    shown = [flat.mean(), flat.std(), flat[0], flat[len(flat) // 2], flat[-1]]
    expected = [0.0160306, 0.80701, 0.703421, -0.70665, -0.30222]
    assert [v.item() for v in shown] == pytest.approx(expected, abs=1e-3 * 0.80701)
    assert [tuple(m.shape[-2:]) for m in larger] == [(25, 32), (13, 16), (7, 8), (4, 4)]

    other = beit.Beit(**SMALL_BEIT, image_size=96, output_stride=32)
    other.load_state_dict(other.convert_weights(state))
    name = "blocks.0.attn.relative_position_bias_table"
    before, after = state[name], other.state_dict()[name]
    assert after.shape == (11**2 + 3, 3)
    # corners, middle and the three of the class token are as they were
    for i, j in ((0, 0), (24, 60), (48, 120), (49, 121), (51, 123)):
        torch.testing.assert_close(after[j], before[i])


def test_convnext_gives_the_authors_logits(tmp_path: Path):
    """Of facebookresearch/ConvNeXt@048efce; their classifier is put behind the deepest map."""
    with torch.device("meta"):
        own = build_encoder("convnext_tiny", 32, norms=False).state_dict()
    state = integers.state([(key, value.shape) for key, value in own.items()])
    image = integers.uniform("input", 3 * 64 * 64).float().view(1, 3, 64, 64)
    head = {"norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768)}
    head = integers.state([(k, torch.Size(s)) for k, s in [*head.items(), ("head.bias", (1000,))]])
    encoder = loaded("convnext_tiny", state | head, tmp_path)
    with torch.no_grad():
        pooled = encoder.features(image)[-1].mean((2, 3))
        pooled = F.layer_norm(pooled, (768,), head["norm.weight"], head["norm.bias"], 1e-6)
        logits = F.linear(pooled, head["head.weight"], head["head.bias"])[0]
    shown = [logits.mean(), logits.std(), logits[0], logits[500], logits[-1]]
    expected = [0.0571867, 1.44243, -2.05217, 2.5227, -0.311892]
    assert [v.item() for v in shown] == pytest.approx(expected, abs=1e-3 * 1.44243)


def test_hrnet_gives_the_authors_logits():
    """Of HRNet-Semantic-Segmentation@0bbb288; their last layer is put behind the four maps."""
    encoder = build_encoder("hrnet_w18", 32).eval()
    shapes = [(key, value.shape) for key, value in encoder.state_dict().items()]
    encoder.load_state_dict(integers.state(shapes, gain=1.0))
    conv, norm, last = nn.Conv2d(270, 270, 1), nn.BatchNorm2d(270), nn.Conv2d(270, 19, 1)
    layer = nn.Sequential(conv, norm, nn.ReLU(), last).eval()
    shapes = [(f"last_layer.{key}", value.shape) for key, value in layer.state_dict().items()]
    state = integers.state(shapes, gain=1.0)
    layer.load_state_dict({k.removeprefix("last_layer."): v for k, v in state.items()})
    image = integers.uniform("input", 3 * 64 * 64).float().view(1, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.features(image)[-4:]
        logits = layer(torch.cat([upsample_to(x, maps[0]) for x in maps], 1))
    assert logits.shape == (1, 19, 16, 16)
    flat = logits.flatten()
    shown = [flat.mean(), flat.std(), flat[0], flat[len(flat) // 2], flat[-1]]
    expected = [0.00629762, 0.230026, -0.0506684, 0.156321, -0.288269]
    assert [v.item() for v in shown] == pytest.approx(expected, abs=1e-3 * 0.230026)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_evaluation_bfloat16_and_state(name: str):
    torch.manual_seed(0)
    stride = strides_of(name)[-2:][0]
    options = {"encoder": name, "output_stride": stride, "width": 8}
    network = build_model("deeplabv3plus", 3, **options).train()
    images = torch.randn(1, 3, 97, 131)
    out = network(images)["out"]
    assert out.shape == (1, 3, 25, 33)
    (out * pattern(*out.shape)).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.startswith(UNUSED.get(name, "-")):
            continue
        assert parameter.grad is not None or not parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
    network.eval()
    again = build_model(**network.arch).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        out = network(images)["out"]
        assert torch.equal(again(images)["out"], out)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images)["out"].float()
    assert (rounded - out).norm() < 0.1 * out.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_dilation_keeps_what_stride_computed(name: str):
    """Every pixel at output stride 32 is every second at 16, every fourth at 8."""
    if len(strides_of(name)) == 1:
        pytest.skip("has one output stride")
    if name == "hrnet_w18":
        pytest.skip("resizes between its branches, from other pixels")
    if name == "efficientnet_b0":
        pytest.skip("begins at the second pixel, as at its published size")
    torch.manual_seed(0)
    strided, images = build_encoder(name, 32).eval(), pattern(1, 3, 65, 97)
    for module_name, module in strided.named_modules():
        if module_name.endswith(("se_module.fc2", "se_expand")):
            module.weight.data.zero_()  # means over other pixels are other means
    with torch.no_grad():
        coarse = strided.features(images)
        for output_stride in (16, 8):
            dilated = build_encoder(name, output_stride).eval()
            dilated.load_state_dict(strided.state_dict())
            fine = dilated.features(images)
            assert dilated.strides[-4:] == [4, 8, min(16, output_stride), output_stride]
            steps = [s // own for s, own in zip(strided.strides, dilated.strides, strict=True)]
            for own, other, step in zip(fine, coarse, steps, strict=True):
                atol = 1e-4 * other.std().item()
                torch.testing.assert_close(own[..., ::step, ::step], other, rtol=1e-4, atol=atol)


def test_dilate_first_is_the_packages_way():
    """Of segmentation_models_pytorch: the convolution without its stride is dilated as well."""
    first = build_encoder("resnet34", 8, dilate_first=True)
    assert [first.layer3[0].conv1.dilation, first.layer4[0].conv1.dilation] == [(2, 2), (4, 4)]
    kept = build_encoder("resnet34", 8)
    assert [kept.layer3[0].conv1.dilation, kept.layer4[0].conv1.dilation] == [(1, 1), (2, 2)]


def test_a_stride_that_does_not_exist():
    for name in FAMILIES:
        with pytest.raises(UserError, match=f"encoder {name}: output_stride is 4, must be one of"):
            build_encoder(name, 4)


def test_timm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="encoder timm:resnet26d needs timm: pip install timm"):
        build_model("deeplabv3plus", 2, encoder="timm:resnet26d")
    with pytest.raises(
        UserError, match=r"encoder is 'resnet17', must be one of resnet18, .*timm:NAME"
    ):
        build_model("deeplabv3plus", 2, encoder="resnet17")
