"""Adam and AdamW, the first moment's momentum being a number or a rule.

    g <- gradient (+ weight_decay x, unless the decay is decoupled)
    s <- b2 s + (1 - b2) g^2,                D = sqrt(s / (1 - b2^t)) + eps
    m <- m + take (g - m)                    take = 1 - beta; AdaptiveMemory says its own
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

from .arithmetic import Factor, Tensors, add_, add_scaled_, divide_, divided, lerp_, scale_
from .measuring import Memory, Reduction, Sums, begin_, betas, follow_, observe_
from .momentum import Fixed, Momentum, Rule, Scalar
from .optimizer import (
    MomentumOptimizer,
    ParamGroup,
    Params,
    State,
    check_number,
    keep,
    kept,
    rate,
    real,
    recall,
    with_gradients,
)
from .parts import Part, cut
from .sgd import of_part, penalised

__all__ = ["Adam", "AdamW", "Group", "descend_", "measure", "step_"]


@dataclass
class Group:
    """The tensors of one parameter group, or of one slice of lanes, and what its step depends on.

    params, grads, first, second, largest: as many tensors of the same shapes: the moments m and s, and amsgrad's
        largest s. The moments are made at the first step.
    lr: a number, a tensor of shape (), or one per lane.
    steps: steps taken so far: one number for all tensors, a tensor of shape (), or a list with one of these per tensor.
        Tensors are counted up in place.
    foreach: work on many tensors in one call; without, on one after another.
    fresh: the tensors (by index) whose first moment starts in this step.
    """

    params: Tensors
    lr: Scalar
    grads: Tensors = field(default_factory=list)
    first: Tensors = field(default_factory=list)
    second: Tensors = field(default_factory=list)
    largest: Tensors = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    steps: Scalar | list[Scalar] = 0
    fresh: Sequence[int] = ()
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    maximize: bool = False
    foreach: bool = True

    def start(self, rule: Rule) -> None:
        """Make the state of a group that has none, for its first step."""
        self.first = [torch.zeros_like(param) for param in self.params]
        self.second = [torch.zeros_like(param) for param in self.params]
        self.largest = [torch.zeros_like(param) for param in self.params] if self.amsgrad else []
        self.memory.start(rule, self.params)
        self.fresh = range(len(self.params))

    def parts(self, lanes: bool) -> list[Part]:
        """The group's tensors as parts to be worked on one after another."""
        kept = {name: getattr(self.memory, name) for name in ("previous", "change", "path")}
        own = (self.params, self.grads, self.first, self.second, self.largest)
        whole = Part(range(len(self.params)), False, *own, **kept)
        return [whole] if lanes else list(cut(whole, one_by_one=not self.foreach))


def step_(rule: Rule, groups: Sequence[Group], lanes: bool = False) -> list[Scalar]:
    """One step, in place, of all groups that share a rule. Returns the beta of each group.

    lanes: the first dimension of every tensor counts independent trials, and beta has shape (lanes,).
    """
    over = Reduction(lanes, each=rule.scope == "tensor")
    for group in groups:
        if not group.second:
            group.start(rule)
        group.steps = counted(group.steps)
    parts = [group.parts(lanes) for group in groups]
    measured = [measure(rule, group, of_it, over) for group, of_it in zip(groups, parts, strict=True)]
    momenta = betas(rule, [group.lr for group in groups], measured, over)
    for group, of_it, beta in zip(groups, parts, momenta, strict=True):
        descend_(rule, group, of_it, beta, over)
    return momenta


def counted(steps: Scalar | list[Scalar]) -> Any:
    """One step more; tensors in place, so that a captured graph counts too."""
    if not isinstance(steps, list):
        return steps.add_(1) if isinstance(steps, Tensor) else steps + 1
    if steps and isinstance(steps[0], Tensor):
        add_(steps, 1)  # type: ignore[arg-type]  # all of them are tensors then
        return steps
    return [step + 1 for step in steps]


def measure(rule: Rule, group: Group, parts: Sequence[Part], over: Reduction) -> dict[str, Tensor]:
    """Take the gradient into s, and return the statistics that the rule needs of this group."""
    sums = Sums(over)
    for part in parts:
        grads = coupled(group, part)
        scale_(part.second, group.b2)
        torch._foreach_addcmul_(part.second, grads, grads, 1 - group.b2)
        if group.amsgrad:
            torch._foreach_maximum_(part.largest, part.second)
        if rule.needs:
            observe_(rule, part, grads, group.memory, sums, metric(rule, group, part))
    return group.memory.statistics(rule, sums)


def descend_(rule: Rule, group: Group, parts: Sequence[Part], beta: Scalar, over: Reduction) -> None:
    """Take the step with this beta, and remember how far it went."""
    sums = Sums(over)
    for part in parts:
        grads, scale = coupled(group, part), preconditioner(group, part)
        if isinstance(rule, Fixed):
            descend_constant_(group, part, grads, scale, rule.momentum)
            continue
        lerp_(part.velocity, grads, of_part(rule.take(beta), part, over))
        begin_(part.velocity, grads, part, group.fresh)
        direction = divided(part.velocity, scale)
        if group.decoupled and group.weight_decay:
            torch._foreach_add_(direction, part.params, alpha=group.weight_decay)
        add_scaled_(part.params, direction, -group.lr)
        follow_(rule, part, direction, group.lr, sums, metric(rule, group, part))
    group.memory.arrive(rule, sums, group.lr)
    group.fresh = ()


def descend_constant_(group: Group, part: Part, grads: Tensors, scale: Tensors, b1: float) -> None:
    """The step of a constant beta, with its bias correction; operation for operation that of torch.optim."""
    if group.decoupled and group.weight_decay:
        scale_(part.params, 1 - group.lr * group.weight_decay)
    lerp_(part.velocity, grads, 1 - b1)
    sizes = [-group.lr / c for c in corrections(b1, group, part)]
    if isinstance(sizes[0], float):
        torch._foreach_addcdiv_(part.params, part.velocity, scale, sizes)
    else:
        add_scaled_(part.params, list(torch._foreach_div(part.velocity, scale)), sizes)


def coupled(group: Group, part: Part) -> Tensors:
    return penalised(part, 0.0 if group.decoupled else group.weight_decay, group.maximize)


def preconditioner(group: Group, part: Part) -> Tensors:
    """D = sqrt(s / (1 - b2^t)) + eps."""
    scale = list(torch._foreach_sqrt(part.largest if group.amsgrad else part.second))
    divide_(scale, alike([c**0.5 for c in corrections(group.b2, group, part)]))
    add_(scale, group.eps)
    return scale


def metric(rule: Rule, group: Group, part: Part) -> Tensors | None:
    """D^1/2, for rules that measure in the metric of D."""
    if rule.metric == "raw":
        return None
    root = preconditioner(group, part)
    torch._foreach_sqrt_(root)
    return root


def corrections(b: float, group: Group, part: Part) -> list[Any]:
    """1 - b^t, by which an average that started at zero is too small, for each tensor of the part."""
    if not isinstance(group.steps, list):
        return [1 - b**group.steps] * len(part.indices)
    steps: Any = [group.steps[i] for i in part.indices]
    if not isinstance(steps[0], Tensor):
        return [1 - b**step for step in steps]
    powers = torch._foreach_pow(b, steps)
    torch._foreach_neg_(powers)
    torch._foreach_add_(powers, 1)
    return list(powers)


def alike(values: list[Any]) -> Factor:
    """One number for all, where all tensors have taken as many steps."""
    return values[0] if isinstance(values[0], float) and all(v == values[0] for v in values) else values


class Adam(MomentumOptimizer):
    """torch.optim.Adam whose betas[0] may be a number, the word "adaptive", or a rule such as adamom.HeavyBall().

    With a number it takes the same steps as torch.optim.Adam. `last_momentum` is the beta just used, as a tensor.

        optimizer = adamom.Adam(model.parameters(), lr=1e-3, betas=("adaptive", 0.999))

    Raises ValueError for values out of range and for rules that do not fit, with what to do instead.
    """

    kind = "Adam"

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
        steps = counters(states, params, group["capturable"])
        found = Group(
            params=real(params),
            lr=rate(group),
            grads=real(grads),
            first=first,
            second=kept(states, params, "exp_avg_sq")[0],
            largest=kept(states, params, "max_exp_avg_sq")[0] if group["amsgrad"] else [],
            memory=recall(rule, group, present, states, params),
            steps=list(steps) if group["capturable"] else [step.item() for step in steps],
            fresh=fresh,
            foreach=group["foreach"] is not False,
            b2=group["betas"][1],
            decoupled=group["decoupled_weight_decay"],
            **{name: group[name] for name in ("eps", "weight_decay", "amsgrad", "maximize")},
        )
        if not group["capturable"]:
            add_(steps, 1)
        return found, present


def counters(states: Sequence[State], params: Sequence[Tensor], capturable: bool) -> list[Tensor]:
    """How many steps each parameter has taken: torch.optim's tensors, on the device if capturable."""
    for state, param in zip(states, params, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), device=param.device if capturable else "cpu")
    return [state["step"] for state in states]


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
