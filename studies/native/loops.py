"""Loops in C over the elements of one lane, and what they sum on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import fx

from studies.native.values import Number, Place, Steps, Value, typed

__all__ = ["SUMS", "Loop", "Sum", "for_each", "nested", "within", "without"]

Statement = Callable[[Callable[[Steps], Steps]], str]
"""A line of a loop's body, which is told how to go through memory by those dimensions that have counters."""

# How what is taken over several elements starts, and how one more is added.
SUMS = {"sum": ("0", "{0} += {1};"), "amax": ("-INFINITY", "{0} = {1} > {0} || {1} != {1} ? {1} : {0};")}


@dataclass(frozen=True)
class Sum:
    """What an operation takes over several elements of a loop. into: where it goes; steps: the way through that."""

    how: str
    term: str
    into: Value
    steps: Steps


@dataclass
class Loop:
    """Operations on the same elements, computed together, element by element.

    shape: of one lane. body: what is done.
    seen: for every value in memory that is read or written, the way its elements are walked through, on which other
    operations may come to it too; None if nobody may. inside: the variables that stand for those values.
    written: values that are computed here, and where they belong. sums: what is taken over several elements, by value.
    ways: all ways through memory. nodes: the operations.
    """

    shape: tuple[int, ...]
    body: list[Statement] = field(default_factory=list)
    seen: dict[fx.Node, Any] = field(default_factory=dict)
    inside: dict[fx.Node, Number] = field(default_factory=dict)
    written: dict[fx.Node, Place] = field(default_factory=dict)
    sums: dict[fx.Node, Sum] = field(default_factory=dict)
    ways: list[Steps] = field(default_factory=list)
    nodes: set[fx.Node] = field(default_factory=set)

    def knows(self, home: fx.Node) -> bool:
        """Whether the loop reads, writes or sums what lies there."""
        return home in self.seen or home in self.sums

    def lines(self, stored: Sequence[fx.Node]) -> list[str]:
        """The loop in C. stored: those of `written` that somebody reads in memory."""
        ways = [self.written[node].steps(self.shape) for node in stored] + self.ways
        sizes = counted(self.shape, ways[0], ways)
        *outer, inner = sizes

        def kept(steps: Steps) -> Steps:
            return tuple(step if dim in sizes else 0 for dim, step in enumerate(steps))

        before: list[str] = []
        begin, body, end = list[str](), [statement(kept) for statement in self.body], list[str]()
        for node in stored:
            place = self.written[node]
            body.append(f"{place.element(kept(place.steps(self.shape)))} = {self.inside[node].text};")
        pragma = "#pragma omp simd"
        for i, total in enumerate(self.sums.values()):
            start, join = SUMS[total.how]
            before += started(total.into, start)
            into = total.into.text if isinstance(total.into, Number) else total.into.element(kept(total.steps))
            if total.steps[inner]:
                body.append(join.format(into, total.term))
                continue
            begin.append(f"{typed(total.into.dtype)} part{i} = {start};")
            body.append(join.format(f"part{i}", total.term))
            end.append(join.format(into, f"part{i}"))
            # OpenMP joins maxima without looking for nan: these are taken one after another.
            pragma = "" if total.how == "amax" else pragma and f"{pragma} reduction(+ : part{i})"
        around = [for_each(dim, sizes[dim]) for dim in outer]
        inmost = [*([pragma] if pragma else []), for_each(inner, sizes[inner]) + " {", *body, "}"]
        return [*before, *around, "{", *begin, *inmost, *end, "}"]


def started(into: Value, start: str) -> list[str]:
    """A sum before anything is added."""
    if isinstance(into, Number):
        return [f"{typed(into.dtype)} {into.text} = {start};"]
    return nested(into, f"{into.element()} = {start};")


def counted(shape: Sequence[int], leading: Steps, ways: Sequence[Steps]) -> dict[int, int]:
    """The dimensions that need a counter, from the outermost to the innermost, each with how far it counts.

    A dimension stands for those outside of it that every way goes through together with it. leading: the way that
    decides the order.
    """
    dims = sorted((dim for dim, size in enumerate(shape) if size > 1), key=lambda dim: -leading[dim])
    merged: list[list[int]] = []
    for dim in dims:
        if merged and all(steps[merged[-1][-1]] == steps[dim] * shape[dim] for steps in ways):
            merged[-1].append(dim)
        else:
            merged.append([dim])
    return {together[-1]: prod(shape[each] for each in together) for together in merged}


def for_each(dim: int, size: int) -> str:
    return f"for (long i{dim} = 0; i{dim} < {size}; i{dim}++)"


def nested(place: Place, statement: str, pragma: str = "#pragma omp simd") -> list[str]:
    """The statement for every element of a place, in the order in which they lie."""
    dims = [dim for dim, size in enumerate(place.shape) if size > 1]
    dims.sort(key=place.like.stride().__getitem__, reverse=True)
    loops = [for_each(dim, place.shape[dim]) for dim in dims]
    if pragma and loops:
        loops.insert(-1, pragma)
    return [*loops, statement]


def within(at: Value, length: str) -> list[str]:
    """Leave with 1 if an index points outside."""
    if isinstance(at, Number):
        return [f"if ({at.text} < 0 || {at.text} >= {length}) return 1;"]
    wrong = f"wrong |= {at.element()} < 0 || {at.element()} >= {length};"
    return [*nested(at, wrong, pragma=""), "if (wrong) return 1;"]


def without(dim: int, steps: Steps) -> Steps:
    """The way that does not go along this dimension."""
    return tuple(0 if each == dim % len(steps) else step for each, step in enumerate(steps))
