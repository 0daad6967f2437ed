"""A program bound to its memory: a list of calls, and nothing else.

A `Program` says what to compute, for any number of lanes. A `Tape` says where, for the lanes at hand. Every value gets
its place before the first run: views are taken once, what never changes is computed once, a value that nobody reads any
more leaves its place to the next one, and a gradient is computed where the optimizer wants it. What is left to do at
every step is to call one kernel after another; so a few lanes at a time are enough, and those stay in a core's cache.
On a GPU the list, which nothing but kernels is left of, is captured as a CUDA graph.
"""

from __future__ import annotations

import logging
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from studies.programs import LANES, Program, held, tensors

__all__ = ["Arena", "Call", "Tape", "bind"]

log = logging.getLogger(__name__)

aten = torch.ops.aten

Call = Callable[[], object]


@dataclass
class Tape:
    """Calls in their order. results: the tensors in which the program's results are after every run."""

    calls: list[Call]
    results: list[Tensor] = field(default_factory=list)

    def run(self) -> None:
        with torch.inference_mode():
            for call in self.calls:
                call()

    def captured(self, device: torch.device) -> Tape:
        """On a GPU, the same as one CUDA graph, of which the host then starts one thing instead of many.

        Where that cannot be, because an operation asks the host something, the log says why and the calls stay.
        """
        if device.type != "cuda":
            return self
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.run()
        except RuntimeError as error:
            log.info("not captured as a CUDA graph (%s)", str(error).splitlines()[0])
            return self
        return Tape([graph.replay], self.results)


@dataclass
class Arena:
    """Memory for values that live within one run; tapes that run one after another may share it.

    kept: bytes that there are of it. passing: bytes that operations allocate at most which cannot write to a place of
    ours.
    """

    kept: int = 0
    passing: int = 0
    free: list[Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return self.kept + self.passing

    def take(self, size: int, device: torch.device) -> Tensor:
        """A block of so many bytes: the smallest free one that has them, or a new one."""
        fitting = [block for block in self.free if len(block) >= size and block.device == device]
        if not fitting:
            self.kept += size
            return torch.empty(size, dtype=torch.uint8, device=device)
        block = min(fitting, key=len)
        self.free = [each for each in self.free if each is not block]
        return block

    def give(self, block: Tensor) -> None:
        self.free.append(block)


def bind(
    program: Program, lanes: int, arguments: Sequence[Tensor], arena: Arena, destinations: Sequence[Tensor] = ()
) -> Tape:
    """The program for so many lanes, on these arguments.

    destinations: where its last so many results are wanted; the tape's results are the others.
    """
    binding = Binding(program, lanes, arguments, arena, destinations)
    return Tape(binding.calls, binding.results)


@dataclass(frozen=True)
class Late:
    """A value that lies somewhere else at every run: the entry of so many in a list of them."""

    index: int


class Binding:
    """Gives every node of a program its value, in their order, and writes down what is to be called for it."""

    def __init__(
        self, program: Program, lanes: int, arguments: Sequence[Tensor], arena: Arena, destinations: Sequence[Tensor]
    ) -> None:
        self.constants, self.lanes, self.arena = program.constants, lanes, arena
        self.calls: list[Call] = []
        self.values: dict[fx.Node, Any] = dict(zip(program.arguments, arguments, strict=True))
        self.blocks: dict[fx.Node, list[Tensor]] = defaultdict(list)
        self.constant: set[fx.Node] = set()
        self.late: list[Any] = []
        self.slots: dict[fx.Node, list[int]] = defaultdict(list)
        self.passing = 0
        nodes = [node for node in program.graph.nodes if node.op in ("call_function", "get_attr")]
        self.homes = {node: home(node) for node in program.graph.nodes}
        self.written = {self.homes[node] for node in nodes if writes(node)}
        first = len(program.results) - len(destinations)
        kept, wanted = program.results[:first], program.results[first:]
        self.ends = last_readers(nodes, self.homes, program.results)
        self.wanted = dict(self.reachable(wanted, destinations))
        for node in nodes:
            self.values[node] = self.place(node)
            for ended in self.ends[node]:
                self.end(ended)
        for node, destination in zip(wanted, destinations, strict=True):
            if not same_place(self.values[node], destination):
                self.call(Tensor.copy_, (destination, self.values[node]))
        self.results = [self.settled(node) for node in kept]

    def reachable(self, nodes: Sequence[fx.Node], destinations: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Tensor]]:
        """The values that can be computed where a result is wanted, each with that place in its own shape."""
        taken = set(self.written)
        for node, destination in zip(nodes, destinations, strict=True):
            source = node
            while source.target in RESHAPES and len(source.users) == 1:
                source = source.all_input_nodes[0]
            if source.op != "call_function" or self.homes[source] is not source or source in taken:
                continue
            if not any_layout(source) or (apart(destination) and source.target is aten.bmm.default):
                continue
            with suppress(RuntimeError):  # where the destination cannot be seen in that shape
                yield source, destination.view(self.scaled(held(source).shape))
                taken.add(source)

    def place(self, node: fx.Node) -> Any:
        """The node's value. What is to be called to bring it about at every run is written down."""
        constant = self.is_constant(node)
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.constants)
        operation: Any = node.target
        arguments, named = self.scaled(node.args), self.scaled(node.kwargs)
        if constant:
            return operation(*arguments, **named)
        if is_view(node):
            return self.seen(node, operation, arguments, named)
        if overwrites(node):
            self.call(operation, arguments, named)
            return self.values[lender(node)]
        if operation in COPIES:
            place = self.room(node, held(node))
            self.call(Tensor.copy_, (place, arguments[0]))
            return place
        into, names = variant_into(operation, device_of(node))
        if not into:
            return self.later(node, operation, arguments, named)
        parts = [held(node)] if len(names) == 1 else list(node.meta["val"])
        places = [self.room(node, part) for part in parts]
        arguments = tuple(map(as_declared, arguments, into._schema.arguments))
        self.call(into, arguments, named | dict(zip(names, places, strict=True)))
        return places[0] if len(names) == 1 else places

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node has the same value at every run."""
        fixed = self.homes[node] not in self.written and node not in self.wanted
        if fixed and self.constant.issuperset(node.all_input_nodes):
            self.constant.add(node)
        return node in self.constant

    def seen(self, node: fx.Node, operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A view of a value, or one of several."""
        if self.late and is_late(arguments):
            return self.later(node, operation, arguments, named)
        return operation(*arguments, **named)

    def room(self, node: fx.Node, like: Tensor) -> Tensor:
        """Where a value goes: to its destination, in the place of an operand that ends here, or to one of its own."""
        if node in self.wanted:
            return self.wanted[node]
        shape = self.scaled(like.shape)
        stride = self.scaled(like.stride()) if any_layout(node) else torch.empty(shape, device="meta").stride()
        for operand in node.all_input_nodes if is_pointwise(node) else ():
            owner = self.homes[operand]
            if owner not in self.ends[node] or not self.blocks[owner]:
                continue
            values: list[Tensor] = [self.values[each] for each in node.all_input_nodes if self.homes[each] is owner]
            alike = (values[0].shape, values[0].stride(), values[0].dtype) == (shape, stride, like.dtype)
            if alike and all(same_place(values[0], each) for each in values):
                self.blocks[node] = self.blocks.pop(owner)
                return values[0]
        size = prod(shape) * like.element_size()
        block = self.arena.take(size, like.device)
        self.blocks[node].append(block)
        return block[:size].view(like.dtype).as_strided(shape, stride)

    def call(self, operation: Any, arguments: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> None:
        """Write down a call whose result is not needed, because it is in one of its operands."""
        function, named = direct(operation), named or {}
        if self.late and is_late((arguments, named)):
            self.calls.append(lambda: function(*self.by_now(arguments), **self.by_now(named)))
        else:
            self.calls.append(partial(function, *arguments, **named))

    def later(self, node: fx.Node, operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Late:
        """Write down a call whose result lies somewhere else at every run."""
        function, mine = direct(operation), Late(len(self.late))
        self.late.append(None)

        def call() -> None:
            self.late[mine.index] = function(*self.by_now(arguments), **self.by_now(named))

        self.calls.append(call)
        self.slots[self.homes[node]].append(mine.index)
        if self.homes[node] is node:
            self.passing += self.size(node)
            self.arena.passing = max(self.arena.passing, self.passing)
        return mine

    def end(self, node: fx.Node) -> None:
        """Nobody reads this value any more: its place is free."""
        for block in self.blocks.pop(node, ()):
            self.arena.give(block)
        if slots := self.slots.pop(node, None):
            self.calls.append(lambda: self.forget(slots))
            self.passing -= self.size(node)

    def forget(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.late[slot] = None

    def by_now(self, arguments: Any) -> Any:
        """What they are in this run, for those that lie somewhere else at every run."""
        return tree_map(lambda each: self.late[each.index] if isinstance(each, Late) else each, arguments)

    def settled(self, node: fx.Node) -> Tensor:
        """A result as a tensor that stays where it is."""
        value: Tensor | Late = self.values[node]
        if isinstance(value, Tensor):
            return value
        settled = torch.empty(self.scaled(held(node).shape), dtype=held(node).dtype, device=held(node).device)
        self.call(Tensor.copy_, (settled, value))
        return settled

    def scaled(self, arguments: Any) -> Any:
        """Arguments as they are for our lanes: values in the place of nodes, and LANES wherever it is a factor."""

        def ours(each: Any) -> Any:
            if isinstance(each, fx.Node):
                return self.values[each]
            if type(each) is int and each % LANES == 0:
                return each // LANES * self.lanes
            return each

        return fx.node.map_aggregate(tuple(arguments) if isinstance(arguments, torch.Size) else arguments, ours)

    def size(self, node: fx.Node) -> int:
        """Bytes of the node's value, or of all of them where there are several."""
        return sum(prod(self.scaled(each.shape)) * each.element_size() for each in tensors(node.meta["val"]))


def last_readers(
    nodes: Sequence[fx.Node], homes: Mapping[fx.Node, fx.Node], results: Sequence[fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """For every node the values that nobody reads after it. homes: in whose memory each value lies."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last |= {homes[each]: node for each in (node, *node.all_input_nodes)}
    ends = defaultdict(list)
    for value in last.keys() - {homes[result] for result in results}:
        ends[last[value]].append(value)
    return ends


# What operations do is read from their schemas.

RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.squeeze.dims, aten.unsqueeze.default}
COPIES = {aten.clone.default, aten._to_copy.default}


# Of the operations that are not elementwise, those that write their result however it is to lie in memory. The others,
# softmaxes among them, may take for granted that it lies in order.
WRITE_ANYWHERE = {aten.bmm.default, aten.sum.dim_IntList, aten.mean.dim}


def any_layout(node: fx.Node) -> bool:
    return node.target in WRITE_ANYWHERE or is_pointwise(node)


def apart(tensor: Tensor) -> bool:
    """Whether its lanes do not lie side by side in a CPU's memory. There, torch takes the products of many lanes one by
    one; taken all at once and then copied, they are faster.
    """
    return tensor.is_cpu and not tensor.is_contiguous()


def is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", NO_SCHEMA)


NO_SCHEMA = aten.neg.default._schema  # stands for what is not an operation of ATen: it changes nothing


def writes(node: fx.Node) -> bool:
    """Whether the operation changes an operand."""
    return bool(schema(node).is_mutable)


def overwrites(node: fx.Node) -> bool:
    """Whether it does, and returns nothing else."""
    returns = schema(node).returns
    return bool(returns) and all(each.alias_info is not None and each.alias_info.is_write for each in returns)


def is_view(node: fx.Node) -> bool:
    """Whether the value lies in memory of an operand that stays as it is."""
    if node.target in (operator.getitem, aten._unsafe_view.default):
        return True
    returns = schema(node).returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def lender(node: fx.Node) -> fx.Node:
    """The operand in whose memory the value of a view, or of an operation in place, lies."""
    for place, argument in enumerate(schema(node).arguments):
        if argument.alias_info is not None:
            return node.kwargs[argument.name] if argument.kwarg_only else node.args[place]  # type: ignore[return-value]
    return node.all_input_nodes[0]


def home(node: fx.Node) -> fx.Node:
    """The node in whose memory the value lies: its own, or that of what it is a view of or written over."""
    while node.op == "call_function" and (is_view(node) or overwrites(node)):
        node = lender(node)
    return node


@cache
def variant_into(operation: Any, device: str) -> tuple[Any, list[str]]:
    """The variant of an operation that writes its results to places it is given, and what it calls them.

    Only where this device has a kernel for it: the others would compute elsewhere and copy. A tensor stands for a
    number only where it must: x**2 with a number is x x, with a tensor its last bit depends on where in memory x lies.
    """
    key, has_kernel = {"cpu": "CPU", "cuda": "CUDA"}.get(device, ""), torch._C._dispatch_has_kernel_for_dispatch_key
    variants = [getattr(operation.overloadpacket, name) for name in operation.overloadpacket.overloads()]
    for stands_for in ("number", "Tensor"):
        for variant in variants:
            places = [each.name for each in variant._schema.arguments if each.is_out]
            if places and takes(variant, operation, stands_for) and has_kernel(variant.name(), key):
                return variant, places
    return None, []


def takes(variant: Any, operation: Any, stands_for: str) -> bool:
    """Whether the variant can be called with the operation's arguments. stands_for: what it has for their numbers."""
    theirs = [each for each in variant._schema.arguments if not each.is_out]
    ours = operation._schema.arguments
    if [each.name for each in ours] != [each.name for each in theirs]:
        return False
    types = [(str(a.type), str(b.type)) for a, b in zip(ours, theirs, strict=True)]
    return all(b in (a, a.replace("number", stands_for)) for a, b in types)


def as_declared(value: Any, argument: Any) -> Any:
    """The value, as a tensor if it is a number and the argument is not."""
    if str(argument.type) == "Tensor" and isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    return value


# What torch has a function or a method of its own for, with the same arguments: they are called in half the time.
NATIVE = {
    "abs", "add", "add_", "addcmul", "addcmul_", "bmm", "clamp_min", "copy_", "div", "div_", "eq", "gather", "lerp",
    "lerp_", "mean", "mul", "mul_", "neg", "pow", "reciprocal", "rsqrt", "scatter_add", "sqrt", "sub", "sub_", "sum",
    "where",
}  # fmt: skip


def direct(operation: Any) -> Any:
    """The shortest way to call the operation from Python."""
    if not isinstance(operation, torch._ops.OpOverload):
        return operation
    name = operation._schema.name.removeprefix("aten::")
    if name not in NATIVE:
        return operation._op  # without the checks that torch.ops makes in Python
    return getattr(Tensor if name.endswith("_") else torch, name)


def device_of(node: fx.Node) -> str:
    return tensors(node.meta["val"])[0].device.type


def is_late(arguments: Any) -> bool:
    return any(isinstance(each, Late) for each in tree_leaves(arguments))


def same_place(a: Any, b: Any) -> bool:
    """Whether two tensors are one, seen in one shape. Where there is only one of something, its stride says nothing."""
    if isinstance(a, Late) or isinstance(b, Late):
        return a is b
    strides = zip(a.shape, a.stride(), b.stride(), strict=False)
    return bool(a.data_ptr() == b.data_ptr() and a.shape == b.shape and all(n == 1 or i == j for n, i, j in strides))
