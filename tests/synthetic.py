"""Studies with known answers, for tests and benchmarks of the pages: no training, but every trouble a real grid has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage.records import Arm, Axis, Budget, Curve, Outcome, Point, Result, Study, Trial

INITIAL = math.log(10)  # the loss of ten equally likely classes


def lr_axis(first: float, last: float, points: int) -> Axis:
    return Axis("lr", tuple(float(lr) for lr in np.geomspace(first, last, points)))


def study(
    points: int = 27, seeds: Sequence[int] = (0, 1, 2), *, name: str = "digits", text: str = "# a study file\n"
) -> Study:
    """Nine arms of two families, each over learning rates from where nothing is learned to where all diverge."""
    sgd, adam = lr_axis(1e-4, 10**2.5, points), lr_axis(1e-6, 1.0, points)
    constants = [Arm(f"SGD, momentum {beta:g}", "SGD", "sgd", beta, sgd) for beta in (0.0, 0.5, 0.9, 0.99)]
    rules = [
        Arm("SGD, adaptive", "SGD", "sgd", None, sgd, rule={"rule": "adaptive"}),
        Arm("SGD, adaptive, smoothing 0.999", "SGD", "sgd", None, sgd, rule={"rule": "adaptive", "smoothing": 0.999}),
    ]
    damped = [Arm(f"Adam, beta1 {beta:g}", "Adam", "adam", beta, adam, damped=True) for beta in (0.0, 0.9)]
    damped.append(Arm("Adam, adaptive", "Adam", "adam", None, adam, rule={"rule": "adaptive"}, damped=True))
    return Study(
        name,
        "Which momentum forgives a badly chosen learning rate?",
        "digits",
        Budget(steps=400, evaluations=20, batch_size=64),
        (*constants, *rules, *damped),
        tuple(seeds),
        text,
    )


def trials(of: Study, *, seed: int = 0) -> tuple[list[Trial], dict[int, Curve]]:
    """A finished trial for every cell, with its curve."""
    finished, curves = [], {}
    cells = [(arm, lr, repeat) for arm in of.arms for lr in arm.lr.values for repeat in of.seeds]
    generator = np.random.default_rng(seed)
    for number, (arm, lr, repeat) in enumerate(cells):
        result, curve = _trained(arm, lr, of.budget, np.random.default_rng([repeat, 7]), generator)
        point = Point(arm.name, lr, arm.momentum, repeat)
        finished.append(Trial(number + 1, number, point, result.outcome, 1, result))
        curves[number + 1] = curve
    return finished, curves


def _trained(
    arm: Arm, lr: float, budget: Budget, shared: np.random.Generator, own: np.random.Generator
) -> tuple[Result, Curve]:
    """One run whose speed grows with its effective learning rate until that crosses a stability edge."""
    beta = arm.momentum if arm.momentum is not None else 0.55 - 0.09 * math.log10(lr)
    beta = min(max(beta, 0.02), 0.97)
    effective = lr if arm.damped else lr / (1 - beta)
    centre = -2.6 if arm.damped else -0.4
    x = math.log10(effective) - centre - 0.12 * shared.standard_normal()
    edge = 1.15 + 0.25 * bool(arm.adaptive) + (0.5 if arm.rule.get("smoothing") else 0.0) - 0.4 * (beta > 0.95)
    steps = np.array([0, *budget.evaluated_at])
    speed = 10 ** (1.6 * x + 1.9)
    floor = 0.11 + 0.02 * (beta > 0.95) + 0.05 * max(x - edge + 0.6, 0.0) ** 2 + 0.006 * own.standard_normal()
    progress = 1 - np.exp(-speed * steps / budget.steps / 12)
    losses = INITIAL - (INITIAL - max(floor, 0.05)) * progress
    losses[1:] -= 0.02 * np.abs(own.standard_normal(len(steps) - 1)) * (INITIAL - losses[1:]) * floor
    losses[0] = INITIAL
    diverged_at = None
    if x > edge + 0.08 * own.standard_normal():
        diverged_at = max(1, int(budget.steps * min(1.0, 0.3 / (x - edge + 0.25))))
        losses = np.where(steps < diverged_at, losses + np.exp(np.minimum(steps / 40, 5)), np.nan)
        losses[0] = INITIAL
    momentum = np.where(steps == 0, np.nan, beta + 0.03 * np.sin(steps / 60) * (arm.momentum is None))
    seen = np.isfinite(losses) | (steps == steps[min(np.searchsorted(steps, diverged_at or 0), len(steps) - 1)])
    curve = Curve(steps[seen], losses[seen], losses[seen], 1 - losses[seen] / 4, momentum[seen])  # type: ignore[arg-type]
    final = float(losses[-1])
    diverged = diverged_at is not None or not final < INITIAL
    return (
        Result(
            Outcome.DIVERGED if diverged else Outcome.CONVERGED,
            steps=int(diverged_at or budget.steps),
            initial_loss=INITIAL,
            final_loss=math.inf if diverged_at is not None and diverged_at % 2 else final,
            best_loss=float(np.nanmin(losses)),
            final_accuracy=math.nan if diverged else 1 - final / 4,
            mean_momentum=float(beta),
            diverged_at=(diverged_at or budget.steps) if diverged else None,
            seconds=0.4,
            provenance={"device": "cpu", "torch": "2.13.0", "commit": "0" * 12},
        ),
        curve,
    )


def not_finished(trial: Trial, outcome: Outcome) -> Trial:
    """The same cell before it was run, or after it went wrong."""
    if outcome.finished:
        return replace(
            trial, outcome=outcome, result=Result(outcome, error="Traceback: boom" if outcome == "failed" else None)
        )
    return replace(trial, outcome=outcome, result=None)
