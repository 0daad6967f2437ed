"""Operations that are several loops, written as several operations."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
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


def largest(write: Write, node: fx.Node) -> None:
    """The largest elements along a dimension, and where they stand: two operations."""
    source, dim, *keep = operands(node)
    for user in list(node.users):
        wanted = (aten.argmax.default, dim) if operands(user)[1] else (aten.amax.default, [dim])
        substitute(node.graph, user, write(wanted[0], source, wanted[1], *keep))


def root(write: Write, node: fx.Node) -> fx.Node | None:
    """1 / (1 / sqrt(x)), which `programs.invert_roots` has made of a root for torch's sake, is sqrt(x)."""
    inverse = operands(node)[0]
    return write(aten.sqrt.default, *operands(inverse)) if inverse.target is aten.rsqrt.default else None


def size(node: fx.Node, dims: list[int]) -> int:
    return prod(held(node).shape[dim] for dim in dims)


PARTS: dict[Any, Callable[[Write, fx.Node], fx.Node | None]] = {
    aten.mean.dim: mean,
    aten.linalg_vector_norm.default: norm,
    aten._log_softmax.default: log_softmax,
    aten._log_softmax_backward_data.default: log_softmax_backward,
    aten.max.dim: largest,
    aten.reciprocal.default: root,
}
