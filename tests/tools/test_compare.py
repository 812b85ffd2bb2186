"""Runs beside each other: seeds averaged, controls taken off seed by seed, in four formats."""

import csv
import json
import math
from pathlib import Path

import pytest

from engine.errors import UserError
from tools import compare


def write(folder: Path, last: float, finished: float | None = None, classes="road car") -> Path:
    """Write the result.json of an adapted run."""
    folder.mkdir()

    def score(miou: float) -> dict:
        return {"step": 9, "miou": miou, "iou": {name: miou for name in classes.split()}}

    kinds = {"last": score(last), "best": score(last + 1)}
    kinds |= {} if finished is None else {"finished": score(finished)}
    (folder / "result.json").write_text(json.dumps({"adapted": {**score(last), **kinds}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Return two seeds of a method and three of its control, of which one pairs with nothing."""
    folders = [write(tmp_path / "mix_0", 40, 50), write(tmp_path / "mix_1", 44, 51)]
    folders += [write(tmp_path / f"control_{seed}", 30 + seed, 50) for seed in (0, 1, 7)]
    return list(map(str, folders))


def shown(capsys, *words: str) -> str:
    compare.main(compare.parse_args(list(words)))
    return capsys.readouterr().out


def test_means_deviations_and_differences_by_hand(runs, capsys):
    out = shown(capsys, *runs, "--against", "control", "--format", "csv")
    mix, control = csv.DictReader(out.splitlines())
    assert (mix["run"], mix["seeds"], control["seeds"]) == ("mix", "2", "3")
    assert (mix["last"], mix["last deviation"]) == ("42.0", f"{math.sqrt(8):.1f}")
    assert (mix["+ AdaBN"], mix["best"]) == ("50.5", "43.0")
    # 40 - 30 and 44 - 31: seed 7 of the control has no partner
    assert (mix["last - control"], mix["last - control deviation"]) == ("+11.5", "2.1")
    assert (control["last"], control["last - control"]) == ("32.7", "")


def test_every_format_holds_the_same_cells(runs, capsys):
    cells = ["mix", "2", "42.0 ± 2.8", "50.5 ± 0.7", "43.0 ± 2.8"]
    assert shown(capsys, *runs).splitlines()[1].split() == " ".join(cells).split()
    markdown = shown(capsys, *runs, "--format", "markdown").splitlines()
    assert markdown[1] == "| --- | --- | --- | --- | --- |"
    assert markdown[2] == f"| {' | '.join(cells)} |"
    latex = shown(capsys, *runs, "--format", "latex").splitlines()
    assert latex[4] == " & ".join(cells).replace("±", r"$\pm$") + r" \\"


def test_classes_and_names_that_latex_would_act_on(tmp_path: Path, capsys):
    run = write(tmp_path / "a_b%", 1, classes="<script> 5_%&")
    out = shown(capsys, str(run), "--classes", "--format", "latex")
    assert r"a\_b\% & 1 & 1.0 & 2.0 & 1.0 & 1.0 \\" in out
    assert r"<script> & 5\_\%\&" in out


def test_a_supervised_run_and_a_baseline_beside_the_adapted_one(tmp_path: Path, capsys):
    run = write(tmp_path / "own", 20)
    kinds = json.loads((run / "result.json").read_text())["adapted"]
    (run / "result.json").write_text(json.dumps({"adapted": kinds, "source_only": kinds}))
    single = write(tmp_path / "seg", 30)
    kinds = json.loads((single / "result.json").read_text())["adapted"]
    (single / "result.json").write_text(json.dumps({"last": kinds["last"], "best": kinds["best"]}))
    names = [line.split("  ")[0] for line in shown(capsys, str(run), str(single)).splitlines()]
    assert names[1:] == ["own", "own (source only)", "seg"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda run: (run / "result.json").unlink(), "no result.json"),
        (lambda run: (run / "result.json").write_text("{"), "cannot read this result"),
        (lambda run: (run / "result.json").write_text('{"last": {"miou": "x"}}'), "result.json"),
        (lambda run: (run / "result.json").write_text("[" * 100_000), "nested too deeply"),
    ],
)
def test_results_that_are_none(spoil, why: str, runs):
    spoil(Path(runs[0]))
    with pytest.raises(UserError, match=why):
        compare.main(compare.parse_args(runs))


def test_rows_that_cannot_be(tmp_path: Path, runs):
    with pytest.raises(UserError, match=r"no row x; there are: mix, control"):
        compare.main(compare.parse_args([*runs, "--against", "mix=x"]))
    other = write(tmp_path / "other", 3, classes="road bus")
    with pytest.raises(UserError, match=r"other and .*mix_0 were scored on different classes"):
        compare.main(compare.parse_args([*runs, str(other)]))
    (tmp_path / "elsewhere").mkdir()
    twice = write(tmp_path / "elsewhere" / "mix_0", 3)
    with pytest.raises(UserError, match="a second run called mix, seed 0"):
        compare.main(compare.parse_args([*runs, str(twice)]))
