"""Fused steps for GPUs, written in Triton: equal to the plain ones, and taken where somebody asks for fused=True."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ..arithmetic import Tensors, sharded
from ..momentum import Rule

__all__ = ["demand", "fuses"]

HANDLED = (torch.float32, torch.bfloat16, torch.float16)


def fuses(rule: Rule) -> bool:
    """The rule is one that the kernels know: all of a model as one vector, raw norms of raw differences, v a sum."""
    plain = rule.scope == "global" and rule.metric == "raw" and not rule.smoothing and not rule.averaging
    return plain and rule.needs == {"gradient_change", "displacement"}


def demand(*lists: Tensors) -> None:
    """Raise RuntimeError unless the kernels can walk these tensors."""
    if find_spec("triton") is None:
        raise RuntimeError("fused=True needs Triton. Try: pip install triton, or leave fused out.")
    if not all(handled(tensor) for tensors in lists for tensor in tensors):
        raise RuntimeError(
            "fused=True needs contiguous tensors of float32, bfloat16 or float16, all on a GPU. Leave fused out."
        )


def handled(tensor: torch.Tensor) -> bool:
    dense = tensor.is_contiguous() and not sharded(tensor) and tensor.dtype in HANDLED
    return dense and (tensor.is_cuda or interpreted())


def interpreted() -> bool:
    """Triton runs its kernels on the CPU, one program after another (TRITON_INTERPRET=1): for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)
