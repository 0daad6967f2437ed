"""Adam and AdamW, the first moment's momentum being a number or a rule.

    g <- gradient (+ weight_decay x, unless the decay is decoupled)
    s <- b2 s + (1 - b2) g^2,                D = sqrt(s / (1 - b2^t)) + eps
    m <- keep m + take g                     keep, take = beta, 1 - beta; other rules say their own
    x <- x - lr (m / c / D + decoupled weight_decay x)

With a constant beta, c = 1 - beta^t corrects the bias of m, which starts at zero. With a rule m starts as the first
gradient, so its weights always sum to 1 and there is nothing to correct: c = 1.

`step_` is the whole step as a function of tensors, for one model or for many lanes at once (see `adamom.measuring`);
`Adam` and `AdamW` keep its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .arithmetic import Tensors, add_scaled_, blend_, lerp_, scale_
from .measuring import Memory, Reduction, betas, measure
from .momentum import Fixed, Momentum, Rule, Scalar
from .optimizer import (
    MomentumOptimizer,
    ParamGroup,
    Params,
    check_number,
    keep,
    kept,
    real,
    recall,
    with_gradients,
)
from .sgd import each, penalised

__all__ = ["Adam", "AdamW", "Group", "step_"]


@dataclass
class Group:
    """The tensors of one parameter group, or of one slice of lanes, and what its step depends on.

    params, grads, first, second, largest: as many tensors of the same shapes: the moments m and s, and amsgrad's
        largest s. The moments are made at the first step.
    lr: a number, a tensor of shape (), or one per lane.
    steps: steps taken before this one: one number for all tensors, a tensor of shape (), or one number per tensor.
    fresh: the tensors (by index) whose first moment starts in this step.
    """

    params: Tensors
    lr: Scalar
    grads: Tensors = field(default_factory=list)
    first: Tensors = field(default_factory=list)
    second: Tensors = field(default_factory=list)
    largest: Tensors = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    steps: Scalar | list[float] = 0
    fresh: Sequence[int] = ()
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    maximize: bool = False

    def start(self, rule: Rule) -> None:
        """Make the state of a group that has none, for its first step."""
        self.first = [torch.zeros_like(param) for param in self.params]
        self.second = [torch.zeros_like(param) for param in self.params]
        self.largest = [torch.zeros_like(param) for param in self.params] if self.amsgrad else []
        self.memory.start(rule, self.params)
        self.fresh = range(len(self.params))


def step_(rule: Rule, groups: Sequence[Group], lanes: bool = False) -> list[Scalar]:
    """One step, in place, of all groups that share a rule. Returns the beta of each group.

    lanes: the first dimension of every tensor counts independent trials, and beta has shape (lanes,).
    """
    over = Reduction(lanes, each=rule.scope == "tensor")
    for group in groups:
        if not group.second:
            group.start(rule)
        group.steps = [step + 1 for step in group.steps] if isinstance(group.steps, list) else group.steps + 1
    grads = [penalised(g.params, g.grads, 0.0 if g.decoupled else g.weight_decay, g.maximize) for g in groups]
    scales = [preconditioner_(group, g) for group, g in zip(groups, grads, strict=True)]
    roots = [list(torch._foreach_sqrt(d)) if rule.metric == "preconditioned" else None for d in scales]
    measured = [
        measure(rule, g, group.first, group.memory, over, root)
        for group, g, root in zip(groups, grads, roots, strict=True)
    ]
    momenta = betas(rule, [group.lr for group in groups], measured, over)
    for group, g, scale, root, beta in zip(groups, grads, scales, roots, momenta, strict=True):
        if isinstance(rule, Fixed):
            descend_constant_(group, g, scale, rule.momentum)
        else:
            accumulate_(rule, group, g, beta, over)
            direction = descend_(group, scale)
            group.memory.remember(rule, direction, group.lr, over, root)
    return momenta


def preconditioner_(group: Group, grads: Tensors) -> Tensors:
    """s <- b2 s + (1 - b2) g^2. Returns D = sqrt(s / (1 - b2^t)) + eps."""
    scale_(group.second, group.b2)
    torch._foreach_addcmul_(group.second, grads, grads, 1 - group.b2)
    if group.amsgrad:
        torch._foreach_maximum_(group.largest, group.second)
    scale = list(torch._foreach_sqrt(group.largest if group.amsgrad else group.second))
    corrected = [c**0.5 for c in corrections(group.b2, group)]
    torch._foreach_div_(scale, corrected)
    torch._foreach_add_(scale, group.eps)
    return scale


def corrections(b: float, group: Group) -> list[Any]:
    """1 - b^t, by which an average that started at zero is too small, for each tensor."""
    if isinstance(group.steps, list):
        return [1 - b**step for step in group.steps]
    return [1 - b**group.steps] * len(group.params)


def accumulate_(rule: Rule, group: Group, grads: Tensors, beta: Scalar, over: Reduction) -> None:
    """m <- keep m + take g; a moment that starts is the gradient."""
    keep, take = rule.weights(beta, averaged=True)
    blend_(group.first, grads, each(keep, over), each(take, over))
    for i in group.fresh:
        group.first[i].copy_(grads[i])
    group.fresh = ()


def descend_(group: Group, scale: Tensors) -> Tensors:
    """x <- x - lr (m / D + decoupled weight_decay x). Returns what lr was multiplied with."""
    direction = list(torch._foreach_div(group.first, scale))
    if group.decoupled and group.weight_decay:
        torch._foreach_add_(direction, group.params, alpha=group.weight_decay)
    add_scaled_(group.params, direction, -group.lr)
    return direction


def descend_constant_(group: Group, grads: Tensors, scale: Tensors, b1: float) -> None:
    """The step of a constant beta, with its bias correction; operation for operation that of torch.optim."""
    if group.decoupled and group.weight_decay:
        scale_(group.params, 1 - group.lr * group.weight_decay)
    lerp_(group.first, grads, 1 - b1)
    sizes = [-group.lr / c for c in corrections(b1, group)]
    if isinstance(sizes[0], float):
        torch._foreach_addcdiv_(group.params, group.first, scale, sizes)
    else:
        add_scaled_(group.params, list(torch._foreach_div(group.first, scale)), sizes)


class Adam(MomentumOptimizer):
    """torch.optim.Adam whose betas[0] may be a number, the word "adaptive", or a rule such as adamom.HeavyBall().

    With a number it takes the same steps as torch.optim.Adam. `last_momentum` is the beta just used, as a tensor.

        optimizer = adamom.Adam(model.parameters(), lr=1e-3, betas=("adaptive", 0.999))

    Raises ValueError for values out of range and for rules that do not fit, with what to do instead.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[Momentum, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "foreach": foreach,
                "maximize": maximize,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    @classmethod
    def momentum_of(cls, group: ParamGroup) -> object:
        return group["betas"][0]

    @classmethod
    def set_momentum(cls, group: ParamGroup, momentum: object) -> None:
        group["betas"] = (momentum, group["betas"][1])

    @classmethod
    def check_group(cls, group: ParamGroup, rule: Rule) -> None:
        if isinstance(rule, Fixed):
            check_number(cls.__name__, "betas[0]", rule.momentum, 0, 1)
        check_number(cls.__name__, "betas[1]", group["betas"][1], 0, 1)
        check_number(cls.__name__, "eps", group["eps"], 0)

    def step_groups(self, rule: Rule, groups: Sequence[ParamGroup]) -> list[Scalar]:
        tensors = [self._tensors(rule, group) for group in groups]
        momenta = step_(rule, [group for group, _ in tensors])
        for param_group, (group, present) in zip(groups, tensors, strict=True):
            keep(rule, param_group, present, group.memory)
        return momenta

    def _tensors(self, rule: Rule, group: ParamGroup) -> tuple[Group, list[int]]:
        """The group's tensors for one step, and the indices of its parameters that have a gradient."""
        present, params, grads = with_gradients(type(self).__name__, group)
        states = [self.state[param] for param in params]
        first, fresh = kept(states, params, "exp_avg")
        found = Group(
            params=real(params),
            lr=group["lr"],
            grads=real(grads),
            first=real(first),
            second=real(kept(states, params, "exp_avg_sq")[0]),
            largest=real(kept(states, params, "max_exp_avg_sq")[0]) if group["amsgrad"] else [],
            memory=recall(rule, group, present, states, params),
            steps=counted(states, params, group["capturable"]),
            fresh=fresh,
            b2=group["betas"][1],
            decoupled=group["decoupled_weight_decay"],
            **{name: group[name] for name in ("eps", "weight_decay", "amsgrad", "maximize")},
        )
        return found, present


def counted(states: Sequence[dict[str, Any]], params: Sequence[Tensor], capturable: bool) -> list[Any]:
    """Steps each parameter has taken before this one, and count this one. Numbers, or device tensors if capturable."""
    for state, param in zip(states, params, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), device=param.device if capturable else None)
    counters = [state["step"] for state in states]
    taken = [counter.clone() for counter in counters] if capturable else [counter.item() for counter in counters]
    torch._foreach_add_(counters, 1)
    return taken


class AdamW(Adam):
    """torch.optim.AdamW whose betas[0] may be a number, the word "adaptive", or a rule: Adam with decoupled decay."""

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[Momentum, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )
