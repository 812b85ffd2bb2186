"""The training step: the plain step's numbers, no waiting for the device, less memory, compiled."""

import contextlib
import copy
import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fakedata
import methods
import models
import train_da
import train_seg
from engine.errors import UserError
from engine.values import Training
from models.transforms import Block
from tools.benchmark import scenes, training
from training import student
from training.run import Run
from training.student import Student, build_network, make_forward

CPU, META = torch.device("cpu"), torch.device("meta")
NETWORKS = {
    "compact": {"norm": "batch", "width": 8},
    "deeplabv3plus": {"backbone": "efficientnet_lite0"},
    "deeplabv2": {"backbone": "resnet50"},
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Return what both training scripts need for two small steps on CamVid's layout."""
    data = fakedata.make_camvid(tmp_path_factory.mktemp("camvid"), n=6, size=(64, 48))
    flags = f"--recipe streets --data-dir {data} --input-size 64,48 --batch-size 2 --num-workers 0"
    return f"{flags} --num-steps 2 --warmup-steps 1 --norm batch".split()


def adapting(folder: Path, flags: list[str], *more: str):
    """Return the options of an adaptation from day to dusk."""
    words = "--source camvid --source-set day_train --target camvid --set dusk_train".split()
    words += ["--val-set", "dusk_val", "--no-baseline", "--adapt-from", "0"]
    return train_da.parse_args([*flags, *words, "--snapshot-dir", str(folder), *more])


def supervised(folder: Path, flags: list[str]):
    """Return the options of training by day."""
    words = "--dataset camvid --set day_train --val-set day_val".split()
    return train_seg.parse_args([*flags, *words, "--snapshot-dir", str(folder)])


# ------------------------------------------------------------------ the plain step's numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_steps_are_those_of_the_plain_way(dtype: torch.dtype):
    """In float64, where rounding cannot hide a mistake, weights agree as closely as losses."""
    args = training.recipe_options("resnet50")
    args.model = {"name": "deeplabv3plus", "encoder": "efficientnet_lite0", "multi_level": True}
    args.discriminator_width = 8
    ours = training.Step(args, CPU, "fp32")
    plain = training.PlainStep(ours)
    for network in (ours.model, plain.model, plain.discriminators):
        network.to(dtype)
    judges = ours.adapting["adversarial"].discriminators
    pairs = [(ours.model, plain.model), (judges, plain.discriminators)]
    starts = [[p.detach().clone() for p in network.parameters()] for network, _ in pairs]

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return models.normalise(images, ours.model.normalisation).to(dtype)

    ours.student._forward = lambda images: ours.model(prepare(images))
    for seed in range(3):
        images, label = scenes.batch((64, 32), 2, seed)
        target, _ = scenes.batch((64, 32), 2, 10 + seed)
        expected = plain(prepare(images), label, prepare(target))
        terms = ours(images, label, target)
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            close = 1e-5 if dtype == torch.float64 or seed == 0 else 1e-2
            assert terms[name].item() == pytest.approx(value, rel=close), name
    for pair, origin in zip(pairs, starts, strict=True):
        alike = training.cosine_of_updates(*pair, origin)
        assert alike > (1 - 1e-4 if dtype == torch.float64 else 0.95)


# ------------------------------------------------------------------ no waiting for the device


@pytest.fixture
def unreadable(monkeypatch):
    """Train on a device whose values nobody can read: what makes a host wait for a GPU raises.

    Tensors on `meta` have no values. Only what happens once an interval is left out.
    """

    def scored(run: Run, *_) -> None:
        run.last = run.best = {"step": run.step, "miou": 0.0}

    for script in (train_da, train_seg):
        monkeypatch.setattr(script, "pick_device", lambda _: META)
        monkeypatch.setattr(script, "validate_all", lambda *_, **__: {"miou": 0.0})
    for module in (train_da, student):
        monkeypatch.setattr(module, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # there is none on meta
    monkeypatch.setattr(Run, "scored", scored)
    for method in methods.METHODS.values():
        monkeypatch.setattr(method, "diagnose", lambda _: ({}, []))
    for name in ("flush", "save"):
        monkeypatch.setattr(Run, name, lambda *_: None)


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("method", ["adversarial", "advent", "entropy", "mix", "fixmatch"])
def test_a_step_of_adaptation_never_waits_for_the_device(tmp_path: Path, flags, method: str):
    args = adapting(tmp_path, flags, "--method", method)
    model, _ = train_da.train(args, train_da.open_data(args), args.method, str(tmp_path), "run")
    assert next(model.parameters()).device == META


@pytest.mark.usefixtures("unreadable")
def test_a_supervised_step_never_waits_for_the_device(tmp_path: Path, flags):
    train_seg.main(supervised(tmp_path, flags))


@pytest.mark.usefixtures("unreadable")
def test_a_step_that_reads_a_value_is_found(tmp_path: Path, flags, monkeypatch):
    monkeypatch.setattr(Run, "record", lambda run, terms, share: terms["seg"].item())
    with pytest.raises(RuntimeError, match="meta"):
        train_seg.main(supervised(tmp_path, flags))


# ------------------------------------------------------------------ --checkpoint-activations


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputed_activations_change_no_bit(name: str, precision: str):
    """Two steps: logits, gradients, and statistics that move once a step, not twice."""
    keeping = build_network(Training({"name": name, **NETWORKS[name]}), 5)
    recomputing = copy.deepcopy(keeping)
    models.checkpoint_activations(recomputing)
    seen = {}
    for network in (keeping, recomputing):
        forward = make_forward(network, Training({}, precision=precision), CPU)
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            out = forward(torch.rand(2, 3, 40, 48, generator=generator) * 255)["out"]
            out.float().square().mean().backward()
        seen[network] = out
    assert torch.equal(seen[keeping], seen[recomputing])
    for one, other in zip(keeping.parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    for one, other in zip(keeping.buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(one, other)
    sizes = []
    for network in (keeping, recomputing):
        forward = functools.partial(network, torch.rand(2, 3, 40, 48))
        sizes.append(training.bytes_for_backward(network, forward))
    assert sizes[1] < (0.9 if name == "compact" else 0.7) * sizes[0]


def test_a_run_may_be_resumed_with_recomputed_activations(tmp_path: Path, flags):
    states = []
    for name, more in (("keeping", []), ("recomputing", ["--checkpoint-activations"])):
        for stop in (["--num-steps-stop", "1"], more):
            args = adapting(tmp_path / name, flags, "--method", "adversarial", *stop)
            train_da.main(args)
        states.append(torch.load(tmp_path / name / "last.pth", weights_only=True)["state"]["model"])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# ------------------------------------------------------------------ --compile


class Small(nn.Module):
    """A network that compiles within seconds."""

    normalisation = models.NORMALISATIONS["lite"]

    def __init__(self):
        super().__init__()
        self.block = SmallBlock()
        self.classifier = nn.Conv2d(4, 3, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.classifier(self.block(images))}


class SmallBlock(Block):
    """Convolution, batch norm and ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_a_compiled_network_trains_as_the_eager_one(monkeypatch):
    """With recomputed activations, which the compiler treats its own way; same checkpoint keys."""
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "simdlen", 0)  # no vectors: much less to compile
    torch.manual_seed(0)
    networks = {False: Small(), True: Small()}
    networks[True].load_state_dict(networks[False].state_dict())
    models.checkpoint_activations(networks[True])
    outputs = []
    for compiled, network in networks.items():
        forward = make_forward(network, Training({}, compiled=compiled), CPU)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            out = forward(torch.rand(2, 3, 16, 24, generator=generator) * 255)["out"]
            out.square().mean().backward()
            optimizer.step()
        outputs.append(out)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    states = [network.state_dict() for network in networks.values()]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
    assert states[1]["block.bn.num_batches_tracked"] == 3


def test_without_a_compiler_one_line_says_so(monkeypatch):
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with fresh_cache():
        forward = make_forward(Small(), Training({}, compiled=True), CPU)
        with pytest.raises(UserError, match=r"^--compile needs a C\+\+ compiler that works: ") as e:
            forward(torch.zeros(1, 3, 9, 9))
    assert "\n" not in str(e.value)


def test_one_small_image_without_a_variance_is_refused_in_one_line():
    training = Training({"name": "unet", "encoder": "resnet18"})
    student = Student(training, 2, CPU)
    with pytest.raises(UserError, match="1 image of 32x32: give --batch-size 2 or more, or larger"):
        student(torch.zeros(1, 3, 32, 32))
    student(torch.zeros(2, 3, 32, 32))
    student(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["pidnet", "deeplabv3plus", "deeplabv3", "pspnet", "upernet"])
def test_what_averages_whole_images_trains_on_one(name: str):
    student = Student(Training({"name": name}), 2, CPU)
    outputs = student(torch.rand(1, 3, 96, 64))
    assert outputs["out"].isfinite().all()


@pytest.mark.parametrize("balanced", [True, False])
def test_terms_of_a_network_s_own_know_the_weights(balanced: bool, monkeypatch):
    """Mask2Former's are none of `pixel_loss`, which knows the weights of classes and pixels."""
    words = {"encoder": "resnet18", "width": 32, "queries": 4, "pixel_layers": 1, "layers": 1}
    training = Training({"name": "mask2former", **words, "points": 64})
    student = Student(training, 2, CPU, torch.tensor([1.0, 5.0]))
    assert student.pixel_loss.terms == []  # those of the set of masks are enough
    seen, own = {}, student.network.loss

    def loss(outputs, label, pixel_loss, **weights):
        seen.update(weights)
        return own(outputs, label, pixel_loss, **weights)

    monkeypatch.setattr(student.network, "loss", loss)
    label, pixels = torch.zeros(1, 64, 64, dtype=torch.uint8), torch.full((1, 64, 64), 0.5)
    outputs = student(torch.rand(1, 3, 64, 64) * 255)
    terms = student.loss(outputs, label, "mix", pixel_weight=pixels, balanced=balanced)
    assert list(terms) == ["mix", "mix_mask", "mix_dice"]
    assert seen["pixel_weight"] is pixels
    assert seen["class_weight"] is (student.pixel_loss.class_weight if balanced else None)
