"""What Optuna is told about points and results."""

from __future__ import annotations

import json
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import Arm, Axis, Budget, Outcome, Point, Result, Study
from storage.mirror import distributions, result_attributes, stored_value, trial_params, trial_value

ARMS = (
    Arm("b", "sgd", "sgd", 0.9, Axis("lr", (0.1, 1.0))),
    Arm("a", "sgd", "sgd", None, Axis("lr", (0.01,)), rule={"rule": "adaptive"}),
)
STUDY = Study("s", "?", "digits", Budget(10, 5, 8), ARMS, (3, 5))


def test_the_search_space_is_written_as_optuna_writes_it() -> None:
    expected = {
        "arm": optuna.distributions.CategoricalDistribution(["b", "a"]),
        "lr": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
        "momentum": optuna.distributions.CategoricalDistribution(["0.9", "adaptive"]),
        "seed": optuna.distributions.IntDistribution(3, 5),
    }
    written = {name: json.dumps(space) for name, space in distributions(STUDY, {}).items()}
    assert written == {name: optuna.distributions.distribution_to_json(space) for name, space in expected.items()}


def test_a_category_keeps_its_index_when_the_study_grows() -> None:
    before = distributions(STUDY, {})
    reordered = Study("s", "?", "digits", STUDY.budget, (Arm("0", "x", "x", 0.0, ARMS[0].lr), *ARMS[::-1]), (0,))
    after = distributions(reordered, before)
    assert after["arm"]["attributes"]["choices"] == ["b", "a", "0"]
    assert after["momentum"]["attributes"]["choices"] == ["0.9", "adaptive", "0.0"]


def test_a_point_is_four_numbers() -> None:
    points = [Point("a", 0.01, None, 5), Point("b", 1.0, 0.9, 3)]
    assert trial_params(points, distributions(STUDY, {})) == {
        "arm": [1.0, 0.0],
        "lr": [0.01, 1.0],
        "momentum": [1.0, 0.0],
        "seed": [5.0, 3.0],
    }


@pytest.mark.parametrize(
    ("value", "stored"),
    [(1.5, (1.5, "FINITE")), (math.inf, (None, "INF_POS")), (-math.inf, (None, "INF_NEG")), (math.nan, (None, "NAN"))],
)
def test_a_number_that_is_not_finite_is_a_word(value: float, stored: tuple[float | None, str]) -> None:
    assert stored_value(value) == stored


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (Result(Outcome.CONVERGED, initial_loss=2.3, final_loss=0.5), (0.5, "FINITE")),
        (Result(Outcome.DIVERGED, initial_loss=2.3, final_loss=math.nan), (2.3, "FINITE")),
        (Result(Outcome.DIVERGED, initial_loss=2.3, final_loss=9.0), (2.3, "FINITE")),
        (Result(Outcome.DIVERGED), (None, "INF_POS")),
        (Result(Outcome.PRUNED, initial_loss=2.3, final_loss=1.5), (1.5, "FINITE")),
        (Result(Outcome.PRUNED), None),
        (Result(Outcome.FAILED, error="x"), None),
        (Result(Outcome.OOM), None),
    ],
)
def test_a_diverged_run_counts_as_its_initial_loss(result: Result, value: object) -> None:
    assert trial_value(result) == value


@given(st.floats(), st.floats())
def test_attributes_are_json_that_browsers_can_read(initial: float, final: float) -> None:
    result = Result(Outcome.DIVERGED, initial_loss=initial, final_loss=final, seconds=final, error='"\n\0\\')
    for text in result_attributes(result).values():
        json.loads(text, parse_constant=pytest.fail)


def test_what_was_not_measured_is_left_out() -> None:
    assert {key: json.loads(text) for key, text in result_attributes(Result(Outcome.OOM)).items()} == {
        "outcome": "oom",
        "provenance": {"steps": 0, "seconds": "nan"},
    }


def test_a_diverged_loss_is_told_raw() -> None:
    said = result_attributes(Result(Outcome.DIVERGED, 40, 2.3, math.nan, diverged_at=7))
    assert (said["final_loss"], said["initial_loss"], said["diverged_at"]) == ('"nan"', "2.3", "7")
