"""Stochastic gradient descent with momentum, the momentum being a number or a rule.

    g <- gradient + weight_decay x
    v <- keep v + take g          keep, take = beta, 1 - dampening for a heavy ball; other rules say their own
    x <- x - lr v                 or x - lr (g + beta v) with nesterov

v starts as the first g. `step_` is the whole step as a function of tensors, for one model or for many lanes at once
(see `adamom.measuring`); `SGD` keeps its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arithmetic import Factor, Tensors, add_scaled_, blend_
from .measuring import Memory, Reduction, betas, measure
from .momentum import Fixed, Momentum, Rule, Scalar
from .optimizer import MomentumOptimizer, ParamGroup, Params, keep, kept, real, recall, with_gradients

__all__ = ["SGD", "Group", "step_"]


@dataclass
class Group:
    """The tensors of one parameter group, or of one slice of lanes, and what its step depends on.

    params, grads, velocity: as many tensors of the same shapes; the velocity is made at the first step.
    lr: a number, a tensor of shape (), or one per lane.
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

    def start(self, rule: Rule) -> None:
        """Make the state of a group that has none, for its first step."""
        self.velocity = [torch.zeros_like(param) for param in self.params]
        self.memory.start(rule, self.params)
        self.fresh = range(len(self.params))


def step_(rule: Rule, groups: Sequence[Group], lanes: bool = False) -> list[Scalar]:
    """One step, in place, of all groups that share a rule. Returns the beta of each group.

    lanes: the first dimension of every tensor counts independent trials, and beta has shape (lanes,).
    """
    over = Reduction(lanes, each=rule.scope == "tensor")
    grads = [penalised(g.params, g.grads, g.weight_decay, g.maximize) for g in groups]
    for group in groups:
        if not group.velocity and has_velocity(rule):
            group.start(rule)
    measured = [measure(rule, g, group.velocity, group.memory, over) for group, g in zip(groups, grads, strict=True)]
    momenta = betas(rule, [group.lr for group in groups], measured, over)
    for group, g, beta in zip(groups, grads, momenta, strict=True):
        descend_(rule, group, g, beta, over)
    return momenta


def descend_(rule: Rule, group: Group, grads: Tensors, beta: Scalar, over: Reduction) -> None:
    """Take the step with this beta, and remember how far it went."""
    direction = grads
    if has_velocity(rule):
        accumulate_(rule, group, grads, beta, over)
        direction = ahead(grads, group.velocity, each(beta, over)) if group.nesterov else group.velocity
    add_scaled_(group.params, direction, -group.lr)
    group.memory.remember(rule, direction, group.lr, over)


def accumulate_(rule: Rule, group: Group, grads: Tensors, beta: Scalar, over: Reduction) -> None:
    """v <- keep v + take g; a velocity that starts is the gradient."""
    keep, take = rule.weights(beta, averaged=False)
    blend_(group.velocity, grads, each(keep, over), each(take * (1 - group.dampening), over))
    for i in group.fresh:
        group.velocity[i].copy_(grads[i])
    group.fresh = ()


def has_velocity(rule: Rule) -> bool:
    return not (isinstance(rule, Fixed) and rule.momentum == 0)


def penalised(params: Tensors, grads: Tensors, weight_decay: float, maximize: bool) -> Tensors:
    """The gradients of what is minimised: turned for maximize, with the coupled weight decay in them."""
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    return grads


def ahead(grads: Tensors, velocity: Tensors, beta: Factor) -> Tensors:
    """g + beta v, the direction that Nesterov looks in."""
    looked = [grad.clone() for grad in grads]
    add_scaled_(looked, velocity, beta)
    return looked


def each(beta: Scalar, over: Reduction) -> Factor:
    """The beta of shape (tensors, ...) as one per tensor, where each tensor has its own."""
    return beta.unbind() if over.each and isinstance(beta, Tensor) else beta


class SGD(MomentumOptimizer):
    """torch.optim.SGD whose momentum may be a number, the word "adaptive", or a rule such as adamom.HeavyBall().

    With a number it takes the same steps as torch.optim.SGD. `last_momentum` is the beta just used, as a tensor.

        optimizer = adamom.SGD(model.parameters(), lr=0.1, momentum="adaptive")

    Raises ValueError for values out of range and for rules that do not fit, with what to do instead.
    """

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
        found = Group(
            params=real(params),
            lr=group["lr"],
            grads=real(grads),
            velocity=real(velocity),
            memory=recall(rule, group, present, states, params),
            fresh=fresh,
            **{name: group[name] for name in ("weight_decay", "dampening", "nesterov", "maximize")},
        )
        return found, present
