"""How precisely a study computes, as `[budget] precision` says it. Weights and optimizers stay in float32.

float32     products in IEEE float32, on every device. The default: results can be compared between machines.
tf32        products on the tensor cores of an NVIDIA GPU, their factors rounded to 10 bits; elsewhere float32.
bfloat16    the forward and the backward pass in torch's automatic mixed precision, 7 bits; the loss in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from storage.records import Precision

__all__ = ["forward_in", "multiply_in"]


def forward_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """While it lasts, models compute in this precision."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def multiply_in(precision: Precision, device: torch.device) -> None:
    """From now on, float32 products on a GPU are taken in this precision. For the whole process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
