"""A Study as the store keeps it: user attributes of an Optuna study, one per field, readable in its dashboard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from .errors import StudyChanged
from .records import Arm, Axis, Budget, Study

__all__ = ["attributes", "extended", "rebuilt"]

FILE_KEY = "study_file"  # the attribute that marks an Optuna study as ours


def attributes(study: Study) -> dict[str, Any]:
    """What Optuna's study says about ours: JSON values by user attribute."""
    said = {
        "question": study.question,
        "workload": study.workload,
        "budget": asdict(study.budget),
        "arms": [_arm(arm) for arm in study.arms],
        "seeds": list(study.seeds),
        FILE_KEY: study.text,
    }
    return {key: json.loads(json.dumps(value)) for key, value in said.items()}  # tuples become lists here, not later


def _arm(arm: Arm) -> dict[str, Any]:
    lr = {"values": list(arm.lr.values), "log": arm.lr.log}
    return {"name": arm.name, "family": arm.family, **arm.definition, "damped": arm.damped, "lr": lr}


def rebuilt(name: str, said: Mapping[str, Any]) -> Study:
    """The study of that name, from its attributes."""
    arms = tuple(
        Arm(**{**arm, "lr": Axis("lr", tuple(arm["lr"]["values"]), log=arm["lr"]["log"])}) for arm in said["arms"]
    )
    return Study(
        name=name,
        question=said["question"],
        workload=said["workload"],
        budget=Budget(**said["budget"]),
        arms=arms,
        seeds=tuple(said["seeds"]),
        text=said[FILE_KEY],
    )


def extended(stored: Study, asked: Study) -> Study:
    """Both studies as one: the words of the one asked for, and the arms, rates and seeds of either.

    Raises StudyChanged when what must not change is not the same in both.
    """
    asked = rebuilt(asked.name, attributes(asked))
    for what, before, after in _differences(stored, asked):
        raise StudyChanged(
            f"The store has a study {asked.name!r} whose {what} is {before}; now it is {after}. "
            "What was measured would not be comparable. Try: another name for the new study or arm."
        )
    arms = {arm.name: arm for arm in stored.arms}
    both = [_widened(arms.pop(arm.name), arm) if arm.name in arms else arm for arm in asked.arms]
    seeds = dict.fromkeys((*asked.seeds, *stored.seeds))
    return replace(asked, arms=(*both, *arms.values()), seeds=tuple(seeds))


def _differences(stored: Study, asked: Study) -> list[tuple[str, Any, Any]]:
    """(what, before, after) for everything that differs and must not."""
    pairs = [("", stored.fixed, asked.fixed)]
    pairs += [
        (f"arm {arm.name!r}: ", stored.arm(arm.name).definition, arm.definition)
        for arm in asked.arms
        if arm.name in stored.arm_names
    ]
    return [
        (where + what, before[what], after[what])
        for where, before, after in pairs
        for what in before
        if before[what] != after[what]
    ]


def _widened(stored: Arm, asked: Arm) -> Arm:
    values = tuple(sorted({*stored.lr.values, *asked.lr.values}))
    return replace(asked, lr=Axis(asked.lr.name, values, log=asked.lr.log))
