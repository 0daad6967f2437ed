"""The claims of the literature, answered yes, no or undecided."""

from __future__ import annotations

from typing import Any

from dashboards import summarise
from dashboards.claims import QUESTIONS

BASE = [[1.9, 0.9 + 0.01 * s, 0.8 + 0.01 * s, 3.0, 3.0] for s in range(6)]
WIDER = [[1.9, 0.9 + 0.01 * s, 0.8 + 0.01 * s, 0.85 + 0.01 * s, 3.0] for s in range(6)]


def answers(hand_made: Any, base: list[list[float]], rule: list[list[float]]) -> dict[str, str]:
    summary = summarise(*hand_made(base=base, rule=rule))
    return {claim.difference.statistic: claim.answer for claim in summary.claims}


def test_a_wider_and_more_stable_arm_is_answered_yes(hand_made: Any) -> None:
    found = answers(hand_made, BASE, WIDER)
    assert (found["basin"], found["largest_stable_lr"]) == ("yes", "yes")


def test_a_narrower_and_less_stable_arm_is_answered_no(hand_made: Any) -> None:
    found = answers(hand_made, WIDER, BASE)
    assert (found["basin"], found["largest_stable_lr"]) == ("no", "no")


def test_an_equal_best_loss_is_undecided(hand_made: Any) -> None:
    assert answers(hand_made, BASE, WIDER)["best_loss"] == "undecided"


def test_too_few_seeds_are_undecided_and_say_so(hand_made: Any) -> None:
    summary = summarise(*hand_made(base=BASE[:3], rule=WIDER[:3]))
    basin = next(claim for claim in summary.claims if claim.difference.statistic == "basin")
    assert (basin.answer, basin.why) == ("undecided", "3 seeds, 6 could decide")
    assert basin.text.startswith("+0.")


def test_a_learning_rate_is_compared_as_a_factor(hand_made: Any) -> None:
    summary = summarise(*hand_made(base=BASE, rule=WIDER))
    stable = next(claim for claim in summary.claims if claim.difference.statistic == "largest_stable_lr")
    assert stable.text == "×10 [×10, ×10]"


def test_every_question_is_asked_of_every_rule_and_of_no_constant(finished: Any) -> None:
    summary = summarise(*finished, resamples=20)
    assert len(summary.claims) == 3 * len(QUESTIONS)
    assert {claim.difference.arm for claim in summary.claims} == {row.arm for row in summary.rows if row.adaptive}


def test_what_was_not_run_is_undecided_and_says_so(finished: Any) -> None:
    study, trials, curves = finished
    summary = summarise(study, [t for t in trials if t.point.arm != "SGD, adaptive"], curves, resamples=20)
    mine = [claim for claim in summary.claims if claim.difference.arm == "SGD, adaptive"]
    assert {(claim.answer, claim.why) for claim in mine} == {("undecided", "not run")}


def test_without_curves_steps_cannot_be_counted(hand_made: Any) -> None:
    summary = summarise(*hand_made(base=BASE, rule=WIDER))
    steps = next(claim for claim in summary.claims if claim.difference.statistic == "steps_to_target")
    assert (steps.answer, steps.why) == ("undecided", "cannot be computed")
