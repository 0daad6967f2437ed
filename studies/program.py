"""The gradient of many models at once, as straight-line tensor code.

A model written for one trial becomes a program for K lanes in three moves. `torch.func.vmap` turns every operation on
one model into one on K; tracing with `make_fx` writes the forward and the backward pass down as a list of tensor
operations, so that running it costs neither autograd nor vmap; and a few rewrites make the list shorter:

    identities        operations that change nothing are taken out
    products          transpose(a b) becomes transpose(b) transpose(a), which lies in memory as the gradient must
    narrow softmaxes  over few classes, on the CPU: the classes are moved to a dimension that vectorises
    in place          an elementwise result takes the place of an operand that nobody reads again
    destinations      a gradient is written where the optimizer wants it, not copied there

Each keeps the values (the softmax up to rounding). What a rewrite does not recognise it leaves alone, so any model that
vmap understands will do. For the perceptron of the study `digits` the rewrites halve the time of a step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from studies.batching import in_known_pieces
from studies.workloads.workload import accuracy_of, loss_of

__all__ = ["Program", "evaluation", "gradient"]

aten = torch.ops.aten

NARROW = 64  # a softmax over fewer classes than this does not fill a vector unit when they are the last dimension


# Traced tensors have shapes and no values, so writing a program down costs neither its time nor its memory.
WITHOUT_COMPUTING: dict[str, Any] = {"tracing_mode": "fake", "_allow_non_fake_inputs": True}


@dataclass(frozen=True)
class Program:
    """Straight-line tensor code. peak_bytes: the most memory its intermediate values hold at once."""

    run: Callable[..., list[Tensor]]
    peak_bytes: int

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.run(*arguments)


def gradient(
    model: nn.Module, params: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Tensor, targets: Tensor
) -> Program:
    """The program (params, buffers, inputs, targets, grads) -> losses of shape (lanes,).

    params, buffers: one stacked tensor of shape (lanes, *shape) for each of the model's, in its order; the buffers are
    updated in place. inputs, targets: a minibatch per lane, (lanes, batch, ...). grads: like params; overwritten.
    The arguments given here are examples: the program fits their shapes, devices and types.
    """
    names = [name for name, _ in model.named_parameters()]
    buffer_names = [name for name, _ in model.named_buffers()]

    def loss(params: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        state = dict(zip(names, params, strict=True)) | dict(zip(buffer_names, buffers, strict=True))
        return loss_of(functional_call(model, state, (inputs,)), targets)

    def losses_and_grads(*flat: Tensor) -> list[Tensor]:
        leaves = [param.detach().requires_grad_() for param in flat[: len(names)]]
        with torch.enable_grad():
            losses = vmap(loss)(leaves, list(flat[len(names) : -2]), flat[-2], flat[-1])
            grads = torch.autograd.grad(losses.sum(), leaves)
        return [losses.detach(), *grads]

    model.train()
    with in_known_pieces(inputs.device):
        traced = make_fx(losses_and_grads, **WITHOUT_COMPUTING)(*params, *[b.clone() for b in buffers], inputs, targets)
    return compiled(traced.graph, destinations=len(names))


def evaluation(
    model: nn.Module, params: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Tensor, targets: Tensor
) -> Program:
    """The program (params, buffers, inputs, targets) -> [losses, accuracies] in evaluation mode.

    inputs, targets: examples of shape (examples, ...), the same for every lane. Both results have shape (lanes,).
    """
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]

    def measured(state: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(model, dict(zip(names, state, strict=True)), (inputs,))
        return loss_of(outputs, targets), accuracy_of(outputs, targets)

    def over_lanes(*flat: Tensor) -> list[Tensor]:
        return list(vmap(measured, in_dims=(0, None, None))(list(flat[:-2]), flat[-2], flat[-1]))

    model.eval()
    with torch.no_grad(), in_known_pieces(inputs.device):
        traced = make_fx(over_lanes, **WITHOUT_COMPUTING)(*params, *buffers, inputs, targets)
    return compiled(traced.graph)


def compiled(graph: fx.Graph, destinations: int = 0) -> Program:
    """The graph, rewritten, as a Python function. Its last so many outputs are written into as many extra arguments."""
    drop_identities(graph)
    transpose_products(graph)
    widen_softmaxes(graph)
    drop_identities(graph)
    reuse_operands(graph)
    if destinations:
        write_to_destinations(graph, destinations)
    drop_unused(graph)
    graph.lint()
    constants = graph.owning_module or nn.Module()
    return Program(fx.GraphModule(constants, graph).forward, peak_bytes(graph))


def calls(graph: fx.Graph, *targets: Any) -> list[fx.Node]:
    """The graph's calls of these operations, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def value(node: Any) -> Tensor:
    """What the node held while it was traced: its shape and its type."""
    held: Tensor = node.meta["val"]
    return held


def insert(graph: fx.Graph, before: fx.Node, target: Any, arguments: tuple[Any, ...], like: Tensor) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, arguments)
    node.meta["val"] = like
    return node


def transposed(graph: fx.Graph, before: fx.Node, node: fx.Node, a: int, b: int) -> fx.Node:
    return insert(graph, before, aten.transpose.int, (node, a, b), value(node).transpose(a, b))


def operands(node: fx.Node) -> tuple[Any, ...]:
    """What an operation is called with: nodes where it reads tensors, plain values elsewhere."""
    return tuple(node.args)


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
        same_shape = target in reshapes and value(source).shape == value(node).shape
        if target is aten.detach.default or (target is aten.mul.Scalar and rest == [1]) or same_shape:
            substitute(graph, node, source)


def transpose_products(graph: fx.Graph) -> None:
    """transpose(a b) = transpose(b) transpose(a): the gradient of a weight then comes out as the weight lies."""
    for node in calls(graph, aten.transpose.int):
        product = operands(node)[0]
        if product.target is aten.bmm.default and len(product.users) == 1 and node.args[1:] == (1, 2):
            a, b = (transposed(graph, node, factor, 1, 2) for factor in operands(product))
            better = insert(graph, node, aten.bmm.default, (b, a), value(node).contiguous())
            substitute(graph, node, better)
            graph.erase_node(product)


# Operations that read a tensor however it lies in memory, and whose results lie as if it lay in order.
ANY_LAYOUT = {aten.gather.default, aten.bmm.default, aten.sum.dim_IntList, aten._log_softmax_backward_data.default}


def widen_softmaxes(graph: fx.Graph) -> None:
    """Take log-softmaxes over few classes, and their gradients, along a dimension that is not the last one."""
    for node in calls(graph, aten._log_softmax.default, aten._log_softmax_backward_data.default):
        *read, dim, rest = operands(node)
        last = value(node).ndim - 1
        if dim != last or last < 1 or value(node).shape[last] >= NARROW or value(node).device.type != "cpu":
            continue
        turned = [transposed(graph, node, operand, last - 1, last) for operand in read]
        like = value(node).transpose(last - 1, last).contiguous()
        softmax = insert(graph, node, node.target, (*turned, last - 1, rest), like)
        back = transposed(graph, node, softmax, last - 1, last)
        substitute(graph, node, back)
        for user in list(back.users):
            if user.target not in ANY_LAYOUT and user.args != (back, last - 1, last):
                user.replace_input_with(back, insert(graph, user, aten.contiguous.default, (back,), value(node)))


# Operations that return memory of their own, so that whoever reads them last may write there.
FRESH = {
    aten.add.Tensor, aten.add_.Tensor, aten.bmm.default, aten.convolution.default, aten.mul.Tensor,
    aten.relu.default, aten.relu_.default, aten.threshold_backward.default, aten.threshold_backward.grad_input,
}  # fmt: skip


def reuse_operands(graph: fx.Graph) -> None:
    """Sums, ReLUs and their gradients overwrite an operand that nobody else reads."""
    for node in calls(graph, aten.add.Tensor, aten.relu.default, aten.threshold_backward.default):
        if node.target is aten.add.Tensor:
            a, b = operands(node)
            for free, other in ((a, b), (b, a)):
                if isinstance(free, fx.Node) and owned(free) and alike(free, node) and not node.kwargs:
                    node.target, node.args = aten.add_.Tensor, (free, other)
                    break
        elif owned(operands(node)[0]) and alike(operands(node)[0], node):
            if node.target is aten.relu.default:
                node.target = aten.relu_.default
            else:
                node.target = aten.threshold_backward.grad_input
                node.kwargs = {"grad_input": operands(node)[0]}


def owned(node: fx.Node) -> bool:
    """Whether the node is fresh memory, perhaps in another shape, that only one operation reads."""
    if len(node.users) != 1 or node.op != "call_function":
        return False
    if node.target in (aten.view.default, aten._unsafe_view.default):
        return owned(operands(node)[0])
    return node.target in FRESH


def alike(operand: fx.Node, result: fx.Node) -> bool:
    """Whether the result fits into the operand's memory as it lies."""
    a, b = value(operand), value(result)
    return a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def write_to_destinations(graph: fx.Graph, destinations: int) -> None:
    """Give the graph arguments for its last outputs, and have each computed, or else copied, into its own."""
    output = next(node for node in graph.nodes if node.op == "output")
    last_argument = [node for node in graph.nodes if node.op == "placeholder"][-1]
    kept, results = operands(output)[0][:-destinations], operands(output)[0][-destinations:]
    for i, result in enumerate(results):
        with graph.inserting_after(last_argument):
            destination = graph.placeholder(f"destination_{i}")
        destination.meta["val"] = value(result)
        last_argument = destination
        if not compute_into(result, destination):
            with graph.inserting_before(output):
                graph.call_function(aten.copy_.default, (destination, result))
    output.args = (list(kept),)


def compute_into(result: fx.Node, destination: fx.Node) -> bool:
    """Have the product or the sum behind a result written to its destination; False where there is neither."""
    source = result
    while source.target is aten.view.default and len(source.users) == 1:
        source = operands(source)[0]
    if len(source.users) != 1:
        return False
    if source.target is aten.bmm.default and source is result:
        source.target, source.kwargs = aten.bmm.out, {"out": destination}
        return True
    if source.target is aten.sum.dim_IntList:
        summed, dims, *_ = operands(source)
        if value(source).squeeze(dims).shape == value(destination).shape:
            source.target, source.kwargs = aten.sum.IntList_out, {"out": destination}
            source.args = (summed, dims, False)
            return True
    return False


def drop_unused(graph: fx.Graph) -> None:
    """Take out what nobody reads, unless it writes."""
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and not node.users and not (schema and schema.is_mutable):
            graph.erase_node(node)


def peak_bytes(graph: fx.Graph) -> int:
    """The most memory that the graph's intermediate values hold at once, each until its last reader has read it."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    home = {node: node for node in nodes if not borrows(node)}
    for node in nodes:
        lender = operands(node)[0] if node.args and isinstance(operands(node)[0], fx.Node) else None
        if node not in home and lender in home:
            home[node] = home[lender]
    last_read: dict[fx.Node, int] = {}
    for at, node in enumerate(graph.nodes):
        last_read |= {home[read]: at for read in node.all_input_nodes if read in home}
    ends: dict[int, list[fx.Node]] = {}
    for owner, at in last_read.items():
        ends.setdefault(at, []).append(owner)
    held = peak = 0
    for at, node in enumerate(graph.nodes):
        if node in home and home[node] is node:
            held += size(node)
            peak = max(peak, held)
        held -= sum(size(owner) for owner in ends.get(at, ()))
    return peak


def borrows(node: fx.Node) -> bool:
    """Whether the node's value lies in memory of an operand: a view, a part, or a result written in place."""
    schema = getattr(node.target, "_schema", None)
    aliases = schema is not None and any(result.alias_info for result in schema.returns)
    return aliases or node.target in (operator.getitem, aten._unsafe_view.default)


def size(node: fx.Node) -> int:
    """Bytes of the node's value, or of all of them where there are several."""
    held = node.meta.get("val")
    values = held if isinstance(held, tuple | list) else [held]
    return sum(each.numel() * each.element_size() for each in values if isinstance(each, Tensor))
