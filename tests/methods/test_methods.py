"""Methods: a number worked by hand each, and gradients that reach the student only."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import methods
from engine.errors import UserError
from methods import Adapting
from methods.adabn import AdaBN
from training import losses
from training.augment import pasting
from worlds import SETTING, VALUES, OnTheSpot, build_method, halved, make_seen, seen_of

TWO_HEADS = ("memory", "rectify")  # what compares two heads


@pytest.mark.parametrize(
    ("name", "multi_level"),
    [
        (name, multi_level)
        for name in methods.METHODS
        for multi_level in (False, True)
        if name != "adabn" and (multi_level or name not in TWO_HEADS)
    ],
)
def test_gradients_reach_the_student_and_nothing_else(name: str, multi_level: bool):
    torch.manual_seed(0)
    heads = ("out", "aux") if multi_level else ("out",)
    student, teacher = halved(heads), halved(heads)
    sure = {"fixmatch_threshold": 0.0, "masked_threshold": 0.0}
    built = build_method(name, replace(SETTING, heads=heads), **sure)
    terms = built(make_seen(student, teacher), student)
    assert len(terms) == len(heads)
    assert all(torch.isfinite(term) for term in terms.values())
    own = {p: copy.deepcopy(p.grad) for p in built.parameters()}  # the discriminators' own losses
    sum(terms.values()).backward()
    for head in student.network.convs.values():
        assert head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.network.parameters())
    for parameter, grad in own.items():
        assert torch.equal(parameter.grad, grad)


def test_adversarial_term_by_hand():
    built = build_method("adversarial")
    for parameter in built.parameters():
        nn.init.zeros_(parameter)
    judge = built.discriminators["out"]
    last = [m for m in judge.modules() if isinstance(m, nn.Conv2d)][-1]
    nn.init.constant_(last.bias, math.log(3))  # says "target with probability 3/4" everywhere
    student = halved()
    terms = built(make_seen(student, student), student)
    assert terms["adv_out"].item() == pytest.approx(0.5 * math.log(4), rel=1e-5)
    logged = built.after_step(rate=1.0)
    expected = (math.log(4) + math.log(4 / 3)) / 2  # source wants 0, target wants 1, half each
    assert logged["D_adv_out"].item() == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_learns_to_tell_the_domains_apart():
    torch.manual_seed(0)
    built = build_method("adversarial")
    student = halved()
    losses_seen = []
    for _ in range(60):
        seen = make_seen(student, student)
        seen.source.outputs = {"out": torch.zeros(2, 3, 16, 24)}  # unlike any target output
        built(seen, student)
        losses_seen.append(built.after_step(rate=1.0)["D_adv_out"].item())
    assert losses_seen[-1] < 0.7 * losses_seen[0]


def test_advent_shows_the_discriminator_weighted_information():
    logits = torch.randn(1, 3, 4, 4)
    probs = build_method("adversarial")._maps(logits, (32, 32))
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 32, 32))
    expected = losses.weighted_information(probs)
    torch.testing.assert_close(build_method("advent")._maps(logits, (32, 32)), expected)


def test_entropy_term_by_hand():
    seen = seen_of(
        target_image=torch.zeros(1, 3, 4, 4), target_out={"out": torch.zeros(1, 3, 2, 2)}
    )
    assert build_method("entropy")(seen, None)["entropy_out"].item() == pytest.approx(0.3 * 1.0)


def test_maximum_squares_by_hand():
    """Two of 16 cells are sure, the others 1/3 each: -(2 + 14 / 3) / 16 / 2, times the weight."""
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 0, :2] = 200.0
    seen = seen_of(target_image=torch.zeros(1, 3, 4, 4), target_out={"out": logits})
    term = build_method("maxsquare", lambda_maxsquare=2.0)(seen, None)["maxsquare_out"]
    assert term.item() == pytest.approx(-(2 + 14 / 3) / 16, rel=1e-5)
    assert build_method("maxsquare").weight == 0.1


@pytest.mark.parametrize("kind", ["class", "box"])
def test_mix_pastes_half_and_weighs_by_the_sure_share(kind: str):
    """Target pseudo label 2 everywhere, sure on the left half; source label 0 and 1 in stripes."""
    built = build_method("mix", mix=kind)
    teacher_out = torch.zeros(1, 3, 8, 8)
    teacher_out[:, 2] = 0.1
    teacher_out[:, 2, :, :4] = 50.0
    label = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label[:, ::2] = 1
    batch = {
        "source_image": torch.full((1, 3, 8, 8), 200.0),
        "source_label": label,
        "target_image": torch.full((1, 3, 8, 8), 10.0),
        "teacher_out": {"out": teacher_out},
    }
    seen = {}

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen["pasted"] = images[:, 0] == 200.0
        return {"out": torch.zeros(1, 3, 8, 8)}

    torch.manual_seed(0)
    term = built(seen_of(**batch), OnTheSpot(student))["mix"].item()
    pasted = seen["pasted"]
    assert pasted.float().mean().item() == pytest.approx(0.5, abs=0.07)
    if kind == "class":  # one of the two classes, whole
        assert torch.equal(pasted, label == 1) or torch.equal(pasted, label == 0)
    share = pasted.float().mean().item()
    # every pixel costs log 3; pasted ones weigh 1, the others the sure share 1/2; lambda is 2
    assert term == pytest.approx(2 * math.log(3) * (share + 0.5 * (1 - share)), rel=1e-5)


def test_masked_hides_blocks_and_predicts_what_the_teacher_sees():
    """A teacher that is sure of class 2 on the left half; blocks of 4 of an 8x80 image."""
    built = build_method("masked", replace(SETTING, mean=(10.0, 20.0, 30.0)), masked_ratio=0.7)
    teacher_out = torch.zeros(1, 3, 8, 80)
    teacher_out[:, 2] = 0.1
    teacher_out[:, 2, :, :40] = 50.0
    batch = {
        "source_image": torch.zeros(1, 3, 8, 80),
        "source_label": torch.zeros(1, 8, 80, dtype=torch.uint8),
        "target_image": torch.full((1, 3, 8, 80), 200.0),
        "teacher_out": {"out": teacher_out},
    }
    seen = []

    def student(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(images)
        return {"out": torch.zeros(1, 3, 8, 80)}

    torch.manual_seed(0)
    terms = [built(seen_of(**batch), OnTheSpot(student))["masked"].item() for _ in range(20)]
    # every pixel costs log 3 and weighs the sure share, a half; lambda is 0.4
    assert terms == pytest.approx([0.4 * 0.5 * math.log(3)] * 20, rel=1e-5)
    images = torch.cat(seen)
    hidden = images[:, 0] == 10.0
    colours = torch.tensor([10.0, 20.0, 30.0])
    assert torch.equal(images.movedim(1, 3)[hidden].unique(dim=0), colours[None])
    assert (images.movedim(1, 3)[~hidden] == 200.0).all()
    blocks = hidden.view(20, 2, 4, 20, 4)
    assert torch.equal(blocks.all(4).all(2), blocks.any(4).any(2))  # whole ones
    assert hidden.float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_half_of_the_classes_present_rounded_up_never_the_ignored():
    label = torch.tensor([[[0, 3, 7, 255]], [[5, 5, 5, 255]]], dtype=torch.uint8)
    drawn = set()
    for seed in range(40):
        torch.manual_seed(seed)
        chosen = pasting.half_of_classes(label)
        assert chosen.shape == (2, 256)
        first = tuple(chosen[0].nonzero().flatten().tolist())
        assert len(first) == 2
        assert chosen[1].nonzero().flatten().tolist() == [5]
        drawn.add(first)
    assert drawn == {(0, 3), (0, 7), (3, 7)}


def test_half_area_boxes_lie_inside_and_cover_half():
    torch.manual_seed(0)
    boxes = pasting.half_area_boxes(500, 60, 80)[:, 0]
    x0, y0, x1, y1 = boxes.unbind(1)
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= 80).all()
    assert (y1 <= 60).all()
    area = ((x1 - x0) * (y1 - y0)).float() / (60 * 80)
    assert area.min() > 0.48
    assert area.max() < 0.52
    assert (y1 - y0).unique().numel() > 10


def test_adabn_sets_the_statistics_of_the_target():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.9))
    torch.manual_seed(0)
    batches = [torch.randn(4, 2, 8, 8) * 3 + 5 for _ in range(3)]
    assert AdaBN(SETTING).finish(model, lambda: batches)
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.1
    assert not model.training
    with pytest.raises(UserError, match="no batch normalisation"):
        AdaBN(SETTING).check(nn.Sequential(nn.GroupNorm(1, 2)))
    AdaBN(SETTING).check(model)


def test_optimiser_state_travels_with_the_method():
    first, second = (Adapting(["adversarial"], SETTING, VALUES) for _ in range(2))
    student = halved()
    for _ in range(2):
        first(make_seen(student, student), student)
        first.after_step(rate=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for built in (first, second):
        built(make_seen(student, student), student)
        built.after_step(rate=0.25)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("names", [["mix", "mix"], ["none", "mix"]])
def test_combinations_that_make_no_sense_are_errors(names: list[str]):
    with pytest.raises(UserError, match="each name once, none alone"):
        Adapting(names, SETTING, VALUES)


def test_none_builds_nothing():
    assert len(Adapting(["none"], SETTING, VALUES)) == 0
