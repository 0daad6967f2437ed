"""Programs as functions in C: the step of many lanes on a CPU with a C compiler."""

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
from studies.native.values import UntranslatableError
from studies.programs import LANES, Program, held
from studies.tape import Arena, Tape

__all__ = ["bind", "compiles"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Function:
    """A compiled program. run, constants, tables, scratch: see `studies.native.source.Source`."""

    run: Any
    constants: list[Tensor]
    tables: list[tuple[int, int]]
    scratch: int

    def fits(self, arguments: Sequence[Tensor], examples: Sequence[Tensor]) -> bool:
        """Whether the arguments are what the function was made for: like its examples, for any number of lanes."""
        return all(
            argument.dtype == example.dtype
            and all(
                (size == length or length % LANES == 0 or (place, dim) in self.tables) and (size == 1 or step == theirs)
                for dim, (size, length, step, theirs) in enumerate(
                    zip(argument.shape, example.shape, argument.stride(), example.stride(), strict=True)
                )
            )
            for place, (argument, example) in enumerate(zip(arguments, examples, strict=True))
        )


def bind(
    program: Program, lanes: int, arguments: Sequence[Tensor], arena: Arena, destinations: Sequence[Tensor] = ()
) -> Tape | None:
    """What `studies.tape.bind` returns, in one call; None where that cannot be, and the log says why."""
    if not all(each.is_cpu for each in (*arguments, *destinations)):
        return None
    function = compiled(program, layouts(destinations))
    if not function or not function.fits(arguments, [held(node) for node in program.arguments]):
        return None
    kept = program.results[: len(program.results) - len(destinations)]
    results = [torch.empty(ours(held(node), lanes), dtype=held(node).dtype) for node in kept]
    scratch = arena.take(function.scratch, torch.device("cpu"))
    arena.give(scratch)  # to whoever runs before or after, never in between
    lengths = torch.tensor([arguments[place].shape[dim] for place, dim in function.tables], dtype=torch.int64)
    tensors = [*arguments, *results, *destinations, *function.constants, lengths, scratch]
    memory = (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))

    def call(run: Any = function.run, lanes: int = lanes, memory: Any = memory, kept: Any = tensors) -> None:
        if run(lanes, memory):
            raise IndexError("A target, or the number of an example, points outside of what there is.")

    return Tape([call], results)


def compiles(program: Program, destinations: Sequence[Tensor] = ()) -> bool:
    """Whether the program, with its last results in such places, is one function here."""
    return compiled(program, layouts(destinations)) is not None


Layouts = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def layouts(tensors: Sequence[Tensor]) -> Layouts:
    """How tensors of shape (lanes, ...) lie in memory: the shape of one lane and the steps of each."""
    return tuple((tuple(each.shape[1:]), each.stride()) for each in tensors)


@cache
def compiled(program: Program, wanted: Layouts) -> Function | None:
    """The program's function, if it has one. wanted: the places of its last results."""
    try:
        places = [torch.empty_strided((LANES, *shape), steps, device="meta") for shape, steps in wanted]
        source = translate(program, places)
        return Function(load(source.text), source.constants, source.tables, source.scratch)
    except (UntranslatableError, CompilerError) as error:
        log.info("called operation by operation, not compiled: %s", error)
        return None


def ours(like: Tensor, lanes: int) -> list[int]:
    return [size // LANES * lanes if size % LANES == 0 else size for size in like.shape]
