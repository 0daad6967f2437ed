"""Several studies, and what holds across them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashboards import Summary, compare, read_json, summarise, write_comparison, write_json
from dashboards.across import across_workloads, profile_info
from dashboards.claims import QUESTIONS
from dashboards.side_by_side import comparison_page
from tests import synthetic


@pytest.fixture(scope="module")
def three() -> list[Summary]:
    """The same arms on three workloads, with 3, 4 and 5 seeds."""
    found = []
    for at, name in enumerate(("digits", "cnn", "characters")):
        study = synthetic.study(9, range(3 + at), name=name)
        found.append(summarise(study, *synthetic.trials(study, seed=at), resamples=50))
    return found


def named(name: str, studied: Any) -> Summary:
    study, trials, curves = studied
    return summarise(replace(study, name=name), trials, curves, resamples=50)


def test_one_sentence_per_study_rule_and_claim(three: list[Summary]) -> None:
    sentences = compare(three).sentences
    assert len(sentences) == 3 * 3 * len(QUESTIONS)
    assert sentences[0].startswith("digits: SGD, adaptive: basin ")
    assert all(re.search(r"against .* for .*; difference .*, p = .*, \d seeds", each) for each in sentences)


def test_arms_of_one_study_can_be_compared_alone(three: list[Summary]) -> None:
    alone = compare(three[:1])
    assert alone.sentences[0].startswith("SGD, adaptive: basin ")
    assert alone.across is None


def test_one_baseline_serves_every_arm_of_every_study(three: list[Summary]) -> None:
    chosen = compare(three, baseline="SGD, momentum 0.9")
    assert {base for each in chosen.summaries for base in each.baselines.values()} == {"SGD, momentum 0.9"}
    assert all("for SGD, momentum 0.9;" in each for each in chosen.sentences)


def test_mistakes_are_refused_in_words(three: list[Summary]) -> None:
    with pytest.raises(ValueError, match="at least one study"):
        compare([])
    with pytest.raises(ValueError, match="compared once: got digits, digits"):
        compare([three[0], three[0]])
    with pytest.raises(KeyError, match="no arm 'nobody'"):
        compare(three, baseline="nobody")


def test_the_dictionary_is_strict_json(three: list[Summary]) -> None:
    whole = json.loads(json.dumps(compare(three).as_dict(), allow_nan=False))
    assert [study["study"]["name"] for study in whole["studies"]] == ["digits", "cnn", "characters"]
    assert len(whole["across"]["arms"]) == 9


def test_reports_from_files_compare_like_reports_from_a_store(three: list[Summary], tmp_path: Path) -> None:
    paths = [write_json(each, tmp_path / f"{at}.json", command="") for at, each in enumerate(three)]
    kept = compare([read_json(path).summary for path in paths])
    assert kept.as_dict() == compare(three).as_dict()


class TestAcross:
    BOWL = ((1.9, 1.0, 0.5, 1.0, 1.9), (1.9, 1.1, 0.6, 1.1, 1.9))

    def shifted(self, by: int) -> list[list[float]]:
        return [[1.9] * by + list(row[: len(row) - by]) for row in self.BOWL]

    def test_an_arm_whose_optimum_stays_is_insensitive_and_one_whose_optimum_moves_is_not(self, hand_made: Any) -> None:
        here = named("here", hand_made(a=self.shifted(0), b=self.shifted(0)))
        there = named("there", hand_made(a=self.shifted(0), b=self.shifted(2)))
        across = across_workloads([here, there])
        assert across is not None
        a, b = across.arms
        assert a.sensitivity.value == pytest.approx(0)
        assert b.sensitivity.value > 0.3
        assert a.tuned.value == pytest.approx(b.tuned.value)

    def test_equal_arms_improve_on_each_other_half_of_the_time(self, hand_made: Any) -> None:
        studied = hand_made(a=self.shifted(0), rule=self.shifted(0))
        across = across_workloads([named("one", studied), named("two", studied)])
        assert across is not None
        assert across.arms[1].improvement.value == 0.5
        assert not across.arms[0].improvement.known

    def test_the_area_is_the_interquartile_mean_over_workloads_and_seeds(self, hand_made: Any) -> None:
        studied = hand_made(a=[[1.0, 0.0]] * 2, b=[[2.5, 2.5]] * 2)
        across = across_workloads([named("one", studied), named("two", studied)])
        assert across is not None
        assert [(arm.area.value, arm.area.n) for arm in across.arms] == [(0.75, 4), (0.0, 4)]
        assert [(arm.gap.value, arm.gap.n) for arm in across.arms] == [(0.25, 4), (1.0, 4)]

    def test_intervals_hold_their_values_and_one_seed_has_none(self, three: list[Summary], hand_made: Any) -> None:
        across = compare(three).across
        assert across is not None
        for arm in across.arms:
            for each in (arm.area, arm.gap, arm.tuned, arm.sensitivity):
                assert each.low <= each.value + 1e-12
                assert each.value - 1e-12 <= each.high
                assert each.n == 3 + 4 + 5
        alone = hand_made(a=self.shifted(0)[:1], b=self.shifted(1)[:1])
        single = across_workloads([named("one", alone), named("two", alone)])
        assert single is not None
        for arm in single.arms:
            assert all(math.isnan(each.low) for each in (arm.area, arm.gap, arm.tuned, arm.sensitivity))

    def test_the_seed_of_the_bootstrap_matters_and_suffices(self, finished: Any) -> None:
        study, trials, curves = finished
        found = []
        for seed in (1, 1, 2):
            both = [
                summarise(replace(study, name=name), trials, curves, resamples=20, seed=seed) for name in ("one", "two")
            ]
            across = across_workloads(both)
            assert across is not None
            found.append(across.as_dict())
        assert found[0] == found[1]
        assert found[0]["arms"] != found[2]["arms"]

    def test_dimensions_count_what_must_be_tuned(self, hand_made: Any) -> None:
        here = named("here", hand_made(a=self.shifted(0), b=self.shifted(0)))
        there = named("there", hand_made(a=self.shifted(2), b=self.shifted(2)))
        across = across_workloads([here, there])
        assert across is not None
        assert across.dimensions == {"SGD": 1}

    def test_studies_without_a_common_arm_have_nothing_across(self, hand_made: Any) -> None:
        here, there = named("here", hand_made(a=self.shifted(0))), named("there", hand_made(b=self.shifted(0)))
        assert across_workloads([here, there]) is None

    def test_without_curves_nobody_arrives(self, hand_made: Any) -> None:
        studied = hand_made(a=self.shifted(0), b=self.shifted(0))
        across = across_workloads([named("one", studied), named("two", studied)])
        assert across is not None
        assert [arm.time_score for arm in across.arms] == [0, 0]


class TestPage:
    def test_it_names_every_study_and_is_the_same_each_time(self, three: list[Summary]) -> None:
        text = comparison_page(compare(three), command="adamom compare digits cnn characters")
        assert text == comparison_page(compare(three), command="adamom compare digits cnn characters")
        for words in ("digits · cnn · characters", "Across workloads", "adamom compare digits", "SGD, adaptive"):
            assert words in text

    def test_one_arm_and_nothing_run_still_give_a_page(self, hand_made: Any) -> None:
        study, trials, curves = hand_made(a=[[1.0, 0.5, 1.0]])
        for found in (trials, []):
            text = comparison_page(compare([summarise(study, found, curves)]), command="c")
            assert "not run: it takes" in text

    def test_it_is_written_whole(self, three: list[Summary], tmp_path: Path) -> None:
        written = write_comparison(compare(three), tmp_path / "compare.html", command="c")
        assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]
        assert written.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_profiles_rank_arms_by_their_steps_to_the_target(three: list[Summary]) -> None:
    across = compare(three).across
    assert across is not None
    info = profile_info(across, three[0].study.arms)
    first = {arm: shares[0] for arm, shares in info.shares.items()}
    fastest = [min(across.times, key=lambda arm: across.times[arm][at]) for at in range(3)]
    assert all(first[arm] > 0 for arm in fastest)
    assert sum(first.values()) >= 1
    assert all((np.diff(shares) >= 0).all() for shares in info.shares.values())
