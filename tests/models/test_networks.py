"""Every network: one image of an odd size, both precisions, its file, and encoders of each kind."""

from pathlib import Path

import pytest
import torch

from models import MODELS, build_model, load_weights
from test_models import SMALL
from training.losses import PixelLoss


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_one_image_of_97x131_trains_and_its_file_predicts_the_same(name: str, tmp_path: Path):
    torch.manual_seed(0)
    network = build_model(name, 5, **SMALL[name])
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
    again = build_model(name, 5, **SMALL[name])
    assert load_weights(again, tmp_path / "a.pth", strict=True).missing == []
    with torch.no_grad():
        expected = network.eval()(images, aux=False)["out"]
        assert torch.equal(again.eval()(images, aux=False)["out"], expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images, aux=False)["out"]
    assert network.resize(expected, (97, 131)).shape == (1, 5, 97, 131)
    assert (rounded.float() - expected).norm() < 0.1 * expected.norm()
