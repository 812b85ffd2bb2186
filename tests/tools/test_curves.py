"""Curves of training runs on a page: tools/curves.py."""

import json
import re

import pytest

from browser import Browser
from engine.errors import UserError
from tools import curves

NAME = "<script>window.hurt = 1</script>"


def write_run(folder, lines: int = 4, end: str = ""):
    folder.mkdir(parents=True)
    entries = []
    for step in range(10, 10 * lines + 1, 10):
        rate = {"learning_rate": 1e-3, "steps_per_second": 2.0, "images_per_step": 8}
        entries.append({"step": step, **rate, "seg": 10 / step})
        entries.append({"step": step, "val_miou": step + 0.5, "val_iou": {"car": step, NAME: None}})
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "log.jsonl").write_text(text + end)
    return folder


def draw(*words) -> None:
    curves.main(curves.parse_args([str(word) for word in words]))


def page_data(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


def test_every_number_of_a_log_has_a_curve(tmp_path, capsys):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", lines=2)
    draw(one, two)
    assert capsys.readouterr().out == f"to look at: {one / 'curves.html'}\n"
    runs = page_data(one / "curves.html")["runs"]
    assert [run["name"] for run in runs] == ["one", "two"]
    assert runs[0]["curves"] == {
        "learning_rate": [[step, 0.001] for step in (10, 20, 30, 40)],
        "seg": [[10, 1], [20, 0.5], [30, 0.333333], [40, 0.25]],
        "val_miou": [[10, 10.5], [20, 20.5], [30, 30.5], [40, 40.5]],
        "IoU of car": [[10, 10], [20, 20], [30, 30], [40, 40]],
        "images_per_second": [[step, 16] for step in (10, 20, 30, 40)],
    }


def test_torn_lines_are_told_of(tmp_path, capsys):
    one = write_run(tmp_path / "one", end='{"step": 50, "se')
    two = write_run(tmp_path / "two", end='nonsense\n[]\n{"step": 50, "seg": 1}\n{"step": 60, "s')
    draw(one, two)
    lines = capsys.readouterr().out.splitlines()
    assert "one/log.jsonl: the last line is torn, as of a run that writes" in lines[0]
    assert lines[1].endswith("two/log.jsonl: 3 torn lines are left out (9, 10, 12)")
    assert page_data(one / "curves.html")["runs"][1]["curves"]["seg"][-1] == [50, 1]


def test_what_is_no_run_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"no log\.jsonl: no run"):
        draw(tmp_path, "--output", tmp_path / "a.html")
    (tmp_path / "log.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"log\.jsonl: no line of a training run"):
        draw(tmp_path, "--output", tmp_path / "a.html")
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(UserError, match="is no page of ours"):
        draw(run, "--output", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine"
    with pytest.raises(UserError, match="--names has 2 for 1"):
        draw(run, "--names", "a", "b")


def test_watching_writes_the_page_again(tmp_path, monkeypatch):
    run, lengths = write_run(tmp_path / "run"), []

    def sleep(seconds: float) -> None:
        assert seconds == 7
        lengths.append(len(page_data(run / "curves.html")["runs"][0]["curves"]["seg"]))
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 50, "seg": 0.2}\n')
        if len(lengths) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(curves.time, "sleep", sleep)
    draw(run, "--watch", 7)
    assert lengths == [4, 5, 6]
    assert page_data(run / "curves.html")["watch"] == 7


def test_long_curves_are_thinned_to_means():
    points = [(step, float(step)) for step in range(1, 10)]
    assert curves.thin(points, 9) == points
    assert curves.thin(points, 4) == [(3, 2.0), (6, 5.0), (9, 8.0)]
    assert curves.thin([], 4) == []


@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_draws_charts(tmp_path, width):
    browser = Browser()
    try:
        draw(write_run(tmp_path / "one"), write_run(tmp_path / NAME.replace("/", "")))
        browser.open(tmp_path / "one" / "curves.html", width)
        titles = ["val mIoU", "seg", "learning rate", "images per second", "IoU of car"]
        assert browser.texts("figcaption") == titles
        assert len(browser.texts("polyline")) == 10
        browser.click("[role=group] button")
        assert len(browser.texts("polyline")) == 5
        browser.click("#logarithm")
        browser.click("#classes")
        assert len(browser.texts("polyline")) == 4
        assert "10" in browser.texts("svg text")
        assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0
        assert browser.complaints() == []
        assert browser.run("return window.hurt") is None
    finally:
        browser.driver.quit()
