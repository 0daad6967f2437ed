"""Measuring a step: gradients, velocities and what was remembered of the step before -> the statistics a rule reads.

Everything here works on lists of tensors, on the device, without a synchronisation with the host.

How to run many trials as one. Give every tensor a leading dimension of K lanes (parameters (K, *shape), gradients,
velocities and moments too), learning rates as a tensor of shape (K,), and pass lanes=True:

    state = sgd.Group(params=[stacked], lr=rates)                   # or adam.Group
    for batch in batches:
        state.grads = [gradients of shape (K, *shape)]
        beta = sgd.step_(rule, [state], lanes=True)[0]              # in place; beta has shape (K,)

Lanes never mix: each is what it would be alone, and one full of NaN leaves the others as they are. Lanes with different
rules are best sorted by rule, one Group per rule over a slice `stacked[a:b]`: slices of the first dimension are views,
and the step works in place. Or call the three parts yourself: `measure` (with the union of the rules' needs),
`rule.beta` on a slice of each statistic, and the update with the betas concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arithmetic import Tensors, blend_, lerp_
from .momentum import PRODUCTS, Rule, Scalar, Statistics

__all__ = ["Memory", "Reduction", "betas", "measure"]


@dataclass(frozen=True)
class Reduction:
    """Which entries a norm runs over: by default all of all tensors.

    lanes: one result per lane, the first dimension of every tensor. each: one result per tensor.
    The result has shape (), (lanes,), (tensors,) or (tensors, lanes).
    """

    lanes: bool = False
    each: bool = False

    def norm(self, tensors: Tensors) -> Tensor:
        """The Euclidean norm, in float32 at least."""
        dtype = wide(tensors)
        if self.lanes:
            norms = [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=1, dtype=dtype) for t in tensors]
        else:
            norms = list(torch._foreach_norm(tensors, 2, dtype=dtype))
        stacked = stack(norms)
        return stacked if self.each else torch.linalg.vector_norm(stacked, dim=0)

    def product(self, xs: Tensors, ys: Tensors) -> Tensor:
        """The inner product, in float32 at least."""
        dtype = wide(xs)
        products = [self._product(x.to(dtype), y.to(dtype)) for x, y in zip(xs, ys, strict=True)]
        stacked = stack(products)
        return stacked if self.each else stacked.sum(dim=0)

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        rows = len(x) if self.lanes else 1
        product: Tensor = torch.linalg.vecdot(x.reshape(rows, -1), y.reshape(rows, -1))
        return product if self.lanes else product.squeeze(0)


def wide(tensors: Tensors) -> torch.dtype:
    """The precision of norms: float32, or float64 if any tensor has it."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def stack(values: list[Tensor]) -> Tensor:
    """One tensor of numbers that may live on several devices, or be sharded: a norm over shards is the norm of all."""
    whole = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in values]
    return torch.stack([value.to(whole[0].device, non_blocking=True) for value in whole])


def together(name: str, values: Sequence[Tensor]) -> Tensor:
    """One statistic of several groups of parameters as one vector: norms add in squares, inner products add."""
    if len(values) == 1:
        return values[0]
    stacked = stack(list(values))
    return stacked.sum(dim=0) if name in PRODUCTS else torch.linalg.vector_norm(stacked, dim=0)


@dataclass
class Memory:
    """What is kept of a step to measure the next one; all of it state, none of it shared between groups.

    previous: the gradient of the step before, one tensor per parameter; before the first step, the first gradient.
    fresh: the tensors (by index) that have no previous gradient yet.
    change, path: averages of the differences of gradients and of parameters, where the rule smooths them.
    displacement, previous_gradient: the norms of the update last applied and of the gradient it was made of; None
        until there are any.
    """

    previous: Tensors = field(default_factory=list)
    fresh: Sequence[int] = ()
    change: Tensors = field(default_factory=list)
    path: Tensors = field(default_factory=list)
    displacement: Tensor | None = None
    previous_gradient: Tensor | None = None

    def start(self, rule: Rule, params: Tensors) -> None:
        """Make the tensors that the rule needs, for parameters that have none yet."""
        if keeps_gradient(rule):
            self.previous = [torch.zeros_like(param) for param in params]
            self.fresh = range(len(params))
        if rule.smoothing:
            self.change = [torch.zeros_like(param) for param in params]
            self.path = [torch.zeros_like(param) for param in params]

    def remember(
        self, rule: Rule, direction: Tensors, lr: Scalar, over: Reduction, root: Tensors | None = None
    ) -> None:
        """Keep the norm of the update x <- x - lr direction that was just applied. root: D^1/2, where it matters."""
        if "displacement" not in rule.needs:
            return
        if rule.smoothing:
            blend_(self.path, direction, rule.smoothing, lr * (rule.smoothing - 1))
        way = self.path if rule.smoothing else direction
        norm = over.norm(way if root is None else list(torch._foreach_mul(way, root)))
        self.displacement = norm if rule.smoothing else lr * norm


def keeps_gradient(rule: Rule) -> bool:
    return bool(rule.needs & {"gradient_change", "gradient_along_change", "velocity_along_change"})


def measure(
    rule: Rule, grads: Tensors, velocity: Tensors, memory: Memory, over: Reduction, root: Tensors | None = None
) -> dict[str, Tensor]:
    """The statistics that the rule needs, of one group of tensors; the memory then holds this step's gradient.

    grads, velocity: n tensors each, the velocity as it was before this step. root: D^1/2 of Adam's preconditioner D,
    for rules that measure in its metric. Nothing but the memory is changed.
    """
    found: dict[str, Tensor] = {}
    needs = rule.needs
    if keeps_gradient(rule):
        found |= measure_change(rule, grads, velocity, memory, over, root)
    if needs & {"gradient", "previous_gradient"}:
        found["gradient"] = over.norm(grads)
    if "previous_gradient" in needs:
        before, memory.previous_gradient = memory.previous_gradient, found["gradient"]
        found["previous_gradient"] = torch.zeros_like(found["gradient"]) if before is None else before
    if "displacement" in needs:
        way = memory.displacement
        found["displacement"] = torch.zeros_like(found["gradient_change"]) if way is None else way
    if "velocity" in needs:
        found["velocity"] = over.norm(velocity)
    if "gradient_along_velocity" in needs:
        found["gradient_along_velocity"] = over.product(grads, velocity)
    if "velocity_error" in needs:
        found["velocity_error"] = over.norm(list(torch._foreach_sub(velocity, grads)))
    return found


def measure_change(
    rule: Rule, grads: Tensors, velocity: Tensors, memory: Memory, over: Reduction, root: Tensors | None
) -> dict[str, Tensor]:
    """What is read from g - g'. The buffer of g' holds g' - g for a moment (products change their sign), then g."""
    found: dict[str, Tensor] = {}
    for i in memory.fresh:
        memory.previous[i].copy_(grads[i])
    memory.fresh = ()
    torch._foreach_sub_(memory.previous, grads)
    if "gradient_along_change" in rule.needs:
        found["gradient_along_change"] = -over.product(grads, memory.previous)
    if "velocity_along_change" in rule.needs:
        found["velocity_along_change"] = -over.product(velocity, memory.previous)
    if "gradient_change" in rule.needs:
        if rule.smoothing:
            lerp_(memory.change, memory.previous, 1 - rule.smoothing)
        change = memory.change if rule.smoothing else memory.previous
        found["gradient_change"] = over.norm(change if root is None else list(torch._foreach_div(change, root)))
    torch._foreach_copy_(memory.previous, grads)
    return found


def betas(rule: Rule, rates: Sequence[Scalar], measured: Sequence[dict[str, Tensor]], over: Reduction) -> list[Scalar]:
    """The momentum of each group: what was measured is shared by all of them, the learning rate is its own."""
    if not over.each:
        measured = [{name: together(name, [each[name] for each in measured]) for name in measured[0]}] * len(measured)
    return [rule.beta(Statistics(lr, **each)) for lr, each in zip(rates, measured, strict=True)]
