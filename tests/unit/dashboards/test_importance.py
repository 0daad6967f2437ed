"""What a family's loss depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboards import Summary, read_json, summarise, write_json
from dashboards.report import page
from storage.records import Axis

FLAT, TILTED = [[1.0, 1.0, 1.0]] * 2, [[0.5, 1.0, 1.5]] * 2


def of(studied: Any) -> Any:
    return summarise(*studied, resamples=10).importances[0]


def test_two_equal_arms_leave_everything_to_the_learning_rate(hand_made: Any) -> None:
    found = of(hand_made(a=TILTED, b=TILTED))
    assert found.shares == pytest.approx((1, 0, 0, 0))
    assert (
        found.sentence
        == "SGD: learning rate 100 %, momentum 0 %, the two together 0 %, seed 0 % (exact ANOVA over 12 of 12 cells)."
    )


def test_arms_that_tilt_apart_interact(hand_made: Any) -> None:
    mirrored = [row[::-1] for row in TILTED]
    assert of(hand_made(a=TILTED, b=mirrored)).shares == pytest.approx((0, 0, 1, 0))


def test_what_seeds_alone_change_is_theirs(hand_made: Any) -> None:
    rows = [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]
    assert of(hand_made(a=rows, b=rows)).shares == pytest.approx((0, 0, 0, 1))


def test_rules_have_no_part_in_it(hand_made: Any) -> None:
    assert of(hand_made(a=TILTED, rule=FLAT)).why == "not run: it takes two constant momenta"


def test_why_there_is_none_is_said(hand_made: Any, finished: Any) -> None:
    assert of(hand_made(a=FLAT, b=FLAT)).why == "every loss is the same"
    gaps = [[0.5, None, 1.5], [None, 1.0, None]]
    assert of(hand_made(a=TILTED, b=gaps)).why == "not run: 9 of its 12 cells ran, and an estimate takes 10"
    nothing = [[None] * 3] * 4
    assert "one learning rate or one momentum" in of(hand_made(a=TILTED * 2, b=nothing)).why
    study, trials, curves = finished
    shorter = replace(study.arms[0], lr=Axis("lr", study.arms[0].lr.values[:5]))
    assert "different learning rates" in of((replace(study, arms=(shorter, *study.arms[1:])), trials, curves)).why


def test_seeds_that_miss_a_cell_are_left_out_and_that_is_said(hand_made: Any) -> None:
    whole, gap = (
        [[0.5, 1.0, 1.5], [0.6, 1.1, 1.4], [0.4, 1.0, 1.2]],
        [[0.9, None, 1.5], [0.7, 1.0, 1.3], [0.8, 1.3, 1.6]],
    )
    found = of(hand_made(a=whole, b=gap))
    assert found.shares == of(hand_made(a=whole[1:], b=gap[1:])).shares
    assert found.sentence.endswith("(exact ANOVA over 12 of 18 cells; over 2 of 3 seeds, the complete ones).")


def test_one_seed_says_nothing_of_seeds(hand_made: Any) -> None:
    found = of(hand_made(a=TILTED[:1], b=FLAT[:1]))
    assert found.sentence.endswith(
        "and nothing known of the seed, of which there is one (exact ANOVA over 6 of 6 cells)."
    )


def test_a_full_study_has_shares_that_sum_to_one(summary: Summary) -> None:
    for found in summary.importances:
        assert found.shares is not None
        assert sum(found.shares) == pytest.approx(1)


EVALUATOR = "optuna.importance.FanovaImportanceEvaluator"
RATES = [1.0, 0.4, 0.2, 0.4, 1.0, 1.5]


def holed(rows: list[list[float]], *, first: int = 0) -> list[list[float | None]]:
    """Seed s lacks point first + s, so that no seed is complete."""
    return [[None if at == first + seed else loss for at, loss in enumerate(row)] for seed, row in enumerate(rows)]


def test_where_no_seed_is_complete_optunas_evaluator_is_used_and_named(hand_made: Any) -> None:
    found = of(hand_made(a=holed([RATES] * 3), b=holed([RATES] * 3, first=3)))
    assert (found.evaluator, found.cells, found.planned, found.seeds) == (EVALUATOR, 30, 36, 3)
    assert found.shares.lr > 0.9
    assert found.sentence.endswith(f"({EVALUATOR} over 30 of 36 cells; no seed ran every cell).")


def test_the_estimate_comes_near_what_the_full_grid_says(hand_made: Any) -> None:
    tilted = [[loss + 0.1 * at for at, loss in enumerate(row)] for row in [RATES] * 3]
    raised = [[loss + 0.4 for loss in row] for row in [RATES] * 3]
    exact = of(hand_made(a=tilted, b=raised))
    estimated = of(hand_made(a=holed(tilted), b=holed(raised, first=3)))
    assert (exact.evaluator, estimated.evaluator) == ("exact ANOVA", EVALUATOR)
    assert estimated.shares == pytest.approx(exact.shares, abs=0.1)


def test_a_diverged_cell_counts_as_its_loss_at_initialisation(hand_made: Any) -> None:
    flat, diverging = [[0.5] * 6] * 3, [[0.5] * 5 + [float("nan")]] * 3
    assert of(hand_made(a=holed(flat), b=holed(flat))).why == "every loss is the same"
    found = of(hand_made(a=holed(diverging), b=holed(diverging)))
    assert found.cells == 30
    assert found.shares.lr > 0.9


def test_an_unfinished_page_names_its_evaluator_and_comes_back_byte_for_byte(hand_made: Any, tmp_path: Path) -> None:
    summary = summarise(*hand_made(a=holed([RATES] * 3), b=holed([RATES] * 3, first=3)), resamples=10)
    made = page(summary, command="adamom report by-hand", provenance={})
    assert f"({EVALUATOR} over 30 of 36 cells; no seed ran every cell)" in made
    file = write_json(summary, tmp_path / "report.json", command="adamom report by-hand", provenance={})
    assert page(read_json(file).summary, command="adamom report by-hand", provenance={}) == made
    (said,) = json.loads(file.read_text())["importance"]
    assert (said["evaluator"], said["cells"], said["planned"]) == (EVALUATOR, 30, 36)
    assert sum(said["shares"].values()) == pytest.approx(1)
