"""Whatever a study holds, its report is made, is strict, and comes back the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dashboards import compare, latex_table, markdown_table, read_json, summarise, write_json
from dashboards.basins import basins_figure, basins_info
from dashboards.report import figures, page
from dashboards.side_by_side import comparison_page
from storage.records import Arm, Axis, Budget, Curve, Outcome, Point, Result, Study, Trial

LOSSES = st.one_of(st.floats(0.01, 3.0), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-30, 1e30, 2.0]))
PHASES = [phase for phase in Phase if phase is not Phase.shrink]  # a smaller study is not worth minutes of drawing
MANY = settings(max_examples=40, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(MANY, max_examples=10)


@st.composite
def studies(draw: st.DrawFn) -> tuple[Study, list[Trial], dict[int, Curve]]:
    """Up to five arms of two families, some of their cells in any state, with any losses and any pieces of curves."""
    arms = []
    for index in range(draw(st.integers(1, 5))):
        momentum = draw(st.sampled_from([0.0, 0.5, 0.9, 0.999, None]))
        first, points = draw(st.sampled_from([1e-4, 1e-2])), draw(st.integers(1, 6))
        axis = Axis("lr", tuple(first * 10**at for at in range(points)))
        family = draw(st.sampled_from(["SGD", "Adam"]))
        arms.append(Arm(f"arm {index}", family, family.lower(), momentum, axis, damped=family == "Adam"))
    seeds = tuple(range(draw(st.integers(1, 4))))
    study = Study("any", "Which?", "none", Budget(10, draw(st.integers(1, 10)), 1), tuple(arms), seeds, "text")
    trials: list[Trial] = []
    curves: dict[int, Curve] = {}
    for arm in arms:
        for lr in arm.lr.values:
            for seed in seeds:
                outcome = draw(st.sampled_from([None, *Outcome, *[Outcome.CONVERGED, Outcome.DIVERGED] * 6]))
                if outcome is not None:
                    trials.append(draw(_trial(len(trials), Point(arm.name, lr, arm.momentum, seed), outcome)))
                    if draw(st.booleans()):
                        curves[trials[-1].id] = draw(_curve(study.budget))
    return study, trials, curves


@st.composite
def _trial(draw: st.DrawFn, number: int, point: Point, outcome: Outcome) -> Trial:
    if not outcome.finished:
        return Trial(number + 1, number, point, outcome)
    final = draw(LOSSES)
    result = Result(
        outcome,
        initial_loss=draw(st.sampled_from([2.0, 2.0, 2.0, math.nan])),
        final_loss=final,
        best_loss=final,
        mean_momentum=draw(st.sampled_from([0.0, 0.3, 1.0, math.nan])),
        diverged_at=draw(st.sampled_from([None, 5])),
    )
    return Trial(number + 1, number, point, outcome, 1, result)


@st.composite
def _curve(draw: st.DrawFn, budget: Budget) -> Curve:
    steps = [0, *budget.evaluated_at][: draw(st.integers(0, 11))]
    losses = [draw(LOSSES) for _ in steps]
    return Curve(steps, losses, losses, losses, losses)  # type: ignore[arg-type]


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@MANY
@given(studies())
def test_its_numbers_are_strict_json_and_come_back_from_a_file(studied: Any) -> None:
    summary = summarise(*studied, resamples=20)
    text = json.dumps(summary.as_dict(), allow_nan=False)
    with TemporaryDirectory() as folder:
        path = write_json(summary, Path(folder) / "report.json", command="c")
        json.loads(path.read_text(), parse_constant=refuse)
        assert json.dumps(read_json(path).summary.as_dict()) == text


@MANY
@given(studies())
def test_its_pictures_and_tables_are_drawn(studied: Any) -> None:
    summary = summarise(*studied, resamples=20)
    for figure in (*figures(summary).values(), basins_figure(basins_info(summary))):
        json.loads(figure.to_json())
    assert markdown_table(summary).count("\n") == 2 + len(summary.rows)
    assert latex_table(summary).count("\\\\\n") == 1 + len(summary.rows)


@FEW
@given(studies())
def test_its_pages_are_written_and_the_same_each_time(studied: Any) -> None:
    summary = summarise(*studied, resamples=20)
    assert page(summary, command="c", provenance={}) == page(summary, command="c", provenance={})
    assert comparison_page(compare([summary]), command="c").startswith("<!doctype html>")
