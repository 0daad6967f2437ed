"""Trials as arrays."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dashboards.evidence import Evidence
from storage.records import Curve, Outcome, Point
from tests.synthetic import not_finished

NAN = float("nan")


def test_a_cell_that_has_not_been_run_is_nan_and_a_diverged_one_counts_as_its_loss_at_initialisation(
    hand_made: Any,
) -> None:
    evidence = Evidence.of(*hand_made(a=[[1.0, NAN, 3.0], [0.5, None, 1.5]]))
    grid = evidence.grids[0]
    assert grid.loss[0].tolist() == [1.0, 2.0, 2.0]
    assert np.isnan(grid.loss[1, 1])
    assert grid.diverged[0].tolist() == [0, 1, 1]
    assert grid.measured == 5


def test_a_run_that_diverged_counts_so_even_if_its_last_loss_was_low(hand_made: Any) -> None:
    study, trials, curves = hand_made(a=[[1.0, 0.5]])
    diverged = replace(trials[1], outcome=Outcome.DIVERGED, result=replace(trials[1].result, outcome=Outcome.DIVERGED))
    grid = Evidence.of(study, [trials[0], diverged], curves).grids[0]
    assert (grid.loss.tolist(), grid.diverged.tolist()) == ([[1.0, 2.0]], [[0, 1]])


def test_the_order_of_trials_changes_nothing(finished: Any) -> None:
    study, trials, curves = finished
    shuffled = random.Random(0).sample(trials, len(trials))
    assert Evidence.of(study, shuffled, curves).digest == Evidence.of(study, trials, curves).digest


def test_another_result_changes_the_digest(finished: Any) -> None:
    study, trials, curves = finished
    changed = replace(trials[0], result=replace(trials[0].result, final_loss=1.25))
    assert Evidence.of(study, [changed, *trials[1:]], curves).digest != Evidence.of(study, trials, curves).digest


def test_the_digest_is_that_of_older_releases_until_something_new_is_asked_for(hand_made: Any) -> None:
    """Pinned: files written before budgets had a precision must still match their hash."""
    study, trials, curves = hand_made(a=[[1.0, 0.5]])
    evidence = Evidence.of(study, trials, curves)
    assert evidence.digest == "da419c4b36a654fa5bf663f9af1c90ff1dbf1ba5047683e680f9d20322d0937f"
    finer = replace(study, budget=replace(study.budget, precision="bfloat16"))
    assert Evidence.of(finer, trials, curves).digest != evidence.digest


def test_a_trial_outside_the_grid_is_left_out_and_counted(hand_made: Any) -> None:
    study, trials, curves = hand_made(a=[[1.0, 1.0]])
    stranger = replace(trials[0], id=99, point=Point("a", 12.5, 0.9, 0))
    evidence = Evidence.of(study, [*trials, stranger], curves)
    assert (evidence.strangers, evidence.counts.total) == (1, 2)


def test_pruned_and_failed_cells_are_counted_but_have_no_loss(hand_made: Any) -> None:
    study, trials, curves = hand_made(a=[[1.0, 1.0, 1.0]])
    trials = [not_finished(trials[0], Outcome.PRUNED), not_finished(trials[1], Outcome.FAILED), trials[2]]
    evidence = Evidence.of(study, trials, curves)
    assert (evidence.counts.pruned, evidence.counts.failed, evidence.grids[0].measured) == (1, 1, 1)
    assert evidence.errors == ((1, "Traceback: boom"),)


def test_curves_lie_on_the_steps_of_the_budget(hand_made: Any) -> None:
    study, trials, _ = hand_made(a=[[1.0]])
    curve = Curve([0, 37, 50], [NAN, 1.8, 1.5], [2.0, 1.7, 1.5], [NAN] * 3, [NAN, 0.1, 0.2])  # type: ignore[arg-type]
    evidence = Evidence.of(study, trials, {trials[0].id: curve})
    assert evidence.steps.tolist() == [0, 50, 100]
    assert evidence.validation_loss[0, :2].tolist() == [2.0, 1.5]
    assert np.isnan(evidence.validation_loss[0, 2])


def test_effective_rates_of_a_sum_of_gradients_and_of_an_average(finished: Any) -> None:
    grids = {grid.arm.name: grid for grid in Evidence.of(*finished).grids}
    undamped, damped = grids["SGD, momentum 0.9"], grids["Adam, beta1 0.9"]
    assert undamped.effective_lrs == pytest.approx(undamped.lrs * 10)
    assert damped.effective_lrs == pytest.approx(damped.lrs)


def test_effective_rates_of_a_rule_use_the_momentum_it_chose(hand_made: Any) -> None:
    grid = Evidence.of(*hand_made(rule=[[1.0, 1.0]])).grids[0]
    assert grid.effective_lrs == pytest.approx(grid.lrs / (1 - 0.5))
