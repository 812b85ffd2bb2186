"""Optimisers, rates and averages: each beside numbers worked by hand, and through the script."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fakedata
import train_seg
from engine.errors import UserError
from engine.values import Training
from models import build_model
from training.adamp import AdamP
from training.average import WeightAverage
from training.schedule import make_optimizer, parameter_groups, parse_schedule, rate_at
from training.student import Student

CPU = torch.device("cpu")
ENCODED = {"name": "deeplabv3plus", "encoder": "resnet50"}


def stepped(name: str, weight: torch.Tensor, gradients: list, **how) -> torch.Tensor:
    """Return a weight after a step by each gradient, at a rate of 0.1."""
    parameter = nn.Parameter(weight.clone())
    how = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0, **how}
    optimizer = make_optimizer(name, [{"params": [parameter], "lr": 0.1}], **how)
    for gradient in gradients:
        parameter.grad = torch.as_tensor(gradient).view_as(weight)
        optimizer.step()
    return parameter.detach()


# ------------------------------------------------------------------ optimisers


def test_nesterov_by_hand():
    """Gradient 3 and decay 0.01 of 2: 3.02, of which 1 + 0.9 times at the first step."""
    once = stepped("sgd", torch.tensor([2.0]), [3.0], nesterov=True, weight_decay=0.01)
    assert once.item() == pytest.approx(2 - 0.1 * 1.9 * 3.02)
    for name, momentum in (("adamw", 0.9), ("sgd", 0.0)):
        with pytest.raises(UserError, match="--nesterov goes with --optimizer sgd"):
            stepped(name, torch.tensor([2.0]), [], nesterov=True, momentum=momentum)


def test_adam_by_hand():
    """The first step is the rate, whatever the gradient. Adam's decay is a part of the gradient."""
    assert stepped("adam", torch.tensor([2.0]), [3.0]).item() == pytest.approx(1.9)
    # decay of 1.5 * 2 cancels a gradient of -3: no step; decoupled, it shrinks the weight
    assert stepped("adam", torch.tensor([2.0]), [-3.0], weight_decay=1.5).item() == 2
    adamw = stepped("adamw", torch.tensor([2.0]), [-3.0], weight_decay=1.5)
    assert adamw.item() == pytest.approx(2 * (1 - 0.15) + 0.1)
    # then gradient 1: means 0.9 * 0.3 + 0.1 and 0.999 * 0.009 + 0.001, over 0.19 and 0.001999
    second = 0.37 / 0.19 / math.sqrt(0.009991 / 0.001999)
    twice = stepped("adam", torch.tensor([2.0]), [3.0, 1.0])
    assert twice.item() == pytest.approx(1.9 - 0.1 * second)


def test_adamp_of_a_vector_is_adamw():
    """Norms and biases are not projected."""
    gradients = [[1.0, -2.0], [0.5, 3.0], [-1.0, 0.1]]
    ours, theirs = (
        stepped(name, torch.tensor([2.0, -1.0]), gradients, weight_decay=0.3)
        for name in ("adamp", "adamw")
    )
    torch.testing.assert_close(ours, theirs)


def test_adamp_by_hand():
    """Filters (3, 4) and gradients at a right angle: Adam's step (1, -1) loses what is along."""
    weight = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    gradient = torch.tensor([[4.0, -3.0], [-3.0, 4.0]])
    # the step (1, -1) of the first filter: along (0.6, 0.8) it is -0.2; across, (1.12, -0.84)
    across = torch.tensor([[1.12, -0.84], [-0.84, 1.12]])
    ours = stepped("adamp", weight, [gradient], weight_decay=0.5)
    torch.testing.assert_close(ours, weight * (1 - 0.1 * 0.5 * 0.1) - 0.1 * across)
    # a gradient along the weights: plain AdamW
    along = stepped("adamp", weight, [weight], weight_decay=0.5)
    torch.testing.assert_close(along, weight * (1 - 0.1 * 0.5) - 0.1)


def test_adamp_looks_at_the_whole_where_its_filters_are_not_scale_free():
    """Gradients along the filters, of opposite signs: each is at 0 degrees, together at 90."""
    weight = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    gradient = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    ours = stepped("adamp", weight, [gradient], weight_decay=0.5)
    step = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # at a right angle to the weights already
    torch.testing.assert_close(ours, weight * (1 - 0.1 * 0.5 * 0.1) - 0.1 * step)


def test_adamp_goes_on_from_its_state():
    torch.manual_seed(0)
    gradients = torch.randn(4, 3, 2, 2)
    whole, parts = (nn.Parameter(torch.ones(3, 2, 2)) for _ in range(2))
    optimizer = AdamP([whole], weight_decay=0.1)
    for step, gradient in enumerate(gradients):
        if step == 2:
            parts.data.copy_(whole.data)
            other = AdamP([parts], weight_decay=0.1)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        whole.grad = gradient
        optimizer.step()
        if step >= 2:
            parts.grad = gradient
            other.step()
    assert torch.equal(whole, parts)


# ------------------------------------------------------------------ rates


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ("poly", {0: 1.0, 50: 0.5**0.9, 100: 0.0, 200: 0.0}),
        ("poly power=2", {50: 0.25}),
        ("linear", {0: 1.0, 25: 0.75, 100: 0.0}),
        ("linear floor=0.2", {50: 0.6, 100: 0.2, 200: 0.2}),
        ("cosine", {0: 1.0, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0.0}),
        ("cosine floor=0.1", {50: 0.55, 100: 0.1}),
        ("step", {49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 100: 0.01}),
        ("step at=0.2 factor=0.5", {19: 1.0, 20: 0.5, 100: 0.5}),
        ("constant", {0: 1.0, 99: 1.0, 100: 1.0}),
    ],
)
def test_schedules_by_hand(words: str, rates: dict[int, float]):
    schedule = parse_schedule(words.split())
    for step, rate in rates.items():
        assert rate_at(step, 100, schedule) == pytest.approx(rate), step
    assert rate_at(1, 100, schedule, warmup_steps=3) == rate_at(1, 100, schedule) / 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("exponential", "--schedule exponential: there are: poly, linear, cosine, step, constant"),
        ("cosine power=2", "schedule cosine has no option 'power'; it has: floor"),
        ("step at=2", "schedule step: at=2: expected 0 to 1"),
        ("poly power", "schedule poly: power=: expected float >= 0"),
    ],
)
def test_schedules_that_do_not_exist(words: str, message: str):
    with pytest.raises(UserError) as error:
        parse_schedule(words.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_default_groups_are_the_networks_own():
    network = build_model(num_classes=3, **ENCODED)
    ours = parameter_groups(network, Training({}, learning_rate=0.1))
    for one, other in zip(ours, network.param_groups(0.1), strict=True):
        assert one.keys() == other.keys()
        assert list(map(id, one["params"])) == list(map(id, other["params"]))


def test_rates_and_decay_of_a_resnet_by_hand():
    """A stem and 3 + 4 + 6 + 3 blocks: the last block is one before the head, the stem 17."""
    network = build_model(num_classes=3, **ENCODED)
    training = Training({}, learning_rate=0.1, backbone_rate=0.5, layer_decay=0.9, norm_decay=False)
    groups = parameter_groups(network, training)
    found = {id(p): group for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    assert found.keys() == {id(p) for p in network.parameters() if p.requires_grad}
    plain = {id(p): g["lr"] for g in network.param_groups(0.1) for p in g["params"]}
    seen = set()
    for name, parameter in network.named_parameters():
        group, rate = found[id(parameter)], plain[id(parameter)]
        before = {"layer4.2": 1, "layer4.0": 3, "layer1.0": 16, "conv1": 17, "bn1": 17}
        place = next((n for key, n in before.items() if f"encoder.{key}." in name), None)
        if place is not None:
            assert group["lr"] == pytest.approx(0.1 * 0.5 * 0.9**place), name
            seen.add(place)
        elif not name.startswith("encoder."):
            assert group["lr"] == rate
        assert group.get("weight_decay", "own") == ("own" if parameter.ndim > 1 else 0), name
    assert seen == {1, 3, 16, 17}


def test_a_network_without_a_backbone_has_no_rate_for_it():
    network = build_model("compact", 3, width=8)
    for how in ({"backbone_rate": 0.1}, {"layer_decay": 0.9}):
        with pytest.raises(UserError, match="this network has no backbone"):
            parameter_groups(network, Training({}, **how))
    (decayed, not_decayed) = parameter_groups(network, Training({}, norm_decay=False))
    assert all(p.ndim > 1 for p in decayed["params"])
    assert not_decayed["weight_decay"] == 0


def test_gradients_are_scaled_down_to_a_norm():
    """Gradients of norm 5 in two tensors: 3 and 4 become 0.6 and 0.8; those within stay."""
    for given, expected in ((1.0, 0.2), (10.0, 1.0)):
        training = Training({"name": "compact", "width": 8}, clip_norm=given)
        student = Student(training, 2, CPU)
        first, *others = student.network.parameters()
        before = first.detach().clone()
        student.begin(1.0)
        for parameter in (first, *others):
            parameter.grad = torch.zeros_like(parameter)
        first.grad[0, 0, 0, 0] = 3.0
        others[0].grad[0] = 4.0
        student.end()
        assert first.grad[0, 0, 0, 0].item() == pytest.approx(3 * expected, rel=1e-5)
        assert not torch.equal(first.detach(), before)


# ------------------------------------------------------------------ averages


def test_the_average_of_weights_by_hand():
    """At the first update a copy; then 1/2 of what was stays, then 0.6, as 2/3 would be more."""
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, 0.6)
    for value, expected in ((1.0, 1.0), (3.0, 2.0), (7.0, 0.6 * 2 + 0.4 * 7)):
        with torch.no_grad():
            network.weight.fill_(value)
        network.running_mean.fill_(value)
        network.num_batches_tracked.fill_(int(value))
        average.follow(network)
        assert average.network.weight.item() == pytest.approx(expected)
        assert average.network.running_mean.item() == pytest.approx(expected)
        assert average.network.num_batches_tracked.item() == value
    other = WeightAverage(nn.BatchNorm1d(1), 0.6)
    other.load_state_dict(average.state_dict())
    assert other.updates == 3
    assert other.network.weight.item() == average.network.weight.item()


OPTIONS = {
    "sgd": "--optimizer sgd --nesterov --schedule step at=0.5 --clip-norm 0.5",
    "adamp": "--optimizer adamp --no-norm-decay --schedule cosine --average-weights 0.5",
    "adam": "--optimizer adam --weight-decay 1e-4 --average-weights",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_four_steps_are_two_and_two_more(tmp_path: Path, name: str):
    data = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    words = f"""--recipe streets --dataset camvid --set day_train --val-set day_val --num-steps 4
        --print-every 1 --save-pred-every 2 --input-size 64,48 --data-dir {data} --num-workers 0
        {OPTIONS[name]}""".split()

    def train(folder: str, *flags: str) -> tuple[dict, dict]:
        train_seg.main(
            train_seg.parse_args([*words, *flags, "--snapshot-dir", str(tmp_path / folder)])
        )
        files = [tmp_path / folder / file for file in ("last.pth", "camvid_4.pth")]
        return tuple(torch.load(f, weights_only=True) if f.exists() else {} for f in files)

    (last, published), _ = train("whole"), train("parts", "--num-steps-stop", "2")
    again, parts = train("parts")
    for key, value in published["model"].items():
        assert torch.equal(parts["model"][key], value), key
        averaged = "--average-weights" in words
        if averaged:
            assert torch.equal(last["state"]["average"]["network"][key], value)
            assert torch.equal(again["state"]["average"]["network"][key], value)
    own = last["state"]["model"]
    same = all(torch.equal(own[key], value) for key, value in published["model"].items())
    assert same != averaged
    momentum = {"adamp": 0.5, "adam": 0.999}.get(name)
    assert published.get("weight_average") == momentum


def test_a_power_of_another_schedule_is_refused(tmp_path: Path):
    words = ["--snapshot-dir", str(tmp_path), "--power", "2"]
    for schedule in (["cosine"], ["poly", "power=3"]):
        args = train_seg.parse_args([*words, "--schedule", *schedule])
        with pytest.raises(UserError, match="--power goes with --schedule poly"):
            train_seg.training_options.training(args, "fp32")
    args = train_seg.parse_args([*words, "--schedule", "poly"])
    assert train_seg.training_options.training(args, "fp32").schedule == ("poly", "power=2.0")
