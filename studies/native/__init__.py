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
from studies.native.source import Untranslatable, translate
from studies.programs import LANES, Program, held
from studies.tape import Arena, Tape

__all__ = ["bind"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Function:
    run: Any
    constants: list[Tensor]
    scratch: int


def bind(
    program: Program, lanes: int, arguments: Sequence[Tensor], arena: Arena, destinations: Sequence[Tensor] = ()
) -> Tape | None:
    """What `studies.tape.bind` returns, in one call; None where that cannot be, and the log says why."""
    if not all(each.is_cpu for each in (*arguments, *destinations)):
        return None
    if not all(map(lies_like, arguments, map(held, program.arguments))):
        return None
    function = compiled(program, tuple((tuple(each.shape[1:]), each.stride()) for each in destinations))
    if not function:
        return None
    kept = program.results[: len(program.results) - len(destinations)]
    results = [torch.empty(ours(held(node), lanes), dtype=held(node).dtype) for node in kept]
    scratch = arena.take(function.scratch, torch.device("cpu"))
    arena.give(scratch)  # to whoever runs before or after, never in between
    tensors = [*arguments, *results, *destinations, *function.constants, scratch]
    memory = (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))

    def call(run: Any = function.run, lanes: int = lanes, memory: Any = memory, kept: Any = tensors) -> None:
        if run(lanes, memory):
            raise IndexError("A target, or the number of an example, points outside of what there is.")

    return Tape([call], results)


@cache
def compiled(program: Program, layouts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> Function | None:
    """The program's function, if it has one. layouts: shape of one lane, and steps, of every destination."""
    try:
        places = [torch.empty_strided((LANES, *shape), steps, device="meta") for shape, steps in layouts]
        source = translate(program, places)
        return Function(load(source.text), source.constants, source.scratch)
    except (Untranslatable, CompilerError) as error:
        log.info("called operation by operation, not compiled: %s", error)
        return None


def ours(like: Tensor, lanes: int) -> list[int]:
    return [size // LANES * lanes if size % LANES == 0 else size for size in like.shape]


def lies_like(tensor: Tensor, example: Tensor) -> bool:
    """Whether the tensor lies in memory as the example does, however many lanes there are."""
    steps = zip(tensor.shape, tensor.stride(), example.stride(), strict=True)
    return tensor.dtype == example.dtype and all(size == 1 or ours == theirs for size, ours, theirs in steps)
