"""In-place arithmetic on lists of tensors with a factor that may be a number, a tensor, or one tensor per lane.

A factor is, for a list of n tensors:

    a float, or a tensor of shape ()     one for everything
    a tensor of shape (lanes,)           one per lane: the first dimension of every tensor in the list
    a sequence of n of these             one per tensor
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .momentum import Scalar

__all__ = [
    "Factor",
    "Tensors",
    "add_",
    "add_scaled_",
    "blend_",
    "copy_",
    "divide_",
    "divided",
    "lerp_",
    "pick",
    "scale_",
    "sharded",
    "wide",
]

Tensors = list[Tensor]
Factor = Scalar | Sequence[Scalar]


def pick(factor: Factor, indices: Sequence[int]) -> Factor:
    """The factor of some of the tensors: their own, where each has its own."""
    return factor if isinstance(factor, float | int | Tensor) else [factor[i] for i in indices]


def scale_(tensors: Tensors, factor: Factor) -> None:
    """x <- factor x."""
    torch._foreach_mul_(tensors, one_or_each(factor, tensors))


def divide_(tensors: Tensors, factor: Factor) -> None:
    """x <- x / factor."""
    torch._foreach_div_(tensors, one_or_each(factor, tensors))


def add_(tensors: Tensors, number: float) -> None:
    """x <- x + number."""
    if tensors[0].is_cpu and not sharded(tensors[0]):  # a number would be made into a tensor once per tensor
        torch._foreach_add_(tensors, torch.tensor(number, dtype=wide(tensors), device=tensors[0].device), alpha=1)
    else:
        torch._foreach_add_(tensors, number)


def add_scaled_(tensors: Tensors, others: Tensors, factor: Factor) -> None:
    """x <- x + factor y."""
    if isinstance(factor, float | int):
        torch._foreach_add_(tensors, others, alpha=factor)
    else:
        torch._foreach_addcmul_(tensors, others, each(factor, tensors))


def blend_(tensors: Tensors, others: Tensors, keep: Factor, take: Factor) -> None:
    """x <- keep x + take y."""
    if len(tensors) == 1 and isinstance(keep, Tensor) and isinstance(take, float) and take == 1:
        torch.addcmul(others[0], tensors[0], each(keep, tensors)[0], out=tensors[0])  # in one pass over memory
    else:
        scale_(tensors, keep)
        add_scaled_(tensors, others, take)


def lerp_(tensors: Tensors, others: Tensors, weight: Factor) -> None:
    """x <- x + weight (y - x)."""
    if isinstance(weight, float | int):
        torch._foreach_lerp_(tensors, others, weight)
        return
    weights = each(weight, tensors)
    if sharded(tensors[0]) or any(w.dtype != t.dtype for w, t in zip(weights, tensors, strict=True)):
        scale_(tensors, [1 - w for w in weights])  # lerp would round the weight to bfloat16, and knows no DTensor
        torch._foreach_addcmul_(tensors, others, weights)
    else:
        torch._foreach_lerp_(tensors, others, weights)


def divided(tensors: Tensors, others: Tensors) -> Tensors:
    """x / y, in the memory of y where that is one call."""
    if len(tensors) == 1 and not sharded(tensors[0]):
        return [torch.div(tensors[0], others[0], out=others[0])]
    return list(torch._foreach_div(tensors, others))


def copy_(tensors: Tensors, others: Tensors) -> None:
    """x <- y."""
    if not sharded(tensors[0]):
        torch._foreach_copy_(tensors, others)
        return
    for tensor, other in zip(tensors, others, strict=True):  # _foreach_copy_ knows no DTensor
        tensor.copy_(other)


def one_or_each(factor: Factor, tensors: Tensors) -> Tensor | list[Tensor] | float:
    """The factor as foreach takes it: one for all, or one tensor per tensor."""
    if isinstance(factor, float | int):
        # On a CPU, _foreach_mul_ rounds a number to the tensors' bfloat16, but not a tensor of shape ().
        return torch.tensor(factor, dtype=wide(tensors), device="cpu") if tensors[0].is_cpu else factor
    serves_all = isinstance(factor, Tensor) and factor.ndim == 0 and (factor.is_cpu or one_device([factor, *tensors]))
    return factor if serves_all else each(factor, tensors)  # type: ignore[return-value]  # mypy loses the isinstance


def one_device(tensors: Tensors) -> bool:
    return len({tensor.device for tensor in tensors}) == 1


def each(factor: Factor, tensors: Tensors) -> list[Tensor]:
    """The factor as one tensor per tensor, shaped to multiply it."""
    if isinstance(factor, Tensor) and factor.ndim == 0 and one_device([factor, *tensors]):
        return [factor] * len(tensors)
    factors = [factor] * len(tensors) if isinstance(factor, float | int | Tensor) else factor
    return [shaped(mine, tensor) for mine, tensor in zip(factors, tensors, strict=True)]


def shaped(factor: Scalar, tensor: Tensor) -> Tensor:
    """The factor beside this tensor: its lanes first, then dimensions of size one."""
    if not isinstance(factor, Tensor):
        return torch.tensor(factor, dtype=wide([tensor]), device=tensor.device)
    if factor.device != tensor.device:
        factor = factor.to(tensor.device, non_blocking=True)
    return factor.reshape(-1, *[1] * (tensor.ndim - 1)) if factor.ndim else factor


def wide(tensors: Tensors) -> torch.dtype:
    """The precision of what is computed about tensors: float32, or float64 if any of them has it."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sharded(tensor: Tensor) -> bool:
    """A DTensor: this process holds a shard of it."""
    return hasattr(tensor, "full_tensor")
