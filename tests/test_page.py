"""The page of predictions and mistakes: its folder, its data, and reports that are joined."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import kernels
from engine.errors import UserError
from inference.page import escaped, pictures
from inference.page.gathering import packed, unpacked
from inference.page.placing import placed
from inference.page.report import Part
from inference.page.reporting import short_names
from tools import gallery
from worlds import FRAMES, in_camvid, on_camvid, open_camvid, write_checkpoint


@pytest.fixture
def checkpoint(camvid, tmp_path):
    return write_checkpoint(tmp_path / "net.pth", "camvid", open_camvid(camvid).class_names)


def run_evaluate(*words) -> None:
    evaluate.main(evaluate.parse_args([str(word) for word in words]))


def page_data(folder) -> dict:
    """Return what the script of a page finds."""
    text = (folder / "index.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_a_report_holds_the_counts_and_maps_of_every_image(checkpoint, camvid, tmp_path, capsys):
    report, scores, saved = (tmp_path / name for name in ("report", "scores.json", "saved"))
    words = ["--restore-from", checkpoint, *on_camvid(camvid)]
    run_evaluate(*words, "--report", report, "--json", scores, "--save", saved)
    assert capsys.readouterr().out.endswith(f"to look at: {report / 'index.html'}\n")
    data = page_data(report)
    assert data == json.loads((report / "report.json").read_text())
    assert [image["name"] for image in data["images"]] == [f"{frame}.png" for frame in FRAMES]
    (run,) = data["runs"]
    (result,) = json.loads(scores.read_text())
    assert run["miou"] == result["miou"]
    dataset, side = open_camvid(camvid), len(data["classes"]) + 1
    for number, frame in enumerate(FRAMES):
        pred = np.asarray(Image.open(saved / "train_ids" / f"{frame}.png"))
        truth = dataset.read_label(number)
        assert (pictures.read_ids(report / "maps" / f"{number}_0.js", "pred") == pred).all()
        assert (pictures.read_ids(report / "maps" / f"{number}.js", "truth") == truth).all()
        confidence, counts = run["rows"][number]
        wanted = kernels.confusion_matrix(torch.tensor(pred), torch.tensor(truth), side - 1, 255)
        assert unpacked(counts, side).equal(wanted)
        assert 1 / side < confidence < 1
        for kind in ("photographs", "thumbs"):
            with Image.open(report / kind / f"{number}.jpg") as image:
                assert image.size == (40, 24)
        assert (report / "thumbs" / f"{number}_0.jpg").is_file()


def test_two_checkpoints_stand_side_by_side(checkpoint, camvid, tmp_path):
    other = tmp_path / "other" / "net.pth"
    other.parent.mkdir()
    names = open_camvid(camvid).class_names
    weights = torch.load(checkpoint, weights_only=True)
    weights["model"] = {k: v.flip(0) for k, v in weights["model"].items()}
    torch.save(weights, other)
    report = tmp_path / "report"
    run_evaluate("--restore-from", checkpoint, other, *on_camvid(camvid), "--report", report)
    data = page_data(report)
    assert [run["name"] for run in data["runs"]] == [tmp_path.name, "other"]
    one, two = (pictures.read_ids(report / "maps" / f"1_{k}.js", "pred") for k in (0, 1))
    assert data["images"][1]["differs"] == pytest.approx((one != two).mean(), abs=1e-4)
    low, high = data["runs"][1]["gain"]
    assert low <= data["runs"][1]["miou"] - data["runs"][0]["miou"] <= high
    assert 0 < data["runs"][1]["p_value"] <= 1
    assert data["classes"] == names


def test_photographs_and_folders_of_predictions_have_a_page(checkpoint, camvid, tmp_path):
    saved, report, again = tmp_path / "saved", tmp_path / "report", tmp_path / "again"
    words = ["--restore-from", checkpoint, "--save", saved, "--report", report]
    run_evaluate(*words, "--images", camvid / "val", "--device", "cpu")
    data = page_data(report)
    assert not any(image["labelled"] for image in data["images"])
    assert data["runs"][0]["miou"] is None
    assert not (report / "maps" / "0.js").exists()
    side = len(data["classes"]) + 1
    counts = unpacked(data["runs"][0]["rows"][0][1], side)
    assert counts[-1].sum() == counts.sum() == np.prod(data["images"][0]["size"])

    run_evaluate("--restore-from", checkpoint, "--save", tmp_path / "ids", *on_camvid(camvid))
    words = ["--predictions", tmp_path / "ids", "--dataset", "camvid", "--report", again]
    run_evaluate(*words, *in_camvid(camvid))
    data = page_data(again)
    assert data["runs"][0]["miou"] > 0
    assert data["runs"][0]["rows"][0][0] is None  # a PNG says no confidence


def test_folders_of_predictions_are_put_on_one_page(checkpoint, camvid, tmp_path, capsys):
    ids, report, both = (tmp_path / name for name in ("ids", "report", "both"))
    words = ["--restore-from", checkpoint, *on_camvid(camvid)]
    run_evaluate(*words, "--save", ids, "--report", report)
    gallery.main(gallery.parse_args([*map(str, (report, ids)), "--output", str(both)]))
    assert capsys.readouterr().out.endswith(f"to look at: {both / 'index.html'}\n")
    first, second = page_data(both)["runs"]
    assert [first["name"], second["name"]] == ["report", "ids"]
    assert first["miou"] == second["miou"]
    assert [row[1] for row in first["rows"]] == [row[1] for row in second["rows"]]
    assert all(image["differs"] == 0 for image in page_data(both)["images"])
    assert (report / "maps" / "0_0.js").is_file()  # a part's files are copied

    seen = tmp_path / "seen"
    run_evaluate("--restore-from", checkpoint, "--images", camvid / "val", "--save", seen)
    gallery.main(gallery.parse_args([str(seen), "--output", str(both)]))
    assert page_data(both)["runs"][0]["miou"] is None
    words = [str(report), str(seen), "--output", str(both)]
    with pytest.raises(UserError, match=r"are of different images: 0016E5_07959\.png"):
        gallery.main(gallery.parse_args(words))
    (camvid / "val").rename(camvid / "moved")
    for folder in (ids, seen):
        with pytest.raises(UserError, match=f"{folder}: its images are not as they were: "):
            gallery.main(gallery.parse_args([str(folder), "--output", str(both)]))
    assert page_data(both)["runs"][0]["name"] == "seen"  # the page is as it was


def test_a_folder_is_replaced_where_it_is_a_report_alone(tmp_path):
    folder = tmp_path / "a" / "report"
    for text in ("one", "two"):
        with placed(folder) as made:
            (made / "index.html").write_text(text)
            (made / "report.json").write_text("{}")
        assert (folder / "index.html").read_text() == text
        assert [path.name for path in folder.parent.iterdir()] == ["report"]
    with pytest.raises(RuntimeError), placed(folder) as made:  # noqa: PT012
        (made / "index.html").write_text("three")
        raise RuntimeError
    assert (folder / "index.html").read_text() == "two"
    assert [path.name for path in folder.parent.iterdir()] == ["report"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is no report alone \(notes.txt\)"), placed(folder):
        pass
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="a file or a link"), placed(folder / "notes.txt"):
        pass


def test_damaged_reports_are_refused(tmp_path):
    with pytest.raises(UserError, match="--report, nor of its --save"):
        Part.read(tmp_path)
    (tmp_path / "report.json").write_text('{"format": 3}')
    with pytest.raises(UserError, match=r"report\.json: "):
        Part.read(tmp_path)


def test_counts_are_packed_and_damage_is_seen():
    counts = torch.tensor([[0, 5, 0], [0, 0, 2], [1, 0, 0]])
    assert packed(counts) == [2, 5, 4, 2, 1, 1]
    assert unpacked(packed(counts), 3).equal(counts)
    assert packed(torch.zeros(3, 3)) == []
    assert unpacked([], 3).sum() == 0
    for damaged in ([1], [0, 5], [10, 1], [-1, 2], [1, -2]):
        with pytest.raises(UserError, match="damaged"):
            unpacked(damaged, 3)


def test_no_name_ends_the_data():
    names = ["</script><script>alert(1)</script>", "<!--", "a & b", "\u2028", '"']
    text = escaped(names)
    assert not set("<>&") & set(text)
    assert json.loads(text) == names


def test_networks_are_called_by_what_differs():
    assert short_names(["runs/day/best.pth"]) == ["best"]
    assert short_names(["runs/a/best.pth", "runs/b/best.pth"]) == ["a", "b"]
    assert short_names(["a/one.pth", "b/two.pth"]) == ["one", "two"]
    assert short_names(["x/a/1.pth", "y/a/2.pth", "y/b/1.pth"]) == ["a/1", "a/2", "b/1"]
    assert short_names(["one.pth", "one.pth"]) == ["one.pth (1)", "one.pth (2)"]
