"""Optimisers, what each parameter's rate and decay are, and the rate from step to step."""

import functools
import math
import re
from collections.abc import Callable
from typing import Annotated

import torch
from torch import nn

from engine.errors import UserError
from engine.parsing import between, numbers
from engine.values import Training
from engine.words import Share, Weight, bind
from training.adamp import AdamP

# ------------------------------------------------------------------ optimisers


def make_optimizer(
    name: str,
    groups: list[dict],
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return an optimizer over parameter groups that carry their own `lr`.

    Args:
        name: sgd, adam, adamw or adamp.
        groups: of `parameter_groups`.
        learning_rate: of a group without one.
        momentum: of SGD; the others keep their betas of 0.9 and 0.999.
        weight_decay: L2 of SGD and Adam, decoupled in AdamW and AdamP.
        nesterov: whether SGD looks ahead along its momentum.

    Raises:
        UserError: Nesterov's momentum without SGD, or without momentum.
    """
    if nesterov and (name != "sgd" or momentum == 0):
        raise UserError("--nesterov goes with --optimizer sgd and a --momentum above 0")
    how = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamp":
        return AdamP(groups, **how)
    how["fused"] = all(p.device.type == "cuda" for group in groups for p in group["params"])
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **how)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, **how)


def parameter_groups(network: nn.Module, training: Training) -> list[dict]:
    """Return the network's own groups, or finer ones where rates or decay differ inside them.

    Args:
        network: whose `param_groups` has the backbone's first, if it has one.
        training: `backbone_rate` multiplies the backbone's rates; `layer_decay` ** k those of its
            k-th block before the head; without `norm_decay` no vector is decayed, which norms and
            biases are.

    Raises:
        UserError: a rate of a backbone that the network does not have.

    Source: BEiT (Bao et al. 2022), appendix (layer-wise decay); He et al. 2019, section 3.1 (no
    decay of norms and biases).
    """
    groups = network.param_groups(training.learning_rate)
    inside = training.backbone_rate != 1 or training.layer_decay != 1
    if inside and len(groups) == 1:
        raise UserError("--backbone-rate, --layer-decay: this network has no backbone")
    if not inside and training.norm_decay:
        return groups
    before = _blocks_to_head(network, {id(p) for p in groups[0]["params"]}) if inside else {}
    finer: dict[tuple, dict] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            rate, decayed = group["lr"], training.norm_decay or parameter.ndim > 1
            if id(parameter) in before:
                rate *= training.backbone_rate * training.layer_decay ** before[id(parameter)]
            one = finer.setdefault((number, rate, decayed), {"params": [], "lr": rate})
            one["params"].append(parameter)
            if not decayed:
                one["weight_decay"] = 0.0
    return list(finer.values())


def _blocks_to_head(network: nn.Module, backbone: set[int]) -> dict[int, int]:
    """Return of each parameter of the backbone, by id, how many blocks before the head it stands.

    A block is what stands under one number: `layer1.0`, `blocks.3.1`. What has none belongs to the
    block before it; the stem, before the first, is a block too.
    """
    blocks: list[str | None] = [None]
    place = {}
    for name, parameter in network.named_parameters():
        if id(parameter) not in backbone:
            continue
        numbered = re.match(r".*?(?:\.\d+)+(?=\.)", name)
        if numbered and numbered[0] != blocks[-1]:
            blocks.append(numbered[0])
        place[id(parameter)] = len(blocks) - 1
    return {key: len(blocks) - index for key, index in place.items()}


# ------------------------------------------------------------------ schedules
# share of the steps that are done -> factor of the initial learning rate


def poly(done: float, *, power: Annotated[Weight, "of the polynomial"] = 0.9) -> float:
    """Return (1 - done) ** power. Source: DeepLab (Chen et al. 2017), section 3.1."""
    return (1 - done) ** power


def linear(done: float, *, floor: Annotated[Share, "where it ends"] = 0.0) -> float:
    """Return the height of a straight line from 1 to `floor`."""
    return 1 - done * (1 - floor)


def cosine(done: float, *, floor: Annotated[Share, "where it ends"] = 0.0) -> float:
    """Return half a wave from 1 to `floor`. Source: SGDR (Loshchilov and Hutter 2017), eq. 5."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def step(
    done: float,
    *,
    at: Annotated[tuple, numbers(between(0, 1)), "shares of the steps"] = (0.5, 0.75),
    factor: Annotated[Share, "what the rate is multiplied by at each of them"] = 0.1,
) -> float:
    """Return `factor` to the power of how many of `at` are over."""
    return factor ** sum(done >= share for share in at)


def constant(done: float) -> float:
    """Return 1."""
    return 1.0


SCHEDULES: dict[str, Callable[..., float]] = {
    one.__name__: one for one in (poly, linear, cosine, step, constant)
}


def parse_schedule(words: list[str]) -> Callable[[float], float]:
    """Return the schedule that words name: `poly power=0.9`, `step at=0.6,0.9 factor=0.2`.

    Raises:
        UserError: a name, key or value that does not exist; says which do.
    """
    name, *pairs = words
    if name not in SCHEDULES:
        raise UserError(f"--schedule {name}: there are: {', '.join(SCHEDULES)}")
    schedule = SCHEDULES[name]
    given = (word.partition("=")[::2] for word in pairs)
    return functools.partial(schedule, **bind(f"schedule {name}", schedule, given))


def rate_at(
    step: int, num_steps: int, schedule: Callable[[float], float], warmup_steps: int = 0
) -> float:
    """Return the factor of the initial learning rate, 0 to 1: linear warm-up times the schedule.

    Args:
        step: steps done.
        num_steps: of the schedule; after them it stays where it ended.
        schedule: of `parse_schedule`.
        warmup_steps: over which the rate rises; 0 for none.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * schedule(min(step, num_steps) / num_steps)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times its initial one, kept in the group."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate
