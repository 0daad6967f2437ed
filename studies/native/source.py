"""A program as one function in C that takes lane after lane.

A tape (`studies.tape`) calls one kernel for many lanes after another, so that everything a lane computes is written to
memory and read again. The function written here does all that is to be done for a lane before it turns to the next one:
what a lane computes stays in the first-level cache. Operations on the same elements share one loop, in which a value
that nobody reads outside is a register; sums are taken in the loop that computes what they sum; products are tiles
whose sizes the compiler knows (`kernels.h`).

The shapes of one lane are those of the program with one lane: torch is asked for them, with tensors that have no
memory.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from studies.native.loops import SUMS, Loop, Sum, for_each, nested, within, without
from studies.native.parts import in_parts
from studies.native.values import Number, Place, Room, Steps, UntranslatableError, Value, literal, typed
from studies.native.words import WORDS, expression, name_of
from studies.programs import LANES, Program, held, operands, tensors
from studies.tape import RESHAPES, home, is_view, last_readers, lender, overwrites, writes

__all__ = ["Source", "translate"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Source:
    """The text of `int run(long lanes, void **memory)`, which returns 1 if an index points outside.

    memory: where each argument of the program begins, then each result that has no destination, each destination, each
    of `constants`, the lengths of `tables` (arguments, by number, each with a dimension) as int64, and `scratch` bytes
    for what is computed on the way.
    """

    text: str
    constants: list[Tensor]
    tables: list[tuple[int, int]]
    scratch: int


def translate(program: Program, steps: Sequence[Steps], destinations: Sequence[Tensor] = ()) -> Source:
    """The program in C, its last results written to destinations that lie in memory like these.

    steps: of each argument. destinations: tensors with LANES in one dimension.
    Raises UntranslatableError for what there are no words for.
    """
    return Translation(program, steps, destinations).source()


TEXT = """\
#include "kernels.h"

{functions}
#pragma GCC pop_options

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

# Not inlined, since products of one shape share it; its sizes are constants of `product`, which is.
PRODUCT = """\
static __attribute__((noinline)) void {name}(const float *a, const float *b, float *c, float *packed) {{
  product({m}, {n}, {k}, a, {a_row}, {a_column}, b, {b_row}, {b_column}, c, {c_row}, packed);
}}
"""
WIDEST = 16  # numbers in a vector, at most: rows of a product are filled up to whole vectors
SIZES = ("m", "n", "k", "a_row", "a_column", "b_row", "b_column", "c_row")


class Translation:
    """One program on its way to C, node by node in their order.

    once, lane: what is done once per call, and for every lane. loop: the loop that may still take operations; it is
    written down when something comes that it cannot take.
    """

    def __init__(self, program: Program, steps: Sequence[Steps], destinations: Sequence[Tensor]) -> None:
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.graph, {}))
        in_parts(graph)
        self.program = Program(graph, program.constants)
        nodes = [node for node in graph.nodes if node.op in ("call_function", "get_attr")]
        self.homes = {node: home(node) for node in graph.nodes}
        self.written = {self.homes[node] for node in nodes if writes(node)}
        self.results = {self.homes[node] for node in self.program.results}
        self.readers, self.laned = readers(nodes, self.homes), laned(graph)
        self.values: dict[fx.Node, Any] = {}
        self.known: dict[fx.Node, Any] = {}
        self.constants: list[Tensor] = []
        self.tables: list[tuple[int, int]] = []
        self.pointers: list[str] = []
        self.functions: dict[tuple[int, ...], str] = {}
        self.once: list[str] = []
        self.lane: list[str] = []
        self.loop: Loop | None = None
        self.room, self.packed, self.names = Room(), 0, 0
        self.ended: list[fx.Node] = []
        for node, way in zip(self.program.arguments, steps, strict=True):
            given = torch.empty_strided(held(node).shape, way, dtype=held(node).dtype, device="meta")
            self.values[node] = self.argument(given)
        self.write_all(nodes, destinations)

    def write_all(self, nodes: Sequence[fx.Node], destinations: Sequence[Tensor]) -> None:
        first = len(self.program.results) - len(destinations)
        ends = last_readers(nodes, self.homes, self.program.results)
        kept = [
            torch.empty(held(node).shape, dtype=held(node).dtype, device="meta")
            for node in self.program.results[:first]
        ]
        places = [self.argument(each) for each in (*kept, *destinations)]
        self.wanted = dict(self.reachable(self.program.results[first:], places[first:]))
        for node in nodes:
            self.write(node)
            self.ended += ends[node]
        for node, place in zip(self.program.results, places, strict=True):
            self.deliver(node, place)
        self.close()

    def source(self) -> Source:
        for i, constant in enumerate(self.constants):
            self.point(f"constant{i}", typed(constant.dtype))
        self.point("lengths", "int64_t")
        self.point("scratch", "char")
        text = TEXT.format(
            functions="\n".join(
                PRODUCT.format(name=name, **dict(zip(SIZES, sizes, strict=True)))
                for sizes, name in self.functions.items()
            ),
            pointers=indented([*self.pointers, f"float *packed = (float *)(scratch + {self.room.size});"], 2),
            once=indented(self.once, 2),
            lane=indented(self.lane, 4),
        )
        return Source(text, self.constants, self.tables, self.room.size + 4 * self.packed)

    def point(self, name: str, kind: str) -> str:
        """The next pointer that the function is given."""
        self.pointers.append(f"{kind} *{name} = memory[{len(self.pointers)}];")
        return name

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    # ------------------------------------------------------------------------------------------------ where values are

    def argument(self, tensor: Tensor) -> Place:
        """The next tensor that the function is given. tensor: what it looks like, LANES being one of its dimensions."""
        name = self.point(f"m{len(self.pointers)}", typed(tensor.dtype))
        sizes, steps = self.one_lane(tensor.shape), tensor.stride()
        if 0 in sizes:
            raise UntranslatableError("a tensor without elements")
        lanes = [dim for dim, size in enumerate(tensor.shape) if size != sizes[dim]]
        if len(lanes) > 1 or any(step % LANES == 0 < step for size, step in zip(sizes, steps, strict=True) if size > 1):
            raise UntranslatableError(f"lanes that lie between each other, in a tensor of shape {sizes}")
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
                    yield source, replace(place, like=place.like.view(self.shape(source)))
                    taken.add(source)

    def place(self, node: fx.Node) -> Place:
        """Where the node's value goes: where it is wanted, or to memory of its own, ordered as torch orders it."""
        if node in self.wanted:
            return self.wanted[node]
        like, shape = held(node), self.shape(node)
        steps, step = [0] * len(shape), 1
        for dim in sorted(range(len(shape)), key=lambda dim: (like.stride(dim), -dim)):
            steps[dim], step = step, step * shape[dim]
        base = f"(({typed(like.dtype)} *)(scratch + {self.room.take(node, step * like.element_size())}))"
        return Place(base, torch.empty_strided(shape, steps, dtype=like.dtype, device="meta"))

    def target(self, node: fx.Node) -> Value | None:
        """What an operation in place writes over."""
        value: Value | None = self.values[lender(node)] if overwrites(node) else None
        if isinstance(value, Place) and node in self.laned and lender(node) not in self.laned:
            raise UntranslatableError(f"{name_of(node)} of several lanes into what they share")
        return value

    def one_lane(self, arguments: Any) -> Any:
        """Arguments as they are for one lane: what its values look like in the place of nodes, 1 in that of LANES."""
        return for_one_lane(arguments, self.like)

    def is_shared_and_changes(self, node: fx.Node) -> bool:
        """Whether it is in memory that lanes share and something writes to: that would be done before them."""
        return self.homes[node] in self.written and self.homes[node] not in self.laned

    def like(self, node: fx.Node) -> Any:
        """What one lane of the node's value looks like."""
        value = self.values[node]
        if isinstance(value, Place):
            return value.like
        return torch.empty(self.shape(node), dtype=held(node).dtype, device="meta")

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.one_lane(held(node).shape))

    def deliver(self, node: fx.Node, place: Place) -> None:
        """Copy a result to where it is wanted, unless it has been computed there."""
        value = self.values[node]
        if isinstance(value, Place) and value.way(place.shape) == place.way(place.shape):
            return
        self.close()
        self.lane += nested(place, f"{place.element()} = {text(value, place.shape)};")

    # -------------------------------------------------------------------------------------------------------- one node

    def write(self, node: fx.Node) -> None:
        """Bring the node's value about."""
        name = name_of(node)
        if any(not each.numel() for each in tensors(node.meta.get("val"))):
            raise UntranslatableError("a tensor without elements")
        if self.is_constant(node):
            self.values[node] = self.constant(self.known[node])
        elif node.op == "get_attr":
            raise UntranslatableError("a constant that changes")
        elif is_view(node):
            self.values[node] = self.seen(node)
        elif node in self.laned and not any(map(has_lanes, tensors(node.meta["val"]))):
            raise UntranslatableError(f"{name} over lanes")
        elif node in self.laned and any(map(self.is_shared_and_changes, node.all_input_nodes)):
            raise UntranslatableError(f"{name} of what lanes share, and what changes")
        elif overwrites(node) and name not in WORDS and name not in ("gather", "index_select"):
            raise UntranslatableError(f"{name} to a given place")
        elif name in SUMS:
            self.sum(node)
        elif name in SPECIAL:
            SPECIAL[name](self, node)
        elif name in WORDS:
            self.elementwise(node)
        else:
            raise UntranslatableError(name)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node has the same value at every run and for every lane; then it is known from here on."""
        if self.homes[node] in self.written or not all(each in self.known for each in node.all_input_nodes):
            return False
        involved = [each for of in (node, *node.all_input_nodes) for each in tensors(of.meta.get("val"))]
        alike = is_view(node) or name_of(node) in WORDS or name_of(node) in ("full", "ones", "zeros")
        if any(map(has_lanes, involved)) and not alike:  # it may tell lanes apart, or count them
            return False
        if node.op == "get_attr":
            self.known[node] = attrgetter(str(node.target))(self.program.constants)
            return True
        operation: Any = node.target
        arguments, named = for_one_lane((node.args, dict(node.kwargs)), self.known.__getitem__)
        self.known[node] = operation(*arguments, **named)
        return True

    def constant(self, value: Any) -> Any:
        """A known value: a literal if all its elements are the same, else something the function is given."""
        if not isinstance(value, Tensor):
            return [self.constant(each) for each in value]
        if value.numel() and bool((value == value.flatten()[0]).all()):
            return Number(literal(value.flatten()[0].item(), value.dtype), value.dtype)
        self.constants.append(value.contiguous())
        return Place(f"constant{len(self.constants) - 1}", value.contiguous().to("meta"))

    def seen(self, node: fx.Node) -> Any:
        """A view of a value, or one of several."""
        value, operation = self.values[lender(node)], node.target
        if operation is operator.getitem:
            return value[operands(node)[1]]
        check_view(node)
        if isinstance(value, Number):
            several = node.meta["val"]
            return value if isinstance(several, Tensor) else [value] * len(several)
        try:
            like = operation(*self.one_lane(node.args), **self.one_lane(dict(node.kwargs)))  # type: ignore[operator]
        except (RuntimeError, ValueError) as error:
            raise UntranslatableError(f"a view of one lane ({error})") from error
        return replace(value, like=like) if isinstance(like, Tensor) else [replace(value, like=each) for each in like]

    def elementwise(self, node: fx.Node) -> None:
        """An operation on every element by itself, in the loop over these elements."""
        target, shape, dtype = self.target(node), self.shape(node), held(node).dtype
        if prod(shape) == 1:
            self.by_itself(node, expression(node, lambda each: self.read(each, None)))
            return
        if node not in self.laned or isinstance(target, Number):
            raise UntranslatableError(f"{name_of(node)} of what all lanes share")
        loop = self.loop_over(shape, node.all_input_nodes)
        done, variable = expression(node, lambda each: self.read(each, loop)), Number(self.name(), dtype)
        loop.body.append(lambda kept: f"const {typed(dtype)} {variable.text} = {done};")
        self.compute(loop, node, target or self.place(node), variable)

    def compute(self, loop: Loop, node: fx.Node, place: Place, variable: Number) -> None:
        """Within the loop the variable is the node's value, which belongs to that place."""
        self.values[node], mine = place, self.homes[node]
        if loop.seen.get(mine, ()) is None:
            raise UntranslatableError(f"{name_of(node)} over what it reads elsewhere")
        loop.nodes.add(node)
        loop.seen[mine] = place.way(loop.shape)
        loop.ways.append(place.steps(loop.shape))
        loop.inside[mine], loop.written[mine] = variable, place

    def by_itself(self, node: fx.Node, done: str) -> None:
        """A single number of a lane, or of all lanes."""
        target, dtype = self.target(node), held(node).dtype
        lines = self.lane if node in self.laned else self.once
        if self.loop and (isinstance(target, Number) or self.loop.knows(self.homes[node])):
            self.close()  # it reads what there is before this
        if isinstance(target, Place):
            lines.append(f"{target.element()} = {done};")
        elif target:
            lines.append(f"{target.text} = {done};")
        else:
            variable = Number(self.name(), dtype)
            lines.append(f"{typed(dtype)} {variable.text} = {done};")
            self.wanted.pop(node, None)
        self.values[node] = target or variable

    # ------------------------------------------------------------------------------------------------------- the loop

    def loop_over(self, shape: tuple[int, ...], operands: Sequence[fx.Node]) -> Loop:
        """The loop that is open, if it is over these elements and meets each operand on the way it does already."""
        if self.loop and not (self.loop.shape == shape and all(self.fits(self.loop, each) for each in operands)):
            self.close()
        self.loop = self.loop or Loop(shape)
        return self.loop

    def fits(self, loop: Loop, node: fx.Node) -> bool:
        """Whether the loop can read this value where it stands."""
        value, mine = self.values[node], self.homes[node]
        if mine in loop.sums:
            return False
        if mine not in loop.seen or isinstance(value, Number):
            return True
        return prod(value.shape) > 1 and bool(loop.seen[mine] == value.way(loop.shape))

    def read(self, node: fx.Node, loop: Loop | None) -> Number:
        """A variable for the element of this value that the loop stands at, or for its only one."""
        value, mine = self.values[node], self.homes[node]
        if self.loop and not loop and self.loop.knows(mine):
            self.close()
        if isinstance(value, Number):
            return value
        if not isinstance(value, Place):
            raise UntranslatableError("several values where one is read")
        variable = Number(self.name(), value.dtype)
        if prod(value.shape) == 1:
            lines = self.lane if node in self.laned or loop else self.once
            lines.append(f"const {typed(value.dtype)} {variable.text} = {value.element()};")
            return variable
        if not loop:
            raise UntranslatableError("many elements where one is read")
        way, steps = value.way(loop.shape), value.steps(loop.shape)
        if loop.seen.setdefault(mine, way) != way:  # one operation reads it on two ways: no other may come to it
            loop.seen[mine] = None
        elif mine in loop.inside:
            return loop.inside[mine]
        else:
            loop.inside[mine] = variable
        loop.body.append(lambda kept: f"const {typed(value.dtype)} {variable.text} = {value.element(kept(steps))};")
        loop.ways.append(steps)
        return variable

    def sum(self, node: fx.Node) -> None:
        """A sum, or another thing that is taken over several elements, in the loop that computes these."""
        name, shape, dtype = name_of(node), self.shape(operands(node)[0]), held(node).dtype
        source, dims, keep = (
            (*operands(node), None, False)[:3] if len(operands(node)) == 1 else (*operands(node), False)[:3]
        )
        dims = sorted(dim % len(shape) for dim in (dims or range(len(shape))))
        if any(held(source).shape[dim] % LANES == 0 for dim in dims):
            raise UntranslatableError(f"{name} over lanes")
        if dtype != held(source).dtype or not dtype.is_floating_point:
            raise UntranslatableError(f"{name} in {dtype}")
        if prod(shape) == 1:
            self.by_itself(node, self.read(source, None).text)
            return
        loop = self.loop_over(shape, [source])
        term = self.read(source, loop).text
        into: Value = Number(self.name(), dtype)
        steps: Steps = (0,) * len(shape)
        if prod(self.shape(node)) > 1 or node in self.wanted:
            into = self.place(node)
            seen = into.like
            for dim in () if keep else dims:
                seen = seen.unsqueeze(dim)
            steps = replace(into, like=seen).steps(shape)
        loop.nodes.add(node)
        loop.ways.append(steps)
        loop.sums[node], self.values[node] = Sum(name, term, into, steps), into

    def close(self) -> None:
        """Write the open loop down; what has ended leaves its memory to what comes."""
        loop, self.loop = self.loop, None
        if loop:
            self.lane += loop.lines([node for node in loop.written if self.is_read_outside(node, loop)])
        for node in self.ended:
            self.room.give(node)
        self.ended.clear()

    def is_read_outside(self, node: fx.Node, loop: Loop) -> bool:
        """Whether what the loop computes of this value is to be in memory when it has ended."""
        return node.op == "placeholder" or node in self.results or not self.readers[node] <= loop.nodes

    # ------------------------------------------------------------------------------------------- what is no single loop

    def product(self, node: fx.Node) -> None:
        """Products of matrices, one for each that a lane has."""
        a, b = (self.values[each] for each in operands(node))
        if not (isinstance(a, Place) and isinstance(b, Place) and a.dtype == b.dtype == torch.float32):
            raise UntranslatableError("a product of other things than two matrices of float32")
        if any(size % LANES == 0 for each in (*operands(node), node) for size in held(each).shape[1:]):
            raise UntranslatableError("a product over lanes")
        self.close()
        if node in self.wanted and self.wanted[node].like.stride(2) != 1:
            del self.wanted[node]
        place = self.place(node)
        (batch, m, k), n = a.shape, b.shape[2]
        sizes = (m, n, k, *a.like.stride()[1:], *b.like.stride()[1:], place.like.stride(1))
        if n > 1 and place.like.stride(2) != 1:
            raise UntranslatableError("a product whose rows do not lie in one piece")
        name = self.functions.setdefault(sizes, f"product{len(self.functions)}")
        self.packed = max(self.packed, k * -(-n // WIDEST) * WIDEST)
        a, b, c = (f"&{each.element((each.steps()[0], 0, 0))}" for each in (a, b, place))
        self.lane += [*([for_each(0, batch)] if batch > 1 else []), f"{name}({a}, {b}, {c}, packed);"]
        self.values[node] = place

    def join(self, node: fx.Node) -> None:
        """Several values in one, stacked or one behind the other."""
        parts, dim = (*operands(node), 0)[:2]
        stacked, at = name_of(node) == "stack", 0
        if has_lane_at(node, dim):
            raise UntranslatableError("joining lanes")
        self.close()
        place = self.place(node)
        for part in parts:
            length = 1 if stacked else self.shape(part)[dim]
            like = place.like.select(dim, at) if stacked else place.like.narrow(dim, at, length)
            here, at = replace(place, like=like), at + length
            self.lane += nested(here, f"{here.element()} = {text(self.values[part], here.shape)};")
        self.values[node] = place

    def gather(self, node: fx.Node) -> None:
        """For every element one that stands where an index says."""
        index = operands(node)[2]
        self.pick(node, self.values[index])

    def index_select(self, node: fx.Node) -> None:
        """The rows of a table, or slices of it along another dimension, that an index names."""
        _, dim, index = operands(node)
        at, ndim = self.values[index], held(node).ndim
        if isinstance(at, Place):
            along = [-1 if each == dim % ndim else 1 for each in range(ndim)]
            at = replace(at, like=at.like.view(along))
        self.pick(node, at)

    def pick(self, node: fx.Node, at: Value) -> None:
        """Elements of a table, from where `at` says along one dimension, and from where they stand along the others."""
        source, dim, index = operands(node)
        table, shape, target = self.values[source], self.shape(node), self.target(node)
        if not isinstance(table, Place) or prod(shape) == 1 or isinstance(target, Number) or has_lane_at(source, dim):
            raise UntranslatableError(f"{name_of(node)} from or to what is no table")
        if self.loop and (self.loop.knows(self.homes[source]) or self.loop.knows(self.homes[index])):
            self.close()
        loop, length = self.loop_over(shape, [] if target is None else [lender(node)]), self.length(source, dim)
        self.lane += within(at, length)
        steps, variable = without(dim, table.steps()), Number(self.name(), table.dtype)
        walked = at.steps(shape) if isinstance(at, Place) else ()

        def picked(kept: Callable[[Steps], Steps]) -> str:
            where = f"{at.element(kept(walked)) if isinstance(at, Place) else at.text} * {table.like.stride(dim)}"
            return f"const {typed(table.dtype)} {variable.text} = {table.element(kept(steps), where)};"

        loop.body.append(picked)
        for each in (source, index):
            loop.seen[self.homes[each]] = None
        loop.ways += [steps, *([walked] if walked else [])]
        self.compute(loop, node, target or self.place(node), variable)

    def length(self, node: fx.Node, dim: int) -> str:
        """How long a value is. Of tables that the function is given it is not known before."""
        dim %= held(node).ndim
        if node.op != "placeholder" or not all(is_table_of(node, dim, user) for user in node.users):
            return str(self.like(node).shape[dim])
        self.tables.append((self.program.arguments.index(node), dim))
        return f"lengths[{len(self.tables) - 1}]"

    def scatter(self, node: fx.Node) -> None:
        """Values added to those of a base, where an index says."""
        base, dim, index, source = operands(node)
        at, added = self.values[index], self.values[source]
        if not isinstance(at, Place) or has_lane_at(node, dim):
            raise UntranslatableError("scatter_add to one place")
        if isinstance(added, Place) and added.shape != at.shape:
            raise UntranslatableError("scatter_add of a part")
        self.close()
        place = self.place(node)
        where = f"{at.element()} * {place.like.stride(dim)}"
        steps = tuple(step if size > 1 else 0 for size, step in zip(at.shape, place.steps(), strict=True))
        here = place.element(without(dim, steps), where)
        self.lane += nested(place, f"{place.element()} = {text(self.values[base], place.shape)};")
        self.lane += within(at, str(place.shape[dim]))
        self.lane += nested(at, f"{here} += {text(added, at.shape)};", pragma="")
        self.values[node] = place

    def argmax(self, node: fx.Node) -> None:
        """Where along a dimension the largest element stands, or the first that is no number."""
        source, dim, *_ = (*operands(node), None)
        value = self.values[source]
        if not isinstance(value, Place) or dim is None or has_lane_at(source, dim):
            raise UntranslatableError("the largest of what is no row")
        self.close()
        dim, place = dim % len(value.shape), self.place(node)
        at = place if len(place.shape) == len(value.shape) else replace(place, like=place.like.unsqueeze(dim))
        best = Place(f"(({typed(value.dtype)} *)packed)", torch.empty(at.shape, dtype=value.dtype, device="meta"))
        self.packed = max(self.packed, 2 * prod(at.shape))  # room for doubles, too
        x, y, z = value.element(), best.element(), at.element()
        larger = f"const int larger = i{dim} == 0 || {x} > {y} || ({x} != {x} && {y} == {y});"
        step = f"{{ {larger} {y} = larger ? {x} : {y}; {z} = larger ? i{dim} : {z}; }}"
        row = replace(value, like=value.like.narrow(dim, 0, 1))
        self.lane += [for_each(dim, value.shape[dim]) + " {", *nested(row, step), "}"]
        self.values[node] = place


SPECIAL: dict[str, Callable[[Translation, fx.Node], None]] = {
    "argmax": Translation.argmax,
    "bmm": Translation.product,
    "cat": Translation.join,
    "gather": Translation.gather,
    "index_select": Translation.index_select,
    "scatter_add": Translation.scatter,
    "stack": Translation.join,
}


def text(value: Value, shape: Sequence[int]) -> str:
    """The element of a value that loops over this shape stand at."""
    return value.text if isinstance(value, Number) else value.element(value.steps(shape))


def indented(lines: Sequence[str], by: int) -> str:
    return "\n".join(line if line.startswith("#") else " " * by + line for line in lines)


def for_one_lane(arguments: Any, value_of: Callable[[fx.Node], Any]) -> Any:
    """Arguments with values in the place of nodes, and 1 in that of LANES wherever it is a factor."""

    def ours(each: Any) -> Any:
        if isinstance(each, fx.Node):
            return value_of(each)
        return each // LANES if type(each) is int and each and each % LANES == 0 else each

    return fx.node.map_aggregate(tuple(arguments) if isinstance(arguments, torch.Size) else arguments, ours)


def has_lanes(tensor: Tensor) -> bool:
    return any(size and size % LANES == 0 for size in tensor.shape)


def is_table_of(node: fx.Node, dim: int, user: fx.Node) -> bool:
    """Whether this user picks rows from it, along that dimension."""
    return name_of(user) == "index_select" and operands(user)[0] is node and operands(user)[1] % held(node).ndim == dim


def check_view(node: fx.Node) -> None:
    """Raise for a view that does not look at every lane in the same way."""
    operation: Any = node.target
    whole = torch.empty(held(lender(node)).shape, dtype=held(lender(node)).dtype, device="meta")
    seen = tensors(operation(*fx.node.map_arg(node.args, lambda each: whole), **node.kwargs))
    if name_of(node) == "as_strided" or any(each.dtype != whole.dtype for each in seen):
        raise UntranslatableError(f"this {name_of(node)}")
    if has_lanes(whole) and any(lane_steps(each) != lane_steps(whole) for each in seen):
        raise UntranslatableError(f"{name_of(node)} over lanes")


def lane_steps(tensor: Tensor) -> list[int]:
    """How far apart neighbouring lanes lie, for every dimension that counts them."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return [size // LANES * step for size, step in sizes if size and size % LANES == 0]


def has_lane_at(node: fx.Node, dim: int) -> bool:
    return held(node).shape[dim] % LANES == 0


def laned(graph: fx.Graph) -> set[fx.Node]:
    """The values that are not the same for all lanes."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op in ("placeholder", "call_function") and any(map(has_lanes, tensors(node.meta["val"])))
        if own or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def readers(nodes: Sequence[fx.Node], homes: dict[fx.Node, fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Who reads each value, whether directly or by a view."""
    found: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    for node in nodes:
        for each in () if is_view(node) else node.all_input_nodes:
            found[homes[each]].add(node)
    return found
