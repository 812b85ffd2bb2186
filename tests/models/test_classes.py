"""Checkpoints of ours whose classes are in another order, fewer, more or others."""

from pathlib import Path

import pytest
import torch

from models import build_model, load_weights
from models.classes import class_rows

NETWORKS = {
    "compact": {"width": 8},
    "deeplabv2": {"encoder": "resnet50", "multi_level": True},
    "deeplabv3plus": {"encoder": "resnet18", "multi_level": True, "width": 8},
    "pidnet": {"width": 8, "boundary": True},
}
HEADS = {
    "compact": {"classifier"},
    "deeplabv2": {f"layer{n}.conv2d_list.{i}" for n in (5, 6) for i in range(4)},
    "deeplabv3plus": {"head.classifier", "aux_head.1"},
    "pidnet": {"final_layer.conv2", "seghead_p.conv2"},
}


def network(name: str, classes: int) -> torch.nn.Module:
    return build_model(name, classes, **NETWORKS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_every_head_go_by_name(name: str, tmp_path: Path):
    torch.manual_seed(0)
    source, path = network(name, 3), tmp_path / "w.pth"
    torch.save({"model": source.state_dict(), "classes": ["road", "sky", "car"]}, path)
    model = network(name, 3)
    assert class_rows(model) == {f"{h}.{p}" for h in HEADS[name] for p in ("weight", "bias")}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    report = load_weights(model, path, classes=["car", "road", "sky"])
    assert "classes in another order: the classifiers' rows moved by name" in str(report)
    assert not report.missing
    for key, tensor in source.state_dict().items():
        expected = tensor[[2, 0, 1]] if key in class_rows(model) else tensor
        assert torch.equal(model.state_dict()[key], expected), key

    model.load_state_dict(before)
    report = load_weights(model, path, classes=["sky", "bird", "road"])
    assert "2 of 3 classes; not in the file, left as they were: bird; not here: car" in str(report)
    for key in class_rows(model):
        rows = source.state_dict()[key][1], before[key][1], source.state_dict()[key][0]
        assert torch.equal(model.state_dict()[key], torch.stack(rows)), key


def test_fewer_and_more_classes(tmp_path: Path):
    torch.manual_seed(0)
    source, path = network("compact", 3), tmp_path / "w.pth"
    torch.save({"model": source.state_dict(), "classes": ["road", "sky", "car"]}, path)
    model = network("compact", 1)
    report = load_weights(model, path, classes=["car"])
    assert torch.equal(model.classifier.weight[0], source.classifier.weight[2])
    assert "1 of 1 classes; not in the file, left as they were: none; not here: road, sky" in str(
        report
    )
    model = network("compact", 5)
    before = model.classifier.bias.clone()
    load_weights(model, path, classes=["a", "sky", "b", "road", "c"])
    expected = [
        before[0],
        source.classifier.bias[1],
        before[2],
        source.classifier.bias[0],
        before[4],
    ]
    assert model.classifier.bias.tolist() == [value.item() for value in expected]


def test_other_classes_of_the_same_number_are_left_out(tmp_path: Path):
    torch.manual_seed(0)
    source, path = network("compact", 2), tmp_path / "w.pth"
    torch.save({"model": source.state_dict(), "classes": ["road", "sky"]}, path)
    model = network("compact", 2)
    before = model.classifier.weight.clone()
    report = load_weights(model, path, classes=["cat", "dog"])
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.context.weight, source.context.weight)
    assert report.skipped == dict.fromkeys(
        ("classifier.weight", "classifier.bias"), "of other classes"
    )


@pytest.mark.parametrize("theirs", [["road", "sky"], None, [1, 2], "rs"])
def test_the_same_or_unknown_classes_go_as_they_stand(theirs: object, tmp_path: Path):
    source, path = network("compact", 2), tmp_path / "w.pth"
    torch.save({"model": source.state_dict(), "classes": theirs}, path)
    model = network("compact", 2)
    report = load_weights(model, path, classes=["road", "sky"])
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    assert not report.notes


def test_looking_for_the_rows_draws_no_random_number(tmp_path: Path):
    model = network("deeplabv3plus", 3)
    before = torch.get_rng_state()
    class_rows(model)
    assert torch.equal(torch.get_rng_state(), before)
