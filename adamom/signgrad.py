"""SigSignGrad and TanhSignGrad: Adam that damps an entry whose gradient has just changed its sign.

    m <- b1 m + (1 - b1) g                 S = sigmoid(k g' g)        (SigSignGrad)
    s <- b2 s + (1 - b2) g^2               S = tanh(k g' g) + 1       (TanhSignGrad)
    x <- x - lr (S m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps) + weight_decay x)

g' is the gradient of the step before, 0 at first. The idea is that of arXiv 2408.11839 as a review tells it; the place
of S is from an earlier repository of the same idea; k = 1e5 is inferred.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from .elementwise import ElementwiseOptimizer, count, zeros
from .optimizer import ParamGroup, Params, State

__all__ = ["SigSignGrad", "TanhSignGrad", "sign_grad_"]


def sign_grad_(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    s: Tensor,
    damping: Tensor,
    *,
    t: float,
    lr: float | Tensor,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of a tensor x of any shape and its moments, in place. damping: S, of the shape of x. t counts from 1."""
    m.lerp_(g, 1 - b1)
    s.mul_(b2).addcmul_(g, g, value=1 - b2)
    scale = (s / (1 - b2**t)).sqrt_().add_(eps)
    x.sub_(lr * (damping * (m / (1 - b1**t)) / scale + weight_decay * x))


class SigSignGrad(ElementwiseOptimizer):
    """Adam times sigmoid(k g' g). Raises ValueError for values out of range."""

    ranges: ClassVar = {"betas": (0, 1), "eps": (0, math.inf), "sharpness": (0, math.inf)}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        sharpness: float = 1e5,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "sharpness": sharpness}
        super().__init__(params, {"lr": lr, "maximize": maximize, **options})

    @staticmethod
    def damping(agreement: Tensor) -> Tensor:
        """S of k g' g."""
        return torch.sigmoid(agreement)

    def start(self, param: Tensor, group: ParamGroup) -> State:
        return zeros(param, "exp_avg", "exp_avg_sq", "previous_grad")

    def update_(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> None:
        damping = self.damping(group["sharpness"] * state["previous_grad"] * grad)
        b1, b2 = group["betas"]
        options = {name: group[name] for name in ("lr", "eps", "weight_decay")}
        sign_grad_(
            param, grad, state["exp_avg"], state["exp_avg_sq"], damping, t=count(state) + 1, b1=b1, b2=b2, **options
        )
        state["previous_grad"].copy_(grad)


class TanhSignGrad(SigSignGrad):
    """Adam times tanh(k g' g) + 1. Raises ValueError for values out of range."""

    @staticmethod
    def damping(agreement: Tensor) -> Tensor:
        return torch.tanh(agreement) + 1
