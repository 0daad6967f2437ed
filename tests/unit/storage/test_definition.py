"""A study as user attributes, and two studies as one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from storage import Arm, Axis, Budget, Study, StudyChanged
from storage.definition import attributes, extended, rebuilt

SGD = Arm("sgd", "sgd", "sgd", 0.9, Axis("lr", (0.1, 1.0)), options={"weight_decay": 5e-4})
RULE = Arm("rule", "sgd", "sgd", None, Axis("lr", (0.1,)), rule={"rule": "adaptive", "smoothing": 0.999})
STUDY = Study("s", "why?", "digits", Budget(10, 5, 8), (SGD, RULE), (0, 1), "text")


def test_a_study_survives_json() -> None:
    assert rebuilt("s", json.loads(json.dumps(attributes(STUDY)))) == STUDY


def test_an_option_given_as_a_tuple_is_the_same_option_when_it_comes_back_as_a_list() -> None:
    given = replace(STUDY, arms=(replace(SGD, options={"betas": (0.9, 0.999)}),))
    stored = rebuilt("s", json.loads(json.dumps(attributes(given))))
    assert extended(stored, given) == stored


def test_a_smaller_plan_takes_nothing_away() -> None:
    smaller = replace(STUDY, arms=(replace(SGD, lr=Axis("lr", (1.0,))),), seeds=(1,))
    both = extended(STUDY, smaller)
    assert {arm.name: arm.lr.values for arm in both.arms} == {"sgd": (0.1, 1.0), "rule": (0.1,)}
    assert set(both.seeds) == {0, 1}


def test_a_larger_plan_adds_its_arms_rates_and_seeds() -> None:
    new = Arm("new", "adam", "adam", 0.5, Axis("lr", (0.01,)))
    larger = replace(STUDY, arms=(new, replace(SGD, lr=Axis("lr", (0.5, 5.0)))), seeds=(7,), question="how?")
    both = extended(STUDY, larger)
    assert both.arm_names == ("new", "sgd", "rule")
    assert both.arm("sgd").lr.values == (0.1, 0.5, 1.0, 5.0)
    assert both.seeds == (7, 0, 1)
    assert both.question == "how?", "the newest words count"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"workload": "iris"}, "whose workload is digits; now it is iris"),
        ({"budget": Budget(20, 5, 8)}, r"whose budget is \{'steps': 10.*now it is \{'steps': 20"),
        ({"arms": (replace(SGD, momentum=0.5),)}, "whose arm 'sgd': momentum is 0.9; now it is 0.5"),
        ({"arms": (replace(SGD, options={}),)}, "whose arm 'sgd': options is .*weight_decay"),
        ({"arms": (replace(RULE, rule={"rule": "fixed"}),)}, "whose arm 'rule': rule is"),
        ({"arms": (replace(SGD, optimizer="adam"),)}, "whose arm 'sgd': optimizer is sgd; now it is adam"),
    ],
)
def test_what_must_not_change_is_named_with_both_values(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyChanged, match=said):
        extended(STUDY, replace(STUDY, **changed))
