"""The dense CRF beside every pair of pixels, one after the other."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import evaluate
import fakedata
from engine.errors import UserError
from inference import crf
from inference.crf import Appearance, DenseCrf, Smoothness
from worlds import on_camvid, open_camvid, write_checkpoint

CPU = torch.device("cpu")


def scene(size: int = 24, colours: int = 256) -> tuple[Tensor, Tensor]:
    """Return a picture uint8 [3,n,n] of a disc on a shaded ground, and logits [4,n,n]."""
    generator = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (y - size / 2) ** 2 + (x - size / 3) ** 2 < (size / 4) ** 2
    shades = torch.stack([60 + 3 * y, 90 + 2 * x, 120 - y - x]) * 24 / size
    noise = torch.randint(-8, 9, (3, size, size), generator=generator)
    image = torch.where(disc, 255 - shades, shades) + noise
    step = 256 // colours
    image = (image.clamp(0, 255) // step * step).to(torch.uint8)
    return image, 2 * torch.randn(4, size, size, generator=generator)


def brute_force(unary: Tensor, image: Tensor, iterations: int, kernels: list[tuple]) -> Tensor:
    """Return the marginals of mean field in float64, by the matrix of all pairs of pixels.

    Args:
        unary: logits [C,H,W].
        image: uint8 [3,H,W].
        iterations: of mean field.
        kernels: weight, width in pixels, and width in levels or None, of each.
    """
    _, h, w = unary.shape
    pixels = [(y, x, *image[:, y, x].tolist()) for y in range(h) for x in range(w)]
    features = torch.tensor(pixels, dtype=torch.float64)
    logits = unary.double().flatten(1).T  # [P,C]
    matrices = []
    for weight, xy, rgb in kernels:
        squared = ((features[:, None, :2] - features[None, :, :2]) / xy).square().sum(2)
        if rgb is not None:
            squared += ((features[:, None, 2:] - features[None, :, 2:]) / rgb).square().sum(2)
        kernel = torch.exp(-squared / 2)
        root = kernel.sum(1).sqrt()
        matrices.append(weight * kernel / root[:, None] / root[None, :])
    marginals = logits.softmax(1)
    for _ in range(iterations):
        energy = -logits.log_softmax(1)
        for matrix in matrices:
            for label in range(energy.shape[1]):  # what is paid for neighbours with other labels
                others = [other for other in range(energy.shape[1]) if other != label]
                energy[:, label] += matrix @ marginals[:, others].sum(1)
        marginals = (-energy).softmax(1)
    return marginals.T.reshape(unary.shape)


@pytest.mark.parametrize(
    ("how", "kernels"),
    [
        ({}, [(3.0, 3.0, None), (10.0, 80.0, 13.0)]),
        ({"iterations": 10, "look_xy": 8.0, "look_rgb": 30.0, "look": 4.0, "smooth_xy": 1.0},
         [(3.0, 1.0, None), (4.0, 8.0, 30.0)]),
        ({"smooth": 0.0, "look_rgb": 3.0}, [(10.0, 80.0, 3.0)]),
    ],
)  # fmt: skip
def test_mean_field_equals_brute_force(how: dict, kernels: list[tuple]):
    image, logits = scene()
    expected = brute_force(logits, image, how.get("iterations", 5), kernels)
    refined = DenseCrf(**how)(logits[None], image[None])[0].exp()
    torch.testing.assert_close(refined, expected.float(), atol=1e-4, rtol=0)
    assert (expected.argmax(0) != logits.argmax(0)).float().mean() > 0.2  # it does something
    torch.testing.assert_close(refined.sum(0), torch.ones(24, 24))


@pytest.mark.parametrize(
    ("most", "spacings", "worst"),
    [((4096, 1e9), (1, 1), 1e-4), ((150, 2e6), (20, 3), 0.02), ((150, 1e5), (20, 12), 0.05)],
)
def test_between_the_nodes_of_grids_it_is_close(monkeypatch, most, spacings, worst: float):
    """As in an image of more colours and pixels than there may be nodes; widths of 40 and 12."""
    image, logits = scene()
    kernels = [(3.0, 3.0, None), (4.0, 12.0, 40.0)]
    expected = brute_force(logits, image, 5, kernels).float()
    monkeypatch.setattr(crf, "MOST_COLOURS", most[0])
    monkeypatch.setattr(crf, "MOST_WORK", most[1])
    kernel = Appearance(image, 12.0, 40.0)
    refined = DenseCrf(look=4.0, look_xy=12.0, look_rgb=40.0)(logits[None], image[None])[0].exp()
    assert (kernel.spacing_rgb, kernel.spacing_xy) == spacings
    assert (refined - expected).abs().max() < worst


def test_the_kernels_by_hand():
    """Two pixels, one column and 20 levels apart."""
    smooth = Smoothness((1, 2), 2.0, CPU)(torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(smooth.flatten(), torch.tensor([0, -1 / 8]).exp())
    image = torch.tensor([[[10, 30]], [[0, 0]], [[0, 0]]], dtype=torch.uint8)
    both = Appearance(image, 2.0, 10.0)(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]))
    near = torch.tensor(-1 / 8 - 4 / 2).exp().item()
    torch.testing.assert_close(both, torch.tensor([[[1.0, near]], [[2 * near, 2.0]]]))


def test_images_of_a_batch_do_not_mix():
    pairs = [scene(12), scene(12, colours=8)]
    images, logits = (torch.stack(part) for part in zip(*pairs, strict=True))
    together = DenseCrf()(logits, images)
    alone = torch.cat([DenseCrf()(one[None], image[None]) for image, one in pairs])
    assert torch.equal(together, alone)


@pytest.fixture
def checkpoint(tmp_path: Path) -> list:
    """Return what evaluates a small network of random weights on small images."""
    root = fakedata.make_camvid(tmp_path / "camvid", n=3, size=(64, 48))
    path = write_checkpoint(tmp_path / "c.pth", "camvid", open_camvid(root).class_names)
    return ["--restore-from", path, *on_camvid(root), "--json", tmp_path / "scores.json"]


def test_evaluate_refines_what_the_network_predicts(checkpoint, tmp_path, capsys):
    def scores(*words: str) -> dict:
        evaluate.main(evaluate.parse_args(list(map(str, [*checkpoint, *words]))))
        return json.loads((tmp_path / "scores.json").read_text())[0]

    plain, nothing = scores(), scores("--crf", "smooth=0", "look=0")
    assert nothing["iou"] == plain["iou"]
    assert "crf" not in plain
    capsys.readouterr()
    refined = scores("--crf")
    assert refined["crf"] == "yes"
    assert "crf yes" in capsys.readouterr().out
    assert refined["iou"] != plain["iou"]
    assert scores("--crf", "iterations=1", "look_xy=4")["iou"] != refined["iou"]


@pytest.mark.parametrize(
    ("word", "message"),
    [("sharp=1", "crf has no option 'sharp'; it has: iterations, smooth"), ("look=-1", ">= 0")],
)
def test_words_of_crf_that_do_not_exist(checkpoint, word: str, message: str):
    with pytest.raises(UserError) as error:
        evaluate.main(evaluate.parse_args(list(map(str, [*checkpoint, "--crf", word]))))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
