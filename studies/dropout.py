"""Dropout that a trial takes with it: the same masks alone, in any pack of trials, and after a restart.

`nn.Dropout` draws from a generator that a whole process shares, so what it drops depends on who else is training. Here
the mask is a hash of the seed, the layer, how often the layer has dropped before, and the position: no generator, only
integer arithmetic on buffers of the model, which follow the trial into its lane like any other buffer.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["SeededDropout", "seed_dropout"]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def seed_dropout(model: nn.Module, seed: int) -> nn.Module:
    """The model with each nn.Dropout replaced by one that depends on this seed and on nothing else."""
    places = [
        (parent, name, child.p)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if type(child) is nn.Dropout
    ]
    for layer, (parent, name, p) in enumerate(places):
        setattr(parent, name, SeededDropout(p, seed, layer))
    return model


class SeededDropout(nn.Dropout):
    """Zero each entry with probability p and scale the others by 1 / (1 - p), like nn.Dropout.

    key: the hash of the seed and of the layer. calls: how often the layer has dropped; both int32 tensors of shape ().
    """

    key: Tensor
    calls: Tensor

    def __init__(self, p: float, seed: int, layer: int) -> None:
        super().__init__(p)
        digest = hashlib.sha256(f"dropout {seed} {layer}".encode()).digest()
        key = int.from_bytes(digest[:4], "little", signed=True)
        self.register_buffer("key", torch.tensor(key, dtype=torch.int32))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int32))

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        key = mixed(self.key ^ mixed(self.calls))
        self.calls += 1
        positions = torch.arange(input.numel(), dtype=torch.int32, device=input.device).view(input.shape)
        kept = mixed(positions ^ key) >= self.threshold
        return input * (kept * self.scale)

    @property
    def threshold(self) -> int:
        """A share p of all int32 lies below it."""
        return min(round(INT32_MIN + self.p * 2**32), INT32_MAX)

    @property
    def scale(self) -> float:
        return 0.0 if self.p == 1 else 1 / (1 - self.p)


def mixed(x: Tensor) -> Tensor:
    """A bijection of int32 under which every bit of the result depends on every bit of x.

    The constants are those of Ettinger's search with Wellons' hash-prospector (2022). Products wrap around; a right
    shift of a negative int32 brings ones in, which the masks take away.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)
