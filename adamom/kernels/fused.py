"""The two passes of an adaptive heavy-ball step, each in one sweep over memory, written in Triton.

    change_       sum of (g' - g)^2, and g' <- g                     reads g', g        writes g'
    heavy_ball_   v <- beta v + g, x <- x - lr v, sum of v^2         reads v, g, x      writes v, x

Eight numbers cross the memory bus per parameter, against at least thirteen of separate operations. beta is read on the
device, so nothing waits for it. Sums are per block and added up by torch, so they are the same at every run.

Checked against the plain step in Triton's interpreter; never run on a GPU by us, so its speed is not known.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import Tensors

__all__ = ["change_", "heavy_ball_"]

BLOCK = 4096  # numbers per program: enough to hide the latency of one sum


@triton.jit
def change_kernel(previous: Any, grad: Any, squares: Any, n: Any, BLOCK: tl.constexpr) -> None:
    block = tl.program_id(0)
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    g = tl.load(grad + i, mask=inside, other=0.0)
    before = tl.load(previous + i, mask=inside, other=0.0)
    change = before.to(tl.float32) - g.to(tl.float32)
    tl.store(squares + block, tl.sum(change * change, axis=0))
    tl.store(previous + i, g, mask=inside)


@triton.jit
def heavy_ball_kernel(
    param: Any, grad: Any, velocity: Any, beta: Any, squares: Any, lr: Any, n: Any, BLOCK: tl.constexpr
) -> None:
    block = tl.program_id(0)
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(velocity + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(param + i, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(beta) * v + g
    tl.store(velocity + i, v, mask=inside)
    tl.store(param + i, x - lr * v, mask=inside)
    tl.store(squares + block, tl.sum(v * v, axis=0))


def change_(previous: Tensors, grads: Tensors) -> Tensor:
    """The sum of (g' - g)^2 over all tensors, of shape (); g' becomes g."""
    squares, first = blocks(grads), 0
    for before, grad in zip(previous, grads, strict=True):
        count = triton.cdiv(grad.numel(), BLOCK)
        if count:
            change_kernel[(count,)](before, grad, squares[first:], grad.numel(), BLOCK=BLOCK)
        first += count
    return squares.sum()


def heavy_ball_(params: Tensors, grads: Tensors, velocity: Tensors, beta: Tensor, lr: float) -> Tensor:
    """v <- beta v + g and x <- x - lr v for all tensors; the sum of v^2, of shape (). beta: a tensor of shape ()."""
    squares, first = blocks(grads), 0
    for param, grad, v in zip(params, grads, velocity, strict=True):
        count = triton.cdiv(grad.numel(), BLOCK)
        if count:
            heavy_ball_kernel[(count,)](param, grad, v, beta, squares[first:], lr, grad.numel(), BLOCK=BLOCK)
        first += count
    return squares.sum()


def blocks(tensors: Tensors) -> Tensor:
    """Room for one sum per block of each tensor."""
    count = sum(triton.cdiv(tensor.numel(), BLOCK) for tensor in tensors)
    return torch.empty(count, dtype=torch.float32, device=tensors[0].device)
