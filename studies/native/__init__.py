"""Programs as functions in C: the step of many lanes on a CPU, where there is a compiler."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from studies.native.library import CompilerError, load
from studies.native.source import translate
from studies.native.values import Steps, UntranslatableError
from studies.programs import LANES, Program, held
from studies.tape import Arena, Tape

__all__ = ["bind", "compiles"]

log = logging.getLogger(__name__)

Layout = tuple[tuple[int, ...], Steps, torch.dtype]
"""The shape of a tensor, with LANES for the number of lanes, its steps and its type."""


@dataclass(frozen=True)
class Function:
    """A compiled program. run, constants, tables, scratch: see `studies.native.source.Source`."""

    run: Any
    constants: list[Tensor]
    tables: list[tuple[int, int]]
    scratch: int

    def check(self, place: int, argument: Tensor, example: Tensor, lanes: int) -> None:
        """Raise ValueError for an argument that the program was not made for: nobody would notice later."""
        sizes = zip(argument.shape, example.shape, strict=True)
        fits = [size == ours(length, lanes) or (place, dim) in self.tables for dim, (size, length) in enumerate(sizes)]
        if argument.dtype != example.dtype or not all(fits):
            wanted = f"{example.dtype} of shape {tuple(ours(length, lanes) for length in example.shape)}"
            raise ValueError(f"Argument {place} is {argument.dtype} of shape {tuple(argument.shape)}, not {wanted}.")


def bind(
    program: Program, lanes: int, arguments: Sequence[Tensor], arena: Arena, destinations: Sequence[Tensor] = ()
) -> Tape | None:
    """What `studies.tape.bind` returns, in one call; None where that cannot be, and the log says why.

    Calling it raises IndexError if a target, or the number of an example, points outside.
    """
    if not all(each.is_cpu for each in (*arguments, *destinations)):
        return None
    kept = [held(node) for node in program.results[: len(program.results) - len(destinations)]]
    given = tuple(layout(each, held(node)) for each, node in zip(arguments, program.arguments, strict=True))
    function = compiled(program, given, places(destinations))
    if not function:
        return None
    for place, (argument, node) in enumerate(zip(arguments, program.arguments, strict=True)):
        function.check(place, argument, held(node), lanes)
    results = [torch.empty([ours(size, lanes) for size in each.shape], dtype=each.dtype) for each in kept]
    scratch = arena.take(function.scratch, torch.device("cpu"))
    arena.give(scratch)  # to whoever runs before or after, never in between
    lengths = torch.tensor([arguments[place].shape[dim] for place, dim in function.tables], dtype=torch.int64)
    tensors = [*arguments, *results, *destinations, *function.constants, lengths, scratch]
    memory = (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))

    def call(run: Any = function.run, lanes: int = lanes, memory: Any = memory, kept_alive: Any = tensors) -> None:
        if run(lanes, memory):
            raise IndexError("A target, or the number of an example, points outside of what there is.")

    return Tape([call], results)


def compiles(program: Program, destinations: Sequence[Tensor] = ()) -> bool:
    """Whether the program, with its last results in such places, is one function here."""
    given = tuple(layout(held(node), held(node)) for node in program.arguments)
    return compiled(program, given, places(destinations)) is not None


def layout(tensor: Tensor, example: Tensor) -> Layout:
    """How the tensor lies in memory. Its shape is the example's; where there is one of something, so are its steps."""
    steps = zip(tensor.shape, tensor.stride(), example.stride(), strict=True)
    return tuple(example.shape), tuple(theirs if size == 1 else step for size, step, theirs in steps), example.dtype


def places(tensors: Sequence[Tensor]) -> tuple[Layout, ...]:
    """How destinations of shape (lanes, ...) lie in memory."""
    return tuple(((LANES, *each.shape[1:]), each.stride(), each.dtype) for each in tensors)


@cache
def compiled(program: Program, arguments: tuple[Layout, ...], destinations: tuple[Layout, ...]) -> Function | None:
    """The program's function, if it has one."""
    try:
        source = translate(program, [steps for _, steps, _ in arguments], [like(*each) for each in destinations])
        return Function(load(source.text), source.constants, source.tables, source.scratch)
    except (UntranslatableError, CompilerError) as error:
        log.info("called operation by operation, not compiled: %s", error)
        return None


def like(shape: Sequence[int], steps: Steps, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(tuple(shape), steps, dtype=dtype, device="meta")


def ours(size: int, lanes: int) -> int:
    return size // LANES * lanes if size % LANES == 0 else size
