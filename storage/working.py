"""Parts of a worker's transactions: what `Store.claim`, `record`, `finish` and their like are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from . import mirror, rows
from .curves import pack
from .records import Curve, Outcome, Result, Trial
from .session import Session
from .statements import (
    CLAIM,
    CLAIM_IN_FAMILIES,
    COMPLETE,
    COUNT_LOSS,
    DROP_BROKEN_CURVES,
    END_LEASES,
    EXPIRED,
    FORGET_POINTS,
    LEASE,
    LOCK_CELLS,
    OWE_OPTUNA,
    REQUEUE,
    SET_ATTEMPT,
    SETTLE,
    START,
    STATES_OF,
    UNTOLD,
    WAIT_AGAIN,
    WAITING,
    WAITING_IN_FAMILIES,
)
from .tables import curves, intermediate_values, results, trial_attributes, trials, values

__all__ = [
    "LEASE_SECONDS",
    "LOSSES",
    "OPTUNA",
    "Ended",
    "Measured",
    "Moments",
    "append_curves",
    "complete",
    "describe_results",
    "held",
    "joined",
    "recover",
    "requeue",
    "restore",
    "settle",
    "show_points",
    "sweep",
    "take",
    "yield_to_optuna",
]

LEASE_SECONDS = 60.0  # how long a worker may be silent before its cells go back to the queue
SUSPECT_LOSSES = 2  # a cell that cost so many workers waits for the others to be tried, and is then tried alone
LOSSES = 5  # a cell that cost so many workers has failed
OPTUNA = "optuna"  # the worker we write down for a trial that a process of stock Optuna has started

Measured = tuple[Trial, Curve]
Ended = tuple[Trial, Result]
Moments = tuple[str | None, str | None]  # when a trial started and ended, in UTC: "2026-01-31 23:59:59.000000"


def held(session: Session, claimed: Collection[Trial]) -> Callable[[], tuple[dict[int, int], tuple[Trial, ...]]]:
    """Asks, without waiting, which of these trials we hold: {trial id: study id}, their rows locked; and which we lost.

    A trial that this attempt has finished is neither.
    """
    locked = session.send(LOCK_CELLS, ids=[trial.id for trial in claimed])

    def answer() -> tuple[dict[int, int], tuple[Trial, ...]]:
        now = {(trial_id, attempt): (study_id, outcome) for trial_id, study_id, attempt, outcome in locked()}
        ours: dict[int, int] = {}
        lost: dict[int, Trial] = {}
        for trial in claimed:
            study_id, outcome = now.get((trial.id, trial.attempt), (0, "lost"))
            if outcome == "running":
                ours[trial.id] = study_id
            elif outcome in ("waiting", "lost"):
                lost[trial.id] = trial
        return ours, tuple(lost.values())

    return answer


def joined(measured: Iterable[Measured]) -> list[Measured]:
    """One curve per trial, none empty."""
    parts: dict[int, tuple[Trial, list[Curve]]] = {}
    for trial, curve in measured:
        if len(curve):
            parts.setdefault(trial.id, (trial, []))[1].append(curve)
    return [(trial, mine[0] if len(mine) == 1 else Curve.join(mine)) for trial, mine in parts.values()]


def append_curves(session: Session, measured: Sequence[Measured]) -> None:
    if measured:
        names = ("trial_id", "attempt", "first_step", "entries")
        pieces = [(trial.id, trial.attempt, int(curve.steps[0]), pack(curve)) for trial, curve in measured]
        session.insert(curves, rows.columns(names, pieces), replaces=names[:3])


def show_points(session: Session, measured: Sequence[Measured], shown: Mapping[int, Collection[int]]) -> None:
    """The validation losses at the steps that Optuna's dashboard shows."""
    points = [
        (trial.id, step, *mirror.stored_value(loss))
        for trial, curve in measured
        for step, loss in zip(curve.steps.tolist(), curve.validation_loss.tolist(), strict=True)
        if step in shown[trial.id]
    ]
    if points:
        names = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
        session.insert(intermediate_values, rows.columns(names, points), replaces=names[:2])


def settle(session: Session, ended: Sequence[Ended], *, told: bool = True) -> None:
    """How these trials ended, in our tables; curves of broken attempts go.

    told: False when somebody else will tell Optuna, and has until the lease ends to do so.
    """
    session.insert(results, rows.result_columns(ended))
    if again := [trial.id for trial, _ in ended if trial.attempt > 1]:
        session.tell(DROP_BROKEN_CURVES, ids=again)
    for outcome, ids in _by_outcome(ended):
        session.tell(SETTLE if told else OWE_OPTUNA, ids=ids, outcome=outcome.value)


def describe_results(session: Session, ended: Sequence[Ended]) -> None:
    """How these trials ended, as user attributes of Optuna's trials."""
    said = [(trial.id, *pair) for trial, result in ended for pair in mirror.result_attributes(result).items()]
    session.insert(trial_attributes, rows.columns(("trial_id", "key", "value_json"), said))


def complete(session: Session, ended: Sequence[Ended]) -> None:
    """How these trials ended, as state and value of Optuna's trials; after `settle`, for nobody ends what is held."""
    for outcome, ids in _by_outcome(ended):
        session.tell(COMPLETE, ids=ids, state=mirror.STATES[outcome])
    told = [(trial.id, 0, *value) for trial, result in ended if (value := mirror.trial_value(result))]
    if told:
        names = ("trial_id", "objective", "value", "value_type")
        session.insert(values, rows.columns(names, told), replaces=names[:2])


def restore(
    session: Session, study_id: int, brought: Sequence[tuple[Trial, Curve, Moments]], shown: Collection[int]
) -> None:
    for attempt in {trial.attempt for trial, _, _ in brought}:
        ids = [trial.id for trial, _, _ in brought if trial.attempt == attempt]
        session.tell(SET_ATTEMPT, ids=ids, attempt=attempt)
    measured = [(trial, curve) for trial, curve, _ in brought if len(curve)]
    append_curves(session, measured)
    show_points(session, measured, {trial.id: shown for trial, _ in measured})
    ended = [(trial, trial.result) for trial, _, _ in brought if trial.result]
    settle(session, ended)
    describe_results(session, ended)
    complete(session, ended)
    names = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
    dated = [(trial.id, trial.number, mirror.STATES[trial.outcome], *moments) for trial, _, moments in brought]
    session.insert(trials, {**rows.columns(names, dated), "study_id": study_id}, replaces=("trial_id",))


def _by_outcome(ended: Sequence[Ended]) -> Iterator[tuple[Outcome, list[int]]]:
    def outcome(one: Ended) -> Outcome:
        return one[1].outcome

    for became, group in groupby(sorted(ended, key=outcome), key=outcome):
        yield became, [trial.id for trial, _ in group]


def take(
    session: Session, study_id: int, k: int, families: Collection[str] | None, *, suspect: bool, **lease: Any
) -> list[tuple[Any, ...]]:
    """Up to k cells that nobody has, now under this lease: the columns of `rows.claimed`, and whether Optuna agreed."""
    fewest, most = (SUSPECT_LOSSES, LOSSES) if suspect else (0, SUSPECT_LOSSES - 1)
    given: dict[str, Any] = {"study": study_id, "k": k, "fewest": fewest, "most": most}
    if families is not None:
        given["families"] = list(families)
    if session.backend == "postgresql":
        return session.ask(CLAIM if families is None else CLAIM_IN_FAMILIES, **given, **lease)
    chosen = session.ask(WAITING if families is None else WAITING_IN_FAMILIES, **given)
    ids = [row[0] for row in chosen]
    started = {trial_id for (trial_id,) in session.ask(START, ids=ids)}
    session.tell(LEASE, ids=ids, **lease)
    return [(*row, row[0] in started) for row in chosen]


def sweep(session: Session, study_id: int) -> int:
    """Recover every cell of the study whose lease ran out. Returns how many went back to the queue."""
    return recover(session, session.ask(EXPIRED, study=study_id))


def recover(session: Session, leased: Sequence[tuple[int, str]]) -> int:
    """Their holder is gone: running cells go back to the queue, and of finished ones Optuna hears from us."""
    running = [trial_id for trial_id, outcome in leased if outcome == Outcome.RUNNING]
    finished = [trial_id for trial_id, outcome in leased if outcome != Outcome.RUNNING]
    if finished:
        untold = [rows.trial(*row) for row in session.ask(UNTOLD, ids=finished)]
        complete(session, [(trial, trial.result) for trial in untold if trial.result])
        session.tell(END_LEASES, ids=finished)
    if running:
        _lose(session, running)
    return len(running)


def _lose(session: Session, ids: list[int]) -> None:
    """Count that a worker was lost with these cells: back to the queue, or FAILED when it was one too many."""
    again, ended = [], []
    for *cell, losses, worker in session.ask(COUNT_LOSS, ids=ids):
        if losses < LOSSES:
            again.append(cell[0])
        else:
            error = (
                f"{losses} workers died with this trial or fell silent, the last of them {worker}: a crash of the "
                "process, or out of memory? Try: adamom retry STUDY --lost"
            )
            ended.append((rows.claimed(*cell), Result(Outcome.FAILED, error=error)))
    requeue(session, again, Outcome.LOST)
    if ended:
        settle(session, ended)
        describe_results(session, ended)
        complete(session, ended)


def requeue(session: Session, ids: list[int], outcome: Outcome) -> None:
    """Back to the queue, here and in Optuna's tables; points of the broken attempt leave Optuna's plots."""
    if ids:
        session.tell(REQUEUE, ids=ids, outcome=outcome.value)
        session.tell(WAIT_AGAIN, ids=ids)
        session.tell(FORGET_POINTS, ids=ids)


def yield_to_optuna(session: Session, ids: list[int]) -> None:
    """These cells wait in our table, but a process of stock Optuna has started them, and perhaps finished them.

    A started one gets a lease, in case that process dies. One that was finished without our objective has no outcome
    we could vouch for: it failed, and `retry` runs it.
    """
    states = dict(session.ask(STATES_OF, ids=ids))
    session.tell(LEASE, ids=ids, worker=OPTUNA, seconds=LEASE_SECONDS)
    if finished := [trial_id for trial_id in ids if states.get(trial_id) != "RUNNING"]:
        error = "Finished by another program than adamom. Try: adamom retry STUDY --failed"
        session.tell(SETTLE, ids=finished, outcome=Outcome.FAILED.value)
        session.insert(results, {"trial_id": finished, "steps": 0, "error": error, "provenance": "{}"})
