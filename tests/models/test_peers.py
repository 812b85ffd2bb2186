"""Encoders beside those of the packages that people have: equal outputs for the same weights."""

import pytest
import torch

import peers
from models.encoders import build_encoder

LIMIT = 1e-5
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
    "densenet121": "densenet121",
    "densenet161": "densenet161",
    "densenet169": "densenet169",
    "densenet201": "densenet201",
}


@pytest.fixture(autouse=True)
def packages():
    peers.need()


def carry(theirs: torch.nn.Module, ours: torch.nn.Module, unused: tuple[str, ...] = ()) -> None:
    """Give our encoder their weights, all of them but those whose names begin as `unused`."""
    state = ours.convert_weights(theirs.state_dict())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    ours.load_state_dict(state)


@pytest.mark.parametrize("name", SMP)
@torch.no_grad()
def test_smp(name: str, record_property):
    theirs, ours = peers.randomise(peers.smp_encoder(SMP[name])), build_encoder(name, 32).eval()
    carry(theirs, ours)
    images = torch.randn(1, 3, 64, 96)
    pairs = zip(ours.features(images), theirs(images)[1:], strict=True)
    worst = max(peers.difference(own, other) for own, other in pairs)
    record_property("difference", worst)
    assert worst <= LIMIT
