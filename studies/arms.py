"""From the name in a study file to the optimizer that trains: ours, with a constant or a computed momentum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import adamom
from adamom.momentum import as_rule
from adamom.optimizer import MomentumOptimizer
from storage.records import Arm, Axis
from studies.catalog import suggestion

__all__ = ["OPTIMIZERS", "LaneGroup", "arm", "build", "check", "lane_group", "lane_step", "rule_of"]

OPTIMIZERS: dict[str, Callable[..., MomentumOptimizer]] = {
    "sgd": adamom.SGD,
    "adam": adamom.Adam,
    "adamw": adamom.AdamW,
}
LaneGroup = adamom.sgd.Group | adamom.adam.Group

DAMPED = {"adam", "adamw"}  # their velocity is an average of gradients, not a sum


def arm(
    family: str, optimizer: str, momentum: float | str | Mapping[str, Any], lr: Axis, options: Mapping[str, Any]
) -> Arm:
    """One arm of a family, from one entry of its momentum list.

    momentum: a constant, the name of a rule, or a table such as {"rule": "adaptive", "smoothing": 0.999}.
    """
    rule = (
        {} if isinstance(momentum, float | int) else {"rule": momentum} if isinstance(momentum, str) else dict(momentum)
    )
    constant = float(momentum) if isinstance(momentum, float | int) else None
    settings = " ".join(f"{key}={value}" for key, value in rule.items() if key != "rule")
    label = f"{constant:g}" if constant is not None else f"{rule.get('rule', '?')} {settings}".strip()
    return Arm(
        name=f"{family} {label}",
        family=family,
        optimizer=optimizer,
        momentum=constant,
        lr=lr,
        rule=rule,
        options=dict(options),
        damped=optimizer in DAMPED,
    )


def rule_of(arm: Arm) -> adamom.Rule:
    """The rule that gives the arm its momentum. Raises ValueError for a name or a setting that nobody knows."""
    if arm.momentum is not None:
        return as_rule(arm.momentum)
    settings = dict(arm.rule)
    if not isinstance(name := settings.pop("rule", None), str):
        raise ValueError('a momentum table names its rule, such as { rule = "adaptive", smoothing = 0.999 }')
    return adamom.rule(name, **settings)


def build(arm: Arm, parameters: Iterable[nn.Parameter | Tensor], lr: float) -> MomentumOptimizer:
    """The optimizer of a trial. Raises ValueError saying what is wrong with the arm."""
    if arm.optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {arm.optimizer!r}. {suggestion(arm.optimizer, OPTIMIZERS)}")
    make = OPTIMIZERS[arm.optimizer]
    options = dict(arm.options)
    accepted = _options(arm.optimizer)
    for key in options:
        if key not in accepted:
            raise ValueError(f"optimizer {arm.optimizer!r} has no option {key!r}. {suggestion(key, accepted)}")
    momentum = rule_of(arm) if arm.adaptive else arm.momentum
    if arm.optimizer in DAMPED:
        options["betas"] = (momentum, options.pop("beta2", BETA2))
    else:
        options["momentum"] = momentum
    return make(parameters, lr=lr, **options)


BETA2 = 0.999  # torch.optim's default


def _options(optimizer: str) -> list[str]:
    """What a study file may say beside optimizer, momentum and lr."""
    taken = {"params", "lr", "momentum", "betas"}
    known = [name for name in inspect.signature(OPTIMIZERS[optimizer]).parameters if name not in taken]
    return [*known, "beta2"] if optimizer in DAMPED else known


def lane_group(arm: Arm, params: list[Tensor], lr: Tensor) -> LaneGroup:
    """The optimizer state of many lanes of one arm, with the options its optimizer would have for one trial.

    params: tensors of shape (lanes, ...). lr: tensor of shape (lanes,).
    """
    options = build(arm, [torch.zeros(1, requires_grad=True)], lr=arm.lr.values[0]).param_groups[0]
    if arm.optimizer == "sgd":
        names = ("weight_decay", "dampening", "nesterov", "maximize")
        return adamom.sgd.Group(params, lr, **{name: options[name] for name in names})
    names = ("eps", "weight_decay", "amsgrad", "maximize")
    own = {"b2": options["betas"][1], "decoupled": options["decoupled_weight_decay"]}
    return adamom.adam.Group(params, lr, **own, **{name: options[name] for name in names})


def lane_step(rule: adamom.Rule, group: LaneGroup) -> float | Tensor:
    """One step, in place, of many lanes of one arm. Returns beta: a number, or (lanes,), or (tensors, lanes)."""
    if isinstance(group, adamom.sgd.Group):
        return adamom.sgd.step_(rule, [group], lanes=True)[0]
    return adamom.adam.step_(rule, [group], lanes=True)[0]


def check(arm: Arm) -> None:
    """Build the arm's optimizer for one number, so that what it refuses is known before anything is planned.

    Raises ValueError saying what is wrong with the arm.
    """
    try:
        build(arm, [torch.zeros(1, requires_grad=True)], lr=arm.lr.values[0])
    except TypeError as error:
        raise ValueError(str(error)) from error
