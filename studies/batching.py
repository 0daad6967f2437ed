"""What `torch.func.vmap` does not know by itself, so that models with it train in lanes too.

torch.nn's recurrent layers are one fused operation each, without a batching rule. Torch knows them in smaller pieces as
well, which have one: importing this file registers those pieces as their batching rules. Alone they are slower than the
fused operation; whether many together are faster is for the calibration to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._decomp import get_decompositions
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["in_known_pieces"]

aten = torch.ops.aten

RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
# The rules hold for as long as this object lives.
RULES = torch.library.Library("aten", "IMPL", "FuncTorchBatched")  # type: ignore[no-untyped-call]

for operation, pieces in get_decompositions(RECURRENT).items():
    name = operation.name()  # type: ignore[no-untyped-call]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "FuncTorchBatched"):  # as a later torch may have it
        RULES.impl(operation, pieces)  # type: ignore[no-untyped-call]


@contextmanager
def in_known_pieces(device: torch.device) -> Iterator[None]:
    """While it lasts, layers with a fused kernel that vmap cannot batch are computed in pieces that it can.

    On the CPU these are the LSTM of oneDNN, and flash attention, which vmap would run lane after lane.
    """
    if device.type != "cpu":
        yield
        return
    enabled, *_ = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.set_flags(enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]
