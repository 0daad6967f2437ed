"""Putting the cells of a study into the database: what `Store.plan` does inside its transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from . import mirror
from .definition import FILE_KEY, attributes, extended, rebuilt
from .errors import StudyChanged
from .records import Budget, Outcome, Point, Study
from .session import Session
from .statements import (
    COUNT_ROWS_ANEW,
    FORGET_STUDY_SAYS,
    KEYS,
    LARGEST_ID,
    LOCK_STUDY,
    MAKE_STUDY,
    NEXT_IDS,
    SPACE,
    STUDY_SAYS,
    TRIALS_SO_FAR,
    WIDEN_SPACE,
)
from .tables import cells, directions, params, study_attributes, trials

__all__ = [
    "add_cells",
    "checked",
    "describe",
    "lock_study",
    "planned_keys",
    "refuse_changes",
    "stored_budget",
    "stored_study",
    "widen_space",
]


MANY_CELLS = 500  # so many rows at once, and PostgreSQL sorts the whole queue for a claim until it has counted them


def checked(study: Study, points: Iterable[Point]) -> dict[str, Point]:
    """The points by key, once each. Raises ValueError for one that is not in the study's grid."""
    rates = {arm.name: set(arm.lr.values) for arm in study.arms}
    seeds = set(study.seeds)
    wanted = {point.key: point for point in points}
    for key, point in wanted.items():
        if point.lr not in rates.get(point.arm, ()) or point.seed not in seeds:
            raise ValueError(f"The point {key!r} is not in the grid of study {study.name!r}.")
    return wanted


def lock_study(session: Session, study: Study) -> tuple[int, Study]:
    """The study's id, its row locked until the transaction ends, and the study as it will be.

    Made if it is not there; another planner may be faster, then it is theirs that we extend.
    Raises StudyChanged when the name stands for something else.
    """
    made = session.ask(MAKE_STUDY, name=study.name)
    ((study_id,),) = session.ask(LOCK_STUDY, name=study.name)
    if made:
        session.insert(directions, {"study_id": [study_id], "objective": 0, "direction": "MINIMIZE"})
        return study_id, study
    return study_id, extended(stored_study(session, study_id, study.name), study)


def stored_study(session: Session, study_id: int, name: str) -> Study:
    """The study as it was planned so far. Raises StudyChanged when it is not one of ours."""
    said = {key: json.loads(value) for key, value in session.ask(STUDY_SAYS, study=study_id)}
    if FILE_KEY not in said:
        raise StudyChanged(f"The store has a study {name!r} of Optuna that adamom did not plan. Try: another name.")
    return rebuilt(name, said)


def refuse_changes(session: Session, study_id: int, study: Study) -> None:
    """Raises StudyChanged when the study's name stands for something else."""
    extended(stored_study(session, study_id, study.name), study)


def stored_budget(session: Session, study_id: int) -> Budget:
    """How long the trials of this study train."""
    said = dict(session.ask(STUDY_SAYS, study=study_id))
    return Budget(**json.loads(said["budget"]))


def planned_keys(session: Session, study_id: int) -> set[str]:
    """The keys of the study's cells."""
    return {key for (key,) in session.ask(KEYS, study=study_id)}


def describe(session: Session, study_id: int, study: Study) -> None:
    """Write the study into the user attributes of Optuna's study."""
    said = {key: json.dumps(value) for key, value in attributes(study).items()}
    session.tell(FORGET_STUDY_SAYS, study=study_id, keys=list(said))
    session.insert(study_attributes, {"study_id": study_id, "key": list(said), "value_json": list(said.values())})


def widen_space(session: Session, study_id: int, study: Study) -> dict[str, mirror.Distribution]:
    """The study's search space; where it grew, in the earlier trials too, for Optuna compares them."""
    before = {name: json.loads(text) for name, text in session.ask(SPACE, study=study_id)}
    space = mirror.distributions(study, before)
    for name in before:
        if before[name] != space[name]:
            session.tell(WIDEN_SPACE, study=study_id, name=name, distribution=json.dumps(space[name]))
    return space


def add_cells(
    session: Session, study_id: int, study: Study, points: Sequence[Point], space: dict[str, mirror.Distribution]
) -> None:
    """Add these points as waiting cells, here and in Optuna's tables, in this order."""
    ids = _unused_ids(session, len(points))
    ((so_far,),) = session.ask(TRIALS_SO_FAR, study=study_id)
    planned = {"trial_id": ids, "study_id": study_id, "number": list(range(so_far, so_far + len(points)))}
    session.insert(trials, {**planned, "state": mirror.STATES[Outcome.WAITING]})
    for name, numbers in mirror.trial_params(points, space).items():
        distribution = json.dumps(space[name])
        written = {"param_name": name, "param_value": numbers, "distribution_json": distribution}
        session.insert(params, {"trial_id": ids, **written})
    families = {arm.name: arm.family for arm in study.arms}
    session.insert(
        cells,
        {
            **planned,
            "key": [point.key for point in points],
            "arm": [point.arm for point in points],
            "family": [families[point.arm] for point in points],
            "lr": [point.lr for point in points],
            "momentum": [point.momentum for point in points],
            "seed": [point.seed for point in points],
            "outcome": Outcome.WAITING.value,
        },
    )
    if session.backend == "postgresql" and len(points) >= MANY_CELLS:
        for table in COUNT_ROWS_ANEW:
            session.tell(table)


def _unused_ids(session: Session, n: int) -> list[int]:
    """n trial ids, ascending as the numbers are."""
    if session.backend == "postgresql":
        return [trial_id for (trial_id,) in session.ask(NEXT_IDS, n=n)]
    ((largest,),) = session.ask(LARGEST_ID)
    return list(range(largest + 1, largest + n + 1))
