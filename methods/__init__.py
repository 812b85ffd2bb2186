"""The adaptation methods, one class each. They compose: train_da.py adds up their terms.

A method is an nn.Module, so that one state_dict holds its networks and, as extra state, its
optimiser. What train_da.py relies on:

    add_options(group)         its command-line flags; each flag is a keyword of __init__
    needs                      what the loop must put into the batch, see below; a method that
                               needs nothing only has `finish` called
    check(model)               before any step; raises UserError where it cannot work
    forward(batch, student)    -> {name: weighted loss}; the loop calls backward on their sum
    after_step(rate)           -> {name: loss to log}; after the student's optimiser has stepped
    diagnose()                 -> ({name: value to log}, [warning]), once an interval
    finish(model, batches)     once at the end; True if it changed the model

`batch` always holds step (how many were done), source_image (float [N,3,H,W], 0 to 255),
source_label (uint8 [N,H,W]) and source_out (detached logits). The other domains are there when a
need begins with their name:

    target                     target_image
    labelled                   labelled_image, labelled_label (of --target-labels) and
                               labelled_weight, None
    pseudo                     pseudo_image, pseudo_label (of --pseudo-labels) and pseudo_weight,
                               float [N,H,W], 0 to 1, or None without --pseudo-confidence
    DOMAIN_out                 the student's outputs on that domain's images, too
    DOMAIN_detached            the same; without gradients unless another method needs DOMAIN_out
    teacher_out                target_image, and the EMA teacher's outputs on it

Outputs are dicts of logits [N,C,h,w] under "out" and, for multi-level networks, "aux".
`student(images)` runs the network.
"""

import argparse
import inspect

from torch import nn

from engine.errors import UserError
from methods.adabn import AdaBN
from methods.adversarial import Advent, Adversarial
from methods.base import Method
from methods.entropy import Entropy
from methods.fixmatch import FixMatch
from methods.mix import Mix
from methods.supervised import Pseudo, TargetSupervised
from methods.uncertainty import Memory, Rectify

__all__ = ["METHODS", "Method", "add_options", "build_methods", "domains_of"]

METHODS = {
    "adversarial": Adversarial,
    "advent": Advent,
    "entropy": Entropy,
    "mix": Mix,
    "fixmatch": FixMatch,
    "target_supervised": TargetSupervised,
    "pseudo": Pseudo,
    "memory": Memory,
    "rectify": Rectify,
    "adabn": AdaBN,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --method and every method's own flags."""
    parser.add_argument(
        "--method",
        nargs="+",
        choices=[*METHODS, "none"],
        default=["adversarial"],
        metavar="NAME",
        help=f"one or several of {', '.join(METHODS)}; or none",
    )
    for name, method in METHODS.items():
        if "add_options" in vars(method):
            method.add_options(parser.add_argument_group(f"method {name}"))


def build_methods(names: list[str], values: dict) -> nn.ModuleDict:
    """Build the methods, each with the values its constructor names.

    Raises:
        UserError: a name twice, or none beside others.
    """
    if len(set(names)) != len(names) or ("none" in names and len(names) > 1):
        raise UserError(f"--method {' '.join(names)}: each name once, none alone")
    built = nn.ModuleDict()
    for name in names:
        if name != "none":
            wanted = list(inspect.signature(METHODS[name]).parameters)
            wanted = [key for key in wanted if key in values]
            built[name] = METHODS[name](**{key: values[key] for key in wanted})
    return built


def domains_of(needs: frozenset[str]) -> list[str]:
    """Return which domains beside the source have images that `needs` names, in a fixed order."""
    named = {need.partition("_")[0] for need in needs}
    if "teacher" in named:
        named.add("target")
    return [domain for domain in ("target", "labelled", "pseudo") if domain in named]
