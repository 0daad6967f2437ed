"""Cutting a step into parts that stay in cache while one operation after another passes over them.

A step of a large model is bound by memory: every operation of a foreach call reads all tensors again. On a CPU it is
therefore walked in parts: small tensors many at a time, large ones in pieces. Elsewhere, and for lanes, whose sums
must not depend on how many there are, the whole is one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch

from .arithmetic import Tensors, sharded

__all__ = ["Part", "cut", "piece"]

# Numbers per thread, two megabytes of float32. The few tensors that a chain of operations passes over stay in a core's
# share of the caches; smaller pieces cost more, in calls and in threads that wait for each other, than they save.
PIECE = 1 << 19
# Numbers on which torch's loops use one thread: small tensors are not worth that one waits for another.
SERIAL = 1 << 15


@dataclass(slots=True)
class Part:
    """Tensors that a step works on together; every list is empty or has one entry, of the same shape, per index.

    indices: which tensors of the group these are, or are pieces of.
    flat: this is one large tensor on a CPU, or a piece of one, with its numbers in a row.
    params, grads, velocity, second, largest: the parameters, their gradients, and the moments of SGD or Adam.
    previous, change, path: what is remembered of the step before (see `adamom.measuring.Memory`).
    """

    indices: Sequence[int]
    flat: bool
    params: Tensors
    grads: Tensors
    velocity: Tensors = field(default_factory=list)
    second: Tensors = field(default_factory=list)
    largest: Tensors = field(default_factory=list)
    previous: Tensors = field(default_factory=list)
    change: Tensors = field(default_factory=list)
    path: Tensors = field(default_factory=list)


LISTS = [each.name for each in fields(Part)][2:]


def cut(whole: Part, one_by_one: bool = False) -> Iterator[Part]:
    """The parts of a whole, in no particular order; pieces of a tensor are views of it, and shards keep to themselves.

    one_by_one: no two tensors together.
    """
    kinds = [sharded(param) for param in whole.params]
    if any(kinds) and not all(kinds):
        for kind in (False, True):
            yield from cut(some(whole, [i for i, each in enumerate(kinds) if each is kind]), one_by_one)
        return
    if one_by_one:
        yield from (some(whole, [i]) for i in range(len(whole.params)))
        return
    if torch.compiler.is_compiling() or not whole.params[0].is_cpu or sharded(whole.params[0]):
        yield whole
        return
    limit = piece()
    little = min(limit, SERIAL)
    small, together = list[int](), 0
    for i, param in enumerate(whole.params):
        size = param.numel()
        if size > little:
            yield from pieces(whole, i, limit) if contiguous(whole, i) else [some(whole, [i])]
            continue
        if together + size > little:
            yield some(whole, small)
            small, together = [], 0
        small.append(i)
        together += size
    if small:
        yield some(whole, small)


def piece() -> int:
    """How many numbers a part may have."""
    return PIECE * torch.get_num_threads()


def some(whole: Part, chosen: Sequence[int]) -> Part:
    """The tensors in these places of the whole."""
    lists = ([tensors[i] for i in chosen] if tensors else [] for tensors in lists_of(whole))
    return Part([whole.indices[i] for i in chosen], False, *lists)


def pieces(whole: Part, i: int, size: int) -> Iterator[Part]:
    """One large tensor, a piece at a time."""
    index, count = [whole.indices[i]], whole.params[i].numel()
    rows = [tensors[i].view(-1) if tensors else None for tensors in lists_of(whole)]
    for start in range(0, count, size):
        piece = rows if count <= size else [None if row is None else row[start : start + size] for row in rows]
        yield Part(index, True, *([] if row is None else [row] for row in piece))


def contiguous(whole: Part, i: int) -> bool:
    return all(tensors[i].is_contiguous() for tensors in lists_of(whole) if tensors)


def lists_of(whole: Part) -> list[Tensors]:
    return [getattr(whole, name) for name in LISTS]
