"""Cutting a step into parts that stay in cache while one operation after another passes over them.

A step of a large model is bound by memory: every operation of a foreach call reads all tensors again. On a CPU it is
therefore walked in parts: small tensors several at a time, large ones in pieces. Elsewhere, and for lanes, whose sums
must not depend on how many there are, the whole is one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch

from .arithmetic import Tensors, sharded

__all__ = ["Part", "cut", "piece"]

# Numbers per thread. Four float32 pieces fill a core's second-level cache; smaller ones cost more calls than time.
PIECE = 1 << 17
# Numbers on which torch's loops use one thread: small tensors are not worth that one waits for another.
SERIAL = 1 << 15


@dataclass(slots=True)
class Part:
    """Tensors that a step works on together; every list is empty or has one entry, of the same shape, per index.

    indices: which tensors of the group these are, or are pieces of.
    params, grads, velocity, second, largest: the parameters, their gradients, and the moments of SGD or Adam.
    previous, change, path: what is remembered of the step before (see `adamom.measuring.Memory`).
    """

    indices: Sequence[int]
    params: Tensors
    grads: Tensors
    velocity: Tensors = field(default_factory=list)
    second: Tensors = field(default_factory=list)
    largest: Tensors = field(default_factory=list)
    previous: Tensors = field(default_factory=list)
    change: Tensors = field(default_factory=list)
    path: Tensors = field(default_factory=list)


LISTS = [each.name for each in fields(Part)][1:]


def cut(whole: Part, one_by_one: bool = False) -> Iterator[Part]:
    """The parts of a whole, in the order of its tensors; the pieces are views. one_by_one: no two tensors together."""
    if one_by_one:
        yield from (some(whole, i, i + 1) for i in range(len(whole.params)))
        return
    if torch.compiler.is_compiling() or not whole.params[0].is_cpu or sharded(whole.params[0]):
        yield whole
        return
    sizes = [param.numel() for param in whole.params]
    limit = piece()
    if sum(sizes) <= min(limit, SERIAL):
        yield whole
        return
    first, together = 0, 0
    for i, size in enumerate(sizes):
        if together and together + size > min(limit, SERIAL):
            yield some(whole, first, i)
            first, together = i, 0
        together += size
        if size > limit and contiguous(whole, i):
            yield from pieces(whole, i)
            first, together = i + 1, 0
    if together:
        yield some(whole, first, len(sizes))


def piece() -> int:
    """How many numbers a part may have."""
    return PIECE * torch.get_num_threads()


def some(whole: Part, first: int, last: int) -> Part:
    return Part(whole.indices[first:last], *(getattr(whole, name)[first:last] for name in LISTS))


def pieces(whole: Part, i: int) -> Iterator[Part]:
    """One large tensor, a piece at a time."""
    lists = [getattr(whole, name) for name in LISTS]
    cuts = [tensors[i].view(-1).split(piece()) if tensors else () for tensors in lists]
    for k in range(len(cuts[0])):
        yield Part(whole.indices[i : i + 1], *([pieces_of[k]] if pieces_of else [] for pieces_of in cuts))


def contiguous(whole: Part, i: int) -> bool:
    return all(getattr(whole, name)[i].is_contiguous() for name in LISTS if getattr(whole, name))
