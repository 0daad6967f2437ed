"""From an ordinary model to straight-line tensor code for many lanes.

Calling a model runs Python, autograd and one small kernel after another, once per trial. Here the model is written down
once, as a list of tensor operations for any number of lanes. `torch.func.vmap` turns every operation on one model into
one on all of them; tracing with `make_fx` writes the forward and the backward pass down, so that running them costs
neither autograd nor vmap; and a few rewrites make the list faster:

    identities        operations that change nothing are taken out
    products          transpose(a b) becomes transpose(b) transpose(a), which lies in memory as the gradient must
    narrow products   a product with few columns is computed as one with few rows, which fills the vector units
    sums              what is added to a transpose is transposed instead, until something cancels
    narrow softmaxes  over few classes, on the CPU: the classes are moved to a dimension that vectorises
    roots             on the CPU the inverse of an inverse root, which is not slow where a number is 0

Each keeps the values up to rounding. What a rewrite does not recognise it leaves alone, so any model that vmap
understands will do. Tracing computes nothing: its tensors have shapes and no values. Where the values will lie is for
`studies.tape` to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from storage.records import Precision
from studies.batching import in_known_pieces
from studies.precision import forward_in
from studies.workloads.workload import accuracy_of, loss_of

__all__ = ["Program", "evaluation", "gradient", "in_place", "views"]

aten = torch.ops.aten

# Programs are written down for so many lanes. It is a prime larger than any dimension a small model has: a dimension
# that it divides counts lanes, and nothing else does.
LANES = 1_000_003
NARROW = 64  # fewer columns, or fewer classes in a softmax, do not fill a vector unit when they lie side by side


@dataclass(frozen=True)
class Program:
    """Operations on tensors in the order in which they are computed.

    graph: of ATen operations; every node knows what it held while it was traced (`held`), with LANES lanes.
    constants: the tensors that the graph names itself.
    """

    graph: fx.Graph
    constants: nn.Module

    @property
    def arguments(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def results(self) -> list[fx.Node]:
        *_, output = self.graph.nodes
        return list(operands(output)[0])


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor, precision: Precision = "float32") -> Program:
    """The program (params, buffers, inputs, targets) -> losses of shape (lanes,), gradients like params.

    params, buffers: one stacked tensor of shape (lanes, *shape) for each of the model's, in its order; the buffers are
    updated in place. inputs, targets: a minibatch per lane, (lanes, batch, ...); here the example of one lane,
    (batch, ...), whose shapes, types and device the program will fit.
    """
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(params: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        state = dict(zip(names, [*params, *buffers], strict=True))
        with forward_in(precision, inputs.device):
            outputs = functional_call(model, state, (inputs,))
        return loss_of(outputs, targets)

    def losses_and_grads(*flat: Tensor) -> list[Tensor]:
        leaves = [param.detach().requires_grad_() for param in flat[: len(params)]]
        with torch.enable_grad():
            losses = vmap(loss)(leaves, list(flat[len(params) : -2]), flat[-2], flat[-1])
            grads = torch.autograd.grad(losses.sum(), leaves)
        return [losses.detach(), *grads]

    names = [*params, *buffers]
    model.train()
    with writing_down(inputs.device):
        others = [stacked(each) for each in (*buffers.values(), inputs, targets)]
        return traced(losses_and_grads, [*stacked_params(model), *others])


def evaluation(model: nn.Module, inputs: Tensor, targets: Tensor, precision: Precision = "float32") -> Program:
    """The program (params, buffers, inputs, targets) -> losses, accuracies, both (lanes,), in evaluation mode.

    inputs, targets: examples of shape (examples, ...), the same for every lane.
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def measured(values: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with forward_in(precision, inputs.device):
            outputs = functional_call(model, dict(zip(state, values, strict=True)), (inputs,))
        return loss_of(outputs, targets), accuracy_of(outputs, targets)

    def over_lanes(*flat: Tensor) -> list[Tensor]:
        return list(vmap(measured, in_dims=(0, None, None))(list(flat[:-2]), flat[-2], flat[-1]))

    model.eval()
    with writing_down(inputs.device) as mode, torch.no_grad():
        examples = [*stacked_params(model), *(stacked(buffer) for buffer in model.buffers())]
        return traced(over_lanes, [*examples, mode.from_tensor(inputs), mode.from_tensor(targets)])


def in_place(function: Callable[..., None], examples: Sequence[Tensor], lane_dims: Sequence[int | None]) -> Program:
    """The program of a function that changes its arguments.

    examples: what it is called with. lane_dims: the dimension of each that counts lanes, None for those that have none.
    """

    def calling(*flat: Tensor) -> list[Tensor]:
        function(*flat)
        return []

    with writing_down(examples[0].device), torch.no_grad():
        return traced(calling, [widened(each, dim) for each, dim in zip(examples, lane_dims, strict=True)])


@contextmanager
def writing_down(device: torch.device) -> Iterator[FakeTensorMode]:
    """While it lasts, tensors have shapes and no values."""
    with in_known_pieces(device), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def stacked(one: Tensor) -> Tensor:
    """What LANES of them look like."""
    return torch.empty(LANES, *one.shape, dtype=one.dtype, device=one.device)


def views(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """A matrix of shape (lanes, weights) as one view of shape (lanes, *shape) for each of the model's parameters."""
    sizes = [p.numel() for p in model.parameters()]
    return [
        part.view(len(flat), *p.shape)
        for part, p in zip(torch.split(flat, sizes, dim=1), model.parameters(), strict=True)
    ]


def stacked_params(model: nn.Module) -> list[Tensor]:
    """What the parameters of LANES such models look like, as views of one matrix."""
    first, *_ = model.parameters()
    weights = sum(param.numel() for param in model.parameters())
    return views(torch.empty(LANES, weights, dtype=first.dtype, device=first.device), model)


def widened(few: Tensor, dim: int | None) -> Tensor:
    """What it looks like with LANES in that dimension, the first or the last."""
    shape = list(few.shape)
    if dim is not None:
        shape[dim] = LANES
    if dim == 0:
        return torch.empty_strided(shape, few.stride(), dtype=few.dtype, device=few.device)
    return torch.empty(shape, dtype=few.dtype, device=few.device)


def traced(function: Callable[..., list[Tensor]], examples: Sequence[Tensor]) -> Program:
    """The function as a program, rewritten; while `writing_down` lasts."""
    module = make_fx(function, decomposition_table=one_by_one())(*examples)
    for rewrite in REWRITES:
        rewrite(module.graph)
    drop_unused(module.graph)
    module.graph.lint()
    lay_out(module.graph)
    return Program(module.graph, module)


def lay_out(graph: fx.Graph) -> None:
    """Note what the nodes behind a rewrite hold now: perhaps the same, in another order in memory."""
    moved = {node for node in graph.nodes if "inserted" in node.meta}
    for node in graph.nodes:
        if node.op == "call_function" and not moved.isdisjoint(node.all_input_nodes):
            before, arguments, named = node.meta["val"], *fx.node.map_arg((node.args, node.kwargs), held)
            node.meta["val"] = node.target(*arguments, **named)
            if [each.stride() for each in tensors(before)] != [each.stride() for each in tensors(node.meta["val"])]:
                moved.add(node)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a value that may be one, several, or none."""
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


# ---------------------------------------------------------------------------------------------------- tensor by tensor

LISTED = ["abs", "add", "addcdiv", "addcmul", "copy", "div", "lerp", "maximum", "mul", "neg", "sqrt", "sub"]


@cache
def one_by_one() -> dict[Any, Callable[..., Any]]:
    """Operations on lists of tensors as operations on one tensor after another, which the rewrites understand."""
    table: dict[Any, Callable[..., Any]] = {aten.rsub.Scalar: less_than}
    for name in LISTED:
        for packet, spread in ((f"_foreach_{name}", each), (f"_foreach_{name}_", each_in_place)):
            overloads = getattr(aten, packet, None)
            for overload in overloads.overloads() if overloads else ():
                if not overload.endswith("out"):
                    table[getattr(overloads, overload)] = partial(spread, getattr(aten, packet[9:], maximum_))
    return table


def less_than(x: Tensor, number: float, alpha: float = 1) -> Tensor:
    """number - alpha x."""
    return torch.sub(torch.full((), number, dtype=x.dtype, device=x.device), x, alpha=alpha)


def each(operation: Any, tensors: Sequence[Tensor], *rest: Any, **named: Any) -> list[Tensor]:
    """The operation on each of the tensors, with its own entry of every other list."""
    if operation in (aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_) and len(rest) == 3:
        *rest, named["value"] = rest  # type: ignore[assignment]
    rows = zip(tensors, *(one if isinstance(one, list | tuple) else repeat(one) for one in rest), strict=False)
    return [operation(*row, **named) for row in rows]


def each_in_place(operation: Any, tensors: Sequence[Tensor], *rest: Any, **named: Any) -> None:
    each(operation, tensors, *rest, **named)


def maximum_(x: Tensor, y: Tensor) -> Tensor:
    return x.copy_(torch.maximum(x, y))


# ------------------------------------------------------------------------------------------------------------ rewrites


def calls(graph: fx.Graph, *targets: Any) -> list[fx.Node]:
    """The graph's calls of these operations, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def held(node: Any) -> Tensor:
    """What the node held while it was traced: its shape and its type."""
    found: Tensor = node.meta["val"]
    return found


def operands(node: fx.Node) -> tuple[Any, ...]:
    """What an operation is called with: nodes where it reads tensors, plain values elsewhere."""
    return tuple(node.args)


def insert(graph: fx.Graph, before: fx.Node, target: Any, arguments: tuple[Any, ...], **named: Any) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, arguments, named)
    node.meta |= {"val": target(*fx.node.map_arg(arguments, held), **named), "inserted": True}
    return node


def turned(graph: fx.Graph, before: fx.Node, node: fx.Node) -> fx.Node:
    """The node with its last two dimensions exchanged: computed like that, where that is as cheap."""
    if is_turn(node):
        source: fx.Node = operands(node)[0]
        return source
    last = held(node).ndim - 1
    if node.target is aten.full.default and len(node.users) == 1:
        like = held(node).transpose(last - 1, last)
        return insert(graph, before, aten.full.default, (list(like.shape), operands(node)[1]), **node.kwargs)
    if node.target is aten.scatter_add.default and len(node.users) == 1 and operands(node)[1] == last:
        zeros, _, index, values = operands(node)
        zeros, index, values = (turned(graph, before, each) for each in (zeros, index, values))
        return insert(graph, before, aten.scatter_add.default, (zeros, last - 1, index, values))
    return insert(graph, before, aten.transpose.int, (node, last - 1, last))


def is_turn(node: Any) -> bool:
    """Whether the node is another one with its last two dimensions exchanged."""
    if not isinstance(node, fx.Node) or node.target is not aten.transpose.int:
        return False
    source, *dims = operands(node)
    return sorted(dim % held(source).ndim for dim in dims) == [held(source).ndim - 2, held(source).ndim - 1]


def substitute(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def drop_identities(graph: fx.Graph) -> None:
    """x.detach(), 1 x, a view of x in its own shape, and a transpose of a transpose are x."""
    reshapes = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
    for node in calls(graph, aten.detach.default, aten.mul.Scalar, aten.transpose.int, *reshapes):
        (source, *rest), target = operands(node), node.target
        if target is aten.transpose.int:
            twice = source.target is aten.transpose.int and source.args[1:] == node.args[1:]
            if twice:
                substitute(graph, node, source.args[0])
            continue
        same_shape = target in reshapes and held(source).shape == held(node).shape
        if target is aten.detach.default or (target is aten.mul.Scalar and rest == [1]) or same_shape:
            substitute(graph, node, source)


def drop_dependences(graph: fx.Graph) -> None:
    """What takes nothing from its operand but the shape and the type needs no operand: it is the same at every run."""
    for node in calls(graph, *FILLED):
        like = held(node)
        with graph.inserting_before(node):
            full = graph.call_function(aten.full.default, (list(like.shape), FILLED[node.target]))
        full.kwargs = {"dtype": like.dtype, "device": like.device}
        full.meta["val"] = like
        substitute(graph, node, full)


FILLED: dict[Any, int] = {
    aten.ones_like.default: 1,
    aten.zeros_like.default: 0,
    aten.new_ones.default: 1,
    aten.new_zeros.default: 0,
}


def unstack_singles(graph: fx.Graph) -> None:
    """One tensor, stacked, is a view of itself."""
    for node in calls(graph, aten.stack.default):
        tensors, *dim = operands(node)
        if len(tensors) == 1:
            substitute(graph, node, insert(graph, node, aten.unsqueeze.default, (tensors[0], *(dim or [0]))))


def clamp_relus(graph: fx.Graph) -> None:
    """relu(x) = max(x, 0), an operation that can write to a given place."""
    for node in calls(graph, aten.relu.default):
        node.target, node.args = aten.clamp_min.default, (*node.args, 0)


def invert_roots(graph: fx.Graph) -> None:
    """sqrt(x) = 1 / (1 / sqrt(x)), also where x is 0, inf or nan.

    On the CPU torch's sqrt takes five times as long for a zero, or nearly one, as for other numbers; Adam's second
    moments are full of them. Of many numbers only: two calls are more than one.
    """
    for node in calls(graph, aten.sqrt.default):
        if on_cpu(node) and held(node).dtype == torch.float32 and held(node).ndim > 1:
            inverse = insert(graph, node, aten.rsqrt.default, operands(node))
            substitute(graph, node, insert(graph, node, aten.reciprocal.default, (inverse,)))


def turn_products(graph: fx.Graph) -> None:
    """transpose(a b) = transpose(b) transpose(a): the gradient of a weight then comes out as the weight lies."""
    for node in calls(graph, aten.transpose.int):
        product = operands(node)[0]
        if is_turn(node) and product.target is aten.bmm.default and len(product.users) == 1:
            a, b = (turned(graph, node, factor) for factor in operands(product))
            substitute(graph, node, insert(graph, node, aten.bmm.default, (b, a)))
            graph.erase_node(product)


def turn_narrow_products(graph: fx.Graph) -> None:
    """On the CPU a b, with few columns, is computed as the transpose of transpose(b) transpose(a), with few rows."""
    for node in calls(graph, aten.bmm.default):
        rows, columns = held(node).shape[1:]
        if columns < min(rows, NARROW) and on_cpu(node) and {user.target for user in node.users} <= SUMS:
            b, a = (turned(graph, node, factor) for factor in reversed(operands(node)))
            back = turned(graph, node, insert(graph, node, aten.bmm.default, (b, a)))
            substitute(graph, node, back)
            turn_sums(graph, back)


SUMS = {aten.add.Tensor}


def turn_sums(graph: fx.Graph, node: fx.Node) -> None:
    """transpose(a) + b is transpose(a + transpose(b)), wherever this transpose is added to something."""
    for user in [user for user in node.users if user.target in SUMS]:
        summands = operands(user)
        if (
            all(isinstance(each, fx.Node) and held(each).ndim == held(user).ndim for each in summands)
            and not user.kwargs
        ):
            total = insert(graph, user, user.target, tuple(turned(graph, user, each) for each in summands))
            back = turned(graph, user, total)
            substitute(graph, user, back)
            turn_sums(graph, back)


# Operations that read a tensor however it lies in memory, and whose results lie as if it lay in order.
ANY_LAYOUT = {aten.gather.default, aten.bmm.default, aten.sum.dim_IntList, aten._log_softmax_backward_data.default}


def turn_narrow_softmaxes(graph: fx.Graph) -> None:
    """On the CPU, log-softmaxes over few classes, and their gradients, run along a dimension that is not the last."""
    for node in calls(graph, aten._log_softmax.default, aten._log_softmax_backward_data.default):
        *read, dim, rest = operands(node)
        last = held(node).ndim - 1
        if dim != last or last < 1 or held(node).shape[last] >= NARROW or not on_cpu(node):
            continue
        softmax = insert(graph, node, node.target, (*(turned(graph, node, each) for each in read), last - 1, rest))
        back = turned(graph, node, softmax)
        substitute(graph, node, back)
        for user in list(back.users):
            if user.target not in ANY_LAYOUT and not is_turn(user):
                user.replace_input_with(
                    back, insert(graph, user, aten.clone.default, (back,), memory_format=torch.contiguous_format)
                )


def on_cpu(node: fx.Node) -> bool:
    return held(node).device.type == "cpu"


def drop_unused(graph: fx.Graph) -> None:
    """Take out what nobody reads, unless it writes."""
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and not node.users and not (schema and schema.is_mutable):
            graph.erase_node(node)


REWRITES = [
    drop_identities,
    drop_dependences,
    unstack_singles,
    clamp_relus,
    invert_roots,
    turn_narrow_products,
    turn_products,
    turn_narrow_softmaxes,
]
