"""What a checkpoint of ours says is checked before it is used, and chooses nothing."""

import resource
from pathlib import Path

import pytest
import torch

import evaluate
from engine import words
from engine.errors import UserError
from models import MODELS, build_model
from models.checkpoint import load_checkpoint, load_model, save_checkpoint
from worlds import on_camvid, open_camvid, write_checkpoint

CPU = torch.device("cpu")
NOT_WORDS = ("name", "num_classes")
CAFFE = {"order": "BGR", "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}

# place -> value there, what the error says
WRONG = [
    ("format", "1", 'format is "1"; a whole number expected'),
    ("model", [1], "model is \\[1\\]; an object expected"),
    ("arch", "resnet50", 'arch is "resnet50"; {name, num_classes} expected'),
    ("arch.name", "resnet", "arch.name is 'resnet', must be one of .*compact"),
    ("arch.name", 3, "arch.name is 3; a text expected"),
    ("arch.num_classes", "3", 'arch.num_classes is "3"; a whole number from 1 to 255'),
    ("arch.num_classes", 10**6, "arch.num_classes is 1000000"),
    ("arch.num_classes", True, "arch.num_classes is true"),
    ("arch.width", "8", "width is '8'; 8 or the like expected"),
    ("arch.width", 8.0, "width=8.0: "),
    ("arch.width", [8], "width is \\[8\\]; 8 or the like"),
    ("arch.width", 0, "width=0: "),
    ("arch.width", -8, "width=-8: expected int >= 1"),
    ("arch.width", None, "width=none: "),
    ("arch.width", 2**40, "calculation overflowed"),
    ("arch.width", 65536, "does not fit compact"),
    ("arch.width", 8000, "does not fit compact"),
    ("arch.norm", "layer", "norm=layer: must be one of group, batch"),
    ("arch.norm", True, "norm=yes: must be one of"),
    ("arch.depth", 3, "has no option 'depth'"),
    ("arch.self", 3, "has no option 'self'"),
    ("arch.pad", "x" * 5000, "arch is longer than any network's"),
    ("normalisation", {}, "normalisation lacks 'order'"),
    ("normalisation.order", "GRB", "normalisation.order is"),
    ("normalisation.mean", [1.0, 2.0], "normalisation.mean is"),
    ("normalisation.std", [1.0, 0.0, 1.0], "normalisation.std is"),
    ("normalisation.std", [1.0, float("nan"), 1.0], r"normalisation.std\[1\] is NaN"),
    ("classes", ["a", "b"], "2 names of classes, 3 classes in arch"),
    ("classes", ["a", "b", "b"], "2 names of classes, 3 classes in arch"),
    ("classes", ["a", "b", 3], r"classes\[2\] is 3; a text expected"),
    ("palette", [[0, 0, 300]], r"palette is \[\[0, 0, 300\]\]"),
    ("dataset", 3, "dataset is 3; a text expected"),
    ("data", [], "data is \\[\\]; "),
    ("data.root", 3, "data.root is 3"),
    ("data.options", "x", 'data.options is "x"'),
    ("data.options.seed", "x", 'data.options.seed is "x"'),
    ("data.options.gap", {"a": 1}, "data.options.gap is"),
    ("input_size", [0, 3], r"input_size is \[0, 3\]"),
    ("input_size", "64,48", "input_size is"),
    ("input_size", (64, 48, 3), "input_size is"),
    ("align_corners", 1, "align_corners is 1; true or false expected"),
    ("precision", "fp8", "precision is .*; one of auto, bf16, fp32 expected"),
    ("step", "7", 'step is "7"; a whole number from 0 expected'),
    ("step", -1, "step is -1"),
    ("step", torch.tensor(7), 'step is "a Tensor"'),
    ("score", 3, "score is 3"),
]  # fmt: skip


def changed(value: dict, place: str, new: object) -> dict:
    first, _, rest = place.partition(".")
    return {**value, first: changed(value.get(first, {}), rest, new) if rest else new}


@pytest.mark.parametrize(("place", "new", "said"), WRONG)
def test_what_is_of_another_kind_is_named_in_one_line(place, new, said, tmp_path: Path):
    path = write_checkpoint(tmp_path / "net.pth", "camvid", ["a", "b", "c"], data={})
    load_model(path, CPU)
    torch.save(changed(load_checkpoint(path), place, new), path)
    with pytest.raises(UserError, match=rf"^{path}:? .*{said}") as error:
        load_model(path, CPU)
    assert "\n" not in str(error.value)


def test_a_small_file_asks_for_no_large_network(tmp_path: Path):
    """Eleven GB of DeepLabv3+ from a few kB, by a width and by names that share their values."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = write_checkpoint(tmp_path / "net.pth", "camvid", ["a", "b", "c"])
    saved = load_checkpoint(path)
    arch = {"name": "deeplabv3plus", "num_classes": 3, "encoder": "resnet18", "width": 8192}
    torch.save({**saved, "arch": arch}, path)
    with pytest.raises(UserError, match="fits nothing in deeplabv3plus resnet18"):
        load_model(path, CPU)
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in build_model(**arch).state_dict().items()}
    one = torch.zeros(max(shape.numel() for shape in shapes.values()) // 1000)
    tensors = {}
    for key, shape in shapes.items():
        if shape.numel() <= one.numel():
            tensors[key] = one[: shape.numel()].view(shape)
        else:
            tensors[key] = one[:1].expand(shape.numel()).view(shape)
    torch.save({**saved, "arch": arch, "model": tensors}, path)
    with pytest.raises(UserError, match="said to be larger than what the file holds of it"):
        load_model(path, CPU)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1000  # MB


def test_names_that_share_their_values_are_refused(tmp_path: Path):
    path = write_checkpoint(tmp_path / "net.pth", "camvid", ["a", "b", "c"])
    saved = load_checkpoint(path)
    wide = {**saved["arch"], "width": 64}
    shapes = {k: t.shape for k, t in build_model(**wide).state_dict().items()}
    one = torch.zeros(max(shape.numel() for shape in shapes.values()))
    model = {k: one[: shape.numel()].view(shape) for k, shape in shapes.items()}
    torch.save({**saved, "arch": wide, "model": model}, path)
    with pytest.raises(UserError, match="its names share the same few values"):
        load_model(path, CPU)


def test_a_checkpoint_chooses_no_argument(camvid: Path, tmp_path: Path, capsys):
    """Only the dataset's own options are taken: nothing is written where a file says."""
    theirs = tmp_path / "theirs"
    options = {"cache_dir": str(theirs), "labelled": False, "num_images": 1, "resize_label": True}
    options |= {"size": (8, 8), "list_file": "/etc/passwd", "split": "train", "root": "/"}
    path = write_checkpoint(
        tmp_path / "net.pth",
        "camvid",
        open_camvid(camvid).class_names,
        data={"split": "val", "options": {**options, "label_kind": "labelIds", "seed": 0}},
    )
    words = ["--restore-from", path, *on_camvid(camvid)]
    evaluate.main(evaluate.parse_args([str(word) for word in words]))
    assert not theirs.exists()
    assert "images val, count 3" in capsys.readouterr().out


def test_a_whole_checkpoint_as_safetensors(tmp_path: Path):
    path = write_checkpoint(tmp_path / "net.pth", "camvid", ["a", "b", "c"], input_size=(64, 48))
    one, said = load_model(path, CPU)
    save_checkpoint(load_checkpoint(path), tmp_path / "net.safetensors")
    other, same = load_model(tmp_path / "net.safetensors", CPU)
    assert same == said
    assert other.arch == one.arch
    for key, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


@pytest.mark.parametrize("name", MODELS)
def test_every_networks_own_options_pass(name: str, tmp_path: Path):
    """What `build_model` keeps of a network's options is what a checkpoint may say."""
    with torch.device("meta"):
        arch = build_model(name, 2).arch
    words.check(name, MODELS[name], {k: v for k, v in arch.items() if k not in NOT_WORDS})
