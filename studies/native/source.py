"""A program as one function in C that takes lane after lane.

A tape (`studies.tape`) calls one kernel for many lanes after another, so that everything a lane computes is written to
memory and read again. The function written here does all that is to be done for a lane before it turns to the next one:
what a lane computes stays in the first-level cache. Operations on the same elements share one loop, in which a value
that nobody reads outside is a register; sums are taken in the loop that computes what they sum; products are tiles
whose sizes the compiler knows.

The shapes of one lane are those of the program with one lane, found by asking torch for tensors that have no memory.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from studies.programs import LANES, Program, calls, drop_unused, held, insert, operands, substitute, tensors
from studies.tape import RESHAPES, home, is_view, last_readers, lender, overwrites, writes

__all__ = ["Source", "Untranslatable", "translate"]

aten = torch.ops.aten

TYPES = {torch.float32: "float", torch.float64: "double", torch.int64: "int64_t", torch.bool: "uint8_t"}
CACHE_LINE = 64  # bytes


class Untranslatable(Exception):
    """The program does something that this file has no words for; a tape can call torch for it."""


@dataclass(frozen=True)
class Source:
    """The text of `int run(long lanes, void **memory)`, which returns 1 if an index points outside.

    memory: where each argument of the program begins, then each result that has no destination, each destination, each
    of `constants`, and `scratch` bytes for what is computed on the way.
    """

    text: str
    constants: list[Tensor]
    scratch: int


def translate(program: Program, destinations: Sequence[Tensor] = ()) -> Source:
    """The program in C, its last results written to destinations that lie in memory like these.

    destinations: tensors with LANES in one dimension. Raises Untranslatable for what there are no words for.
    """
    return Translation(program, destinations).source()


# -------------------------------------------------------------------------------------------------------------- values


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

    def steps(self, shape: Sequence[int]) -> Steps:
        """How far apart neighbours are, seen in this shape; 0 along dimensions in which there is only one."""
        steps = self.like.expand(tuple(shape)).stride()
        return tuple(0 if size == 1 else step for size, step in zip(shape, steps, strict=True))

    def element(self, steps: Steps, more: str = "") -> str:
        """The element that the loops stand at, each dimension's counter being i and its number."""
        terms = [f"i{dim} * {step}" if step > 1 else f"i{dim}" for dim, step in enumerate(steps) if step]
        terms += [more] if more else []
        return f"{self.base}[{' + '.join([*terms, str(self.like.storage_offset())])}]"


Value = Number | Place
Steps = tuple[int, ...]


@dataclass(frozen=True)
class Sum:
    """What one operation takes over several elements of a loop. into: where it goes; steps: the way through that."""

    how: str
    term: str
    into: Value
    steps: Steps


@dataclass
class Loop:
    """Operations on the same elements, computed together, element by element.

    shape: of one lane. body: statements, which are told which dimensions have counters of their own.
    seen: for every value in memory that is read or written, the way its elements are walked through: no operation may
    come to it on another. inside: the variables that stand for those values.
    written: values that are computed here, and where they belong. sums: what is taken over several elements, by value.
    """

    shape: tuple[int, ...]
    body: list[Callable[[Callable[[Steps], Steps]], str]] = field(default_factory=list)
    seen: dict[fx.Node, Any] = field(default_factory=dict)
    inside: dict[fx.Node, Number] = field(default_factory=dict)
    written: dict[fx.Node, Place] = field(default_factory=dict)
    sums: dict[fx.Node, Sum] = field(default_factory=dict)
    ways: list[Steps] = field(default_factory=list)
    nodes: set[fx.Node] = field(default_factory=set)


# How sums of a kind start, and how something is added: OpenMP's word, a literal, a statement.
SUMS = {"sum": ("+", "0", "{0} += {1};"), "amax": ("max", "-INFINITY", "{0} = {1} > {0} ? {1} : {0};")}


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


# ---------------------------------------------------------------------------------------------------------- expressions


def power(x: str, exponent: str, root: str, general: str) -> str:
    return {"2": f"{x} * {x}", "0.5": f"{root}({x})"}.get(exponent.rstrip("f").removesuffix(".0"), f"{general}({x}, {exponent})")


# What torch calls it -> how C writes it. {f} is the suffix of C's functions of floats.
EXPRESSIONS: dict[str, Callable[..., str]] = {
    "abs": lambda x: f"fabs{{f}}({x})",
    "add": lambda x, y, alpha="1": f"{x} + {scaled(alpha, y)}",
    "addcdiv": lambda x, y, z, value="1": f"{x} + {scaled(value, f'({y} / {z})')}",
    "addcmul": lambda x, y, z, value="1": f"{x} + {scaled(value, f'({y} * {z})')}",
    "bitwise_and": lambda x, y: f"{x} & {y}",
    "clamp": lambda x, low, high: f"{x} < {low} ? {low} : {x} > {high} ? {high} : {x}",
    "clamp_min": lambda x, low: f"{x} < {low} ? {low} : {x}",
    "clone": lambda x: x,
    "copy": lambda x, y: y,
    "div": lambda x, y: f"{x} / {y}",
    "eq": lambda x, y: f"{x} == {y}",
    "exp": lambda x: f"exp{{f}}({x})",
    "ge": lambda x, y: f"{x} >= {y}",
    "gt": lambda x, y: f"{x} > {y}",
    "le": lambda x, y: f"{x} <= {y}",
    "lerp": lambda x, y, share: f"{share} < 0.5{{f}} ? {x} + {share} * ({y} - {x}) : {y} - ({y} - {x}) * (1 - {share})",
    "log": lambda x: f"log{{f}}({x})",
    "logical_and": lambda x, y: f"{x} && {y}",
    "lt": lambda x, y: f"{x} < {y}",
    "maximum": lambda x, y: f"{x} != {x} || {x} > {y} ? {x} : {y}",
    "mul": lambda x, y: f"{x} * {y}",
    "ne": lambda x, y: f"{x} != {y}",
    "neg": lambda x: f"-{x}",
    "pow": lambda x, y: power(x, y, "sqrt{f}", "pow{f}"),
    "reciprocal": lambda x: f"1 / {x}",
    "rsqrt": lambda x: f"1 / sqrt{{f}}({x})",
    "sqrt": lambda x: f"sqrt{{f}}({x})",
    "sub": lambda x, y, alpha="1": f"{x} - {scaled(alpha, y)}",
    "threshold_backward": lambda grad, x, threshold: f"{x} <= {threshold} ? 0 : {grad}",
    "where": lambda condition, x, y: f"{condition} ? {x} : {y}",
}
EXPRESSIONS |= {"_to_copy": EXPRESSIONS["clone"], "lift_fresh_copy": EXPRESSIONS["clone"]}
COMPARISONS = {"eq", "ge", "gt", "le", "lt", "ne"}
ASIDE = ("out", "dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format")


def scaled(factor: str, x: str) -> str:
    return x if float(factor.rstrip("f")) == 1 else f"{factor} * {x}"


def literal(number: float, dtype: torch.dtype) -> str:
    """A number as C writes it."""
    if not dtype.is_floating_point:
        return str(int(number))
    if not math.isfinite(number):
        return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
    return f"{float(number)!r}{suffix(dtype)}" if number >= 0 else f"({float(number)!r}{suffix(dtype)})"


def suffix(dtype: torch.dtype) -> str:
    return "f" if dtype == torch.float32 else ""


# --------------------------------------------------------------------------------------------------------- translation

TEXT = """\
#include "kernels.h"

{functions}
int run(long lanes, void **memory) {{
  int wrong = 0;
{pointers}
{once}
  for (long lane = 0; lane < lanes; lane++) {{
{lane}
  }}
  return 0;
}}
"""


class Translation:
    """One program on its way to C, node by node in their order.

    once, lane: what is done once per call, and for every lane. loop: the loop that may still take operations; it is
    written down when something comes that it cannot take.
    """

    def __init__(self, program: Program, destinations: Sequence[Tensor]) -> None:
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(program.graph, {}))
        self.program = Program(self.graph, program.constants)
        simplify(self.graph)
        nodes = [node for node in self.graph.nodes if node.op in ("call_function", "get_attr")]
        self.homes = {node: home(node) for node in self.graph.nodes}
        self.written = {self.homes[node] for node in nodes if writes(node)}
        self.readers = readers(nodes, self.homes)
        self.results = {self.homes[node] for node in self.program.results}
        self.laned = laned(self.graph)
        self.values: dict[fx.Node, Any] = {}
        self.known: dict[fx.Node, Any] = {}
        self.constants: list[Tensor] = []
        self.pointers: list[str] = []
        self.functions: dict[tuple[int, ...], str] = {}
        self.once: list[str] = []
        self.lane: list[str] = []
        self.loop: Loop | None = None
        self.room, self.packed = Room(), 0
        self.ended: list[fx.Node] = []
        self.names = 0
        self.write_all(nodes, destinations)

    def write_all(self, nodes: Sequence[fx.Node], destinations: Sequence[Tensor]) -> None:
        first = len(self.program.results) - len(destinations)
        kept, wanted = self.program.results[:first], self.program.results[first:]
        ends = last_readers(nodes, self.homes, self.program.results)
        for node in self.program.arguments:
            self.values[node] = self.argument(held(node))
        places = [self.argument(torch.empty(held(node).shape, dtype=held(node).dtype, device="meta")) for node in kept]
        places += [self.argument(each) for each in destinations]
        self.wanted = dict(self.reachable(wanted, places[first:]))
        for node in nodes:
            self.write(node)
            self.ended += ends[node]
        for node, place in zip([*kept, *wanted], places, strict=True):
            self.deliver(node, place)
        self.close()

    def source(self) -> Source:
        for i, constant in enumerate(self.constants):
            self.pointers.append(pointer(f"constant{i}", constant.dtype, len(self.pointers)))
        self.pointers.append(f"char *scratch = memory[{len(self.pointers)}];")
        self.pointers.append(f"float *packed = (float *)(scratch + {self.room.size});")
        text = TEXT.format(
            functions="\n".join(self.functions.values()),
            pointers=indented(self.pointers, 2),
            once=indented(self.once, 2),
            lane=indented(self.lane, 4),
        )
        return Source(text, self.constants, self.room.size + 4 * self.packed)

    # ------------------------------------------------------------------------------------------------ where values are

    def argument(self, tensor: Tensor) -> Place:
        """The next tensor that the function is given. tensor: what it looks like, with LANES in one of its dimensions."""
        name = f"m{len(self.pointers)}"
        self.pointers.append(pointer(name, tensor.dtype, len(self.pointers)))
        steps = tensor.stride()
        sizes: tuple[int, ...] = self.one_lane(tensor.shape)
        lanes = [dim for dim, size in enumerate(tensor.shape) if size != sizes[dim]]
        if len(lanes) > 1 or any(step % LANES == 0 < step for size, step in zip(sizes, steps, strict=True) if size > 1):
            raise Untranslatable(f"lanes that lie between each other, in a tensor of shape {tuple(sizes)}")
        base = f"({name} + lane * {sizes[lanes[0]] * steps[lanes[0]]})" if lanes else name
        return Place(base, torch.empty_strided(sizes, steps, dtype=tensor.dtype, device="meta"))

    def reachable(self, nodes: Sequence[fx.Node], places: Sequence[Place]) -> Iterator[tuple[fx.Node, Place]]:
        """The values that can be computed where a result is wanted, each with that place in its own shape."""
        taken = set(self.written)
        for node, place in zip(nodes, places, strict=True):
            source = node
            while source.target in RESHAPES and len(source.users) == 1:
                source = source.all_input_nodes[0]
            if source.op == "call_function" and self.homes[source] is source and source not in taken:
                with suppress(RuntimeError):  # where the place cannot be seen in that shape
                    yield source, replace(place, like=place.like.view(self.one_lane(held(source).shape)))
                    taken.add(source)

    def place(self, node: fx.Node) -> Place:
        """Where the node's value goes: where it is wanted, or to memory of its own."""
        if node in self.wanted:
            return self.wanted[node]
        like = held(node)
        shape = self.one_lane(like.shape)
        steps, step = [0] * len(shape), 1
        for dim in sorted(range(len(shape)), key=lambda dim: (like.stride(dim), -dim)):
            steps[dim], step = step, step * shape[dim]
        base = f"(({typed(like.dtype)} *)(scratch + {self.room.take(node, step * like.element_size())}))"
        return Place(base, torch.empty_strided(shape, steps, dtype=like.dtype, device="meta"))

    def one_lane(self, arguments: Any) -> Any:
        """Arguments as they are for one lane: what its values look like in the place of nodes, 1 in that of LANES."""
        return for_one_lane(arguments, self.like)

    def like(self, node: fx.Node) -> Any:
        """What one lane of the node's value looks like."""
        value = self.values[node]
        if isinstance(value, Place):
            return value.like
        shape = self.one_lane(held(node).shape)
        return torch.empty(shape, dtype=held(node).dtype, device="meta")

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.one_lane(held(node).shape))

    def deliver(self, node: fx.Node, place: Place) -> None:
        """Copy a result to where it is wanted, unless it has been computed there."""
        value = self.values[node]
        if isinstance(value, Place) and way(value, place.like.shape) == way(place, place.like.shape):
            return
        self.close()
        self.lane += nested(place.like, f"{place.element(place.steps(place.like.shape))} = {self.text(node, place)};")

    def text(self, node: fx.Node, place: Place) -> str:
        """The element of a value that the loops over a place of its shape stand at."""
        value = self.values[node]
        return value.text if isinstance(value, Number) else str(value.element(value.steps(place.like.shape)))

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    # -------------------------------------------------------------------------------------------------------- one node

    def write(self, node: fx.Node) -> None:
        """Bring the node's value about."""
        name = name_of(node)
        if self.is_constant(node):
            self.values[node] = self.constant(self.known[node])
        elif node.op == "get_attr":
            raise Untranslatable("a constant that changes")
        elif is_view(node):
            self.values[node] = self.seen(node)
        elif node in self.laned and not any(map(has_lanes, tensors(node.meta["val"]))):
            raise Untranslatable(f"{name} of several lanes")
        elif name in SUMS:
            self.sum(node, name)
        elif name in SPECIAL:
            SPECIAL[name](self, node)
        elif name in EXPRESSIONS:
            self.elementwise(node, name)
        else:
            raise Untranslatable(name)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node has the same value at every run and for every lane; then it is known from here on."""
        if self.homes[node] in self.written or not all(each in self.known for each in node.all_input_nodes):
            return False
        if node.op == "get_attr":
            self.known[node] = attrgetter(str(node.target))(self.program.constants)
            return True
        if name_of(node) == "arange" and has_lanes(held(node)):
            return False
        operation: Any = node.target
        arguments, named = for_one_lane((node.args, dict(node.kwargs)), self.known.__getitem__)
        self.known[node] = operation(*arguments, **named)
        return True

    def constant(self, value: Any) -> Any:
        """A known value: a literal if all its elements are the same, else something the function is given."""
        if not isinstance(value, Tensor):
            return [self.constant(each) for each in value]
        typed(value.dtype)
        if value.numel() and bool((value == value.flatten()[0]).all()):
            return Number(literal(value.flatten()[0].item(), value.dtype), value.dtype)
        self.constants.append(value.contiguous())
        return Place(f"constant{len(self.constants) - 1}", value.contiguous().to("meta"))

    def seen(self, node: fx.Node) -> Any:
        """A view of a value, or one of several."""
        value, operation = self.values[lender(node)], node.target
        if operation is operator.getitem:
            return value[operands(node)[1]]
        if isinstance(value, Number):
            return value
        like = operation(*self.one_lane(node.args), **self.one_lane(dict(node.kwargs)))  # type: ignore[operator]
        return replace(value, like=like) if isinstance(like, Tensor) else [replace(value, like=each) for each in like]

    def elementwise(self, node: fx.Node, name: str) -> None:
        """An operation on every element by itself, in the loop over these elements."""
        target = self.values[lender(node)] if overwrites(node) else None
        shape, dtype = self.shape(node), held(node).dtype
        if isinstance(target, Place) and node in self.laned and lender(node) not in self.laned:
            raise Untranslatable(f"{name} of several lanes into one")
        if prod(shape) == 1:
            self.by_itself(node, target, self.expression(node, name, lambda each: self.read(each, None)))
            return
        if node not in self.laned:
            raise Untranslatable(f"{name} of what all lanes share")
        loop = self.loop_over(shape, [*node.all_input_nodes])
        expression = self.expression(node, name, lambda each: self.read(each, loop))
        variable = Number(self.name(), dtype)
        loop.body.append(lambda kept: f"const {typed(dtype)} {variable.text} = {expression};")
        if isinstance(target, Number):
            raise Untranslatable(f"{name} in place of one number for all")
        self.compute(loop, node, target or self.place(node), variable)

    def compute(self, loop: Loop, node: fx.Node, place: Place, variable: Number) -> None:
        """The variable is the node's value, which belongs to that place."""
        self.values[node] = place
        mine = self.homes[node]
        loop.nodes.add(node)
        loop.seen[mine] = way(place, loop.shape)
        loop.ways.append(place.steps(loop.shape))
        loop.inside[mine], loop.written[mine] = variable, place

    def by_itself(self, node: fx.Node, target: Value | None, expression: str) -> None:
        """A single number of a lane, or of all lanes."""
        lines = self.lane if node in self.laned else self.once
        dtype = held(node).dtype
        if isinstance(target, Number):
            lines.append(f"{target.text} = {expression};")
            self.values[node] = target
            return
        variable = Number(self.name(), dtype)
        lines.append(f"{typed(dtype)} {variable.text} = {expression};")
        self.values[node] = variable
        if isinstance(target, Place):
            lines.append(f"{target.element(())} = {variable.text};")
            self.values[node] = target
        elif node in self.wanted:
            del self.wanted[node]

    def expression(self, node: fx.Node, name: str, read: Callable[[fx.Node], Number]) -> str:
        """The operation in C. read: the variable that stands for an operand."""
        dtype = computed_in(node, name)

        def written(each: Any) -> Any:
            if isinstance(each, fx.Node):
                value = read(each)
                cast = value.dtype.is_floating_point and value.dtype != dtype
                return f"({typed(dtype)})({value.text})" if cast else value.text
            if isinstance(each, int | float):
                return literal(each, dtype)
            raise Untranslatable(f"{name} with {each}")

        named = {key: written(each) for key, each in node.kwargs.items() if key not in ASIDE}
        arguments = [written(each) for each in node.args if each is not None]
        try:
            return EXPRESSIONS[name](*arguments, **named).replace("{f}", suffix(dtype))
        except TypeError as error:
            raise Untranslatable(f"{name} with {', '.join(named)} ({error})") from error

    # ------------------------------------------------------------------------------------------------------- the loop

    def loop_over(self, shape: tuple[int, ...], operands: Sequence[fx.Node]) -> Loop:
        """The loop that is open, if it is over these elements and meets each operand on the way it does already."""
        if self.loop and not (self.loop.shape == shape and all(self.fits(each, shape) for each in operands)):
            self.close()
        self.loop = self.loop or Loop(shape)
        return self.loop

    def fits(self, node: fx.Node, shape: tuple[int, ...]) -> bool:
        """Whether the open loop can read this value where it stands."""
        value, mine = self.values[node], self.homes[node]
        if not self.loop or mine in self.loop.sums:
            return not self.loop
        if isinstance(value, Number):
            return True
        return mine not in self.loop.seen or (prod(value.like.shape) > 1 and self.loop.seen[mine] == way(value, shape))

    def read(self, node: fx.Node, loop: Loop | None) -> Number:
        """A variable for the element of this value that the loop stands at, or for its only one."""
        value, mine = self.values[node], self.homes[node]
        if self.loop and not loop and (mine in self.loop.sums or mine in self.loop.seen):
            self.close()
        if isinstance(value, Number):
            return value
        if not isinstance(value, Place):
            raise Untranslatable(f"several values at once, of {node}")
        if lender_changes := node not in self.laned and mine in self.written and loop is not None:
            raise Untranslatable(f"{node}, which all lanes share and change: {lender_changes}")
        if prod(value.like.shape) == 1:
            variable = Number(self.name(), value.dtype)
            lines = self.lane if node in self.laned or loop else self.once
            lines.append(f"const {typed(value.dtype)} {variable.text} = {value.element(())};")
            return variable
        assert loop is not None
        if mine not in loop.inside:
            variable = Number(self.name(), value.dtype)
            steps = value.steps(loop.shape)
            loop.body.append(
                lambda kept: f"const {typed(value.dtype)} {variable.text} = {value.element(kept(steps))};"
            )
            loop.seen[mine], loop.inside[mine] = way(value, loop.shape), variable
            loop.ways.append(steps)
        return loop.inside[mine]

    def sum(self, node: fx.Node, name: str) -> None:
        """A sum, or another thing that is taken over several elements, in the loop that computes these."""
        source, dims, keep = [*operands(node), None, False][:3] if len(operands(node)) < 3 else operands(node)[:3]
        shape, dtype = self.shape(source), held(node).dtype
        dims = sorted(dim % len(shape) for dim in (dims or range(len(shape))))
        if any(held(source).shape[dim] % LANES == 0 for dim in dims):
            raise Untranslatable(f"{name} over lanes")
        if dtype != held(source).dtype or not dtype.is_floating_point:
            raise Untranslatable(f"{name} in {dtype}")
        if prod(shape) == 1:
            self.by_itself(node, None, self.read(source, None).text)
            return
        loop = self.loop_over(shape, [source])
        term = self.read(source, loop).text
        loop.nodes.add(node)
        if prod(self.shape(node)) == 1 and node not in self.wanted:
            into: Value = Number(self.name(), dtype)
            steps = (0,) * len(shape)
        else:
            into = self.place(node)
            like = into.like
            for dim in () if keep else dims:
                like = like.unsqueeze(dim)
            steps = replace(into, like=like).steps(shape)
        self.values[node] = into
        loop.sums[node] = Sum(name, term, into, steps)
        loop.ways.append(steps)

    def close(self) -> None:
        """Write the open loop down."""
        loop, self.loop = self.loop, None
        if loop:
            self.lane += self.written_down(loop)
        for node in self.ended:
            self.room.give(node)
        self.ended.clear()

    def written_down(self, loop: Loop) -> list[str]:
        stored = {node: place for node, place in loop.written.items() if self.is_read_outside(node, loop)}
        leading = [place.steps(loop.shape) for place in stored.values()] + loop.ways
        dims = counted(loop.shape, leading[0], loop.ways)
        sizes = {dim: prod(loop.shape[each] for each in merged) for dim, merged in dims.items()}

        def kept(steps: Steps) -> Steps:
            return tuple(step if dim in dims else 0 for dim, step in enumerate(steps))

        *outer, inner = dims
        lines, inside, after, clauses = [], [statement(kept) for statement in loop.body], [], ""
        for node, place in stored.items():
            inside.append(f"{place.element(kept(place.steps(loop.shape)))} = {loop.inside[node].text};")
        for total in loop.sums.values():
            sign, start, join = SUMS[total.how]
            dtype = typed(total.into.dtype)
            if isinstance(total.into, Number):
                lines.append(f"{dtype} {total.into.text} = {start};")
                into = total.into.text
            else:
                lines += nested(total.into.like, f"{total.into.element(total.into.steps(total.into.like.shape))} = {start};")
                into = total.into.element(kept(total.steps))
            if total.steps[inner]:
                inside.append(join.format(into, total.term))
                continue
            part = self.name()
            after.append((f"{dtype} {part} = {start};", join.format(into, part)))
            clauses += f" reduction({sign} : {part})"
            inside.append(join.format(part, total.term))
        lines += [for_each(dim, sizes[dim]) for dim in outer]
        lines += ["{", *(begin for begin, _ in after), f"#pragma omp simd{clauses}", for_each(inner, sizes[inner]) + " {"]
        return [*lines, *inside, "}", *(end for _, end in after), "}"]

    def is_read_outside(self, node: fx.Node, loop: Loop) -> bool:
        """Whether what the loop computes of this value is to be in memory when it has ended."""
        return node.op == "placeholder" or node in self.results or not self.readers[node] <= loop.nodes

    # ------------------------------------------------------------------------------------------- what is no single loop

    def product(self, node: fx.Node) -> None:
        """Products of matrices, one for each that a lane has."""
        a, b = (self.values[each] for each in operands(node))
        if not (isinstance(a, Place) and isinstance(b, Place) and a.dtype == b.dtype == torch.float32):
            raise Untranslatable("a product of other things than two matrices of float32")
        if any(size % LANES == 0 for each in (*operands(node), node) for size in held(each).shape[1:]):
            raise Untranslatable("a product over lanes")
        self.close()
        if node in self.wanted and self.wanted[node].like.stride(2) != 1:
            del self.wanted[node]
        place = self.place(node)
        if place.like.stride(2) != 1 and place.like.shape[2] > 1:
            raise Untranslatable("a product whose rows do not lie in one piece")
        (batch, m, k), n = a.like.shape, b.like.shape[2]
        key = (m, n, k, *a.like.stride()[1:], *b.like.stride()[1:], place.like.stride(1))
        if key not in self.functions:
            self.functions[key] = PRODUCT.format(number=len(self.functions), sizes=numbered(key))
        self.packed = max(self.packed, k * -(-n // CACHE_LINE) * CACHE_LINE)
        call = f"product{list(self.functions).index(key)}"
        where = (f"&{each.element((each.like.stride(0) if batch > 1 else 0, 0, 0))}" for each in (a, b, place))
        self.lane += [*([for_each(0, batch)] if batch > 1 else []), f"{call}({', '.join(where)}, packed);"]
        self.values[node] = place

    def gather(self, node: fx.Node) -> None:
        """For every element one that stands where an index says."""
        index = operands(node)[2]
        self.pick(node, self.values[index])

    def index_select(self, node: fx.Node) -> None:
        """The rows of a table, or slices of it along another dimension, that an index names."""
        _, dim, index = operands(node)
        names, ndim = self.values[index], held(node).ndim
        if isinstance(names, Place):
            along = [-1 if each == dim % ndim else 1 for each in range(ndim)]
            names = replace(names, like=names.like.view(along))
        self.pick(node, names)

    def pick(self, node: fx.Node, at: Value) -> None:
        """Elements of a table, each from where `at` says along a dimension, and from where it stands along the others."""
        source, dim, index = operands(node)
        table, shape = self.values[source], self.shape(node)
        if not isinstance(table, Place) or prod(shape) == 1 or has_lane_at(source, dim):
            raise Untranslatable(f"{name_of(node)} from what is no table")
        target = self.values[lender(node)] if overwrites(node) else None
        if self.loop and not {self.homes[source], self.homes[index]}.isdisjoint(self.loop.seen):
            self.close()
        loop = self.loop_over(shape, [])
        self.lane += within(at, table.like.shape[dim])
        across, steps = table.like.stride(dim), without(dim, table.steps(table.like.shape))
        variable = Number(self.name(), table.dtype)
        walked = at.steps(shape) if isinstance(at, Place) else None

        def picked(kept: Callable[[Steps], Steps]) -> str:
            where = at.element(kept(walked)) if walked else at.text
            return f"const {typed(table.dtype)} {variable.text} = {table.element(kept(steps), f'{where} * {across}')};"

        loop.body.append(picked)
        for each in (source, index):
            loop.seen[self.homes[each]] = object()  # no other operation comes to it on this way
        loop.ways += [steps, *([walked] if walked else [])]
        self.compute(loop, node, target if isinstance(target, Place) else self.place(node), variable)

    def scatter(self, node: fx.Node) -> None:
        """Values added to those of a base, where an index says."""
        base, dim, index, source = operands(node)
        at, added, like = self.values[index], self.values[source], self.like(index)
        if has_lane_at(node, dim) or not isinstance(at, Place):
            raise Untranslatable("scatter_add to one place")
        self.close()
        place = self.place(node)
        self.lane += nested(place.like, f"{place.element(place.steps(place.like.shape))} = {self.text(base, place)};")
        self.lane += within(at, place.like.shape[dim])
        where = f"{at.element(at.steps(like.shape))} * {place.like.stride(dim)}"
        here = place.element(without(dim, place.steps(place.like.shape)), where)
        term = added.text if isinstance(added, Number) else added.element(added.steps(like.shape))
        self.lane += nested(like, f"{here} += {term};", simd=False)
        self.values[node] = place

    def argmax(self, node: fx.Node) -> None:
        """Where along a dimension the largest element stands, or the first that is no number."""
        source, dim, *_ = operands(node)
        value = self.values[source]
        if not isinstance(value, Place) or has_lane_at(source, dim):
            raise Untranslatable("the largest of what is no row")
        self.close()
        like, place = value.like, self.place(node)
        dim %= like.ndim
        at = replace(place, like=place.like.unsqueeze(dim)) if place.like.ndim < like.ndim else place
        best = Place(f"(({typed(value.dtype)} *)packed)", torch.empty(at.like.shape, device="meta"))
        self.packed = max(self.packed, best.like.numel())
        one = like.narrow(dim, 0, 1)
        x, y, z = value.element(value.steps(like.shape)), best.element(best.steps(one.shape)), at.element(at.steps(one.shape))
        larger = f"const int larger = i{dim} == 0 || {x} > {y} || ({x} != {x} && {y} == {y});"
        step = f"{{ {larger} {y} = larger ? {x} : {y}; {z} = larger ? i{dim} : {z}; }}"
        self.lane += [for_each(dim, like.shape[dim]) + " {", *nested(one, step), "}"]
        self.values[node] = place


SPECIAL: dict[str, Callable[[Translation, fx.Node], None]] = {
    "bmm": Translation.product,
    "gather": Translation.gather,
    "index_select": Translation.index_select,
    "scatter_add": Translation.scatter,
    "argmax": Translation.argmax,
}

PRODUCT = """\
static __attribute__((noinline)) void product{number}(const float *a, const float *b, float *c, float *packed) {{
  product({sizes}, packed);
}}
"""


def numbered(key: tuple[int, ...]) -> str:
    m, n, k, a_row, a_column, b_row, b_column, c_row = key
    return f"{m}, {n}, {k}, a, {a_row}, {a_column}, b, {b_row}, {b_column}, c, {c_row}"


# -------------------------------------------------------------------------------------------------------- lines of text


def indented(lines: Sequence[str], by: int) -> str:
    return "\n".join(line if line.startswith("#") else " " * by + line for line in lines)


def pointer(name: str, dtype: torch.dtype, place: int) -> str:
    return f"{typed(dtype)} *{name} = memory[{place}];"


def typed(dtype: torch.dtype) -> str:
    if dtype not in TYPES:
        raise Untranslatable(f"{dtype}")
    return TYPES[dtype]


def for_each(dim: int, size: int) -> str:
    return f"for (long i{dim} = 0; i{dim} < {size}; i{dim}++)"


def nested(like: Tensor, statement: str, simd: bool = True) -> list[str]:
    """The statement for every element of a place, in the order in which they lie."""
    dims = [dim for dim in range(like.ndim) if like.shape[dim] > 1]
    dims.sort(key=lambda dim: -like.stride(dim))
    loops = [for_each(dim, like.shape[dim]) for dim in dims]
    if simd and loops:
        loops.insert(-1, "#pragma omp simd")
    return [*loops, statement]


def within(at: Value, size: int) -> list[str]:
    """Give up if an index points outside."""
    if isinstance(at, Number):
        return [f"if ({at.text} < 0 || {at.text} >= {size}) return 1;"]
    wrong = f"wrong |= {at.element(at.steps(at.like.shape))} < 0 || {at.element(at.steps(at.like.shape))} >= {size};"
    return nested(at.like, wrong, simd=False) + ["if (wrong) return 1;"]


def without(dim: int, steps: Steps) -> Steps:
    return tuple(0 if each == dim % len(steps) else step for each, step in enumerate(steps))


def way(place: Place, shape: Sequence[int]) -> tuple[Any, ...]:
    """How the elements of a place are walked through by loops over this shape."""
    return (place.base, place.like.storage_offset(), place.steps(shape))


def counted(shape: Sequence[int], leading: Steps, ways: Sequence[Steps]) -> dict[int, list[int]]:
    """The dimensions that need a counter, from the outermost to the innermost, with those that each stands for.

    Two stand for one where every way goes through them as through one. leading: the way that decides the order.
    """
    dims = sorted((dim for dim, size in enumerate(shape) if size > 1), key=lambda dim: -leading[dim])
    merged: list[list[int]] = []
    for dim in dims:
        if merged and all(steps[merged[-1][-1]] == steps[dim] * shape[dim] for steps in ways):
            merged[-1].append(dim)
        else:
            merged.append([dim])
    return {together[-1]: together for together in merged}


# --------------------------------------------------------------------------------------------------- nodes of a program


def name_of(node: fx.Node) -> str:
    """What torch calls the operation: the same for its variants, in place or not."""
    operation_schema = getattr(node.target, "_schema", None)
    return operation_schema.name.removeprefix("aten::").rstrip("_") if operation_schema else str(node.target)


def for_one_lane(arguments: Any, value_of: Callable[[fx.Node], Any]) -> Any:
    def ours(each: Any) -> Any:
        if isinstance(each, fx.Node):
            return value_of(each)
        return each // LANES if type(each) is int and each and each % LANES == 0 else each

    return fx.node.map_aggregate(tuple(arguments) if isinstance(arguments, torch.Size) else arguments, ours)


def has_lanes(tensor: Tensor) -> bool:
    return any(size and size % LANES == 0 for size in tensor.shape)


def has_lane_at(node: fx.Node, dim: int) -> bool:
    return held(node).shape[dim] % LANES == 0


def laned(graph: fx.Graph) -> set[fx.Node]:
    """The values that are not the same for all lanes."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "call_function"):
            if not found.isdisjoint(node.all_input_nodes) or any(map(has_lanes, tensors(node.meta["val"]))):
                found.add(node)
    return found


def readers(nodes: Sequence[fx.Node], homes: dict[fx.Node, fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Who reads each value, whether directly or by a view."""
    found: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    for node in nodes:
        if not is_view(node):
            for each in node.all_input_nodes:
                found[homes[each]].add(node)
    return found


def computed_in(node: fx.Node, name: str) -> torch.dtype:
    """The type in which the operation computes."""
    if name not in COMPARISONS:
        return held(node).dtype
    return torch.result_type(*(held(each) if isinstance(each, fx.Node) else each for each in operands(node)))


def simplify(graph: fx.Graph) -> None:
    """Write operations that are several loops as several operations."""
    for node in list(graph.nodes):
        if node.op == "call_function" and (write := PARTS.get(node.target)):
            by = write(lambda target, *arguments, node=node, **named: insert(graph, node, target, arguments, **named), node)
            if by is not None:
                substitute(graph, node, by)
    drop_unused(graph)


Write = Callable[..., fx.Node]


def mean_in_parts(write: Write, node: fx.Node) -> fx.Node:
    source, dims, *rest = operands(node)
    total = write(aten.sum.dim_IntList, source, dims, *rest)
    return write(aten.div.Scalar, total, prod(held(source).shape[dim] for dim in dims))


def norm_in_parts(write: Write, node: fx.Node) -> fx.Node | None:
    source, order, dims, *keep = (*operands(node), None)[:4] if len(operands(node)) < 3 else operands(node)
    if order != 2 or held(node).dtype != held(source).dtype:
        return None
    return write(aten.sqrt.default, write(aten.sum.dim_IntList, write(aten.mul.Tensor, source, source), dims, *keep))


def log_softmax_in_parts(write: Write, node: fx.Node) -> fx.Node:
    """x - max - log sum exp (x - max)."""
    source, dim, _ = operands(node)
    away = write(aten.sub.Tensor, source, write(aten.amax.default, source, [dim], True))
    total = write(aten.sum.dim_IntList, write(aten.exp.default, away), [dim], True)
    return write(aten.sub.Tensor, away, write(aten.log.default, total))


def log_softmax_backward_in_parts(write: Write, node: fx.Node) -> fx.Node:
    """g - exp(log p) sum g."""
    grad, softmax, dim, _ = operands(node)
    total = write(aten.sum.dim_IntList, grad, [dim], True)
    return write(aten.sub.Tensor, grad, write(aten.mul.Tensor, write(aten.exp.default, softmax), total))


def max_in_parts(write: Write, node: fx.Node) -> None:
    """The largest elements, and where they stand."""
    for user in list(node.users):
        target = aten.argmax.default if operands(user)[1] else aten.amax.default
        source, dim, *keep = operands(node)
        found = write(target, source, dim if operands(user)[1] else [dim], *keep)
        substitute(node.graph, user, found)


def root_in_parts(write: Write, node: fx.Node) -> fx.Node | None:
    """1 / (1 / sqrt(x)), which is faster than a root only where torch takes it, is sqrt(x)."""
    inverse = operands(node)[0]
    return write(aten.sqrt.default, *operands(inverse)) if inverse.target is aten.rsqrt.default else None


PARTS: dict[Any, Callable[[Write, fx.Node], fx.Node | None]] = {
    aten.mean.dim: mean_in_parts,
    aten.linalg_vector_norm.default: norm_in_parts,
    aten._log_softmax.default: log_softmax_in_parts,
    aten._log_softmax_backward_data.default: log_softmax_backward_in_parts,
    aten.max.dim: max_in_parts,
    aten.reciprocal.default: root_in_parts,
}
