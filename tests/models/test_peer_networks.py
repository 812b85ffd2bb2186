"""Whole networks beside those of torchvision, smp and transformers: `make test-peers`."""

from pathlib import Path

import pytest
import torch

import peers
from models import build_model, load_weights
from training.losses import PixelLoss

# name here and options -> smp's class and options
SMP = {
    "unet": ({}, "Unet", {}),
    "unet scse": ({"attention": "scse"}, "Unet", {"decoder_attention_type": "scse"}),
    "unetplusplus": ({}, "UnetPlusPlus", {}),
    "linknet": ({}, "Linknet", {}),
    "fpn": ({}, "FPN", {}),
    "pspnet": ({}, "PSPNet", {}),
    "deeplabv3": ({"style": "smp"}, "DeepLabV3", {}),
    "deeplabv3plus": ({"head": "separable"}, "DeepLabV3Plus", {}),
    "upernet": ({"style": "smp"}, "UPerNet", {}),
    "segformer": ({"style": "smp"}, "Segformer", {}),
}
ENCODERS = {
    "resnet18": "resnet18",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_b0": "efficientnet-b0",
    "mit_b0": "mit_b0",
    "vgg11": "vgg11",
    "densenet121": "densenet121",
    "se_resnext50_32x4d": "se_resnext50_32x4d",
}
# what smp itself refuses
REFUSED = {
    "unetplusplus": {"mit_b0"},
    "linknet": {"mit_b0"},
    "deeplabv3": {"mit_b0", "vgg11", "densenet121"},
    "deeplabv3plus": {"mit_b0", "vgg11", "densenet121"},
}
PAIRS = [(w, e) for w in SMP for e in ENCODERS if e not in REFUSED.get(w, ())]
TIMM = {f"timm:{name}": f"tu-{name}" for name in ("hrnet_w18", "resnet26d")}
PAIRS += [("unet", name) for name in TIMM]
LIMIT = 1e-5  # of the largest value


@pytest.mark.parametrize(("which", "encoder"), PAIRS)
def test_smps_network_and_ours_agree(which: str, encoder: str, tmp_path: Path):
    peers.need()
    import segmentation_models_pytorch as smp

    name = which.split()[0]
    ours, kind, theirs = SMP[which]
    other = getattr(smp, kind)(
        (ENCODERS | TIMM)[encoder], encoder_weights=None, classes=5, **theirs
    )
    peers.randomise(other)
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    network = build_model(name, 5, encoder=encoder, **ours).eval()
    assert load_weights(network, tmp_path / "theirs.pth", strict=True).missing == []
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = other(images)
        out = network.resize(network(images)["out"], (64, 96))
    assert (out - expected).abs().max() <= LIMIT * expected.abs().max()


def transformers_mask2former(encoder: str) -> torch.nn.Module:
    """Build Mask2Former of 12 queries, 2 layers over pixels and 4 over queries, 5 classes."""
    transformers = pytest.importorskip("transformers", reason="make test-peers")
    pytest.importorskip("scipy", reason="make test-peers")
    stages = {"out_features": [f"stage{i}" for i in range(1, 5)]}
    if encoder == "swin_tiny":
        backbone = transformers.SwinConfig(**stages)
    else:
        layers = {"layer_type": "basic", "depths": [2, 2, 2, 2]}
        sizes = {"hidden_sizes": [64, 128, 256, 512]}
        backbone = transformers.ResNetConfig(**layers, **sizes, **stages)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=5,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 64),
        **{"encoder_feedforward_dim": 256, "dim_feedforward": 512, "encoder_layers": 2},
        **{"decoder_layers": 5, "num_queries": 12},
    )
    network = transformers.Mask2FormerForUniversalSegmentation(config)
    weight = network.criterion.empty_weight.clone()
    peers.randomise(network)
    network.criterion.empty_weight.copy_(weight)
    return network


@pytest.mark.parametrize("encoder", ["resnet18", "swin_tiny"])
def test_mask2former_of_transformers_and_ours_agree(encoder: str, tmp_path: Path):
    """What queries say, the classes of pixels, the loss under one seed, and a gradient."""
    peers.need()
    other = transformers_mask2former(encoder)
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    options = {"width": 64, "queries": 12, "pixel_layers": 2, "layers": 4}
    network = build_model("mask2former", 5, encoder=encoder, **options).eval()
    assert load_weights(network, tmp_path / "theirs.pth", strict=True).missing == []
    images = torch.randn(2, 3, 97, 131)
    label = torch.randint(0, 5, (2, 25, 33)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    label = label[:, :97, :131]
    classes = [ids[ids != 3] if i else ids for i, ids in enumerate(map(torch.unique, label))]
    label[1][label[1] == 3] = int(classes[1][0])
    masks = [(one == ids[:, None, None]).float() for one, ids in zip(label, classes, strict=True)]
    torch.manual_seed(7)
    expected = other(images, mask_labels=masks, class_labels=classes)
    outputs = network(images)
    queries, said = expected.class_queries_logits, expected.masks_queries_logits
    assert peers.difference(outputs["queries"][-1], queries) <= LIMIT
    assert peers.difference(outputs["masks"][-1], said) <= LIMIT
    large = torch.nn.functional.interpolate(said, (97, 131), mode="bilinear").sigmoid()
    scores = torch.einsum("nqc,nqhw->nchw", queries.softmax(2)[..., :-1], large)
    assert (scores.argmax(1) == outputs["out"].argmax(1)).float().mean() > 0.9999
    torch.manual_seed(7)
    loss = sum(network.loss(outputs, label.byte(), PixelLoss([])).values())
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    loss.backward()
    expected.loss.backward()
    ours, theirs = network.class_predictor.weight.grad, other.class_predictor.weight.grad
    assert peers.difference(ours, theirs) <= 10 * LIMIT
    first = other.model.transformer_module.queries_features.weight.grad
    assert peers.difference(network.transformer.queries_features.weight.grad, first) <= 100 * LIMIT


@pytest.mark.parametrize("encoder", ["resnet50", "resnet101"])
@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_torchvisions_network_and_ours_agree(name: str, encoder: str, tmp_path: Path):
    peers.need()
    from torchvision.models import segmentation

    build = getattr(segmentation, f"{name}_{encoder}")
    other = peers.randomise(
        build(num_classes=5, aux_loss=True, weights=None, weights_backbone=None)
    )
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    network = build_model(name, 5, encoder=encoder, multi_level=True).eval()
    assert load_weights(network, tmp_path / "theirs.pth", strict=True).missing == []
    images = torch.randn(1, 3, 65, 97)  # an odd size, too
    with torch.no_grad():
        expected, outputs = other(images), network(images)
        for head in ("out", "aux"):
            out = network.resize(outputs[head], (65, 97))
            assert (out - expected[head]).abs().max() <= LIMIT * expected[head].abs().max(), head
