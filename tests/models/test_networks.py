"""Every network: one image of an odd size, both precisions, its file, and encoders of each kind."""

from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from models import build_model, deeplabv3, deeplabv3plus, fold_batchnorm, load_weights
from test_models import SMALL
from training.losses import PixelLoss


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# beside the smallest of each name: other heads, other details
OTHERS = {
    "deeplabv3plus separable": {"encoder": "resnet18", "head": "separable", "width": 16},
    "deeplabv3 smp": {"encoder": "resnet18", "style": "smp", "width": 16},
    "pspnet paper": {"encoder": "resnet18", "depth": 5, "output_stride": 8, "width": 16},
}
ALL = SMALL | OTHERS


@pytest.mark.parametrize("which", ALL)
def test_one_image_of_97x131_trains_and_its_file_predicts_the_same(which: str, tmp_path: Path):
    torch.manual_seed(0)
    name = which.split()[0]
    network = build_model(name, 5, **ALL[which])
    pixel_loss = PixelLoss([(1.0, "ce", {})], align_corners=network.align_corners)
    images = torch.randn(1, 3, 97, 131)
    label = torch.randint(0, 5, (1, 97, 131)).byte()
    terms = network.train().loss(network(images), label, pixel_loss)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    for parameter_name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name

    torch.save(network.state_dict(), tmp_path / "a.pth")
    again = build_model(name, 5, **ALL[which])
    assert load_weights(again, tmp_path / "a.pth", strict=True).missing == []
    with torch.no_grad():
        expected = network.eval()(images, aux=False)["out"]
        assert torch.equal(again.eval()(images, aux=False)["out"], expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images, aux=False)["out"]
        folded = fold_batchnorm(network)(images, aux=False)["out"]
    assert (folded - expected).abs().max() < 1e-4 * expected.abs().max()
    assert network.resize(expected, (97, 131)).shape == (1, 5, 97, 131)
    limit = 1.0 if name == "segnet" else 0.1  # where a maximum stands may change
    assert (rounded.float() - expected).norm() < limit * expected.norm()


def test_what_a_file_is_of_is_said(tmp_path: Path):
    """A file of smp in a network that would give another output is refused, with the cure."""
    for name, option in (("deeplabv3plus", "head=separable"), ("deeplabv3", "style=smp")):
        key, value = option.split("=")
        right = build_model(name, 3, encoder="resnet18", **{key: value})
        own = right.state_dict()
        layout = {"deeplabv3": deeplabv3.SMP, "deeplabv3plus": deeplabv3plus.SMP}[name]
        backwards = {ours: theirs for theirs, ours in reversed(layout.items())}
        torch.save(deeplabv3.renamed(own, backwards), tmp_path / "smp.pth")
        assert load_weights(right, tmp_path / "smp.pth", strict=True).missing == []
        with pytest.raises(UserError, match=f"{name} {option}"):
            load_weights(build_model(name, 3, encoder="resnet18"), tmp_path / "smp.pth")


def test_hrnet_of_timm_in_a_file_of_smp_is_told(tmp_path: Path):
    network = build_model("unet", 3, encoder="hrnet_w18")
    state = {n.replace("encoder.", "encoder.model."): t for n, t in network.state_dict().items()}
    torch.save(state, tmp_path / "smp.pth")
    with pytest.raises(UserError, match="smp's of tu-hrnet_w18: take encoder timm:hrnet_w18"):
        load_weights(network, tmp_path / "smp.pth")


def test_pspnet_trains_what_it_looks_at_alone():
    network = build_model("pspnet", 2, encoder="resnet18", width=8)
    stages = {n.split(".")[0] for n, p in network.encoder.named_parameters() if p.requires_grad}
    assert stages == {"conv1", "bn1", "layer1", "layer2"}
    ran = []
    network.encoder.layer3.register_forward_hook(lambda *_: ran.append(1))
    network(torch.zeros(2, 3, 33, 33))
    assert not ran


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"attention": "cbam"}, "none, scse"),
        ("unet", {"decoder_channels": (64, 32)}, "must be 5 whole numbers"),
        ("unetplusplus", {"decoder_channels": (64, 32, 16, 8, 0)}, "whole numbers from 1"),
        ("fpn", {"width": 48}, "a multiple of 32"),
        ("pspnet", {"depth": 2}, "3, 4, 5"),
        ("deeplabv3", {"style": "caffe"}, "torchvision, smp"),
        ("deeplabv3plus", {"head": "light"}, "plain, separable"),
        ("linknet", {"encoder": "resnet"}, "resnet18"),
        ("fcn", {"output_stride": 4}, "8, 16, 32"),
    ],
)
def test_wrong_options(name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        build_model(name, 2, **options)
