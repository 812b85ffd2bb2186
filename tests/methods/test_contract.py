"""The contract between train_da.py and the methods: what toys may do, and what is refused."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import pytest
import torch
from torch import Tensor

import methods
import train_da
from engine.errors import UserError
from engine.words import Weight
from methods import METHODS, Adapting, Method, Seen, Setting
from worlds import SETTING, halved, make_seen

TOY = "--recipe streets --no-baseline --num-steps 3 --adapt-from 1 --batch-size 2 --print-every 1"


class Toy(Method):
    """A method whose term is the mean of the target's logits."""

    needs = frozenset({"target_out"})
    term = "toy"

    def __init__(self, _setting: Setting, *, lambda_toy: Annotated[Weight, "of its term"] = 0.5):
        super().__init__()
        self.weight, self.finished = lambda_toy, []

    def forward(self, seen: Seen, student) -> dict[str, Tensor]:
        return {self.term: self.weight * seen.target.outputs["out"].float().square().mean()}

    def finish(self, network, target) -> bool:
        self.finished.append(sum(len(images) for images in target()))
        return False


class Other(Toy):
    """Another method with a term of the same name."""


class Renamed(Toy):
    """Another method with a term of its own."""

    term = "renamed"


class Silent(Method):
    """A method that returns what the base class does, although it has the target forwarded."""

    needs = frozenset({"target_out"})

    def __init__(self, _setting: Setting):
        super().__init__()


class SourceOnly(Method):
    """A method that needs nothing but the source."""

    def __init__(self, _setting: Setting):
        super().__init__()
        self.steps = []

    def forward(self, seen: Seen, student) -> dict[str, Tensor]:
        self.steps.append(seen.step)
        outputs = student(seen.source.image)
        return {"source_only": outputs["out"].float().square().mean()}


TOYS = {"toy": Toy, "other": Other, "renamed": Renamed, "silent": Silent, "source_only": SourceOnly}


@pytest.fixture
def run(monkeypatch, tmp_path: Path):
    """Return a function that trains with toy methods, and gives the methods and the log."""
    for name, method in TOYS.items():
        monkeypatch.setitem(METHODS, name, method)
    built = []
    init = Adapting.__init__
    monkeypatch.setattr(
        Adapting, "__init__", lambda self, *given: (init(self, *given), built.append(self))[0]
    )

    def run(*words: str) -> tuple[Adapting, list[dict]]:
        folder = tmp_path / str(len(built))
        args = train_da.parse_args([*shlex.split(TOY), *words, "--snapshot-dir", str(folder)])
        train_da.main(args)
        lines = (folder / "log.jsonl").read_text().splitlines()
        return built[-1], [line for line in map(json.loads, lines) if "seg" in line]

    return run


def test_a_method_without_terms_trains_as_none(run):
    _, log = run("--method", "silent")
    _, alone = run("--method", "none")
    assert [line["seg"] for line in log] == [line["seg"] for line in alone]


def test_two_methods_with_a_term_of_one_name_are_an_error_that_names_both(run):
    with pytest.raises(UserError, match="methods toy and other both have a term called 'toy'"):
        run("--method", "toy", "other")
    _, log = run("--method", "toy", "renamed")
    assert log[-1]["toy"] == log[-1]["renamed"] > 0


def test_every_finish_passes_over_the_whole_target(run):
    adapting, _ = run("--method", "toy", "renamed", "--num-images", "6")
    assert [method.finished for method in adapting.values()] == [[6], [6]]


def test_a_method_that_needs_the_source_alone_is_called(run):
    adapting, log = run("--method", "source_only")
    assert adapting["source_only"].steps == [1, 2]  # from --adapt-from on
    assert ["source_only" in line for line in log] == [False, True, True]
    assert adapting.domains == []  # no image of the target is loaded for it


def test_flags_come_from_the_constructors_keywords(run):
    adapting, log = run("--method", "toy", "--lambda-toy", "0")
    assert adapting["toy"].weight == 0
    assert log[-1]["toy"] == 0
    with pytest.raises(SystemExit):
        run("--method", "toy", "--lambda-toy", "-1")


def test_gradients_of_a_batch_are_those_of_all_terms():
    """Adapting adds terms up and drops none."""
    student = halved()
    adapting = Adapting(["entropy", "mix"], SETTING, {"lambda_entropy": 2.0, "mix_threshold": 0.0})
    seen = make_seen(student, halved())
    torch.manual_seed(0)
    together = adapting(seen, student)
    torch.manual_seed(0)
    apart = {**adapting["entropy"](seen, student), **adapting["mix"](seen, student)}
    assert together.keys() == apart.keys() == {"entropy_out", "mix"}
    for name, term in together.items():
        assert torch.equal(term, apart[name])


def test_every_method_is_listed_with_its_flags(capsys):
    with pytest.raises(SystemExit):
        train_da.parse_args(["--help"])
    text = capsys.readouterr().out
    for name in methods.METHODS:
        assert name in text
    assert "--mix-threshold" in text
    assert "default 0.968" in text
