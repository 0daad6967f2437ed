"""Operations that are several loops, written as several operations."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, prod, sqrt
from typing import Any

import torch
from torch import fx

from studies.programs import drop_unused, held, insert, operands, substitute

__all__ = ["in_parts"]

aten = torch.ops.aten


def in_parts(graph: fx.Graph) -> None:
    """Write every operation of the graph that is several loops as several operations."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in PARTS:
            continue

        def write(target: Any, *arguments: Any, before: fx.Node = node) -> fx.Node:
            return insert(graph, before, target, arguments)

        if whole := PARTS[node.target](write, node):
            substitute(graph, node, whole)
    drop_unused(graph)


Write = Callable[..., fx.Node]


def mean(write: Write, node: fx.Node) -> fx.Node | None:
    source, dims, *keep = operands(node)
    if not dims or node.kwargs:
        return None
    return write(aten.div.Scalar, write(aten.sum.dim_IntList, source, dims, *keep), size(source, dims))


def norm(write: Write, node: fx.Node) -> fx.Node | None:
    """sqrt(sum x x), for the norm that is that."""
    source, order, dims, *keep = (*operands(node), None)[:4]
    if order != 2 or held(node).dtype != held(source).dtype:
        return None
    squares = write(aten.mul.Tensor, source, source)
    return write(aten.sqrt.default, write(aten.sum.dim_IntList, squares, dims, bool(keep and keep[0])))


def log_softmax(write: Write, node: fx.Node) -> fx.Node:
    """x - max - log sum exp (x - max)."""
    source, dim, _ = operands(node)
    away = write(aten.sub.Tensor, source, write(aten.amax.default, source, [dim], True))
    total = write(aten.sum.dim_IntList, write(aten.exp.default, away), [dim], True)
    return write(aten.sub.Tensor, away, write(aten.log.default, total))


def log_softmax_backward(write: Write, node: fx.Node) -> fx.Node:
    """g - p sum g, where log p is what the forward pass gave."""
    grad, logs, dim, _ = operands(node)
    total = write(aten.sum.dim_IntList, grad, [dim], True)
    return write(aten.sub.Tensor, grad, write(aten.mul.Tensor, write(aten.exp.default, logs), total))


def softmax(write: Write, node: fx.Node) -> fx.Node:
    """exp (x - max) / sum exp (x - max)."""
    source, dim, _ = operands(node)
    raised = write(aten.exp.default, write(aten.sub.Tensor, source, write(aten.amax.default, source, [dim], True)))
    return write(aten.div.Tensor, raised, write(aten.sum.dim_IntList, raised, [dim], True))


def softmax_backward(write: Write, node: fx.Node) -> fx.Node:
    """p (g - sum g p)."""
    grad, p, dim, _ = operands(node)
    total = write(aten.sum.dim_IntList, write(aten.mul.Tensor, grad, p), [dim], True)
    return write(aten.mul.Tensor, p, write(aten.sub.Tensor, grad, total))


def gelu(write: Write, node: fx.Node) -> fx.Node | None:
    """x F(x), where F is the normal distribution."""
    source = operands(node)[0]
    return None if node.kwargs else write(aten.mul.Tensor, source, normal(write, source))


def gelu_backward(write: Write, node: fx.Node) -> fx.Node | None:
    """g (F(x) + x F'(x))."""
    grad, x = operands(node)
    if node.kwargs:
        return None
    density = write(aten.exp.default, write(aten.mul.Scalar, write(aten.mul.Tensor, x, x), -0.5))
    slope = write(aten.mul.Tensor, x, write(aten.mul.Scalar, density, 1 / sqrt(2 * pi)))
    return write(aten.mul.Tensor, grad, write(aten.add.Tensor, normal(write, x), slope))


def normal(write: Write, x: fx.Node) -> fx.Node:
    """F(x) = (1 + erf(x / sqrt 2)) / 2."""
    doubled = write(aten.add.Scalar, write(aten.erf.default, write(aten.mul.Scalar, x, sqrt(0.5))), 1.0)
    return write(aten.mul.Scalar, doubled, 0.5)


def largest(write: Write, node: fx.Node) -> None:
    """The largest elements along a dimension, and where they stand: two operations."""
    source, dim, *keep = operands(node)
    for user in list(node.users):
        wanted = (aten.argmax.default, dim) if operands(user)[1] else (aten.amax.default, [dim])
        substitute(node.graph, user, write(wanted[0], source, wanted[1], *keep))


def root(write: Write, node: fx.Node) -> fx.Node | None:
    """1 / (1 / sqrt(x)), which `programs.invert_roots` has made of a root for torch's sake, is sqrt(x)."""
    inverse = operands(node)[0]
    if inverse.target is not aten.rsqrt.default or node.prev is not inverse:  # x may have changed in between
        return None
    return write(aten.sqrt.default, *operands(inverse))


def size(node: fx.Node, dims: list[int]) -> int:
    return prod(held(node).shape[dim] for dim in dims)


PARTS: dict[Any, Callable[[Write, fx.Node], fx.Node | None]] = {
    aten.mean.dim: mean,
    aten.linalg_vector_norm.default: norm,
    aten._log_softmax.default: log_softmax,
    aten._log_softmax_backward_data.default: log_softmax_backward,
    aten._softmax.default: softmax,
    aten._softmax_backward_data.default: softmax_backward,
    aten.gelu.default: gelu,
    aten.gelu_backward.default: gelu_backward,
    aten.max.dim: largest,
    aten.reciprocal.default: root,
}
