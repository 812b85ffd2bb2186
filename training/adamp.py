"""AdamP: Adam whose steps do not lengthen weights that a norm makes scale-free."""

import torch
from torch import Tensor


class AdamP(torch.optim.Optimizer):
    """Adam with decoupled weight decay, its steps projected where a weight is scale-free.

    A weight w is taken for scale-free where its gradient g stands at a right angle to it: where
    max |cos(g, w)| < `delta` / sqrt(size of a view), over the filters of w (one view each), else
    over w as a whole. The part of the step along w is then removed, and `wd_ratio` of the weight
    decay is left. Vectors (norms, biases) take Adam's steps.

    Args:
        params: of `torch.optim.Optimizer`; groups may have a `weight_decay` of their own.
        lr: learning rate.
        betas: of the averages of gradients and of their squares.
        eps: added to the root of the second.
        weight_decay: decoupled.
        delta, wd_ratio: see above.

    Source: Heo et al. 2021, algorithm 2 and equations 11 and 12, with their values. Deviation: the
    choice of the view stays on the device.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ):
        how = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**how, "delta": delta, "wd_ratio": wd_ratio})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
        state["step"] += 1
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction = (1 - beta2 ** state["step"]) ** 0.5
        step = mean / (square.sqrt() / correction + group["eps"])
        decay = torch.ones((), device=parameter.device)
        if parameter.ndim > 1:
            step, decay = _projected(parameter, grad, step, group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"] * decay)
        parameter.sub_(step, alpha=group["lr"] / (1 - beta1 ** state["step"]))


def _projected(parameter: Tensor, grad: Tensor, step: Tensor, group: dict) -> tuple[Tensor, Tensor]:
    """Return the step without its part along a scale-free weight, and the share of the decay."""
    result, decay = step, torch.ones((), device=step.device)
    found = torch.zeros((), dtype=torch.bool, device=step.device)
    for rows in (len(parameter), 1):  # the filters, else the whole
        w, g, s = (t.reshape(rows, -1) for t in (parameter, grad, step))
        length = w.norm(dim=1, keepdim=True)
        cosine = (w * g).sum(1) / (length[:, 0] * g.norm(dim=1)).clamp(min=group["eps"])
        free = ~found & (cosine.abs().max() < group["delta"] / w.shape[1] ** 0.5)
        unit = w / (length + group["eps"])
        across = (s - unit * (unit * s).sum(1, keepdim=True)).view_as(step)
        result, decay = torch.where(free, across, result), decay.where(~free, group["wd_ratio"])
        found = found | free
    return result, decay
