"""Weights are found in files of others: in any entry, under any wrappers, and chosen by name."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from models import MODELS, build_model, load_weights
from models.discriminator import FCDiscriminator
from models.entries import INNER


def net(seed: int = 0, classes: int = 3, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("compact", classes, width=8, **options)


STATE, OTHER = net(1).state_dict(), net(2).state_dict()


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(state: dict, part: str) -> dict:
    """Put a wrapper into the middle of names, as a wrapped part of a network has it."""
    return {".".join([n.split(".")[0], part, *n.split(".")[1:]]): t for n, t in state.items()}


def nested(value: object, depth: int) -> object:
    for _ in range(depth):
        value = {"state": value}
    return value


ITSELF: dict = {"epoch": 3}
ITSELF |= {"self": ITSELF, "parts": [ITSELF, {"model": STATE, "up": ITSELF}]}

WRAPPED = {
    **{
        prefix: prefixed(STATE, prefix)
        for prefix in (
            *("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "backbone."),
            *(
                "module._orig_mod.",
                "_orig_mod.module.",
                "model.module.",
                "student._orig_mod.module.",
            ),
            *("segmentor.", "module.my_net.", "a.b.c.", "ema.", "teacher.module."),
        )
    },
    "compiled parts": inside(STATE, "_orig_mod"),
    "parallel parts": prefixed(inside(STATE, "module"), "model."),
    "recomputed parts": inside(STATE, "_checkpoint_wrapped_module"),
    "averaged": {"n_averaged": torch.tensor(5), **prefixed(STATE, "module.")},
    **{
        key: {key: STATE, "epoch": 3, "lr": 0.1}
        for key in (
            *(
                "model",
                "state_dict",
                "model_state_dict",
                "ema",
                "state_dict_ema",
                "net",
                "params_ema",
            ),
            *("model_ema", "weights", "teacher", "my_best_network"),
        )
    },
    "step beside": {"model_state": STATE, "step": torch.tensor(3), "rng_state": torch.zeros(9)},
    "nested": {"checkpoint": {"trainer": {"state_dict": prefixed(STATE, "model.")}}},
    "in a list": {"models": [prefixed(STATE, "module.")], "args": ["--lr", 1]},
    "optimizer beside": {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
        "net": OrderedDict(STATE),
    },
    "discriminators beside": {
        "d1": FCDiscriminator(3, 8).state_dict(),
        "model_d2": FCDiscriminator(3, 8).state_dict(),
        "generator": STATE,
    },
    "eight deep": nested(STATE, 8),
    "itself": ITSELF,
    "half": {name: tensor.half() for name, tensor in STATE.items()},
    "double": {"model": {name: tensor.double() for name, tensor in STATE.items()}},
    "parameters": {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("strict", [False, True])
def test_the_weights_are_found(kind: str, strict: bool, tmp_path: Path):
    path, model = tmp_path / "w.pth", net()
    torch.save(WRAPPED[kind], path)
    report = load_weights(model, path, strict)
    assert report.missing == []
    assert not report.notes
    rounding = 1e-3 if kind == "half" else 0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, STATE[name], atol=rounding, rtol=rounding)


SEVERAL = [
    ({"model": STATE, "ema": OTHER}, "model", "ema"),
    ({"ema": OTHER, "model": STATE}, "model", "ema"),
    ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict", "state_dict_ema"),
    ({"teacher": prefixed(OTHER, "module."), "student": STATE}, "student", "teacher"),
    ({"a": {"model": STATE, "ema_model": OTHER}}, "a.model", "a.ema_model"),
    (prefixed(STATE, "model.") | prefixed(OTHER, "ema."), "model", "ema"),
    (prefixed(STATE, "student.") | prefixed(OTHER, "teacher.module."), "student", "teacher"),
    (
        {"state_dict": prefixed(STATE, "model.") | prefixed(OTHER, "ema.")},
        "state_dict.model",
        "ema",
    ),
    ({**STATE, "ema": OTHER}, "the names themselves", "ema"),
]


def test_no_network_of_ours_has_what_is_taken_out_of_the_middle_of_names():
    for name in MODELS:
        with torch.device("meta"):
            names = build_model(name, 3).state_dict()
        assert not INNER & {part for one in names for part in one.split(".")}


@pytest.mark.parametrize(("value", "taken", "other"), SEVERAL)
def test_of_several_one_is_taken_and_the_others_are_named_and_can_be_chosen(
    value: dict, taken: str, other: str, tmp_path: Path
):
    path, model = tmp_path / "w.pth", net()
    torch.save(value, path)
    report = load_weights(model, path)
    assert f"taken: {taken}; also there: {other} (--weights-entry NAME takes it)" in str(report)
    assert torch.equal(model.classifier.weight, STATE["classifier.weight"])
    for name in {other, other.rpartition(".")[2]}:
        report = load_weights(model, path, strict=True, entry=name)
        assert torch.equal(model.classifier.weight, OTHER["classifier.weight"])
        assert report.missing == []
    with pytest.raises(UserError, match=rf"w\.pth: no --weights-entry swa; there are: .*{other}"):
        load_weights(model, path, entry="swa")


def test_where_nothing_fits_names_of_both_are_shown(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"decode_head.a.weight": torch.zeros(2), "neck.b": torch.zeros(3)}, path)
    with pytest.raises(
        UserError, match=r"w\.pth fits nothing in compact: stem2\.0\.weight \(8, "
    ) as e:
        load_weights(net(), path)
    assert "decode_head.a.weight (2,), neck.b (3,) in the file, not in this network" in str(e.value)
    assert "\n" not in str(e.value)


def test_of_another_width_the_shapes_are_shown_whatever_the_wrapper(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save(prefixed(build_model("compact", 3, width=16).state_dict(), "module.net."), path)
    with pytest.raises(UserError, match=r"stem2\.0\.weight \(16, 3, 3, 3\) in the file, \(8, 3, 3"):
        load_weights(net(), path, strict=True)


def test_a_part_of_the_names_does_not_hide_the_rest(tmp_path: Path):
    """An encoder's file for the network that has it, and COCO's classes under `Scale.`."""
    torch.manual_seed(0)
    source = build_model("deeplabv3plus", 3, encoder="resnet18")
    path = tmp_path / "w.pth"
    torch.save(prefixed(source.encoder.state_dict(), "module.encoder."), path)
    model = build_model("deeplabv3plus", 3, encoder="resnet18")
    report = load_weights(model, path)
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight)
    assert all(name.startswith("head.") for name in report.missing)


CANNOT = {
    "integers": (lambda t: (9 * t).to(torch.int8), r"int8 in the file, float32 here"),
    "complex": (lambda t: t.to(torch.complex64), r"complex64 in the file, float32 here"),
    "sparse": (lambda t: t.to_sparse(), "no plain tensor"),
    "expanded": (lambda t: t[:1, :1].clone().expand(t.shape), "larger than what the file holds"),
    "meta": (lambda t: t.to("meta"), "no plain tensor"),
    "quantised": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "no plain tensor",
    ),
}


@pytest.mark.parametrize("kind", CANNOT)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(kind: str, tmp_path: Path):
    change, reason = CANNOT[kind]
    path, model = tmp_path / "w.pth", net()
    torch.save({**STATE, "classifier.weight": change(STATE["classifier.weight"])}, path)
    report = load_weights(model, path)
    assert reason in report.skipped["classifier.weight"]
    with pytest.raises(UserError, match=f"classifier.weight .*{reason}"):
        load_weights(model, path, strict=True)


INFINITE = {
    "nan": ("context.bias", lambda t: t.fill_(float("nan"))),
    "inf": ("context.bias", lambda t: t.fill_(float("inf"))),
    "by the cast to float32": ("context.bias", lambda t: t.double() + 1e300),
    "by the cast to bfloat16": ("context.bias", lambda t: t.fill_(3.4e38)),
    "variance": ("stem2.1.running_var", lambda t: t - 5),
    "mean": ("stem2.1.running_mean", lambda t: t.double() + 1e39),
    "float16": ("context.bias", lambda t: (t + 1e5).half()),
}


@pytest.mark.parametrize("kind", INFINITE)
def test_values_that_nothing_can_be_predicted_with(kind: str, tmp_path: Path):
    name, change = INFINITE[kind]
    state = net(3, norm="batch").state_dict()
    model = net(norm="batch")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save({**state, name: change(state[name])}, path)
    with pytest.raises(UserError, match=rf"w\.pth: {name} holds (infinite|a variance below zero)"):
        load_weights(model, path)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
