"""PIDNet: its authors' numbers, its losses by hand, its files, and what it must not fall over."""

import math

import pytest
import torch

import integers
from models import build_model, load_weights
from models.pidnet import balanced_bce, edge_map
from training.losses import PixelLoss, cross_entropy, ohem

# PIDNet@4c158cf under weights of the integer formula, 64x128 pixels, 19 classes, training heads:
# parameters, digest of keys and shapes (sorted), and its main output: mean, standard deviation,
# the first value, the middle one and the last
PUBLISHED = {
    "s": (7_720_935, (2.0336, 91.0574, -9.97048, -83.3717, 12.9158)),
    "m": (28_763_111, (5.64837, 49.9047, -78.0925, -68.124, 20.8963)),
    "l": (37_314_311, (22.9677, 123.944, 32.5717, 96.4679, 56.1165)),
}
DIGESTS = {"s": "79a9e5c6236707fd", "m": "cbe72d990df1a7c2", "l": "bd31b2fb09e6dd20"}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_authors_file_gives_the_authors_output(size: str, tmp_path):
    parameters, (mean, std, *values) = PUBLISHED[size]
    network = build_model("pidnet", 19, size=size, boundary=True).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    shapes = sorted((key, value.shape) for key, value in network.state_dict().items())
    assert integers.digest(shapes) == DIGESTS[size]
    # as the authors save it: under state_dict, the network inside a wrapper with its losses
    state = {f"model.{key}": value for key, value in integers.state(shapes).items()}
    torch.save({"state_dict": state}, tmp_path / "pidnet.pth")
    assert load_weights(network, tmp_path / "pidnet.pth", strict=True).missing == []
    image = integers.uniform("input", 3 * 64 * 128).float().view(1, 3, 64, 128)
    with torch.no_grad():
        out = network(image)["out"]
    flat = out.flatten()
    assert out.shape == (1, 19, 8, 16)
    shown = (out.mean(), flat[0], flat[len(flat) // 2], flat[-1])
    for ours, theirs in zip(shown, (mean, *values), strict=True):
        assert abs(ours.item() - theirs) <= 1e-3 * std
    assert out.std().item() == pytest.approx(std, rel=1e-3)
    # a file of its three heads in a network of one, and the file that such a network saves
    alone = build_model("pidnet", 19, size=size).eval()
    report = load_weights(alone, tmp_path / "pidnet.pth", strict=True)
    assert report.missing == []
    torch.save(alone.state_dict(), tmp_path / "alone.pth")
    again = build_model("pidnet", 19, size=size).eval()
    assert load_weights(again, tmp_path / "alone.pth", strict=True).missing == []
    with torch.no_grad():
        assert torch.equal(again(image)["out"], out)


def test_parameters_with_7_classes_and_without_the_training_heads():
    def count(**options) -> int:
        return sum(p.numel() for p in build_model("pidnet", **options).parameters())

    assert count(num_classes=7, boundary=True) == 7_717_839
    assert [count(num_classes=19, size=s) for s in "sml"] == [7_625_715, 28_538_515, 36_939_571]


# ------------------------------------------------------------------ its losses


def test_edges_are_lines_of_four_pixels_away_from_the_border():
    label = torch.zeros(1, 20, 24, dtype=torch.uint8)
    label[:, :, 12:] = (
        255  # from column 11 to 12: a line at 12, two to its left and one to its right
    )
    edge = edge_map(label)
    columns = edge[0].amax(0).nonzero().flatten().tolist()
    rows = edge[0].amax(1).nonzero().flatten().tolist()
    assert columns == [10, 11, 12, 13]  # as Canny and a dilation by a square of 4 have it
    assert rows == list(range(5, 16))  # rows 6 to 13 are away from the border, widened alike
    assert edge.unique().tolist() == [0, 1]
    assert not edge_map(torch.full((2, 20, 24), 7, dtype=torch.uint8)).any()


def test_balanced_bce_by_hand():
    edge = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    # an edge of probability 1/2 weighs 3/4, three others of probability 1/2 weigh 1/4 each
    expected = (0.75 + 3 * 0.25) * math.log(2) / 4
    assert balanced_bce(torch.zeros(1, 1, 4), edge).item() == pytest.approx(expected)
    sure = torch.full((1, 1, 4), math.log(3))  # probability 3/4
    expected = (0.75 * math.log(4 / 3) + 3 * 0.25 * math.log(4)) / 4
    assert balanced_bce(sure, edge).item() == pytest.approx(expected)


def test_the_four_terms_and_their_weights():
    """20, 1, 1 and 0.4; the boundary-aware term looks where a boundary is surer than 0.8."""
    network = build_model("pidnet", 3, boundary=True, width=8)
    torch.manual_seed(0)
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[:, :, 16:] = 1
    outputs = {"out": torch.randn(1, 3, 32, 32), "aux": torch.randn(1, 3, 32, 32)}
    outputs["boundary"] = torch.full((1, 1, 32, 32), -1.0)
    outputs["boundary"][..., 14:18] = 2.0  # probability 0.88
    pixel_loss = PixelLoss([(1.0, "ohem", {})], align_corners=network.align_corners)
    terms = network.loss(outputs, label, pixel_loss)
    assert list(terms) == ["out", "aux", "boundary", "at_boundary"]
    ids = label.long()
    near = ids.clone()
    near[..., :14] = near[..., 18:] = 255
    expected = {
        "out": ohem(outputs["out"], ids),
        "aux": 0.4 * cross_entropy(outputs["aux"], ids),
        "boundary": 20 * balanced_bce(outputs["boundary"][:, 0], edge_map(label)),
        "at_boundary": ohem(outputs["out"], near),
    }
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term)
    assert network.align_corners
    assert network.default_loss == ("ohem",)


# ------------------------------------------------------------------ what it must not fall over


@pytest.mark.parametrize("size", ["s", "l"])
def test_one_image_trains_and_an_ignored_crop_is_no_crash(size: str):
    torch.manual_seed(0)
    network = build_model("pidnet", 5, size=size, boundary=True, width=8).train()
    pixel_loss = PixelLoss([(1.0, "ohem", {})], align_corners=True)
    images = torch.randn(1, 3, 64, 96)
    for label in (torch.randint(0, 5, (1, 64, 96)), torch.full((1, 64, 96), 255)):
        network.zero_grad()
        terms = network.loss(network(images), label.byte(), pixel_loss)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(p.grad.isfinite().all() for p in network.parameters())
    assert terms["out"].item() == terms["aux"].item() == terms["at_boundary"].item() == 0


def test_a_pooled_value_alone_is_normalised_by_running_statistics():
    network = build_model("pidnet", 2, width=8)
    norm = network.spp.scale4[1]
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    alone = norm.train()(torch.full((1, 128, 1, 1), 5.0))
    assert alone.flatten().tolist() == pytest.approx([2.0] * 128, rel=1e-4)
    assert norm.running_mean.unique().item() == 1.0  # nothing was learnt from it
    assert norm(torch.randn(2, 128, 1, 1)).mean().abs() < 1e-5
