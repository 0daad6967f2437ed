"""AdaRem: the rate of an entry grows where its gradient agrees with the past, and shrinks where it does not.

    b <- sign(g) m / (max_j |m_j| + eps)      per tensor
    x <- x - lr ((1 + decay^t b) g + weight_decay x)
    m <- beta m + (1 - beta) g

Liu, Wu, Mu (2020, arXiv 2010.11041), from third-party code, whose author calls the paper under-specified. t counts
from 0.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from .elementwise import ElementwiseOptimizer, count, zeros
from .optimizer import ParamGroup, Params, State

__all__ = ["AdaRem", "adarem_"]


def adarem_(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    *,
    t: float,
    lr: float | Tensor,
    beta: float,
    decay: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of a tensor x of any shape and its memory m, in place."""
    largest = (m.abs().amax() + eps).clamp(min=torch.finfo(m.dtype).tiny) if m.numel() else 1  # float16 has no 1e-8
    b = g.sign() * m / largest
    x.sub_(lr * ((1 + decay**t * b) * g + weight_decay * x))
    m.mul_(beta).add_(g, alpha=1 - beta)


class AdaRem(ElementwiseOptimizer):
    """AdaRem as a torch optimizer. Raises ValueError for values out of range."""

    ranges: ClassVar = {"beta": (0, 1), "decay": (0, math.nextafter(1, 2)), "eps": (0, math.inf)}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.4,
        beta: float = 0.9,
        decay: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"beta": beta, "decay": decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "maximize": maximize, **options})

    def start(self, param: Tensor, group: ParamGroup) -> State:
        return zeros(param, "exp_avg")

    def update_(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> None:
        options = {name: group[name] for name in ("lr", "beta", "decay", "eps", "weight_decay")}
        adarem_(param, grad, state["exp_avg"], t=count(state), **options)
