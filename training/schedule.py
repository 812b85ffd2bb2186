"""Optimisers, and the learning rate from step to step."""

import torch


def make_optimizer(
    name: str, groups: list[dict], *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD with momentum or AdamW over parameter groups that carry their own `lr`.

    Args:
        name: sgd or adamw.
        groups: of `model.param_groups(learning_rate)`.
        learning_rate: of a group without one.
        momentum: of SGD; AdamW keeps its betas of 0.9 and 0.999.
        weight_decay: L2 of SGD, decoupled in AdamW.
    """
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def poly_rate(step: int, num_steps: int, power: float, warmup_steps: int = 0) -> float:
    """Return the factor of the initial learning rate, 0 to 1: linear warm-up times poly.

    Args:
        step: steps done.
        num_steps: at which the rate reaches 0.
        power: of the polynomial.
        warmup_steps: over which it rises; 0 for none.

    Source: (1 - step / num_steps) ** power, DeepLab (Chen et al. 2017, section 3.1).
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * (1 - min(step, num_steps) / num_steps) ** power


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times its initial one, kept in the group."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate
