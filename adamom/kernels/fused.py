"""The two passes of an adaptive heavy-ball step, each one launch over all tensors, written in Triton.

    change_       sum of (g' - g)^2, and g' <- g                     reads g', g        writes g'
    heavy_ball_   v <- beta v + g, x <- x - lr v, sum of v^2         reads v, g, x      writes v, x

Eight numbers cross the memory bus per parameter, against at least thirteen of separate operations; coupled weight decay
reads x once more. A table on the GPU says which numbers each program works on, so a thousand small tensors are no more
launches than one large. beta is read on the device, so nothing waits for it. Sums are per program and added up by
torch, so they are the same at every run.

Compiled for GPUs and checked against the plain step in Triton's interpreter; never run on a GPU by us, so its speed is
not known.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import Tensors

__all__ = ["change_", "heavy_ball_"]

BLOCK = 4096  # numbers per program: enough to hide the latency of one sum
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def numbers(row, column: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the numbers of this program in the tensor that a column of its row in the table names."""
    pointers = tl.load(row + column).to(tl.pointer_type(DTYPE)) + tl.arange(0, BLOCK)
    if ALIGNED:  # lets a thread load 16 bytes at once
        pointers = tl.multiple_of(pointers, 16)
    return pointers


@triton.jit
def read(pointers, count, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """The first count numbers, in float32, and zeros; all of them in a program that has its block full."""
    if FULL:
        return tl.load(pointers).to(tl.float32)
    return tl.load(pointers, mask=tl.arange(0, BLOCK) < count, other=0.0).to(tl.float32)


@triton.jit
def write(pointers, values, count, FULL: tl.constexpr, BLOCK: tl.constexpr):
    values = values.to(pointers.dtype.element_ty)
    if FULL:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=tl.arange(0, BLOCK) < count)


@triton.jit
def change_block(before, grad, param, square, count, sign, decay, DECAYS: tl.constexpr, FULL: tl.constexpr):
    size: tl.constexpr = before.shape[0]
    g = sign * read(grad, count, FULL, size)
    if DECAYS:
        g += decay * read(param, count, FULL, size)
    g = g.to(grad.dtype.element_ty).to(tl.float32)
    change = read(before, count, FULL, size) - g
    tl.store(square, tl.sum(change * change, axis=0))
    write(before, g, count, FULL, size)


@triton.jit
def heavy_ball_block(
    velocity, grad, param, square, count, beta, lr, sign, decay, DECAYS: tl.constexpr, FULL: tl.constexpr
):
    size: tl.constexpr = velocity.shape[0]
    x = read(param, count, FULL, size)
    g = sign * read(grad, count, FULL, size)
    if DECAYS:
        g += decay * x
    v = beta * read(velocity, count, FULL, size) + g
    tl.store(square, tl.sum(v * v, axis=0))
    write(velocity, v, count, FULL, size)
    write(param, x - lr * v, count, FULL, size)


@triton.jit
def change_kernel(
    table, squares, sign, decay,
    DECAYS: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    row = table + block.to(tl.int64) * 4
    count = tl.load(row + 3)
    before = numbers(row, 0, DTYPE, ALIGNED, BLOCK)
    grad = numbers(row, 1, DTYPE, ALIGNED, BLOCK)
    param = numbers(row, 2, DTYPE, ALIGNED, BLOCK)
    if count == BLOCK:
        change_block(before, grad, param, squares + block, count, sign, decay, DECAYS, True)
    else:
        change_block(before, grad, param, squares + block, count, sign, decay, DECAYS, False)


@triton.jit
def heavy_ball_kernel(
    table, squares, beta, lr, sign, decay,
    DECAYS: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    row = table + block.to(tl.int64) * 4
    count = tl.load(row + 3)
    beta = tl.load(beta)
    velocity = numbers(row, 0, DTYPE, ALIGNED, BLOCK)
    grad = numbers(row, 1, DTYPE, ALIGNED, BLOCK)
    param = numbers(row, 2, DTYPE, ALIGNED, BLOCK)
    if count == BLOCK:
        heavy_ball_block(velocity, grad, param, squares + block, count, beta, lr, sign, decay, DECAYS, True)
    else:
        heavy_ball_block(velocity, grad, param, squares + block, count, beta, lr, sign, decay, DECAYS, False)


def change_(previous: Tensors, grads: Tensors, params: Tensors, weight_decay: float, maximize: bool) -> Tensor:
    """The sum of (g' - g)^2 over all tensors, of shape (); g' becomes g, which has the weight decay in it."""
    rows, squares, options = laid_out(previous, grads, params)
    with torch.cuda.device_of(squares):
        change_kernel[squares.shape](rows, squares, **gradient(weight_decay, maximize), **options)
    return squares.sum()


def heavy_ball_(
    velocity: Tensors, grads: Tensors, params: Tensors, beta: Tensor, lr: float, weight_decay: float, maximize: bool
) -> Tensor:
    """v <- beta v + g and x <- x - lr v for all tensors; the sum of v^2, of shape (). beta: a tensor of shape ()."""
    rows, squares, options = laid_out(velocity, grads, params)
    pace = {"beta": beta.to(squares), "lr": float(lr)}
    with torch.cuda.device_of(squares):
        heavy_ball_kernel[squares.shape](rows, squares, **pace, **gradient(weight_decay, maximize), **options)
    return squares.sum()


def gradient(weight_decay: float, maximize: bool) -> dict[str, Any]:
    """How the kernels make g of a gradient and its parameter."""
    return {"sign": -1.0 if maximize else 1.0, "decay": float(weight_decay), "DECAYS": weight_decay != 0}


def laid_out(*lists: Tensors) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The table of three lists of tensors, room for one sum per program, and how the kernels read them."""
    sample = lists[0][0]
    addresses = tuple(tuple(tensor.data_ptr() for tensor in tensors) for tensors in lists)
    rows = table(addresses, tuple(tensor.numel() for tensor in lists[0]), sample.element_size(), sample.device)
    aligned = all(address % 16 == 0 for tensors in addresses for address in tensors)
    squares = torch.empty(len(rows), dtype=torch.float32, device=sample.device)
    return rows, squares, {"DTYPE": TYPES[sample.dtype], "ALIGNED": aligned, "BLOCK": BLOCK, "num_warps": 8}


@lru_cache(maxsize=8)  # gradients mostly come back to where they were, and then nothing is copied to the GPU
def table(addresses: tuple[tuple[int, ...], ...], counts: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """One row per program: where its numbers start in each of the three lists, and how many they are.

    addresses: of each tensor of each list. counts, size: the numbers in each tensor, the bytes of a number.
    """
    rows = [torch.empty(0, 4, dtype=torch.int64)]
    for *starts, count in zip(*addresses, counts, strict=True):
        offsets = torch.arange(0, count, BLOCK)
        columns = [start + size * offsets for start in starts]
        rows.append(torch.stack([*columns, (count - offsets).clamp(max=BLOCK)], dim=1))
    return torch.cat(rows).to(device)
