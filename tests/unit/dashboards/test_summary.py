"""The numbers of a report, by hand and against the slow way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dashboards import Summary, summarise
from storage.records import Curve, Outcome
from tests.synthetic import not_finished

NAN = float("nan")


def test_a_row_by_hand(hand_made: Any) -> None:
    row = summarise(*hand_made(a=[[1.5, 0.5, 1.0, NAN], [1.5, 0.5, 3.0, math.inf]])).rows[0]
    assert (row.best_loss.value, row.best_lr) == pytest.approx((0.5, 0.01))
    assert row.largest_stable_lr.value == pytest.approx(0.01)
    assert row.metrics["largest_half_stable_lr"].value == pytest.approx(0.1)
    assert row.sensitivity.value == pytest.approx((1.5 + 0.5 + 1.5 + 2.0) / 4 - 0.5)
    assert row.basin.value == pytest.approx(2 * 0.15)  # tolerance 0.15, one nat of loss a decade on either side
    assert (row.diverged.value, row.diverged.n, row.measured) == (3 / 8, 8, 8)
    assert row.trials == tuple(range(1, 9))


def test_numbers_agree_with_a_recomputation_from_the_trials(finished: Any, summary: Summary) -> None:
    study, trials, _ = finished
    for arm in study.arms:
        mine = [trial for trial in trials if trial.point.arm == arm.name]
        means = [np.mean([trial.result.capped_loss for trial in mine if trial.point.lr == lr]) for lr in arm.lr.values]
        row = summary.row(arm.name)
        assert row.best_loss.value == pytest.approx(min(means))
        assert row.sensitivity.value == pytest.approx(np.mean(means) - min(means))
        assert row.diverged.value == np.mean([trial.outcome is Outcome.DIVERGED for trial in mine])


def test_each_point_says_how_many_seeds_diverged_there(hand_made: Any) -> None:
    summary = summarise(*hand_made(a=[[0.5, NAN, None], [0.7, 1.0, None]]))
    first, second, third = summary.as_dict()["arms"][0]["points"]
    assert (first["lr"], first["effective_lr"], first["loss"]) == pytest.approx((1e-3, 1e-2, 0.6))
    assert (second["diverged"]["value"], second["diverged"]["n"], second["loss"]) == (0.5, 2, 1.5)
    assert [second["diverged"][end] for end in ("low", "high")] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert (third["loss"], third["diverged"]["value"], third["diverged"]["n"]) == (None, None, 0)


def test_every_interval_holds_its_value_or_says_it_has_none(summary: Summary) -> None:
    for row in summary.rows:
        for name, estimate in row.metrics.items():
            if math.isfinite(estimate.low):
                assert estimate.low <= estimate.high, name


def test_the_bootstrap_seed_matters_and_suffices(finished: Any) -> None:
    first, again, other = (summarise(*finished, seed=seed, resamples=50).as_dict() for seed in (1, 1, 2))
    assert first == again
    assert first["arms"] != other["arms"]


def test_the_order_of_seeds_changes_no_number_but_the_drawn_intervals(hand_made: Any) -> None:
    rows = [[1.0, 0.5, 3.0], [1.2, 0.4, 0.9], [1.1, 0.6, 3.0]]
    one, other = summarise(*hand_made(a=rows)).rows[0], summarise(*hand_made(a=rows[::-1])).rows[0]
    assert {n: e.value for n, e in one.metrics.items()} == pytest.approx(
        {n: e.value for n, e in other.metrics.items()}, nan_ok=True
    )


def test_renaming_an_arm_changes_no_number(hand_made: Any) -> None:
    rows = [[1.0, 0.5, 3.0], [1.2, 0.4, 0.9]]
    one, other = summarise(*hand_made(a=rows)).rows[0], summarise(*hand_made(zebra=rows)).rows[0]
    assert one.as_dict() | {"arm": ""} == other.as_dict() | {"arm": ""}


def test_the_baseline_is_the_best_constant_momentum_of_the_family(summary: Summary) -> None:
    assert summary.baselines["SGD, adaptive"] in {"SGD, momentum 0", "SGD, momentum 0.5", "SGD, momentum 0.9"}
    assert summary.baselines["Adam, adaptive"].startswith("Adam, beta1")


def test_a_chosen_baseline_serves_every_arm(finished: Any) -> None:
    chosen = summarise(*finished, resamples=20, baseline="SGD, momentum 0.9")
    assert set(chosen.baselines.values()) == {"SGD, momentum 0.9"}


def test_an_unknown_baseline_is_refused_with_the_names_there_are(finished: Any) -> None:
    with pytest.raises(KeyError, match=r"no arm 'sdg'\. Its arms: SGD, momentum 0, "):
        summarise(*finished, baseline="sdg")


def test_the_dictionary_is_strict_json(finished: Any, hand_made: Any) -> None:
    for studied in (finished, hand_made(a=[[NAN, math.inf, 5.0]]), (finished[0], [], {})):
        text = json.dumps(summarise(*studied, resamples=20).as_dict(), allow_nan=False)
        assert json.loads(text)["arms"][0]["metrics"].keys() >= {"best_loss", "basin", "diverged"}


def test_the_sentence_names_both_arms_the_interval_and_the_seeds(summary: Summary) -> None:
    assert summary.sentence.startswith("SGD, adaptive, smoothing 0.999: basin 2.18 [")
    assert "the widest constant momentum" in summary.sentence
    assert summary.sentence.endswith("p = 0.5, 3 seeds: too few to decide, 7 could.")


def test_a_flat_failure_does_not_win_the_sentence(hand_made: Any) -> None:
    learned, flat = [[1.9, 0.5, 0.6, 1.9, 1.9]] * 2, [[1.8] * 5] * 2
    summary = summarise(*hand_made(base=learned, flat=flat, rule=learned, rule_flat=flat))
    assert summary.row("rule_flat").basin.value > summary.row("rule").basin.value
    assert summary.sentence.startswith("rule: basin 1.15 [")
    assert "for base, the widest constant momentum that comes near the study's best loss; " in summary.sentence


def test_where_every_rule_failed_the_sentence_says_so(hand_made: Any) -> None:
    summary = summarise(*hand_made(base=[[1.9, 0.5, 1.9]] * 2, rule=[[1.8] * 3] * 2))
    assert summary.sentence.endswith("Its best loss, 1.8, misses the study's best by more than the tolerance.")


class TestWhatIsMissing:
    def test_nothing_run(self, finished: Any) -> None:
        summary = summarise(finished[0], [], {})
        assert summary.sentence == "Nothing has been measured yet: 0 of 729 cells have a result."
        assert not any(row.best_loss.known for row in summary.rows)

    def test_all_diverged(self, hand_made: Any) -> None:
        summary = summarise(*hand_made(a=[[NAN, 5.0]], rule=[[NAN, math.inf]]))
        assert summary.sentence.startswith("No arm learned: all 4 runs")
        assert [(row.basin.value, row.basin.bound) for row in summary.rows] == [(0, ""), (0, "")]
        assert [row.largest_stable_lr.known for row in summary.rows] == [False, False]

    def test_one_seed_has_no_intervals(self, hand_made: Any) -> None:
        summary = summarise(*hand_made(a=[[1.0, 0.5, 1.0]], rule=[[1.0, 0.4, 1.0]]))
        assert all(math.isnan(estimate.low) for row in summary.rows for estimate in row.metrics.values())
        assert "few seeds" in {flag.kind for flag in summary.flags}

    def test_one_arm_has_nothing_to_be_compared_with(self, hand_made: Any) -> None:
        summary = summarise(*hand_made(a=[[1.0, 0.5, 1.0], [1.0, 0.6, 1.0]]))
        assert summary.differences == ()
        assert summary.sentence.endswith("decades of learning rate, 2 seeds.")

    def test_one_learning_rate_touches_both_edges(self, hand_made: Any) -> None:
        row = summarise(*hand_made(a=[[1.0], [0.9]])).rows[0]
        assert (row.basin.value, row.basin.bound, row.largest_stable_lr.bound) == (0, ">=", ">=")

    def test_one_learning_rate_has_no_width_to_speak_of(self, hand_made: Any) -> None:
        summary = summarise(*hand_made(a=[[1.0], [0.9]], rule=[[0.8], [0.8]]))
        assert (
            summary.sentence
            == "One learning rate has no width; the lowest loss there is 0.800 [0.800, 0.800], of rule."
        )

    def test_steps_are_a_lower_bound_where_some_seed_never_arrived(self, hand_made: Any) -> None:
        study, trials, _ = hand_made(a=[[0.5], [0.5]])
        there, never = ([2.0, 0.5, 0.5], [2.0, 1.0, 1.0])
        curves = {
            trial.id: Curve([0, 50, 100], losses, losses, losses, losses)  # type: ignore[arg-type]
            for trial, losses in zip(trials, (there, never), strict=True)
        }
        steps = summarise(study, trials, curves).rows[0].metrics["steps_to_target"]
        assert (steps.value, steps.bound) == (75, ">=")

    def test_constant_loss_is_a_basin_as_wide_as_the_grid(self, hand_made: Any) -> None:
        row = summarise(*hand_made(a=[[1.0, 1.0, 1.0]] * 2)).rows[0]
        assert (row.basin.value, row.basin.bound, row.sensitivity.value) == (2, ">=", 0)

    def test_an_arm_that_was_not_run_leaves_the_others_alone(self, hand_made: Any) -> None:
        study, trials, curves = hand_made(a=[[1.0, 0.5]], rule=[[1.0, 0.4]])
        summary = summarise(study, [trial for trial in trials if trial.point.arm == "a"], curves)
        assert summary.row("a").best_loss.value == 0.5
        assert not summary.row("rule").best_loss.known


class TestFlags:
    @staticmethod
    def kinds(summary: Summary) -> set[tuple[str, str]]:
        return {(flag.kind, flag.arm) for flag in summary.flags}

    def test_an_optimum_at_the_edge(self, hand_made: Any) -> None:
        for row in ([0.1, 1.0, 3.0], [1.9, 1.0, 0.1]):
            assert ("optimum at edge", "a") in self.kinds(summarise(*hand_made(a=[row])))
        assert ("optimum at edge", "a") not in self.kinds(summarise(*hand_made(a=[[1.9, 0.1, 1.9]])))

    def test_a_basin_at_the_edge(self, hand_made: Any) -> None:
        assert ("basin at edge", "a") in self.kinds(summarise(*hand_made(a=[[0.55, 0.5, 3.0]])))

    def test_missing_cells_and_unequal_seeds(self, hand_made: Any) -> None:
        kinds = self.kinds(summarise(*hand_made(a=[[1.0, 0.5, 3.0], [1.0, None, 3.0]])))
        assert {("missing", "a"), ("unequal seeds", "a")} <= kinds

    def test_windows_and_the_meaning_of_a_learning_rate(self, summary: Summary) -> None:
        assert {("lr windows", ""), ("meaning of lr", "")} <= self.kinds(summary)

    def test_a_basin_around_a_poor_loss(self, hand_made: Any) -> None:
        kinds = self.kinds(summarise(*hand_made(a=[[1.9, 0.1, 1.9]], b=[[1.9, 1.0, 1.9]])))
        assert ("poor basin", "b") in kinds
        assert ("poor basin", "a") not in kinds

    @pytest.mark.parametrize("key", ["data", "device", "torch", "python", "adamom", "commit"])
    def test_trials_that_ran_on_different_things(self, hand_made: Any, key: str) -> None:
        study, trials, curves = hand_made(a=[[1.9, 0.5, 1.9]])
        ran_on = [{key: "one", "engine": "lanes 2"}, {key: "one", "engine": "loop"}, {key: "other", "engine": "loop"}]
        mixed = [
            replace(trial, result=replace(trial.result, provenance=where))
            for trial, where in zip(trials, ran_on, strict=True)
        ]
        found = [flag for flag in summarise(study, mixed, curves).flags if flag.kind.startswith("mixed")]
        assert [flag.kind for flag in found] == [f"mixed {key}"]
        assert found[0].text.endswith(": one (2 trials), other (1 trial).")

    @pytest.mark.parametrize("outcome", ["pruned", "failed", "oom"])
    def test_cells_that_count_as_not_run(self, hand_made: Any, outcome: str) -> None:
        study, trials, curves = hand_made(a=[[1.0, 0.5, 3.0]])
        spoilt = [not_finished(trials[0], Outcome(outcome)), *trials[1:]]
        assert (outcome, "") in self.kinds(summarise(study, spoilt, curves))

    @pytest.mark.parametrize("outcome", ["waiting", "running", "lost"])
    def test_a_study_that_still_runs(self, hand_made: Any, outcome: str) -> None:
        study, trials, curves = hand_made(a=[[1.0, 0.5, 3.0]])
        running = [not_finished(trials[0], Outcome(outcome)), *trials[1:]]
        assert ("unfinished", "") in self.kinds(summarise(study, running, curves))

    def test_a_finished_study_of_one_family_and_enough_seeds_raises_none(self, hand_made: Any) -> None:
        base = [[1.9, 0.9, 0.5 + 0.01 * seed, 0.9, 1.95] for seed in range(7)]
        assert self.kinds(summarise(*hand_made(base=base))) == set()
