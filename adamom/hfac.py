"""H-Fac: first and second moments of a matrix, both kept as a row and a column.

For a gradient G of m rows and n columns, with b_i(t) = b_i (1 - b_i^(t-1)) / (1 - b_i^t):

    u <- b1(t) u + (1 - b1(t)) row means of G            r <- b2(t) r + (1 - b2(t)) row sums of G^2 + eps
    w <- b1(t) w + (1 - b1(t)) column means of G         s <- b2(t) s + (1 - b2(t)) column sums of G^2 + eps
    V = r s^T / sum(r)
    phi = b1(t) (u - row means) 1^T / sqrt(r / n)        psi = b1(t) 1 (w - column means)^T / sqrt(s / m)
    X <- X - lr ((phi + psi) / 2 + clip(G / sqrt(V)) + weight_decay X),    clip(U) = U / max(1, RMS(U) / clip)

Nguyen, Chen, Liu, Liu (2024, arXiv 2406.09958). The first step is that of a clipped Adafactor. The state is 2 (m + n)
numbers. A tensor of other than two dimensions is read as a matrix whose rows are its first dimension.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from .elementwise import ElementwiseOptimizer, count
from .optimizer import ParamGroup, Params, State

__all__ = ["HFac", "hfac_"]


def hfac_(
    X: Tensor,
    G: Tensor,
    u: Tensor,
    w: Tensor,
    r: Tensor,
    s: Tensor,
    *,
    t: float,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float,
    weight_decay: float,
) -> None:
    """One step of a matrix X, in place. u, r: one entry per row. w, s: one per column. t counts from 1."""
    (m, n), (b1, b2) = X.shape, (b * (1 - b ** (t - 1)) / (1 - b**t) for b in betas)
    rows, columns = G.mean(dim=1), G.mean(dim=0)
    squares = G.square() + eps
    u.lerp_(rows, 1 - b1)
    w.lerp_(columns, 1 - b1)
    r.lerp_(squares.sum(dim=1), 1 - b2)
    s.lerp_(squares.sum(dim=0), 1 - b2)
    phi = b1 * ((u - rows) / (r / n).sqrt())[:, None]
    psi = b1 * ((w - columns) / (s / m).sqrt())[None, :]
    U = G / ((r / r.sum()).sqrt()[:, None] * s.sqrt()[None, :])
    rms = U.square().mean().sqrt()
    X.sub_(lr * ((phi + psi) / 2 + U / (rms / clip).clamp(min=1) + weight_decay * X))


class HFac(ElementwiseOptimizer):
    """H-Fac as a torch optimizer. Raises ValueError for values out of range."""

    ranges: ClassVar = {"betas": (0, 1), "eps": (0, math.inf), "clip": (1e-30, math.inf)}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-30,
        clip: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"betas": betas, "eps": eps, "clip": clip, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "maximize": maximize, **options})

    def start(self, param: Tensor, group: ParamGroup) -> State:
        rows, columns = matrix(param).shape
        lengths = {"row_mean": rows, "column_mean": columns, "row_square": rows, "column_square": columns}
        return {name: torch.zeros(length, dtype=param.dtype, device=param.device) for name, length in lengths.items()}

    def update_(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> None:
        X = matrix(param).clone() if not param.is_contiguous() else matrix(param)
        kept = (state[name] for name in ("row_mean", "column_mean", "row_square", "column_square"))
        options = {name: group[name] for name in ("lr", "betas", "eps", "clip", "weight_decay")}
        hfac_(X, matrix(grad), *kept, t=count(state) + 1, **options)
        if not param.is_contiguous():
            param.copy_(X.reshape(param.shape))


def matrix(tensor: Tensor) -> Tensor:
    """The tensor as a matrix: its first dimension by all others."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, math.prod(tensor.shape[1:]))
