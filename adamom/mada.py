"""MADA: an optimizer that is a mixture of Adam, AMSGrad, Yogi, Adan and Lion, and learns the mixture as it goes.

With the change of gradient dg = g - g' and the six coefficients h = (b1, b2, b3, rho, c, kappa):

    m <- b1 m + (1 - b1) g                 n <- b3 n + (1 - b3) dg             G = g + b3 dg
    q = c G^2 + (1 - c) (v + G^2 sign(G^2 - v))                               v <- b2 v + (1 - b2) q
    a <- mean of v over all steps          V = rho v + (1 - rho) a
    d = kappa (m / (1 - b1^t) + b3 n) / (sqrt(V / (1 - b2^t)) + eps) + (1 - kappa) sign(0.95 l + 0.05 g)
    l <- 0.98 l + 0.02 g                   x <- x - lr d

The loss at the new x is a function of the h that led there, through one step, so its gradient there moves h:
dL/dh = -lr <g, dd/dh>, found by differentiating the step itself. Then h is clamped to its ranges.

Ozkara, Karakus, Raman, Hong, Sabach, Kveton, Cevher (2024, arXiv 2401.08893), from the official code. Where the
coefficients start is inferred: at Adam, which is b3 = 0, rho = c = kappa = 1.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .elementwise import ElementwiseOptimizer, refuse_exotic, zeros
from .optimizer import ParamGroup, Params, State

__all__ = ["MADA", "Moments", "mada"]

COEFFICIENTS = ("b1", "b2", "b3", "rho", "c", "kappa")
RATES = (5e-4, 5e-4, 1e-1, 1e-1, 1e-1, 1e-1)
LOWEST = (0.01, 0.501, 0.0, 0.0, 0.0, 0.0)
HIGHEST = (0.99, 0.99, 0.99, 1.0, 1.0, 1.0)
TINY = 1e-38  # the root has no slope at 0


class Moments(NamedTuple):
    """What a tensor keeps from step to step: m, n, v, a and l of the equations, and the gradient."""

    m: Tensor
    n: Tensor
    v: Tensor
    a: Tensor
    l: Tensor  # noqa: E741  # the equations' own letter
    g: Tensor


def mada(before: Moments, g: Tensor, h: Tensor, *, t: float, eps: float) -> tuple[Tensor, Moments]:
    """The direction d and the new moments of one tensor, differentiable in h. h: shape (6,). t counts from 1."""
    b1, b2, b3, rho, c, kappa = h.unbind()
    dg = g - before.g if t > 1 else torch.zeros_like(g)
    m = b1 * before.m + (1 - b1) * g
    n = b3 * before.n + (1 - b3) * dg
    square = (g + b3 * dg).square()
    q = c * square + (1 - c) * (before.v + square * (square - before.v).sign())
    v = b2 * before.v + (1 - b2) * q
    a = before.a + (v - before.a) / t
    scale = ((rho * v + (1 - rho) * a) / (1 - b2**t)).clamp(min=TINY).sqrt() + eps
    lion = (0.95 * before.l + 0.05 * g).sign()
    d = kappa * (m / (1 - b1**t) + b3 * n) / scale + (1 - kappa) * lion
    return d, Moments(m, n, v, a, 0.98 * before.l + 0.02 * g, g)


class MADA(ElementwiseOptimizer):
    """MADA as a torch optimizer. `param_groups[i]["coefficients"]` is h, of shape (6,), as learned so far.

    betas, b3, rho, c, kappa: where the coefficients start. learn: how fast they move, as a factor of the published
    rates; 0 keeps them. Weight decay is decoupled. Raises ValueError for values out of range.
    """

    ranges: ClassVar = {"eps": (0, math.inf), "learn": (0, math.inf)}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        b3: float = 0.0,
        rho: float = 1.0,
        c: float = 1.0,
        kappa: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        learn: float = 1.0,
        *,
        maximize: bool = False,
    ) -> None:
        start = (*betas, b3, rho, c, kappa)
        for name, value, low, high in zip(COEFFICIENTS, start, LOWEST, HIGHEST, strict=True):
            if not low <= value <= high:
                raise ValueError(f"MADA: {name} must lie in [{low}, {high}], got {value}.")
        options = {"eps": eps, "weight_decay": weight_decay, "learn": learn, "maximize": maximize}
        super().__init__(params, {"lr": lr, "coefficients": torch.tensor(start, dtype=torch.float64), **options})

    def add_param_group(self, param_group: ParamGroup) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["coefficients"] = group["coefficients"].clone()  # every group learns its own

    def start(self, param: Tensor, group: ParamGroup) -> State:
        return zeros(param, *Moments._fields, *(f"before_{name}" for name in Moments._fields))

    def step_group(self, group: ParamGroup) -> None:
        """Learn from where the last step led, then take the next one."""
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            refuse_exotic(type(self).__name__, param)
        if group["learn"]:
            self._learn(group, [param for param in params if self.state[param]])
        super().step_group(group)

    def _learn(self, group: ParamGroup, params: list[Tensor]) -> None:
        """h <- clamp(h - rates dL/dh), through the step that each parameter took last."""
        h = group["coefficients"]
        slope = torch.zeros_like(h)
        for param in params:
            state, g = self.state[param], param.grad
            assert g is not None  # step_group chose those that have one
            with torch.enable_grad():
                variable = h.to(param).requires_grad_()
                d, _ = mada(recall(state, "before_"), state["g"], variable, t=state["step"].item(), eps=group["eps"])
                (slope_here,) = torch.autograd.grad(d, variable, -state["lr"].to(g) * (-g if group["maximize"] else g))
            slope += slope_here.to(slope)
        rates, low, high = (h.new_tensor(values) for values in (RATES, LOWEST, HIGHEST))
        h.sub_(group["learn"] * rates * slope).clamp_(low, high)

    def update_(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> None:
        before = recall(state)
        h = group["coefficients"].to(param)
        d, after = mada(before, grad, h, t=state["step"].item() + 1, eps=group["eps"])
        for name, old, new in zip(Moments._fields, before, after, strict=True):
            state[f"before_{name}"].copy_(old)
            state[name].copy_(new)
        state["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64).clone()
        param.sub_(group["lr"] * (d + group["weight_decay"] * param))


def recall(state: State, prefix: str = "") -> Moments:
    return Moments(*(state[prefix + name] for name in Moments._fields))
