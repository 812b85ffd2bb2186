"""The benchmark runs on tiny inputs, checks what it times, and times what the scripts do."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fakedata
import train_da
from datasets import build_dataset
from engine.errors import UserError
from tools.benchmark import (
    __main__,
    augmentation,
    classifier,
    loading,
    networks,
    operations,
    scaling,
    timing,
    training,
    votes,
)
from training.run import Run

CPU = torch.device("cpu")
TINY = {
    "kernels": ["--size", "96,64"],
    "evaluate": ["--size", "128,64", "--images", "2", "--backbone", "resnet50"],
    "train": ["--size", "64,32", "--backbone", "resnet50"],
    "classifier": ["--size", "64,32"],
    "losses": ["--size", "64,32"],
    "loader": ["--size", "64,48", "--images", "9"],
}
MORE = {
    "kernels": {"of_copy", "others_ms"},
    "evaluate": {
        *("precision", "gflop_per_image", "same_ids", "same_ids_fp32"),
        *("network_ms", "network_share", "network_of_matrix_rate"),
    },
    "train": {
        *("precision", "gflop_per_step", "of_matrix_rate", "update_cosine_fp32"),
        *("memory_mb", "recomputing_mb"),
    },
    "classifier": {"precision"},
    "losses": set(),
    "loader": {"image_megabytes", "images_per_s", "cpu_ms", "plain_cpu_ms"},
}


@pytest.fixture
def known_rates(monkeypatch):
    """Spare the tests the measurement of the machine, which has one of its own."""
    monkeypatch.setattr(timing, "copy_rate", lambda *_: 10.0)
    monkeypatch.setattr(timing, "matrix_rate", lambda *_: 100.0)


@pytest.mark.usefixtures("known_rates")
@pytest.mark.parametrize("subject", TINY)
def test_every_subject_prints_and_writes_its_rows(subject, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "WORKERS", (1,))
    words = [subject, *TINY[subject], "--repeats", "2", "--json", str(tmp_path / "b.json")]
    __main__.main(__main__.parse_args(words))
    report, printed = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert set(report) == {"settings", "machine", subject}
    assert report["settings"]["repeats"] == 2
    assert {"date", "commit", "cpu", "cores", "torch", "threads"} <= set(report["machine"])
    rows = report[subject]
    for row in rows:
        assert set(row) == {"name", "ours_ms", "plain_ms", "ratio", "round_ratios"} | MORE[subject]
        assert row["name"] in printed
        assert row["ratio"] == pytest.approx(row["plain_ms"] / row["ours_ms"])
        assert len(row["round_ratios"]) == 2
    assert len({row["name"] for row in rows}) == len(rows)
    if subject == "kernels":
        operators = {row["name"].split()[0].rstrip(",") for row in rows}
        assert operators == {
            *("confusion_matrix", "argmax_upsample", "cutmix", "classmix"),
            *("hard_vote", "confidence_histogram", "boundary_map", "soft_vote"),
        }
    if subject == "evaluate":
        assert 0 < rows[0]["network_share"] < 1
        assert rows[0]["network_ms"] < 2 * rows[0]["ours_ms"]  # mean beside median


@pytest.mark.usefixtures("known_rates")
def test_scaling_prints_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    threads = torch.get_num_threads()
    words = ["scaling", "--size", "32,16", "--repeats", "1", "--json", str(tmp_path / "s.json")]
    __main__.main(__main__.parse_args([*words, "--plot", str(tmp_path / "s.png")]))
    rows = json.loads((tmp_path / "s.json").read_text())["scaling"]
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "\nno chart: it needs matplotlib (pip install matplotlib)\n"
    assert [row["quantity"] for row in rows] == ["pixels", "classes", "members", "threads"]
    for row in rows:
        for name, times in row["ms"].items():
            assert len(times) == len(row["values"])
            shown = " | ".join(f"{ms:.2f}" for ms in times)
            assert f"| {name} | {shown} | {times[-1] / times[0]:.1f} |" in lines
    assert [len(row["ms"]) for row in rows] == [9, 5, 2, 9]
    assert torch.get_num_threads() == threads


def test_costs_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    row = {"name": "unet", "mean_ms": 10.0, "parameters": 24_000_000, "gflop": 30.0}
    networks.draw([row, row | {"name": "pidnet", "mean_ms": 4.0}], str(tmp_path / "c.png"))
    with Image.open(tmp_path / "c.png") as plot:
        assert plot.size == (900, 600)


def test_growth_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    times = {name: [1.0, 10.0] for name in scaling.OPERATIONS}
    rows = [{"quantity": q, "values": [1, 4], "ms": times} for q in ("pixels", "threads")]
    scaling.draw(rows, (32, 16), str(tmp_path / "s.png"))
    with Image.open(tmp_path / "s.png") as plot:
        assert plot.size == (800, 400)
        assert len(plot.convert("RGB").getcolors(1 << 20)) > len(scaling.OPERATIONS)


def test_wrong_growth_is_not_timed(monkeypatch):
    label = torch.ones(2, 3, dtype=torch.uint8)
    scaling.checked("confusion_matrix", (label, label, 3, 255))
    with pytest.raises(AssertionError, match="zeros only"):
        scaling.checked("confusion_matrix", (label, label, 3, 1))
    monkeypatch.setattr(scaling.reference, "hard_vote", lambda *_: label)
    with pytest.raises(AssertionError, match="differs"):
        scaling.checked("hard_vote", (2 * label, 3, None))


def test_votes_of_submissions_are_compared_and_timed(tmp_path):
    pytest.importorskip("pandas", reason="what our vote is timed beside")
    pytest.importorskip("scipy", reason="what our vote is timed beside")
    ((row, _),) = votes.run(size=(40, 30), images=3, plain_images=2, repeats=1)
    assert row["plain_images"] == 2
    assert row["ratio"] == pytest.approx(row["plain_ms"] / row["ours_ms"])
    assert 50 < row["ours_peak_mb"] < 500
    (tmp_path / "ours.csv").write_text("image_id\na,1\nb,2\n")
    for lines, message in (("image_id\na,2\n", "differ"), ("image_id\n", "no row")):
        (tmp_path / "plain.csv").write_text(lines)
        with pytest.raises(AssertionError, match=message):
            votes.check_equal(tmp_path / "ours.csv", tmp_path / "plain.csv")


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    words = ["loader", "--json", str(tmp_path / "file" / "b.json")]
    with pytest.raises(UserError, match="cannot write the folder"):
        __main__.main(__main__.parse_args(words))


def test_medians_and_ratios_by_hand():
    row = timing.compare([1.0, 2.0, 4.0], [4.0, 4.0, 5.0], count=2)
    assert row["ours_ms"] == 1000
    assert row["plain_ms"] == 2000
    assert row["ratio"] == 2
    assert row["round_ratios"] == [4, 2, 1.25]


def test_calls_take_turns_and_the_first_round_is_left_out():
    order = []
    calls = [lambda: order.append("ours"), lambda: order.append("plain")]
    seconds = timing.alternate(calls, CPU, repeats=2)
    assert order == ["ours", "plain"] * 3
    assert [len(times) for times in seconds] == [2, 2]


def test_rates_are_measured():
    assert timing.copy_rate(CPU, 1) > 0
    assert timing.matrix_rate(CPU, torch.float32, 1) > 0


def test_clock_sees_every_forward_pass():
    network = torch.nn.Conv2d(3, 3, 3)
    clock = timing.NetworkClock(network)
    for _ in range(3):
        network(torch.zeros(1, 3, 8, 8))
    assert len(clock.seconds()) == 3
    assert min(clock.seconds()) > 0


def test_wrong_results_are_not_timed():
    ones, zeros = torch.ones(2), torch.zeros(2)
    for result, expected, message in ((ones, 2 * ones, "differs"), (zeros, zeros, "zeros only")):
        case = operations.Case("x", lambda r=result: r, None, lambda e=expected: e, 1)
        with pytest.raises(AssertionError, match=message):
            operations.check_equal(case)
    training.check_losses({"seg": torch.tensor(1.0)}, {"seg": 1.00001})
    with pytest.raises(AssertionError, match="seg is 1"):
        training.check_losses({"seg": torch.tensor(1.0)}, {"seg": 1.001})


def test_another_classifier_is_not_timed():
    one, zero = torch.ones(2), torch.zeros(2)
    classifier.check_close([one], [one + 1e-5])
    for plain in (one + 1e-3, zero):
        with pytest.raises(AssertionError):
            classifier.check_close([one], [plain])


def test_cosine_of_updates_by_hand():
    a, b = torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        a.weight[:, 0] = torch.tensor([1.0, 2.0])
        b.weight[:, 0] = torch.tensor([2.0, 1.0])
    assert training.cosine_of_updates(a, b, [torch.zeros(2, 1)]) == pytest.approx(0.8)
    assert training.cosine_of_updates(a, b, [torch.ones(2, 1)]) == pytest.approx(0.0)


def test_plain_samples_that_differ_are_not_timed(tmp_path):
    listed = loading.scenes.write_files(tmp_path, (40, 30), 1)
    ours = build_dataset("gta5", tmp_path, split="train", list_file=listed, size=(40, 30))
    other = loading.PlainSamples(ours)[0]
    loading.check_equal(ours[0], other)
    other["label"][0, 0] += 1
    with pytest.raises(AssertionError, match="labels differ"):
        loading.check_equal(ours[0], other)


def test_libraries_count_as_ours(tmp_path):
    pytest.importorskip("cityscapesscripts", reason="needs the official cityscapesscripts")
    label = torch.tensor([[0, 0, 1], [2, 2, 255]], dtype=torch.uint8)
    pred = torch.tensor([[0, 1, 1], [2, 0, 2]], dtype=torch.uint8)
    counts = operations.other_counts(label, pred, tmp_path / "x")["cityscapesScripts"]()
    assert counts[:3, :3].tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_the_step_is_that_of_the_training_script(tmp_path, monkeypatch):
    """Two steps of train_da.py in fp32 log the losses that the benchmark's step returns."""
    gta5 = fakedata.make_gta5(tmp_path / "gta5", n=1, size=(64, 32))
    cityscapes = fakedata.make_cityscapes(tmp_path / "cityscapes", n=1, size=(64, 32))
    words = "--recipe adaptsegnet-multi --backbone resnet50 --input-size 64,32 --device cpu"
    words += " --input-size-target 64,32 --num-steps-stop 2 --print-every 1 --num-workers 0"
    words += " --weights none"
    words += f" --data-dir {gta5} --data-dir-target {cityscapes} --precision fp32"
    words += f" --snapshot-dir {tmp_path / 'run'}"
    for writer in ("save", "publish"):  # half a gigabyte that nobody reads
        monkeypatch.setattr(Run, writer, lambda *_: None)
    train_da.main(train_da.parse_args(words.split()))
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    logged = [entry for entry in map(json.loads, lines) if "seg" in entry]

    source = build_dataset("gta5", gta5, split="train", size=(64, 32))[0]
    target = build_dataset("cityscapes", cityscapes, split="train", size=(64, 32))[0]
    step = training.Step(training.recipe_options("resnet50"), CPU, "fp32")
    for entry in logged:
        terms = step(source["image"][None], source["label"][None], target["image"][None])
        assert {name: entry[name] for name in terms} == {
            name: pytest.approx(term.item(), rel=1e-6) for name, term in terms.items()
        }
    assert len(logged) == 2


@pytest.mark.parametrize(("precision", "measured"), [("bf16", True), ("fp32", False)])
def test_the_rate_of_bf16_is_measured_only_where_it_is_computed(precision, measured, monkeypatch):
    asked = []
    monkeypatch.setattr(timing, "pick_precision", lambda *_: precision)
    monkeypatch.setattr(timing, "copy_rate", lambda *_: 1.0)
    monkeypatch.setattr(timing, "matrix_rate", lambda _, dtype, __: asked.append(dtype) or 2.0)
    machine = timing.describe_machine(CPU, 1)
    assert (machine["bf16_gflop_per_s"] is not None) == measured
    assert (torch.bfloat16 in asked) == measured


@pytest.mark.usefixtures("known_rates")
def test_models_are_counted_and_timed(tmp_path, capsys):
    words = ["models", "--size", "64,32", "--repeats", "2", "--classes", "7"]
    words += ["--model", "pidnet", "multi_level=yes", "--model", "compact", "width=16"]
    words += ["--model", "mask2former", "encoder=resnet18", "layers=1", "width=32"]
    __main__.main(__main__.parse_args([*words, "--json", str(tmp_path / "m.json")]))
    rows = json.loads((tmp_path / "m.json").read_text())["models"]
    assert [row["name"].split()[0] for row in rows] == ["pidnet", "compact", "mask2former"]
    assert rows[0]["name"] == "pidnet multi_level=yes"
    # the published PIDNet-S with 7 classes, less its boundary head
    assert rows[0]["parameters"] == 7_717_839 - 18_657
    assert all(row["mean_ms"] > 0 and row["memory_mb"] > 0 for row in rows)
    assert "7,699,182" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no option 'depth'"):
        __main__.main(__main__.parse_args([*words, "--model", "compact", "depth=3"]))


def test_operations_and_memory_by_hand():
    """A 3x3 convolution of 2 to 4 channels on 5x6 pixels; at most two maps live at once."""
    conv = torch.nn.Conv2d(2, 4, 3, padding=1)
    image = torch.randn(1, 2, 5, 6)

    class Network(torch.nn.Sequential):
        def forward(self, x, aux):
            return {"out": super().forward(x)}

    with torch.inference_mode():
        row = networks.measure(Network(conv), image, "fp32", 1)
    assert row["gflop"] == pytest.approx(2 * 9 * 2 * 4 * 5 * 6 / 1e9)
    assert row["parameters"] == 4 * 2 * 9 + 4
    with torch.inference_mode(), networks.PeakMemory() as memory:
        x = torch.zeros(1000) + 1  # 4000 bytes each: two at a time
        for _ in range(3):
            x = x * 2
        x.relu_()
        x.view(10, 100)
    assert memory.peak == 8000
    assert memory.now == 4000


def test_augmentation_is_timed_beside_albumentations_or_says_that_it_is_missing(monkeypatch):
    """Every word of its table is one of ours; what theirs is takes the library."""
    words = {*" ".join(augmentation.CHAIN.values()).split(), *augmentation.PAIRS}
    images, labels = augmentation.scenes((48, 32), 2)
    batch = {
        "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        "label": torch.from_numpy(np.stack(labels)),
    }
    for word in words:
        out = augmentation.augment_batch([word], batch)()
        assert out.image.shape == (2, 3, 32, 48), word
    assert words == {*augmentation.PAIRS}
    monkeypatch.setitem(sys.modules, "albumentations", None)
    how = {"size": (48, 32), "batch_size": 2, "repeats": 1}
    with pytest.raises(UserError, match="the plain way is albumentations: pip install"):
        next(augmentation.run(torch.device("cpu"), **how))
