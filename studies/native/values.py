"""What the values of one lane are in C: numbers, and places in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

__all__ = [
    "CACHE_LINE",
    "Number",
    "Place",
    "Room",
    "Steps",
    "UntranslatableError",
    "Value",
    "literal",
    "suffix",
    "typed",
]

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "uint8_t",
}
CACHE_LINE = 64  # bytes

Steps = tuple[int, ...]
"""How far apart neighbours are along every dimension, in elements."""


class UntranslatableError(Exception):
    """The program does something that there are no words for here; a tape can call torch for it."""


@dataclass(frozen=True)
class Number:
    """A value that is the same for all elements: a variable or a literal."""

    text: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Place:
    """A value in memory. base: where its lane begins. like: one lane's shape and how it lies there, without memory."""

    base: str
    like: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.like.shape)

    def steps(self, shape: Sequence[int] | None = None) -> Steps:
        """Its steps, seen in this shape or its own; 0 along dimensions in which there is only one."""
        shape = self.shape if shape is None else shape
        steps = self.like.expand(tuple(shape)).stride()
        return tuple(0 if size == 1 else step for size, step in zip(shape, steps, strict=True))

    def element(self, steps: Steps | None = None, more: str = "") -> str:
        """The element that the loops stand at, each dimension's counter being i and its number."""
        steps = self.steps() if steps is None else steps
        terms = [f"i{dim} * {step}" if step > 1 else f"i{dim}" for dim, step in enumerate(steps) if step]
        terms += [each for each in (more, str(self.like.storage_offset() or "")) if each]
        return f"{self.base}[{' + '.join(terms) or 0}]"

    def way(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """How its elements are walked through by loops over this shape."""
        return (self.base, self.like.storage_offset(), self.steps(shape))


Value = Number | Place


@dataclass
class Room:
    """Scratch memory, in bytes from its beginning; what ends leaves its block to what comes."""

    size: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)

    def take(self, node: fx.Node, size: int) -> int:
        """Where this value may lie: in the smallest free block that is large enough, or in a new one."""
        size = -(-size // CACHE_LINE) * CACHE_LINE
        fitting = [block for block in self.free if block[0] >= size]
        block = min(fitting, default=(size, self.size))
        if fitting:
            self.free.remove(block)
        else:
            self.size += size
        self.blocks[node] = block
        return block[1]

    def give(self, node: fx.Node) -> None:
        if node in self.blocks:
            self.free.append(self.blocks.pop(node))


def typed(dtype: torch.dtype) -> str:
    """What C calls the type."""
    if dtype not in TYPES:
        raise UntranslatableError(f"{dtype}")
    return TYPES[dtype]


def literal(number: float, dtype: torch.dtype) -> str:
    """A number as C writes it."""
    if not dtype.is_floating_point:
        return str(int(number))
    if not math.isfinite(number):
        return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
    written = f"{float(number)!r}{suffix(dtype)}"
    return written if number >= 0 else f"({written})"


def suffix(dtype: torch.dtype) -> str:
    return "f" if dtype == torch.float32 else ""
