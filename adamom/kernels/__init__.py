"""Fused steps for GPUs, written in Triton: equal to the plain ones, and taken where Triton is there and they fit."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from ..arithmetic import Tensors, sharded
from ..momentum import Rule, Scalar

__all__ = ["fit", "fuses"]

HANDLED = (torch.float32, torch.bfloat16, torch.float16)


def fuses(rule: Rule) -> bool:
    """The rule is one that the kernels know: all of a model as one vector, raw norms of raw differences, v a sum."""
    plain = rule.scope == "global" and rule.metric == "raw" and not rule.smoothing and not rule.averaging
    return plain and rule.needs == {"gradient_change", "displacement"}


def fit(rule: Rule, lr: Scalar, tensors: Tensors, wanted: bool | None) -> bool:
    """Whether the kernels take the step of these tensors.

    wanted: True raises RuntimeError where they cannot, None takes them where they can, False does without.
    """
    if wanted is False or not (wanted or tensors[0].is_cuda):
        return False
    if not installed():
        return refuse("needs Triton. Try: pip install triton") if wanted else False
    if isinstance(lr, torch.Tensor):
        return refuse("takes a learning rate that is a number, not a tensor") if wanted else False
    if not all(map(handled, tensors)) or len({(tensor.device, tensor.dtype) for tensor in tensors}) > 1:
        return refuse("needs contiguous tensors of float32, bfloat16 or float16, all on one GPU") if wanted else False
    # A captured graph would keep reading a table of addresses that nobody keeps; a compiler fuses by itself.
    traced = torch.compiler.is_compiling() or (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())
    return fuses(rule) and not traced


def refuse(why: str) -> bool:
    raise RuntimeError(f"fused=True {why}. Leave fused out to have the kernels only where they fit.")


@cache
def installed() -> bool:
    return find_spec("triton") is not None


def handled(tensor: torch.Tensor) -> bool:
    dense = tensor.is_contiguous() and not sharded(tensor) and tensor.dtype in HANDLED
    return dense and (tensor.is_cuda or interpreted())


def interpreted() -> bool:
    """Triton runs its kernels on the CPU, one program after another (TRITON_INTERPRET=1): for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)
