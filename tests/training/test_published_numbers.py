"""The numbers that make a recipe that recipe, each worked by hand or as its source states it.

A row here is what a change of one number or one line of the code would have to get past.
"""

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fakedata
import train_da
import train_seg
from engine.values import Training
from methods import METHODS, Setting
from models import build_model
from training.augment import blur, colour, geometry
from training.losses import PixelLoss
from training.schedule import make_optimizer, parse_schedule, rate_at
from training.student import Student
from worlds import OnTheSpot, build_method, halved, make_seen

CPU = torch.device("cpu")


def always(monkeypatch, *draws: float) -> None:
    """Let torch.rand return rows of these values, one a row."""

    def rand(*shape: int) -> Tensor:
        return torch.tensor(draws)[: shape[0], None].expand(shape).clone()

    monkeypatch.setattr(torch, "rand", rand)


# ------------------------------------------------------------------ recipes, as they are published

PUBLISHED = [
    # AdaptSegNet: train_gta2cityscapes_multi.py, and the paper's weights (sections 5.1, 6.1)
    ("adaptsegnet-multi", "learning_rate", 2.5e-4),
    ("adaptsegnet-multi", "learning_rate_D", 1e-4),
    ("adaptsegnet-multi", "power", 0.9),
    ("adaptsegnet-multi", "momentum", 0.9),
    ("adaptsegnet-multi", "weight_decay", 5e-4),
    ("adaptsegnet-multi", "num_steps", 250_000),
    ("adaptsegnet-multi", "num_steps_stop", 150_000),
    ("adaptsegnet-multi", "lambda_seg", 0.1),
    ("adaptsegnet-multi", "lambda_adv_target1", 0.0002),
    ("adaptsegnet-multi", "lambda_adv_target2", 0.001),
    ("adaptsegnet-multi", "gan", "Vanilla"),
    ("adaptsegnet-multi", "align_corners", True),
    ("adaptsegnet-multi", "input_size", (1280, 720)),
    ("adaptsegnet-multi", "input_size_target", (1024, 512)),
    ("adaptsegnet-lsgan", "gan", "LS"),
    ("adaptsegnet-lsgan", "lambda_adv_target2", 0.01),
    # ADVENT, its config.py
    ("advent", "num_steps_stop", 120_000),
    ("advent", "lambda_adv_target1", 0.0002),
    ("minent", "lambda_entropy", 0.001),
    ("minent", "lambda_entropy_aux", 0.0002),
    # DACS: configs/configUDA.json, trainUDA.py
    ("dacs", "teacher_momentum", 0.99),
    ("dacs", "mix_threshold", 0.968),
    ("dacs", "batch_size", 2),
    ("dacs", "mix_jitter", 0.25),
    ("dacs", "mix_hue", 0.25),
    ("dacs", "mix_blur", 0.5),
    ("dacs", "augment", ["crop=512,512"]),
    # Seg-Uncertainty: README.md, train_ms.py, train_ft.py
    ("mrnet", "learning_rate", 2e-4),
    ("mrnet", "batch_size", 2),
    ("mrnet", "lambda_memory", 0.1),
    ("mrnet", "memory_from", 15_000),
    ("mrnet", "lambda_seg", 0.5),
    ("mrnet", "warmup_steps", 5000),
    ("mrnet", "num_steps", 100_000),
    ("mrnet", "num_steps_stop", 25_000),
    ("rectified", "learning_rate", 1e-4),
    ("rectified", "batch_size", 9),
    ("rectified", "lambda_seg", 0.5),
]
DILATIONS = {"adaptsegnet-multi": (6, 12), "dacs": (6, 12), "advent": (6, 12, 18, 24)}


@pytest.mark.parametrize(("recipe", "option", "value"), PUBLISHED)
def test_recipes_state_what_is_published(recipe: str, option: str, value: object):
    args = train_da.parse_args(["--recipe", recipe, "--data-dir", "d", "--snapshot-dir", "s"])
    assert getattr(args, option) == value


@pytest.mark.parametrize(("recipe", "dilations"), DILATIONS.items())
def test_recipes_state_the_branches_that_are_used(recipe: str, dilations: tuple):
    args = train_da.parse_args(["--recipe", recipe, "--data-dir", "d", "--snapshot-dir", "s"])
    assert args.model["aspp_dilations"] == dilations
    assert args.model.get("multi_level", False) == (recipe in ("adaptsegnet-multi", "advent"))


# ------------------------------------------------------------------ optimisation


def test_the_poly_schedule_by_hand():
    """(1 - 75 000 / 250 000) ** 0.9; half of a warm-up of three steps is 2 / 4."""
    poly = parse_schedule(["poly"])
    assert rate_at(75_000, 250_000, poly) == pytest.approx(0.7254178)
    assert rate_at(1, 1000, poly, warmup_steps=3) == pytest.approx(0.5 * 0.999**0.9)
    student = Student(Training({"name": "compact", "width": 8}, num_steps=100), 2, CPU)
    assert student.rate_at(50) == pytest.approx(0.5358867)
    student.begin(student.rate_at(50))
    assert student.optimizer.param_groups[0]["lr"] == pytest.approx(0.5358867 * 2.5e-4)


def test_the_discriminators_rate_falls_with_the_networks():
    """AdaptSegNet's adjust_learning_rate_D: the same factor, of 1e-4; Adam with 0.9 and 0.99."""
    adversarial = METHODS["adversarial"](Setting(3))
    group = adversarial.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-4, (0.9, 0.99))
    student = halved()
    adversarial(make_seen(student, student), student)
    adversarial.after_step(rate=0.7254178)
    assert group["lr"] == pytest.approx(7.254178e-5)


def test_sgd_by_hand():
    """Weight 2, gradient 3, rate 0.1, momentum 0.9, decay 0.01: 2 - 0.1 (3 + 0.02), then on."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    how = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = make_optimizer("sgd", [{"params": [weight], "lr": 0.1}], **how)
    weight.grad = torch.tensor([3.0])
    optimizer.step()
    assert weight.item() == pytest.approx(1.698)
    optimizer.step()  # velocity 0.9 * 3.02 + 3.01698
    assert weight.item() == pytest.approx(1.698 - 0.1 * (2.718 + 3.01698))
    adamw = make_optimizer("adamw", [{"params": [weight], "lr": 0.1}], **how)
    assert adamw.param_groups[0]["betas"] == (0.9, 0.999)
    assert adamw.param_groups[0]["weight_decay"] == 0.01


def test_both_classifiers_of_deeplabv2_learn_ten_times_as_fast():
    """AdaptSegNet's optim_parameters: layer5 and layer6 at 10 times the rate."""
    network = build_model("deeplabv2", 2, encoder="resnet50", multi_level=True)
    names = {id(p): name for name, p in network.named_parameters()}
    for group in network.param_groups(2.5e-4):
        layers = {names[id(p)].partition(".")[0] for p in group["params"]}
        heads = layers <= {"layer5", "layer6"}
        assert group["lr"] == (2.5e-3 if heads else 2.5e-4)
        assert not heads or layers == {"layer5", "layer6"}
    assert network.aux_weight == 0.1


# ------------------------------------------------------------------ augmentation


def test_jitter_by_hand(monkeypatch):
    """Strength 0.25: brightness within 0.75 and 1.25, the others likewise; hue 0."""
    grey = torch.full((1, 3, 2, 2), 100.0)
    for draw, expected in ((1.0, 125.0), (0.0, 75.0), (0.5, 100.0)):
        always(monkeypatch, draw, 0.5, 0.5, 0.5, 0.0)
        torch.testing.assert_close(colour.color_jitter(grey, 0.25, 0.0), grey * expected / 100)


def test_contrast_turns_about_the_images_own_mean(monkeypatch):
    """Grey 40 and 120 with contrast 1.25: 80 - 50 and 80 + 50; brightness 1.25 moves both first."""
    image = torch.tensor([40.0, 120.0]).expand(1, 3, 1, 2)
    always(monkeypatch, 0.5, 1.0, 0.5, 0.5, 0.0)
    out = colour.color_jitter(image, 0.25, 0.0)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([30.0, 130.0]))
    always(monkeypatch, 1.0, 1.0, 0.5, 0.5, 0.0)  # 50 and 150, mean 100
    out = colour.color_jitter(image, 0.25, 0.0)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([37.5, 162.5]))


def test_saturation_and_hue_by_hand(monkeypatch):
    """Pure red: luminance 0.299 * 200; saturation 1.25 moves away from it; half a turn of hue."""
    red = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1)
    always(monkeypatch, 0.5, 0.5, 1.0, 0.5, 0.0)
    out = colour.color_jitter(red, 0.25, 0.0).flatten()
    grey = 0.299 * 200
    assert out[0].item() == pytest.approx(grey + 1.25 * (200 - grey), rel=1e-4)
    always(monkeypatch, 0.5, 0.5, 0.5, 1.0, 0.0)
    out = colour.color_jitter(red, 0.0, 0.25).flatten()  # a quarter turn: I, Q -> -Q, I
    i, q = 0.596 * 200, 0.211 * 200
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    expected = (torch.linalg.inv(to_yiq) @ torch.tensor([grey, -q, i])).clamp(0, 255)
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=1e-4)


def test_blur_by_hand(monkeypatch):
    """DACS: sigma of 0.15 to 1.15 pixels. What a point of 1000 keeps is the squared centre tap."""
    point = torch.zeros(1, 3, 15, 15)
    point[:, :, 7, 7] = 1000.0
    for draw, sigma in ((1.0, 1.15), (0.0, 0.15), (0.5, 0.65)):
        always(monkeypatch, draw, 0.0)
        taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-4, 5)]
        kept = blur.gaussian_blur(point, 1.0)[0, 0, 7, 7].item()
        assert kept == pytest.approx(1000 / sum(taps) ** 2, rel=1e-4)
    assert inspect.signature(blur.gaussian_blur).parameters["sigma"].default == (0.15, 1.15)


@pytest.mark.parametrize(
    ("method", "jitter", "sigma"),
    [("mix", (0.25, 0.0625), (0.15, 1.15)), ("fixmatch", (0.5, 0.25), (0.1, 2.0))],
)
def test_strong_views_are_jittered_and_blurred(monkeypatch, method: str, jitter, sigma):
    """DACS and UniMatch change colours with probability 0.8 and blur with 0.5."""
    asked = {}

    def record_jitter(images, strength, hue, probability=1.0):
        asked["jitter"] = (strength, hue, probability)
        return images + 1

    def record_blur(images, probability, sigma=(0.15, 1.15)):
        asked["blur"], asked["sigma"] = probability, sigma
        return images + 1

    monkeypatch.setattr(colour, "color_jitter", record_jitter)
    monkeypatch.setattr(blur, "gaussian_blur", record_blur)
    shown = []

    def student(images: Tensor) -> dict[str, Tensor]:
        shown.append(images)
        return {"out": torch.zeros(len(images), 3, *images.shape[-2:])}

    seen = make_seen(halved(), halved())
    METHODS[method](Setting(3))(seen, OnTheSpot(student))
    assert asked == {"jitter": (*jitter, 0.8), "blur": 0.5, "sigma": sigma}
    assert shown[0].max() > 255 + 1  # both were applied to what the student sees


def test_a_crop_has_enough_of_a_rare_class_from_half_of_3000_pixels_of_1280x720(monkeypatch):
    """DAFormer: min_pixels 3000, min_crop_ratio 0.5, on GTA5 at 1280x720."""
    label = torch.zeros(1, 720, 1280, dtype=torch.uint8)
    draws = torch.zeros(3, 1, geometry.CROPS_TRIED)
    draws[1, 0, 1:] = 0.999999  # the first crop on the left, the others on the right
    monkeypatch.setattr(torch, "rand", lambda *_shape: draws.clone())
    for pixels, chosen in ((1500, 768), (1501, 0)):
        label[:] = 0
        label.view(-1)[: 1280 * 300].view(300, 1280)[:, :5] = 5  # 1500 pixels at the left edge
        label[0, 400, 10] = 5 if pixels == 1501 else 0
        _, left, _ = geometry.crops_with(torch.tensor([5]), label, (512, 512), (1.0, 1.0))
        assert left.item() == chosen, pixels
    assert geometry.CROPS_TRIED == 10


# ------------------------------------------------------------------ options of train_seg.py


def test_aligned_corners_by_hand():
    """Logits 0 and 2 over three pixels: in the middle 1 either way, at the ends as they are."""
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])  # [1,2,1,2]
    label = torch.tensor([[[0, 255, 255, 255]]])
    aligned = PixelLoss([(1.0, "ce", {})], align_corners=True)(logits, label)
    assert aligned.item() == pytest.approx(math.log(2))  # the first pixel is the first logit
    label = torch.tensor([[[255, 0, 255, 255]]])
    aligned = PixelLoss([(1.0, "ce", {})], align_corners=True)(logits, label)
    assert aligned.item() == pytest.approx(math.log(1 + math.exp(-2 / 3)))
    centred = PixelLoss([(1.0, "ce", {})])(logits, label)
    assert centred.item() == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_the_supervised_script_acts_on_align_corners_and_cache(tmp_path: Path):
    data = fakedata.make_camvid(tmp_path / "camvid", n=6, size=(64, 48))
    words = f"""--recipe streets --dataset camvid --set day_train --val-set day_val --num-steps 2
        --print-every 1 --input-size 64,48 --data-dir {data} --num-workers 0
        --no-class-balance""".split()  # whose counts would lie in the cache too
    seen = {}
    for name, flags in {
        "plain": [],
        "aligned": ["--align-corners"],
        "cached": ["--cache", str(tmp_path / "cache")],
    }.items():
        folder = tmp_path / name
        train_seg.main(train_seg.parse_args([*words, *flags, "--snapshot-dir", str(folder)]))
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        seen[name] = [line["seg"] for line in lines if "seg" in line]
        checkpoint = torch.load(folder / "camvid_2.pth", weights_only=True)
        assert checkpoint["align_corners"] == (name == "aligned")
    assert seen["plain"] != seen["aligned"]
    assert seen["plain"] == seen["cached"]
    assert any((tmp_path / "cache").iterdir())


def test_the_term_of_a_method_is_weighted_once():
    """fixmatch at weight 0.5 costs half of fixmatch at weight 1."""
    seen = make_seen(halved(), halved())
    student = OnTheSpot(lambda images: {"out": torch.zeros(len(images), 3, 16, 24)})
    terms = [
        build_method("fixmatch", lambda_fixmatch=weight, fixmatch_threshold=0.0)(seen, student)
        for weight in (1.0, 0.5)
    ]
    assert terms[0]["fixmatch"].item() == pytest.approx(math.log(3), rel=1e-5)
    assert terms[1]["fixmatch"].item() == pytest.approx(0.5 * math.log(3), rel=1e-5)
