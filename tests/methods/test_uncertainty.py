"""Memory regularisation, rectified pseudo labels, and the second head that both need."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from engine.errors import UserError
from methods import Seen, Setting
from methods.uncertainty import Memory, Rectify
from models import build_model
from models.outputs import divergence
from worlds import OnTheSpot, seen_of

LN2, LN3 = math.log(2), math.log(3)


def logits(first: float, second: float) -> torch.Tensor:
    """Return two classes' logits, the same at every pixel, half the images' size."""
    pixel = torch.tensor([first, second], dtype=torch.float32).view(1, 2, 1, 1)
    return pixel.repeat(2, 1, 2, 3).requires_grad_()


def target_seen(main: torch.Tensor, aux: torch.Tensor, step: int = 0) -> Seen:
    out = {"out": main, "aux": aux}
    return seen_of(step=step, target_image=torch.zeros(2, 3, 4, 6), target_out=out)


def student(aux_weight: float = 0.5) -> OnTheSpot:
    one = OnTheSpot(None)
    one.network.aux_weight = aux_weight
    return one


def memory(**values) -> Memory:
    return Memory(Setting(2, ("out", "aux")), **values)


def rectify(class_weight: torch.Tensor | None = None, **values) -> Rectify:
    setting = Setting(2, ("out", "aux"), class_weight=class_weight)
    return Rectify(setting, **{"lambda_rectify": 2.0, **values})


def test_divergence_by_hand():
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    half, quarter = half.view(1, 2, 1, 1), quarter.view(1, 2, 1, 1)
    assert divergence(half, quarter).item() == pytest.approx(0.5 * math.log(4 / 3))
    expected = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    assert divergence(quarter, half).item() == pytest.approx(expected)


def test_memory_by_hand():
    """Heads (3/4, 1/4) and (1/10, 9/10); together 0.5 (0, 2 ln 3) + (ln 3, 0): (1/2, 1/2)."""
    terms = memory()(target_seen(logits(LN3, 0), logits(0, 2 * LN3)), None)
    main = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    aux = 0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9)
    assert (main, aux) == pytest.approx((0.14384, 0.51083), abs=1e-5)
    assert terms["memory"].item() == pytest.approx(0.1 * main, rel=1e-5)
    assert terms["memory_aux"].item() == pytest.approx(0.1 * aux, rel=1e-5)


def test_the_memory_itself_gets_no_gradient():
    """With aux (1/2, 1/2) the common prediction is main's: only aux has something to learn."""
    main, aux = logits(LN3, 0), logits(0, 0)
    sum(memory()(target_seen(main, aux), None).values()).backward()
    assert main.grad.abs().max() < 1e-8
    # d KL(p || q) / d logit = q - p, times 0.1, over 48 pixels that 12 logits are resized to
    assert aux.grad.sum((0, 2, 3)).tolist() == pytest.approx([-0.025, 0.025], rel=1e-4)


def test_memory_waits_for_its_step():
    waiting = memory(memory_from=5)
    heads = logits(LN3, 0), logits(0, 0)
    assert waiting(target_seen(*heads, step=4), None)["memory_aux"].item() == 0
    assert waiting(target_seen(*heads, step=5), None)["memory_aux"].item() > 0.01


def pseudo_seen(main: torch.Tensor, aux: torch.Tensor, label: torch.Tensor) -> Seen:
    return seen_of(pseudo_out={"out": main, "aux": aux}, pseudo_label=label)


def test_rectified_loss_by_hand():
    """Heads (3/4, 1/4) and (1/2, 1/2); class 0 on the upper half, no label on the lower."""
    label = torch.zeros(2, 4, 6, dtype=torch.uint8)
    label[:, 2:] = 255
    terms = rectify()(pseudo_seen(logits(LN3, 0), logits(0, 0), label), student())
    variance = 0.5 * math.log(4 / 3)  # KL(aux || main) = 0.14384; exp(-v) = sqrt(3/4)
    main = 0.5 * math.log(4 / 3) * math.sqrt(3 / 4) + variance
    assert main == pytest.approx(0.26841, abs=1e-5)
    assert terms["rectify"].item() == pytest.approx(2 * main, rel=1e-5)
    variance = 0.75 * math.log(3 / 2) - 0.25 * LN2  # KL(main || aux) = 0.13081
    aux = 0.5 * LN2 * math.exp(-variance) + variance
    assert aux == pytest.approx(0.43489, abs=1e-5)
    assert terms["rectify_aux"].item() == pytest.approx(2 * 0.5 * aux, rel=1e-5)


def test_rectified_loss_weighs_classes():
    label = torch.zeros(2, 4, 6, dtype=torch.uint8)
    built = rectify(lambda_rectify=1.0, class_weight=torch.tensor([3.0, 1.0]))
    term = built(pseudo_seen(logits(0, 0), logits(0, 0), label), student())["rectify"]
    assert term.item() == pytest.approx(3 * LN2, rel=1e-5)
    assert not built.state_dict()  # the weights are data's, not the method's


def test_rectified_loss_takes_the_labels_confidence():
    """A quarter of the pixels has confidence 1/2, the others 0."""
    seen = pseudo_seen(logits(0, 0), logits(0, 0), torch.zeros(2, 4, 6, dtype=torch.uint8))
    seen.pseudo.weight = torch.zeros(2, 4, 6)
    seen.pseudo.weight[:, 0] = 0.5
    term = rectify(lambda_rectify=1.0)(seen, student())["rectify"]
    assert term.item() == pytest.approx(LN2 / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["rectify", "rectify_aux"])
def test_the_variance_moves_both_heads(name: str):
    """Nothing is labelled, so the variance is all there is; either term alone moves both."""
    main, aux = logits(LN3, 0), logits(0, 0)
    label = torch.full((2, 4, 6), 255, dtype=torch.uint8)
    rectify()(pseudo_seen(main, aux, label), student())[name].backward()
    assert main.grad[:, 0].sum() > 0 > aux.grad[:, 0].sum()  # towards each other


@pytest.mark.parametrize("built", [memory(), rectify()])
def test_gradients_reach_both_heads_of_a_network(built: nn.Module):
    torch.manual_seed(0)
    network = build_model("deeplabv3plus", 2, backbone="efficientnet_lite0", multi_level=True)
    images = torch.randn(2, 3, 33, 49)
    out, label = network(images), torch.zeros(2, 33, 49, dtype=torch.uint8)
    seen = seen_of(target_image=images, target_out=out, pseudo_out=out, pseudo_label=label)
    sum(built(seen, student()).values()).backward()
    for part in (network.encoder, network.head, network.aux_head):
        for parameter in part.parameters():
            assert parameter.grad.isfinite().all()
        assert any(parameter.grad.any() for parameter in part.parameters())
    assert not list(built.parameters())


def test_one_head_is_an_error():
    lite = {"backbone": "efficientnet_lite0"}
    one_head = [build_model("compact", 2), build_model("deeplabv3plus", 2, **lite)]
    two_heads = build_model("deeplabv3plus", 2, multi_level=True, **lite)
    for built in (memory(), rectify()):
        for network in one_head:
            message = f"--method {built.name} compares two heads: give --multi-level"
            with pytest.raises(UserError, match=message):
                built.check(network)
        built.check(two_heads)


# ------------------------------------------------------------------ the auxiliary head


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_auxiliary_head(backbone: str):
    torch.manual_seed(0)
    model = build_model("deeplabv3plus", 3, backbone=backbone, multi_level=True)
    images = torch.randn(2, 3, 65, 97)
    outputs = model(images)
    assert outputs["aux"].shape == outputs["out"].shape == (2, 3, 17, 25)
    assert set(model(images, aux=False)) == {"out"}
    F.cross_entropy(outputs["aux"], outputs["aux"].argmin(1)).backward()
    assert all(p.grad is None for p in model.head.parameters())
    stages = model.encoder.blocks[11:] if "lite" in backbone else [model.encoder.layer4]
    assert all(p.grad is None for stage in stages for p in stage.parameters())  # the fourth
    before = model.encoder.blocks[10] if "lite" in backbone else model.encoder.layer3
    for part in (model.aux_head, before):
        assert all(p.grad.any() for p in part.parameters())

    groups = model.param_groups(1e-3)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 3e-3, 3e-3])
    optimised = [id(p) for group in groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", ["resnet34", "efficientnet_lite4"])
def test_the_third_stage_is_that_of_stride_16(backbone: str, output_stride: int):
    options = {"backbone": backbone, "output_stride": output_stride, "multi_level": True}
    model = build_model("deeplabv3plus", 2, **options).eval()
    images = torch.zeros(1, 3, 33, 49)
    with torch.no_grad():
        assert model.encoder.features(images)[-2].shape[-2:] == (
            (5, 7) if output_stride == 8 else (3, 4)
        )
        assert model(images)["aux"].shape == (1, 2, 9, 13)


def test_the_auxiliary_head_changes_nothing_else(tmp_path):
    """Old checkpoints load, and the other weights are drawn as without it."""
    states = []
    for multi_level in (False, True):
        torch.manual_seed(3)
        model = build_model(
            "deeplabv3plus", 2, backbone="efficientnet_lite0", multi_level=multi_level
        )
        states.append(model.state_dict())
    added = states[1].keys() - states[0].keys()
    assert added
    assert all(key.startswith("aux_head.") for key in added)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    old = dict(model.arch)
    del old["multi_level"]
    assert build_model(**old).aux_head is None
    torch.save(states[0], tmp_path / "old.pth")
    report = models.load_weights(model, tmp_path / "old.pth")
    assert set(report.missing) == {key for key in added if not key.endswith("tracked")}


def test_folding_keeps_both_outputs():
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "multi_level": True, "norm": "batch", "width": 16}
    model = build_model("deeplabv3plus", 2, **options).train()
    images = torch.randn(2, 3, 64, 64)
    model(images)  # statistics that are not 0 and 1
    model.eval()
    with torch.no_grad():
        plain, folded = model(images), models.fold_batchnorm(model)(images)
    for level in ("out", "aux"):
        torch.testing.assert_close(folded[level], plain[level], rtol=1e-4, atol=1e-4)
