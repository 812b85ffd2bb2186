"""Mask2Former: attention by hand, pairs by brute force, losses of transformers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import integers
from engine.errors import UserError
from models import (
    build_model,
    load_state,
    mask2former,
    masked_attention,
    matching,
    set_loss,
)
from models.deformable_attention import attend_to_points, pixel_centres, sine_positions
from training.losses import PixelLoss

SMALL = {"encoder": "resnet18", "width": 32, "queries": 12, "pixel_layers": 2, "layers": 4}


# ------------------------------------------------------------------ attention


def pixel(values: Tensor, row: int, column: int) -> Tensor:
    """Return [D] of a map [h,w,D]; zeros outside."""
    h, w = values.shape[:2]
    inside = 0 <= row < h and 0 <= column < w
    return values[row, column] if inside else torch.zeros_like(values[0, 0])


def test_attention_to_points_is_the_sum_that_the_paper_writes():
    """Equation 3 of Deformable DETR, one point after the other, in and outside of the maps."""
    generator = torch.Generator().manual_seed(0)
    n, queries, heads, levels, points, depth = 2, 3, 2, 2, 3, 4
    sizes = [(2, 3), (4, 5)]
    shape = (n, queries, heads, levels, points)
    value = torch.randn(n, 26, heads, depth, generator=generator, dtype=torch.float64)
    places = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(*shape, generator=generator, dtype=torch.float64)
    expected = torch.zeros(n, queries, heads, depth, dtype=torch.float64)
    for i, q, m, level, p in itertools.product(*map(range, shape)):
        h, w = sizes[level]
        begin = sum(a * b for a, b in sizes[:level])
        values = value[i, begin : begin + h * w, m].view(h, w, depth)
        x, y = places[i, q, m, level, p].tolist()
        column, row = x * w - 0.5, y * h - 0.5  # the centre of the first pixel is 0
        left, top = math.floor(column), math.floor(row)
        right, below = column - left, row - top
        seen = (1 - below) * (1 - right) * pixel(values, top, left)
        seen += (1 - below) * right * pixel(values, top, left + 1)
        seen += below * (1 - right) * pixel(values, top + 1, left)
        seen += below * right * pixel(values, top + 1, left + 1)
        expected[i, q, m] += weights[i, q, m, level, p] * seen
    ours = attend_to_points(value, sizes, places, weights)
    torch.testing.assert_close(ours, expected.flatten(2), rtol=1e-12, atol=1e-12)


def test_places():
    centres = pixel_centres((2, 4), torch.device("cpu"))
    assert centres.tolist()[:5] == [[0.125, 0.25], [0.375, 0.25], [0.625, 0.25], [0.875, 0.25],
                                    [0.125, 0.75]]  # fmt: skip
    positions = sine_positions((2, 4), 8, torch.device("cpu"))
    half, quarter = 2 * math.pi * 0.5, 2 * math.pi * 0.25  # of row 0, of column 0
    row = [math.sin(half), math.cos(half), math.sin(half / 100), math.cos(half / 100)]
    column = [math.sin(quarter), math.cos(quarter), math.sin(quarter / 100),
              math.cos(quarter / 100)]  # fmt: skip
    assert positions[0].tolist() == pytest.approx(row + column, abs=1e-5)


def test_queries_look_inside_of_their_masks_and_everywhere_where_they_have_none():
    masks = torch.tensor([[[[1.0, -1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    seen = masked_attention.inside(masks, (2, 2))
    assert seen.tolist() == [[[True, False, False, False], [True] * 4]]


def test_scores_are_what_the_queries_add_up_to():
    """Two queries of 3/4 and 1/4 in a pixel: class 0 gets 3/4 of 1/2, class 1 the rest."""
    queries = torch.log(torch.tensor([[[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]]))
    masks = torch.tensor([3.0, 1 / 3]).log().view(1, 2, 1, 1)
    scores = mask2former.class_scores(queries, masks).flatten()
    assert scores.tolist() == pytest.approx([0.75 / 2 + 0.25 / 4, 0.75 / 4 + 0.25 / 2])


def test_scores_in_parts_are_the_scores(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    queries, masks = torch.randn(2, 25, 4), torch.randn(2, 25, 3, 5)
    together = mask2former.class_scores(queries, masks)
    monkeypatch.setattr(mask2former, "AT_ONCE", 7)
    torch.testing.assert_close(mask2former.class_scores(queries, masks, (3, 5)), together)


# ------------------------------------------------------------------ pairs


def brute_force(cost: np.ndarray) -> float:
    """Return the lowest total of R rows in different ones of C columns, R <= C."""
    rows, columns = cost.shape
    choices = itertools.permutations(range(columns), rows)
    return min(sum(cost[row, column] for row, column in enumerate(choice)) for choice in choices)


@pytest.mark.parametrize("installed", [True, False])
def test_pairs_cost_least(installed: bool, monkeypatch: pytest.MonkeyPatch):
    """Against every permutation, with ties, wide and tall."""
    if not installed:
        monkeypatch.setattr(matching, "linear_sum_assignment", None)
    elif matching.linear_sum_assignment is None:
        pytest.skip("scipy is not installed")
    random = np.random.default_rng(0)
    for i in range(60):
        shape = sorted(random.integers(1, 6, 2))
        cost = random.integers(-3, 4, shape) if i % 2 else random.normal(size=shape)
        for table, wide in ((cost, True), (cost.T, False)):
            rows, columns = matching.assign(table)
            assert rows.dtype == columns.dtype == np.int64
            assert len(set(rows)) == len(set(columns)) == min(table.shape)
            assert (np.diff(rows) > 0).all()
            total = table[rows, columns].sum()
            assert total == pytest.approx(brute_force(table if wide else table.T))


def test_a_large_assignment_equals_scipy_s():
    """scipy.optimize.linear_sum_assignment 1.15.3 on this table of integers: its total."""
    i, j = np.meshgrid(np.arange(40), np.arange(100), indexing="ij")
    cost = (i * 7919 + j * 104729 + i * j * 31) % 1009
    rows = np.arange(40)
    assert cost[rows, matching.shortest_paths(cost)].sum() == 536


# ------------------------------------------------------------------ losses


def label_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)[None]


def test_what_masks_are_to_be_at_points():
    """A label of 1x3 pixels: between two, a mask is half there; beside an ignored one, no point."""
    weight = torch.tensor([[[0.2, 0.4, 0.6]]])
    truth = set_loss.Label(label_of([[4, 2, 255]]), weight)
    assert [ids.tolist() for ids in truth.classes] == [[2, 4]]
    points = torch.tensor([[[0.2, 0.5], [0.3, 0.5], [0.45, 0.5], [0.6, 0.5], [0.0, 0.5]]])
    wanted = set_loss.sample(truth.masks[0][None], points)[0, 1]
    assert wanted.tolist() == pytest.approx([0.9, 0.6, 0.15, 0, 0.5], abs=1e-6)
    assert truth.counts(0, points)[0].tolist() == [True, True, True, False, True]
    assert truth.weight(0, points)[0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.2])
    assert truth.importance.tolist() == pytest.approx([0.3])


LAYERS, IMAGES, QUERIES, CLASSES = 3, 2, 7, 5
# transformers 5.24.0, Mask2FormerLoss on `given`, seed 7; then the first with CLASS_WEIGHT
LOSSES = {"class": 7.633286, "mask": 11.729694, "dice": 10.478129}
CLASS_WEIGHT, WEIGHTED = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]), 8.178628


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, masks and a label of 16x16 pixels."""

    def values(name: str, *shape: int) -> Tensor:
        return integers.uniform(name, math.prod(shape)).float().view(shape)

    queries = 3 * values("queries", LAYERS, IMAGES, QUERIES, CLASSES + 1)
    masks = 5 * values("masks", LAYERS, IMAGES, QUERIES, 8, 8)
    label = ((values("label", IMAGES, 16, 16) + 1) * 2.5).long().clamp(0, 4).byte()
    label[1][label[1] == 2] = 0
    return queries, masks, label


def test_losses_are_transformers():
    """Its points are drawn in the same order."""
    torch.manual_seed(7)
    terms = set_loss.set_loss(*given())
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(LOSSES, rel=1e-5)
    torch.manual_seed(7)
    weighted = set_loss.set_loss(*given(), class_weight=CLASS_WEIGHT)["class"]
    assert weighted.item() == pytest.approx(WEIGHTED, rel=1e-5)


def test_what_is_said_of_ignored_pixels_changes_nothing():
    queries, masks, label = given()
    label[0, 8:], label[1, :, :4] = 255, 255
    terms = []
    for value in (-50.0, 0.0, 50.0):
        masks[:, 0, :, 4:], masks[:, 1, :, :, :2] = value, value
        masks = masks.detach().requires_grad_()
        large = torch.nn.functional.interpolate(masks.flatten(0, 1), scale_factor=2)
        torch.manual_seed(0)
        terms.append(set_loss.set_loss(queries, large.view(*masks.shape[:3], 16, 16), label))
        (terms[-1]["mask"] + terms[-1]["dice"]).backward()
        assert not masks.grad[:, 0, :, 4:].any()
        masks = masks.detach()
    assert terms[0] == terms[1] == terms[2]


def test_the_class_term_by_hand():
    """Two queries, one paired: weights 1 and 0.1 of the classes."""
    logits = torch.log(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]))  # class 0, no object
    truth = set_loss.Label(label_of([[0, 0], [255, 0]]))
    pairs = [(torch.tensor([0]), torch.tensor([0]))]
    loss = set_loss.class_loss(logits, pairs, truth, torch.tensor([1.0, 0.1]))
    expected = (1 * math.log(4 / 3) + 0.1 * math.log(2)) / 1.1
    assert loss.item() == pytest.approx(expected)


def test_weights_of_pixels_scale_every_term():
    torch.manual_seed(0)
    queries, masks = torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 8, 8)
    label = torch.randint(0, 3, (1, 16, 16)).byte()
    label[0, :3] = 255
    terms = []
    for weight in (1.0, 0.25):
        torch.manual_seed(1)
        how = torch.full((1, 16, 16), weight)
        terms.append(set_loss.set_loss(queries, masks, label, pixel_weight=how))
    for name, term in terms[0].items():
        assert terms[1][name].item() == pytest.approx(0.25 * term.item(), rel=1e-5), name


@pytest.mark.parametrize("words", [[], [(1.0, "ce", {})]])
def test_a_crop_without_labels_teaches_nothing(words: list):
    torch.manual_seed(0)
    network = build_model("mask2former", 3, **SMALL)
    outputs = network.train()(torch.randn(2, 3, 33, 47))
    label = torch.full((2, 33, 47), 255, dtype=torch.uint8)
    terms = network.loss(outputs, label, PixelLoss(words))
    assert {name: term.item() for name, term in terms.items()} == {"out": 0, "mask": 0, "dice": 0}
    sum(terms.values()).backward()
    assert not any(p.grad.any() for p in network.parameters() if p.grad is not None)


def test_more_classes_than_queries_and_one_image_without_labels():
    torch.manual_seed(0)
    network = build_model("mask2former", 19, **SMALL | {"queries": 4})
    label = torch.randint(0, 19, (2, 64, 64)).byte()
    label[1] = 255
    terms = network.loss(network(torch.randn(2, 3, 64, 64)), label, PixelLoss([]))
    assert all(term.isfinite() and term > 0 for term in terms.values())


# ------------------------------------------------------------------ options and files


def test_masks_are_resized_before_they_are_added_up_in_evaluation():
    torch.manual_seed(0)
    network = build_model("mask2former", 3, **SMALL)
    images = torch.randn(1, 3, 33, 47)
    assert network.train()(images)["out"].shape == (1, 3, 9, 12)
    with torch.no_grad():
        outputs = network.eval()(images)
    masks = torch.nn.functional.interpolate(outputs["masks"][-1], (33, 47), mode="bilinear")
    probs = outputs["queries"][-1].softmax(2)[..., :3]
    scores = torch.einsum("nqc,nqhw->nchw", probs, masks.sigmoid())
    torch.testing.assert_close(outputs["out"].exp(), scores)


def test_words_of_loss_add_what_they_say_of_the_map():
    torch.manual_seed(0)
    network = build_model("mask2former", 3, **SMALL)
    outputs = network(torch.randn(1, 3, 64, 64))
    label = torch.randint(0, 3, (1, 64, 64)).byte()
    words, terms = PixelLoss([(2.0, "ce", {})]), []
    for pixel_loss in (PixelLoss([]), words):
        torch.manual_seed(1)
        terms.append(network.loss(outputs, label, pixel_loss)["out"].item())
    assert terms[1] - terms[0] == pytest.approx(words(outputs["out"], label).item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"width": 48}, {"queries": 0}, {"layers": 0}])
def test_wrong_options(options: dict):
    with pytest.raises(UserError, match=r"must be"):
        build_model("mask2former", 3, **options)


def test_rows_of_classes_go_by_name_and_no_object_stays_the_last():
    network, other = (build_model("mask2former", 2, **SMALL) for _ in range(2))
    content = {"model": other.state_dict(), "classes": ["sky", "road"]}
    load_state(network, content, "a.pth", classes=["road", "sky"])
    ours, theirs = network.class_predictor.weight, other.class_predictor.weight
    assert torch.equal(ours, theirs[[1, 0, 2]])
