"""From the name in a study file to the optimizer that trains: ours, torch's, or another library's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import adamom
from adamom.momentum import as_rule
from adamom.optimizer import MomentumOptimizer
from storage.records import Arm, Axis
from studies import foreign
from studies.catalog import suggestion

__all__ = ["OPTIMIZERS", "LaneGroup", "arm", "build", "check", "fits_lanes", "lane_group", "lane_step", "rule_of"]

OPTIMIZERS: dict[str, Callable[..., MomentumOptimizer]] = {
    "sgd": adamom.SGD,
    "adam": adamom.Adam,
    "adamw": adamom.AdamW,
}
Said = float | str | Mapping[str, Any] | None  # a momentum as a study file says it
LaneGroup = adamom.sgd.Group | adamom.adam.Group

DAMPED = {"adam", "adamw"}  # their velocity is an average of gradients, not a sum
SGD_OPTIONS = ("weight_decay", "dampening", "nesterov", "maximize")
BETA2 = 0.999  # torch.optim's default
ADAM_OPTIONS = ("weight_decay", "beta2", "eps", "amsgrad", "maximize")


def arm(family: str, optimizer: str, momentum: Said, lr: Axis, options: Mapping[str, Any]) -> Arm:
    """One arm of a family, from one entry of its momentum list.

    momentum: a constant, the name of a rule, a table such as {"rule": "adaptive", "smoothing": 0.999}, or None for
    whatever another library's optimizer does by itself.
    Raises ValueError saying what is wrong with it, before anything is planned.
    """
    constant = float(momentum) if isinstance(momentum, float | int) else None
    words: dict[str, Any] = {}
    if isinstance(momentum, str):
        words = {"rule": momentum}
    elif isinstance(momentum, Mapping):
        words = dict(momentum)
    said = " ".join(str(value) if key == "rule" else f"{key}={value}" for key, value in words.items())
    label = said if constant is None else f"{constant:g}"
    made = Arm(f"{family} {label}".strip(), family, optimizer, constant, lr, words, dict(options))
    check(made)
    return replace(made, damped=averages(made))


def averages(arm: Arm) -> bool:
    """Whether the arm's velocity is an average of gradients rather than a sum."""
    if arm.optimizer in OPTIMIZERS:
        return arm.optimizer in DAMPED or rule_of(arm).averaging
    return not arm.optimizer.endswith("SGD")


def fits_lanes(arm: Arm) -> bool:
    """Whether the arm's optimizer can train many trials as one program."""
    return arm.optimizer in OPTIMIZERS


def rule_of(arm: Arm) -> adamom.Rule:
    """The rule that gives the arm its momentum. Raises ValueError for a name or a setting that nobody knows."""
    if arm.momentum is not None:
        return as_rule(arm.momentum)
    settings = dict(arm.rule)
    if not isinstance(name := settings.pop("rule", None), str):
        got = f" Got the keys {', '.join(arm.rule)}." if arm.rule else ""
        raise ValueError(
            f'needs a momentum: a number, or a rule such as {{ rule = "adaptive", smoothing = 0.999 }}.{got}'
        )
    return adamom.rule(name, **settings)


def build(arm: Arm, parameters: Iterable[Tensor], lr: float) -> Optimizer:
    """The optimizer of a trial. Raises ValueError saying what is wrong with the arm."""
    if foreign.is_foreign(arm.optimizer):
        if arm.rule:
            raise ValueError(f"optimizer {arm.optimizer!r} takes no rule. Those that do: {', '.join(OPTIMIZERS)}.")
        return foreign.build(arm.optimizer, parameters, lr, arm.momentum, arm.options)
    if arm.optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {arm.optimizer!r}. {suggestion(arm.optimizer, OPTIMIZERS)}")
    options = dict(arm.options)
    accepted = ADAM_OPTIONS if arm.optimizer in DAMPED else SGD_OPTIONS
    for key in options:
        if key not in accepted:
            raise ValueError(f"optimizer {arm.optimizer!r} has no option {key!r}. {suggestion(key, accepted)}")
    momentum = rule_of(arm) if arm.adaptive else arm.momentum
    if arm.optimizer in DAMPED:
        options["betas"] = (momentum, options.pop("beta2", BETA2))
    else:
        options["momentum"] = momentum
    return OPTIMIZERS[arm.optimizer](parameters, lr=lr, **options)


def lane_group(arm: Arm, params: list[Tensor], lr: Tensor) -> LaneGroup:
    """The optimizer state of many lanes of one arm, with the options its optimizer would have for one trial.

    params: tensors of shape (lanes, ...). lr: tensor of shape (lanes,).
    """
    options = build(arm, [torch.zeros(1, requires_grad=True)], lr=arm.lr.values[0]).param_groups[0]
    if arm.optimizer == "sgd":
        return adamom.sgd.Group(params, lr, **{name: options[name] for name in SGD_OPTIONS})
    own = {"b2": options["betas"][1], "decoupled": options["decoupled_weight_decay"]}
    same = {name: options[name] for name in ADAM_OPTIONS if name != "beta2"}
    steps = torch.zeros((), dtype=torch.float64, device=params[0].device)
    return adamom.adam.Group(params, lr, steps=steps, **own, **same)


def lane_step(rule: adamom.Rule, group: LaneGroup) -> float | Tensor:
    """One step, in place, of many lanes of one arm. Returns beta: a number, or (lanes,), or (tensors, lanes)."""
    if isinstance(group, adamom.sgd.Group):
        return adamom.sgd.step_(rule, [group], lanes=True)[0]
    return adamom.adam.step_(rule, [group], lanes=True)[0]


def check(arm: Arm) -> None:
    """Build the arm's optimizer for one number: what it refuses, a study file must not ask for. Raises ValueError."""
    try:
        build(arm, [torch.zeros(1, requires_grad=True)], lr=arm.lr.values[0])
    except TypeError as error:
        raise ValueError(str(error)) from error
