"""Whole networks beside those of torchvision and smp, with random weights; `make test-peers`."""

from pathlib import Path

import pytest
import torch

import peers
from models import build_model, load_weights

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
