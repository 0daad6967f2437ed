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

__all__ = ["Factor", "Tensors", "add_scaled_", "blend_", "lerp_", "scale_", "spread"]

Tensors = list[Tensor]
Factor = Scalar | Sequence[Scalar]


def spread(factor: Factor, tensors: Tensors) -> list[Tensor]:
    """The factor as one tensor per tensor, shaped to broadcast over all dimensions but the lanes."""
    factors = [factor] * len(tensors) if isinstance(factor, float | int | Tensor) else factor
    return [shaped(each, tensor) for each, tensor in zip(factors, tensors, strict=True)]


def shaped(factor: Scalar, tensor: Tensor) -> Tensor:
    if not isinstance(factor, Tensor):
        return torch.as_tensor(factor, dtype=tensor.dtype, device=tensor.device)
    if factor.device != tensor.device:
        factor = factor.to(tensor.device, non_blocking=True)
    return factor.reshape(-1, *[1] * (tensor.ndim - 1)) if factor.ndim else factor


def scale_(tensors: Tensors, factor: Factor) -> None:
    """x <- factor x."""
    if isinstance(factor, float | int) and tensors[0].is_cpu:
        for tensor in tensors:  # on a CPU, _foreach_mul_ rounds the number to the tensors' bfloat16, mul_ does not
            tensor.mul_(factor)
    elif isinstance(factor, float | int):
        torch._foreach_mul_(tensors, factor)
    else:
        torch._foreach_mul_(tensors, spread(factor, tensors))


def add_scaled_(tensors: Tensors, others: Tensors, factor: Factor) -> None:
    """x <- x + factor y."""
    if isinstance(factor, float | int):
        torch._foreach_add_(tensors, others, alpha=factor)
    else:
        torch._foreach_addcmul_(tensors, others, spread(factor, tensors))


def blend_(tensors: Tensors, others: Tensors, keep: Factor, take: Factor) -> None:
    """x <- keep x + take y."""
    scale_(tensors, keep)
    add_scaled_(tensors, others, take)


def lerp_(tensors: Tensors, others: Tensors, weight: Factor) -> None:
    """x <- x + weight (y - x)."""
    if isinstance(weight, float | int):
        torch._foreach_lerp_(tensors, others, weight)
    else:
        torch._foreach_lerp_(tensors, others, spread(weight, tensors))
