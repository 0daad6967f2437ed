"""Measuring a step: gradients, velocities and what was remembered of the step before -> the statistics a rule reads.

Everything here works on lists of tensors, on the device, without a synchronisation with the host.

How to run many trials as one. Give every tensor a leading dimension of K lanes (parameters (K, *shape), gradients,
velocities and moments too), learning rates as a tensor of shape (K,), and pass lanes=True:

    group = sgd.Group(params=[stacked], lr=rates)                   # or adam.Group
    for batch in batches:
        group.grads = [gradients of shape (K, *shape)]
        beta = sgd.step_(rule, [group], lanes=True)[0]              # in place; beta has shape (K,)

Lanes never mix: each is what it would be alone, and one full of NaN leaves the others as they are. Lanes with different
rules are best sorted by rule, one Group per rule over a slice `stacked[a:b]`: slices of the first dimension are views,
and the step works in place. Or call the three parts yourself: `measure` of sgd or adam (with a rule that needs all that
any of them needs), `rule.beta` on a slice of each statistic, and `descend_` with the betas concatenated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arithmetic import Tensors, blend_, copy_, lerp_, sharded, wide
from .momentum import PRODUCTS, Rule, Scalar, Statistics
from .parts import Part

__all__ = ["Memory", "Reduction", "Sums", "betas", "follow_", "keeps_gradient", "observe_"]


WIDE = (torch.float32, torch.float64)  # precise enough to add up in


@dataclass(frozen=True)
class Reduction:
    """Which entries a sum runs over: by default all of all tensors.

    lanes: one result per lane, the first dimension of every tensor. each: one result per tensor.
    The result has shape (), (lanes,), (tensors,) or (tensors, lanes).
    """

    lanes: bool = False
    each: bool = False


class Sums:
    """Inner products that are added up part by part, by their names, and read at the end."""

    def __init__(self, over: Reduction) -> None:
        self.over = over
        self.found: dict[str, list[Tensor]] = defaultdict(list)
        self.indices: dict[str, list[int]] = defaultdict(list)  # whose they are, where each tensor has its own

    def add(self, name: str, part: Part, xs: Tensors, ys: Tensors | None = None, sign: float = 1.0) -> None:
        """Add <x, y>, or <x, x> if there is no y, of tensors that belong to the part."""
        if part.flat and xs[0].dtype in WIDE:
            values = [torch.dot(xs[0], xs[0] if ys is None else ys[0])]
        else:
            values = products(xs, ys, self.over)
        self.found[name] += values if sign == 1 else [sign * value for value in values]
        if self.over.each:
            self.indices[name] += part.indices

    def add_value(self, name: str, value: Tensor) -> None:
        """Add a sum of squares over the whole part that somebody else has taken."""
        self.found[name].append(value)

    def product(self, name: str) -> Tensor:
        """The sum, of the shape that the reduction says."""
        values, indices = stack(self.found[name]), self.indices[name]
        if not self.over.each:
            return values.sum(dim=0)
        if indices == list(range(len(indices))):
            return values
        place = torch.tensor(indices, device=values.device)
        return values.new_zeros(max(indices) + 1, *values.shape[1:]).index_add(0, place, values)

    def norm(self, name: str) -> Tensor:
        """The root of the sum."""
        return self.product(name).sqrt()


def products(xs: Tensors, ys: Tensors | None, over: Reduction) -> list[Tensor]:
    """<x, y> in float32 at least: one per tensor, or fewer where nobody asks for each."""
    dtype = wide(xs)
    if over.lanes:
        return [by_lane(x, y, dtype) for x, y in zip(xs, ys or xs, strict=True)]
    if not xs[0].is_cpu or sharded(xs[0]):
        if ys is None:
            return list(gathered(stack(torch._foreach_norm(xs, 2, dtype=dtype))).square().unbind())
        pairs = zip(xs, ys, strict=True)
        return list(gathered(stack([(x.to(dtype) * y.to(dtype)).sum() for x, y in pairs])).unbind())
    if not over.each:
        xs, ys = flat(xs), None if ys is None else flat(ys)
    rows = [x.reshape(-1).to(dtype) for x in xs]
    columns = rows if ys is None else [y.reshape(-1).to(dtype) for y in ys]
    return list(map(torch.dot, rows, columns))


def by_lane(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    if x is y:
        norms: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1, dtype=dtype)
        return norms.square()
    return (x.to(dtype) * y.to(dtype)).reshape(len(x), -1).sum(dim=1)


def flat(tensors: Tensors) -> Tensors:
    """Small tensors as one, because one call on all is cheaper than one call on each."""
    return tensors if len(tensors) == 1 else [torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in tensors])]


def gathered(value: Tensor) -> Tensor:
    """Norms or sums over shards become those of the whole, in one exchange between the processes."""
    return value.full_tensor() if sharded(value) else value  # type: ignore[attr-defined]


def stack(values: Sequence[Tensor]) -> Tensor:
    """One tensor of numbers that may live on several devices."""
    return torch.stack([value.to(values[0].device, non_blocking=True) for value in values])


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

    def statistics(self, rule: Rule, sums: Sums) -> dict[str, Tensor]:
        """What the rule needs, from what was observed in this step and remembered from the one before."""
        found = {name: sums.product(name) if name in PRODUCTS else sums.norm(name) for name in sums.found}
        self.fresh = ()
        if "displacement" in rule.needs:
            found["displacement"] = remembered(self.displacement, found["gradient_change"])
        if "previous_gradient" in rule.needs:
            found["previous_gradient"] = remembered(self.previous_gradient, found["gradient"]).clone()
            self.previous_gradient = renewed(self.previous_gradient, found["gradient"])
        return found

    def arrive(self, rule: Rule, sums: Sums, lr: Scalar) -> None:
        """Remember how far the step went."""
        if "displacement" in rule.needs:
            way = sums.norm("way")
            self.displacement = renewed(self.displacement, way if rule.smoothing else lr * way)


def remembered(number: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if number is None else number


def renewed(number: Tensor | None, value: Tensor) -> Tensor:
    """The new value, in the old one's memory: a captured graph reads there what it wrote the time before."""
    return value.clone() if number is None or number.shape != value.shape else number.copy_(value)


def keeps_gradient(rule: Rule) -> bool:
    return bool(rule.needs & {"gradient_change", "gradient_along_change", "velocity_along_change"})


def begin_(tensors: Tensors, grads: Tensors, part: Part, fresh: Sequence[int]) -> None:
    """Tensors that start in this step start as the gradient."""
    for i, tensor, grad in zip(part.indices, tensors, grads, strict=True) if fresh else ():
        if i in fresh:
            tensor.copy_(grad)


def observe_(rule: Rule, part: Part, grads: Tensors, memory: Memory, sums: Sums, root: Tensors | None = None) -> None:
    """Add what this part of a step shows to the sums; the memory then holds its gradient.

    grads: the gradients of what is minimised. The part's velocity is still that of the step before.
    root: D^1/2 of Adam's preconditioner D, for rules that measure in its metric.
    """
    needs = rule.needs
    if keeps_gradient(rule):
        observe_change_(rule, part, grads, memory, sums, root)
    if needs & {"gradient", "previous_gradient"}:
        sums.add("gradient", part, grads)
    if "velocity" in needs:
        sums.add("velocity", part, part.velocity)
    if "gradient_along_velocity" in needs:
        sums.add("gradient_along_velocity", part, grads, part.velocity)
    if "velocity_error" in needs:
        sums.add("velocity_error", part, list(torch._foreach_sub(part.velocity, grads)))


def observe_change_(rule: Rule, part: Part, grads: Tensors, memory: Memory, sums: Sums, root: Tensors | None) -> None:
    """What is read from g - g'. The buffer of g' holds g' - g for a moment, so products change their sign; then g."""
    begin_(part.previous, grads, part, memory.fresh)
    torch._foreach_sub_(part.previous, grads)
    if "gradient_along_change" in rule.needs:
        sums.add("gradient_along_change", part, grads, part.previous, sign=-1)
    if "velocity_along_change" in rule.needs:
        sums.add("velocity_along_change", part, part.velocity, part.previous, sign=-1)
    if "gradient_change" in rule.needs:
        if rule.smoothing:
            lerp_(part.change, part.previous, 1 - rule.smoothing)
        change = part.change if rule.smoothing else part.previous
        sums.add("gradient_change", part, change if root is None else list(torch._foreach_div(change, root)))
    copy_(part.previous, grads)


def follow_(rule: Rule, part: Part, direction: Tensors, lr: Scalar, sums: Sums, root: Tensors | None = None) -> None:
    """Add how far x <- x - lr direction went to the sums. root: D^1/2, for rules that measure in its metric."""
    if "displacement" not in rule.needs:
        return
    if rule.smoothing:
        blend_(part.path, direction, rule.smoothing, lr * (rule.smoothing - 1))
    way = part.path if rule.smoothing else direction
    sums.add("way", part, way if root is None else list(torch._foreach_mul(way, root)))


def betas(rule: Rule, rates: Sequence[Scalar], measured: Sequence[dict[str, Tensor]], over: Reduction) -> list[Scalar]:
    """The momentum of each group: what was measured is shared by all of them, the learning rate is its own."""
    if not over.each:
        measured = [{name: together(name, [each[name] for each in measured]) for name in measured[0]}] * len(measured)
    return [rule.beta(Statistics(lr, **each)) for lr, each in zip(rates, measured, strict=True)]


def together(name: str, values: Sequence[Tensor]) -> Tensor:
    """One statistic of several groups of parameters as one vector: norms add in squares, inner products add."""
    if len(values) == 1:
        return values[0]
    return stack(values).sum(dim=0) if name in PRODUCTS else torch.linalg.vector_norm(stack(values), dim=0)
