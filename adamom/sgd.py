"""Stochastic gradient descent with momentum, the momentum being a number or a rule.

    g <- gradient + weight_decay x
    v <- beta v + (1 - dampening) g       or, for rules that average, v <- v + take (g - v)
    x <- x - lr v                         or x - lr (g + beta v) with nesterov

v starts as the first g. `step_` is the whole step as a function of tensors, for one model or for many lanes at once
(see `adamom.measuring`); `SGD` keeps its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .arithmetic import Factor, Tensors, add_scaled_, blend_, lerp_, pick
from .measuring import Memory, Reduction, Sums, begin_, betas, follow_, observe_
from .momentum import Fixed, Momentum, Rule, Scalar
from .optimizer import MomentumOptimizer, ParamGroup, Params, keep, kept, rate, real, recall, with_gradients
from .parts import Part, cut

__all__ = ["SGD", "Group", "descend_", "measure", "step_"]


@dataclass
class Group:
    """The tensors of one parameter group, or of one slice of lanes, and what its step depends on.

    params, grads, velocity: as many tensors of the same shapes; the velocity is made at the first step.
    lr: a number, a tensor of shape (), or one per lane.
    foreach: work on many tensors in one call; without, on one after another.
    fused: move them by the kernels of `adamom.kernels`, which they fit.
    fresh: the tensors (by index) whose velocity starts in this step.
    """

    params: Tensors
    lr: Scalar
    grads: Tensors = field(default_factory=list)
    velocity: Tensors = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    fresh: Sequence[int] = ()
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    foreach: bool = True
    fused: bool = False

    def start(self, rule: Rule) -> None:
        """Make the state of a group that has none, for its first step."""
        self.velocity = [torch.zeros_like(param) for param in self.params] if has_velocity(rule) else []
        self.memory.start(rule, self.params)
        self.fresh = range(len(self.velocity))

    def parts(self, lanes: bool) -> list[Part]:
        """The group's tensors as parts to be worked on one after another."""
        kept = {name: getattr(self.memory, name) for name in ("previous", "change", "path")}
        whole = Part(range(len(self.params)), False, self.params, self.grads, self.velocity, **kept)
        return [whole] if lanes or self.fused else list(cut(whole, one_by_one=not self.foreach))


def step_(rule: Rule, groups: Sequence[Group], lanes: bool = False) -> list[Scalar]:
    """One step, in place, of all groups that share a rule. Returns the beta of each group.

    lanes: the first dimension of every tensor counts independent trials, and beta has shape (lanes,).
    """
    over = Reduction(lanes, each=rule.scope == "tensor")
    for group in groups:
        if not group.velocity and has_velocity(rule):
            group.start(rule)
    parts = [group.parts(lanes) for group in groups]
    measured = [measure(rule, group, of_it, over) for group, of_it in zip(groups, parts, strict=True)]
    momenta = betas(rule, [group.lr for group in groups], measured, over)
    for group, of_it, beta in zip(groups, parts, momenta, strict=True):
        descend_(rule, group, of_it, beta, over)
    return momenta


def measure(rule: Rule, group: Group, parts: Sequence[Part], over: Reduction) -> dict[str, Tensor]:
    """The statistics that the rule needs of this group; its memory then holds this step's gradient."""
    sums = Sums(over)
    for part in parts if rule.needs else ():
        if group.fused and not group.memory.fresh:
            value = fused().change_(part.previous, part.grads, part.params, group.weight_decay, group.maximize)
            sums.add_value("gradient_change", value)
        else:
            observe_(rule, part, penalised(part, group.weight_decay, group.maximize), group.memory, sums)
    return group.memory.statistics(rule, sums)


def descend_(rule: Rule, group: Group, parts: Sequence[Part], beta: Scalar, over: Reduction) -> None:
    """Take the step with this beta, and remember how far it went."""
    sums = Sums(over)
    number = plain_number(rule, group, parts, beta)
    for part in reversed(parts):  # what was measured last is still in the cache
        if group.fused and not group.fresh:
            options = (beta, group.lr, group.weight_decay, group.maximize)
            sums.add_value("way", fused().heavy_ball_(part.velocity, part.grads, part.params, *options))
            continue
        if number and part.flat:
            heavy_ball_(group, part, number)
            follow_(rule, part, part.velocity, group.lr, sums)
            continue
        grads = penalised(part, group.weight_decay, group.maximize)
        direction = accelerated(rule, group, part, grads, beta, over) if has_velocity(rule) else grads
        add_scaled_(part.params, direction, -group.lr)
        follow_(rule, part, direction, group.lr, sums)
    group.memory.arrive(rule, sums, group.lr)
    group.fresh = ()


def plain_number(rule: Rule, group: Group, parts: Sequence[Part], beta: Scalar) -> float | None:
    """beta as torch's fused kernel for CPUs takes it, where that kernel can take the step of flat parts."""
    if rule.averaging or isinstance(rule, Fixed) or group.nesterov or group.fresh or not isinstance(group.lr, float):
        return None
    flat = [part.params[0].dtype for part in parts if part.flat]
    known = flat and all(dtype in (torch.float32, torch.float64) for dtype in flat)  # it moves nothing in bfloat16
    return float(beta) if known and isinstance(beta, Tensor) and beta.ndim == 0 else None


def heavy_ball_(group: Group, part: Part, beta: float) -> None:
    """v <- beta v + g and x <- x - lr v, in one pass over memory; beta is not 0, which for torch means no velocity."""
    torch._fused_sgd_(
        part.params,
        part.grads,
        part.velocity,
        weight_decay=group.weight_decay,
        momentum=beta,
        lr=group.lr,
        dampening=0.0,
        nesterov=False,
        maximize=group.maximize,
        is_first_step=False,
    )


def accelerated(rule: Rule, group: Group, part: Part, grads: Tensors, beta: Scalar, over: Reduction) -> Tensors:
    """v <- beta v + g, or an average where the rule says so; a velocity that starts is the gradient.

    Returns v, or g + beta v with nesterov.
    """
    mine = partial(of_part, part=part, over=over)
    if rule.averaging:
        lerp_(part.velocity, grads, mine(rule.take(beta)))
    else:
        blend_(part.velocity, grads, mine(beta), 1.0 - group.dampening)
    begin_(part.velocity, grads, part, group.fresh)
    if not group.nesterov:
        return part.velocity
    ahead = [grad.clone() for grad in grads]
    add_scaled_(ahead, part.velocity, mine(beta))
    return ahead


def fused() -> Any:
    """The kernels, which are compiled when they are first wanted."""
    from .kernels import fused

    return fused


def has_velocity(rule: Rule) -> bool:
    return not (isinstance(rule, Fixed) and rule.momentum == 0)


def penalised(part: Part, weight_decay: float, maximize: bool) -> Tensors:
    """The gradients of what is minimised: turned for maximize, with the coupled weight decay in them."""
    grads = list(torch._foreach_neg(part.grads)) if maximize else part.grads
    return list(torch._foreach_add(grads, part.params, alpha=weight_decay)) if weight_decay else grads


def of_part(beta: Scalar, part: Part, over: Reduction) -> Factor:
    """The beta of these tensors: their own, where each tensor has one."""
    return pick(beta.unbind(), part.indices) if over.each and isinstance(beta, Tensor) else beta


class SGD(MomentumOptimizer):
    """torch.optim.SGD whose momentum may be a number, the word "adaptive", or a rule such as adamom.HeavyBall().

    With a number it takes the same steps as torch.optim.SGD. `last_momentum` is the beta just used, as a tensor.

        optimizer = adamom.SGD(model.parameters(), lr=0.1, momentum="adaptive")

    fused: take the step of "adaptive" in two sweeps over the memory of a GPU, by kernels written in Triton. By default
        they are taken where Triton is installed and they fit: contiguous tensors of float32, bfloat16 or float16 on one
        GPU, a learning rate that is a number, and no graph being captured. True raises where they do not fit.

    Raises ValueError for values out of range and for rules that do not fit, with what to do instead.
    """

    kind = "SGD"
    refuses = ("differentiable",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: Momentum = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    @classmethod
    def momentum_of(cls, group: ParamGroup) -> object:
        return group["momentum"]

    @classmethod
    def set_momentum(cls, group: ParamGroup, momentum: object) -> None:
        group["momentum"] = momentum

    @classmethod
    def check_group(cls, group: ParamGroup, rule: Rule) -> None:
        if group["dampening"] and not isinstance(rule, Fixed):
            raise ValueError(f"SGD: dampening belongs to a constant momentum; {rule} weighs the gradient itself.")
        if group["fused"] and (group["nesterov"] or not kernels.fuses(rule)):
            raise ValueError(
                f"SGD: fused=True is for momentum='adaptive' without nesterov, got {rule}. Leave fused out."
            )
        if group["nesterov"] and (group["dampening"] or rule.averaging or not has_velocity(rule)):
            raise ValueError(
                "SGD: nesterov needs a momentum > 0 that sums gradients: no dampening, no averaging rule. "
                f"Got {rule}, dampening={group['dampening']}."
            )

    def step_groups(self, rule: Rule, groups: Sequence[ParamGroup]) -> list[Scalar]:
        tensors = [self._tensors(rule, group) for group in groups]
        momenta = step_(rule, [group for group, _ in tensors])
        for param_group, (group, present) in zip(groups, tensors, strict=True):
            keep(rule, param_group, present, group.memory)
        return momenta

    def _tensors(self, rule: Rule, group: ParamGroup) -> tuple[Group, list[int]]:
        """The group's tensors for one step, and the indices of its parameters that have a gradient."""
        present, params, grads = with_gradients("SGD", group)
        states = [self.state[param] for param in params]
        velocity, fresh = kept(states, params, "momentum_buffer") if has_velocity(rule) else ([], [])
        tensors, gradients = real(params), real(grads)
        wanted = False if group["nesterov"] else group["fused"]
        found = Group(
            params=tensors,
            lr=rate(group),
            grads=gradients,
            velocity=velocity,
            memory=recall(rule, group, present, states, params),
            fresh=fresh,
            foreach=group["foreach"] is not False,
            fused=kernels.fit(rule, group["lr"], [*tensors, *gradients], wanted),
            **{name: group[name] for name in ("weight_decay", "dampening", "nesterov", "maximize")},
        )
        return found, present
