"""The adaptation methods, one idea a file; train_da.py trains on the sum of their terms.

`base` says what a method is and what it sees; each file has its rows of METHODS at its foot.
"""

import argparse
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from engine import words
from engine.errors import UserError
from methods import adabn, adversarial, entropy, fixmatch, masked, mix, supervised, uncertainty
from methods.base import Method, Seen, Setting
from training.student import Student

__all__ = ["METHODS", "Adapting", "Method", "Seen", "Setting", "add_options"]

METHODS: dict[str, type[Method]] = (
    adversarial.METHODS
    | entropy.METHODS
    | mix.METHODS
    | fixmatch.METHODS
    | masked.METHODS
    | supervised.METHODS
    | uncertainty.METHODS
    | adabn.METHODS
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --method, and a flag for each keyword of the methods' constructors."""
    parser.add_argument(
        "--method",
        nargs="+",
        choices=[*METHODS, "none"],
        default=["adversarial"],
        metavar="NAME",
        help=f"one or several of {', '.join(METHODS)}; or none",
    )
    taken: set[str] = set()
    for name, method in METHODS.items():
        words.add_flags(parser.add_argument_group(f"method {name}"), method, taken)


def unused(names: list[str]) -> set[str]:
    """Return the names of methods' options that none of these has."""
    used = {key for name in names if name in METHODS for key in words.keywords(METHODS[name])}
    return {key for method in METHODS.values() for key in words.keywords(method)} - used


def refuse_idle(names: list[str], given: Iterable[str]) -> None:
    """Refuse options that would do nothing.

    Args:
        names: of the chosen methods.
        given: names of the options that the user gave.

    Raises:
        UserError: names the first, and the methods that it is for.
    """
    for key in sorted(unused(names) & set(given)):
        owners = [name for name, method in METHODS.items() if key in words.keywords(method)]
        raise UserError(
            f"--{key.replace('_', '-')} goes with --method {' or '.join(owners)}, "
            f"not with {' '.join(names)}"
        )


def refuse_mixed(names: list[str], augmentations: Iterable[str]) -> None:
    """Raise UserError where --augment speaks of mixed images, and no method makes any."""
    mixing = [name for name, method in METHODS.items() if method.mixes]
    for word in augmentations:
        if word.startswith("mixed:") and not {*mixing} & {*names}:
            raise UserError(f"--augment {word} goes with --method {' or '.join(mixing)}")


class Adapting(nn.ModuleDict):
    """All methods of a run as one: built, checked, called, and their terms added up.

    Args:
        names: of METHODS; `none` alone for none.
        setting: what each is built with.
        given: values of their constructors' keywords; others are not looked at.

    Attributes:
        needs: of all methods together, see `Method`.
        domains: those beside the source whose images are needed, in a fixed order.

    Raises:
        UserError: a name twice, or none beside others.
    """

    def __init__(self, names: list[str], setting: Setting, given: dict):
        super().__init__()
        if len(set(names)) != len(names) or ("none" in names and len(names) > 1):
            raise UserError(f"--method {' '.join(names)}: each name once, none alone")
        for name in names:
            if name != "none":
                own = words.keywords(METHODS[name]).keys() & given.keys()
                self[name] = METHODS[name](setting, **{key: given[key] for key in own})
        self.needs = frozenset().union(*(method.needs for method in self.values()))
        named = {need.partition("_")[0] for need in self.needs}
        if "teacher" in named:
            named.add("target")
        self.domains = [name for name in ("target", "labelled", "pseudo") if name in named]

    def check(self, network: nn.Module, there: set[str]) -> None:
        """Raise UserError where a method cannot work on a network or with the images there are.

        Args:
            network: the student's.
            there: domains beside the source that have images.
        """
        for domain, flag in (("labelled", "--target-labels"), ("pseudo", "--pseudo-labels")):
            if (domain in self.domains) != (domain in there):
                verb = "needs" if domain in self.domains else "does not use"
                raise UserError(f"--method {' '.join(self) or 'none'} {verb} {flag}")
        for method in self.values():
            method.check(network)

    def forward(self, seen: Seen, student: Student) -> dict[str, Tensor]:
        """Return the terms of all methods.

        Raises:
            UserError: two methods give a term the same name.
        """
        terms, owner = {}, {}
        for name, method in self.items():
            for term, value in method(seen, student).items():
                if term in terms:
                    raise UserError(
                        f"methods {owner[term]} and {name} both have a term called {term!r}"
                    )
                terms[term], owner[term] = value, name
        return terms

    def after_step(self, rate: float) -> dict[str, Tensor]:
        """Let every method train what is its own; return what there is to log."""
        logged = {}
        for method in self.values():
            logged |= method.after_step(rate)
        return logged

    def diagnose(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return every method's values to log and warnings."""
        values, warnings = {}, []
        for method in self.values():
            own, more = method.diagnose()
            values |= own
            warnings += more
        return values, warnings

    def finish(self, network: nn.Module, target: Callable[[], Iterable[Tensor]]) -> bool:
        """Let every method change the trained network; return whether one did."""
        return any([method.finish(network, target) for method in self.values()])
