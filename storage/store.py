"""Store: the only door to the database.

A cell's life, in the store's own verbs:

    plan      waiting                      cells that are missing are added, in the order they will be claimed
    claim     waiting, lost -> running     each cell to exactly one worker, with a lease and a fencing token (attempt)
    record    running                      learning curves, a handful at a time; renews the lease
    renew     running                      the lease alone, for a heartbeat
    finish    running -> an outcome        the result, here and in Optuna's tables, in one transaction
    fail      running -> waiting, failed   an attempt that raised: back to the queue, until it was tried often enough
    release   running -> waiting           given back at once
    sweep     running -> lost              leases that ran out; also claimable, and counted as lost, before any sweep
    bury      running -> lost              what a worker held that somebody saw die
    retry     failed, oom, ... -> waiting  when somebody asks for it

The contract:
- A verb is one transaction: all of it is there afterwards, or nothing.
- A cell has one owner. Only the holder of its newest attempt can record or finish; everybody else is told so and
  changes nothing. An expired lease still belongs to its holder until somebody else has claimed the cell.
- Asking twice is harmless. A finish whose answer got lost on the way may be repeated: the result is there once.
- Time is the database's. No worker's clock decides anything.
- Optuna's tables agree with ours after every verb.
- What goes wrong is raised as one of `errors`; StoreUnavailable is worth waiting for (`patiently`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from . import bulk, connection, mirror
from .connection import address, translated
from .curves import pack, shown_steps, unpack
from .definition import FILE_KEY, attributes, extended, rebuilt
from .errors import StoreError, StoreMissing, StoreRefused, StudyChanged, StudyMissing
from .records import Budget, Counts, Curve, Outcome, Planned, Point, Result, Study, Trial
from .tables import (
    cells,
    curves,
    directions,
    intermediate_values,
    now_epoch,
    now_utc,
    params,
    results,
    studies,
    study_attributes,
    trial_attributes,
    trials,
    values,
)

__all__ = ["LEASE_SECONDS", "RETRIES", "Store"]

LEASE_SECONDS = 60.0  # how long a worker may be silent before its cells go back to the queue
RETRIES = 2  # a cell that raised is tried this often again
IDLE_SECONDS = 2.0  # a worker this slow gives its connection back, so that 200 of them fit into 100 connections
RETRIABLE = (Outcome.FAILED, Outcome.OOM, Outcome.PRUNED, Outcome.LOST)

Measured = tuple[Trial, Curve]


class Store:
    """A store of studies, open. Use it in a `with`, or close it.

    One Store serves one process; threads may share it, a forked child opens its own.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(reads=True)
        self._budgets: dict[int, Budget] = {}
        self._asked_at = time.monotonic()

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True) -> Self:
        """The store at this address: `url`, else the environment's ADAMOM_STORE, else adamom.db in this folder.

        create: make or upgrade what is missing. Without it nothing is ever created or changed.

        Raises BadUrl, StoreMissing, StoreRefused, StoreForeign, StoreUnavailable.
        """
        parsed = connection.parse(url)
        if parsed.get_backend_name() == "sqlite":
            _refuse_unusable_file(parsed, create)
        engine = connection.connect(parsed)
        try:
            with translated(parsed):
                connection.check_server(engine)
                if create:
                    connection.prepare(engine)
                connection.check_schema(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """The address, without a password."""
        return address(self._engine.url)

    def describe(self) -> str:
        """One line for a log: what the database is, and where."""
        if self._engine.dialect.name == "sqlite":
            return f"SQLite, {connection.database_file(self._engine.url).absolute()}"
        with self._reading() as c:
            version = c.scalar(sa.text("SHOW server_version"))
        return f"PostgreSQL {str(version).split()[0]}, {self.url}"

    # --- plan ---------------------------------------------------------------------------------------------------------

    def plan(self, study: Study, points: Iterable[Point]) -> Planned:
        """Add the cells that are missing, to be claimed in this order; the rest is left as it is.

        A study that is there already is extended by new arms, rates and seeds. Many planners may do so at once.
        Raises StudyChanged when the name stands for something else, ValueError for a point that is not in the study.
        """
        wanted = _checked(study, points)
        with self._writing() as c:
            study_id, whole = self._lock_study(c, study)
            present = set(c.scalars(sa.select(cells.c.key).where(cells.c.study_id == study_id)))
            new = [point for key, point in wanted.items() if key not in present]
            self._describe_study(c, study_id, whole)
            space = self._widen_space(c, study_id, whole)
            if new:
                self._add_cells(c, study_id, whole, new, space)
        return Planned(added=len(new), present=len(wanted) - len(new))

    def missing(self, study: Study, points: Iterable[Point]) -> Planned:
        """What `plan` would do, without doing it. Raises as `plan` does."""
        wanted = _checked(study, points)
        with self._reading() as c:
            study_id = c.scalar(sa.select(studies.c.study_id).where(studies.c.study_name == study.name))
            if study_id is not None:
                extended(self._stored_study(c, study_id, study.name), study)
            present = set(c.scalars(sa.select(cells.c.key).where(cells.c.study_id == study_id)))
        added = sum(key not in present for key in wanted)
        return Planned(added=added, present=len(wanted) - added)

    def _lock_study(self, c: Connection, study: Study) -> tuple[int, Study]:
        """The study's row, made if need be and locked until the transaction ends, and the study as it will be."""
        named = sa.select(studies.c.study_id).where(studies.c.study_name == study.name).with_for_update()
        study_id = c.scalar(named)
        if study_id is None and self._make_study(c, study.name):
            return c.execute(named).scalar_one(), study
        study_id = c.execute(named).scalar_one()
        return study_id, extended(self._stored_study(c, study_id, study.name), study)

    def _make_study(self, c: Connection, name: str) -> bool:
        """Whether we made it: another planner may have been faster."""
        made = c.scalar(
            sa.text(
                "INSERT INTO studies (study_name) VALUES (:name) ON CONFLICT (study_name) DO NOTHING RETURNING study_id"
            ),
            {"name": name},
        )
        if made is not None:
            c.execute(sa.insert(directions).values(study_id=made, objective=0, direction="MINIMIZE"))
        return made is not None

    def _stored_study(self, c: Connection, study_id: int, name: str) -> Study:
        rows = c.execute(
            sa.select(study_attributes.c.key, study_attributes.c.value_json).where(
                study_attributes.c.study_id == study_id
            )
        )
        said = {key: json.loads(value) for key, value in rows}
        if FILE_KEY not in said:
            raise StudyChanged(
                f"{self.url} has a study {name!r} of Optuna that adamom did not plan. Try: another name for yours."
            )
        return rebuilt(name, said)

    def _describe_study(self, c: Connection, study_id: int, study: Study) -> None:
        said = attributes(study)
        ours = sa.and_(study_attributes.c.study_id == study_id, study_attributes.c.key.in_(list(said)))
        c.execute(sa.delete(study_attributes).where(ours))
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in said.items()]
        c.execute(sa.insert(study_attributes), rows)

    def _widen_space(self, c: Connection, study_id: int, study: Study) -> dict[str, mirror.Distribution]:
        """The study's search space; where it grew, in the earlier trials too, for Optuna compares them."""
        first = sa.select(sa.func.min(cells.c.trial_id)).where(cells.c.study_id == study_id).scalar_subquery()
        stored = sa.select(params.c.param_name, params.c.distribution_json).where(params.c.trial_id == first)
        before = {name: json.loads(text) for name, text in c.execute(stored)}
        space = mirror.distributions(study, before)
        ours = sa.select(cells.c.trial_id).where(cells.c.study_id == study_id)
        for name in before:
            if before[name] != space[name]:
                same = sa.and_(params.c.param_name == name, params.c.trial_id.in_(ours))
                c.execute(sa.update(params).where(same).values(distribution_json=json.dumps(space[name])))
        return space

    def _add_cells(
        self, c: Connection, study_id: int, study: Study, points: Sequence[Point], space: dict[str, mirror.Distribution]
    ) -> None:
        n = len(points)
        ids = _new_trial_ids(c, n)
        first = c.scalar(sa.select(sa.func.count(trials.c.trial_id)).where(trials.c.study_id == study_id)) or 0
        numbers = range(first, first + n)
        families = {arm.name: arm.family for arm in study.arms}
        planned = {"trial_id": ids, "study_id": [study_id] * n, "number": numbers}
        bulk.insert(c, trials, {**planned, "state": ["WAITING"] * n})
        for name, numbers_of_optuna in mirror.trial_params(points, space).items():
            repeated = {"param_name": [name] * n, "distribution_json": [json.dumps(space[name])] * n}
            bulk.insert(c, params, {"trial_id": ids, "param_value": numbers_of_optuna, **repeated})
        bulk.insert(
            c,
            cells,
            {
                **planned,
                "key": [point.key for point in points],
                "arm": [point.arm for point in points],
                "family": [families[point.arm] for point in points],
                "lr": [point.lr for point in points],
                "momentum": [point.momentum for point in points],
                "seed": [point.seed for point in points],
                "outcome": [Outcome.WAITING.value] * n,
            },
        )

    # --- work ---------------------------------------------------------------------------------------------------------

    def claim(
        self,
        name: str,
        k: int,
        *,
        worker: str,
        lease_seconds: float = LEASE_SECONDS,
        families: Collection[str] | None = None,
    ) -> tuple[Trial, ...]:
        """Up to k cells nobody has, in planned order, now held by this worker for `lease_seconds`.

        families: only arms of these families. Empty when there is nothing to claim at the moment.
        Raises StudyMissing.
        """
        with self._writing() as c:
            study_id = self._study_id(c, name)
            self._sweep(c, study_id)
            waiting = _waiting(families)
            while found := c.execute(waiting, {"study": study_id, "k": k, "families": list(families or ())}).all():
                ids = [row.trial_id for row in found]
                started = set(c.scalars(_START, {"ids": ids}))
                lease = {"worker": worker, "seconds": lease_seconds}
                if started:
                    c.execute(_LEASE, {"ids": list(started), **lease})
                if others := [trial_id for trial_id in ids if trial_id not in started]:
                    c.execute(_LEASE, {"ids": others, "worker": OPTUNA, "seconds": LEASE_SECONDS})
                if started:
                    return tuple(_claimed(row) for row in found if row.trial_id in started)
        return ()

    def record(self, measured: Sequence[Measured] | Mapping[Trial, Curve]) -> tuple[Trial, ...]:
        """Append what was measured and renew the leases of these trials.

        Returns the trials whose lease was lost: nothing was written for them, and they are somebody else's.
        """
        pairs = list(measured.items() if isinstance(measured, Mapping) else measured)
        if not pairs:
            return ()
        with self._writing() as c:
            held, lost = self._held(c, [trial for trial, _ in pairs])
            self._extend_leases(c, held)
            joined = _joined([(trial, curve) for trial, curve in pairs if trial.id in held and len(curve)])
            if joined:
                self._append_curves(c, joined, held)
        return lost

    def renew(self, trials_held: Collection[Trial]) -> tuple[Trial, ...]:
        """Renew the leases of these trials. Returns those whose lease was lost."""
        if not trials_held:
            return ()
        with self._writing() as c:
            held, lost = self._held(c, trials_held)
            self._extend_leases(c, held)
        return lost

    def finish(self, ended: Sequence[tuple[Trial, Result]]) -> tuple[Trial, ...]:
        """Store how these trials ended, here and in Optuna's tables.

        Returns the trials whose lease was lost: nothing was written for them. A trial that this very attempt has
        finished already is left as it is and not lost, so a finish may be repeated when its answer did not arrive.
        """
        if not ended:
            return ()
        with self._writing() as c:
            held, lost = self._held(c, [trial for trial, _ in ended])
            ours = [(trial, result) for trial, result in ended if trial.id in held]
            if ours:
                self._write_results(c, ours)
        return lost

    def fail(self, trial: Trial, error: str, *, retries: int = RETRIES) -> Outcome:
        """An attempt raised: back to the queue, or FAILED with its traceback after `retries` further attempts.

        Returns what the cell is now: WAITING, FAILED, or LOST when the lease was lost and nothing was written.
        """
        with self._writing() as c:
            held, lost = self._held(c, [trial])
            if lost:
                return Outcome.LOST
            if not held:  # finished by this very attempt: the answer of an earlier ask got lost
                return Outcome.FAILED
            bump = sa.update(cells).where(cells.c.trial_id == trial.id).values(failures=cells.c.failures + 1)
            if c.execute(bump.returning(cells.c.failures)).scalar_one() > retries:
                self._write_results(c, [(trial, Result(Outcome.FAILED, error=error))])
                return Outcome.FAILED
            _requeue(c, [trial.id], Outcome.WAITING)
        return Outcome.WAITING

    def release(self, trials_held: Collection[Trial]) -> None:
        """Give these trials back at once. Those that are not ours any more are left alone."""
        if trials_held:
            with self._writing() as c:
                held, _ = self._held(c, trials_held)
                _requeue(c, list(held), Outcome.WAITING)

    def sweep(self, name: str) -> int:
        """Put cells whose lease ran out back into the queue, for Optuna's eyes too. Returns how many."""
        with self._writing() as c:
            return self._sweep(c, self._study_id(c, name))

    def bury(self, name: str, worker: str) -> int:
        """Put back at once what a worker held that is known to be dead. Returns how many cells.

        For whoever saw it die: everybody else waits for its leases to run out.
        """
        with self._writing() as c:
            held = cells.c.study_id == self._study_id(c, name), _LEASED, cells.c.worker == worker
            ids = list(c.scalars(sa.select(cells.c.trial_id).where(*held).order_by(cells.c.trial_id).with_for_update()))
            _requeue(c, ids, Outcome.LOST)
        return len(ids)

    def retry(self, name: str, outcomes: Collection[Outcome]) -> int:
        """Queue the cells with these outcomes again, as if they had never run. Returns how many.

        Allowed: failed, oom, pruned, lost. A diverged run is a result and is not retried. Raises ValueError.
        """
        if refused := [outcome.value for outcome in outcomes if outcome not in RETRIABLE]:
            allowed = ", ".join(outcome.value for outcome in RETRIABLE)
            raise ValueError(f"Cells that are {', '.join(refused)} are not retried. Allowed: {allowed}.")
        with self._writing() as c:
            study_id = self._study_id(c, name)
            self._sweep(c, study_id)
            chosen = cells.c.study_id == study_id, cells.c.outcome.in_([outcome.value for outcome in outcomes])
            locked = sa.select(cells.c.trial_id).where(*chosen).order_by(cells.c.trial_id).with_for_update()
            ids = list(c.scalars(locked))
            _forget(c, ids)
            _requeue(c, ids, Outcome.WAITING)
        return len(ids)

    def _held(self, c: Connection, ours: Collection[Trial]) -> tuple[dict[int, int], tuple[Trial, ...]]:
        """Of these trials, those we hold ({trial id: study id}, their rows locked) and those we lost.

        A trial that this attempt has finished is neither.
        """
        rows = {row.trial_id: row for row in c.execute(_LOCKED, {"ids": sorted({trial.id for trial in ours})})}

        def state(trial: Trial) -> Outcome | None:
            row = rows.get(trial.id)
            return Outcome(row.outcome) if row is not None and row.attempt == trial.attempt else None

        states = {trial: state(trial) for trial in ours}
        held = {trial.id: rows[trial.id].study_id for trial, now in states.items() if now is Outcome.RUNNING}
        lost = [trial for trial, now in states.items() if now is None or now in (Outcome.WAITING, Outcome.LOST)]
        return held, tuple(lost)

    def _extend_leases(self, c: Connection, held: Collection[int]) -> None:
        if held:
            c.execute(_EXTEND, {"ids": list(held)})

    def _append_curves(self, c: Connection, measured: Sequence[Measured], held: Mapping[int, int]) -> None:
        bulk.insert(
            c,
            curves,
            {
                "trial_id": [trial.id for trial, _ in measured],
                "attempt": [trial.attempt for trial, _ in measured],
                "first_step": [int(curve.steps[0]) for _, curve in measured],
                "entries": [pack(curve) for _, curve in measured],
            },
            replaces=("trial_id", "attempt", "first_step"),
        )
        shown = {study_id: shown_steps(self._budget(c, study_id)) for study_id in set(held.values())}
        points = [
            (trial.id, int(step), *mirror.stored_value(float(loss)))
            for trial, curve in measured
            for step, loss in zip(curve.steps, curve.validation_loss, strict=True)
            if int(step) in shown[held[trial.id]]
        ]
        if points:
            names = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
            bulk.insert(c, intermediate_values, bulk.columns(names, points), replaces=("trial_id", "step"))

    def _budget(self, c: Connection, study_id: int) -> Budget:
        if study_id not in self._budgets:
            of_study = study_attributes.c.study_id == study_id, study_attributes.c.key == "budget"
            said = c.execute(sa.select(study_attributes.c.value_json).where(*of_study)).scalar_one()
            self._budgets[study_id] = Budget(**json.loads(said))
        return self._budgets[study_id]

    def _write_results(self, c: Connection, ended: Sequence[tuple[Trial, Result]]) -> None:
        for outcome, group in groupby(sorted(ended, key=_outcome), key=_outcome):
            ids = [trial.id for trial, _ in group]
            c.execute(_SETTLE, {"ids": ids, "outcome": outcome.value})
            c.execute(_COMPLETE, {"ids": ids, "state": mirror.STATES[outcome]})
        bulk.insert(c, results, _result_columns(ended))
        told = [(trial.id, 0, *value) for trial, result in ended if (value := mirror.trial_value(result))]
        if told:
            bulk.insert(c, values, bulk.columns(("trial_id", "objective", "value", "value_type"), told))
        said = [
            (trial.id, key, text) for trial, result in ended for key, text in mirror.result_attributes(result).items()
        ]
        bulk.insert(c, trial_attributes, bulk.columns(("trial_id", "key", "value_json"), said))
        if again := [trial.id for trial, _ in ended if trial.attempt > 1]:
            newest = sa.select(cells.c.attempt).where(cells.c.trial_id == curves.c.trial_id).scalar_subquery()
            c.execute(sa.delete(curves).where(curves.c.trial_id.in_(again), curves.c.attempt < newest))

    def _sweep(self, c: Connection, study_id: int) -> int:
        ids = list(c.scalars(_EXPIRED, {"study": study_id}))
        _requeue(c, ids, Outcome.LOST)
        return len(ids)

    # --- read ---------------------------------------------------------------------------------------------------------

    def studies(self) -> dict[str, Counts]:
        """Every study of this store by name, with its counts."""
        return self._counts()

    def counts(self, name: str) -> Counts:
        """How many cells of this study stand where; an expired lease counts as lost. Raises StudyMissing."""
        counted = self._counts(studies.c.study_name == name)
        if name not in counted:
            raise self._no_such_study(name)
        return counted[name]

    def _counts(self, *which: sa.ColumnElement[bool]) -> dict[str, Counts]:
        planned = sa.and_(study_attributes.c.study_id == studies.c.study_id, study_attributes.c.key == FILE_KEY)
        rows = (
            sa.select(studies.c.study_name, _NOW.label("now"), sa.func.count(cells.c.trial_id))
            .join(study_attributes, planned)
            .outerjoin(cells, cells.c.study_id == studies.c.study_id)
            .where(*which)
            .group_by(studies.c.study_id, studies.c.study_name, "now")
            .order_by(studies.c.study_id)
        )
        found: dict[str, dict[str, int]] = {}
        with self._reading() as c:
            for name, outcome, n in c.execute(rows):
                found.setdefault(name, {}).update({outcome: n} if outcome else {})
        return {name: Counts(**counts) for name, counts in found.items()}

    def study(self, name: str) -> Study:
        """The study of that name, with every arm, rate and seed planned so far. Raises StudyMissing."""
        with self._reading() as c:
            return self._stored_study(c, self._study_id(c, name), name)

    def trials(self, name: str) -> tuple[Trial, ...]:
        """Every cell of the study in planned order, finished or not. Raises StudyMissing."""
        with self._reading() as c:
            rows = c.execute(_TRIALS, {"study": self._study_id(c, name)})
            return tuple(_trial(*row) for row in rows)

    def curves(self, name: str) -> dict[int, Curve]:
        """Learning curves by trial id: of the attempt that counted, or that is running. Raises StudyMissing."""
        chunks: dict[int, list[Curve]] = {}
        with self._reading() as c:
            for trial_id, entries in c.execute(_CURVES, {"study": self._study_id(c, name)}):
                chunks.setdefault(trial_id, []).append(unpack(entries))
        return {trial_id: Curve.join(parts) if len(parts) > 1 else parts[0] for trial_id, parts in chunks.items()}

    def holders(self, name: str) -> tuple[str, ...]:
        """The workers that hold cells of this study, by name. Raises StudyMissing."""
        with self._reading() as c:
            held = cells.c.study_id == self._study_id(c, name), _LEASED
            return tuple(c.scalars(sa.select(cells.c.worker).where(*held).distinct().order_by(cells.c.worker)))

    def unfinished(self, name: str) -> int:
        """How many cells are waiting, running or lost: while there are any, a worker has a reason to stay."""
        counts = self.counts(name)
        return counts.total - counts.finished

    def next_expiry(self, name: str) -> float | None:
        """Seconds until the next lease runs out, 0 when one has, None when nothing is running. Raises StudyMissing."""
        with self._reading() as c:
            running = cells.c.study_id == self._study_id(c, name), cells.c.outcome == Outcome.RUNNING.value
            left = c.scalar(sa.select(sa.func.min(cells.c.lease_until) - now_epoch()).where(*running))
        return None if left is None else max(0.0, float(left))

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._asking(self._engine) as c:
            yield c

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._asking(self._reader) as c:
            yield c

    @contextmanager
    def _asking(self, engine: sa.Engine) -> Iterator[Connection]:
        """One transaction. Who asks rarely keeps no connection in between."""
        rarely = time.monotonic() - self._asked_at > IDLE_SECONDS
        with translated(engine.url), engine.begin() as c:
            yield c
        self._asked_at = time.monotonic()
        if rarely:
            self._engine.dispose()

    def _study_id(self, c: Connection, name: str) -> int:
        study_id = c.scalar(_STUDY_ID, {"name": name})
        if study_id is None:
            raise self._no_such_study(name)
        return int(study_id)

    def _no_such_study(self, name: str) -> StudyMissing:
        known = ", ".join(self._counts()) or "none"
        return StudyMissing(f"{self.url} has no study {name!r}. Known: {known}. Try: adamom plan {name}")


# --- statements -------------------------------------------------------------------------------------------------------

OPTUNA = "optuna"  # the worker we write down for a trial that a process of stock Optuna has started

_IDS: sa.BindParameter[int] = sa.bindparam("ids", expanding=True)
_CLAIMABLE = sa.literal_column("adamom_cells.outcome IN ('waiting', 'lost')", sa.Boolean)  # as the partial index has it
_LEASED = sa.literal_column("adamom_cells.outcome = 'running'", sa.Boolean)
_NOW = sa.case(
    (sa.and_(cells.c.outcome == "running", cells.c.lease_until < now_epoch()), "lost"),
    else_=cells.c.outcome,
)

_STUDY_ID = (
    sa.select(studies.c.study_id)
    .join(study_attributes, study_attributes.c.study_id == studies.c.study_id)
    .where(studies.c.study_name == sa.bindparam("name"), study_attributes.c.key == FILE_KEY)
)
_LOCKED = (
    sa.select(cells.c.trial_id, cells.c.study_id, cells.c.attempt, cells.c.outcome)
    .where(cells.c.trial_id.in_(_IDS))
    .order_by(cells.c.trial_id)
    .with_for_update()
)
_START = (
    sa.update(trials)
    .where(trials.c.trial_id.in_(_IDS), trials.c.state == sa.literal_column("'WAITING'"))
    .values(state=sa.literal_column("'RUNNING'"), datetime_start=now_utc())
    .returning(trials.c.trial_id)
)
_LEASE = (
    sa.update(cells)
    .where(cells.c.trial_id.in_(_IDS))
    .values(
        outcome=Outcome.RUNNING.value,
        attempt=cells.c.attempt + 1,
        worker=sa.bindparam("worker"),
        lease_seconds=sa.bindparam("seconds", type_=sa.Double),
        lease_until=now_epoch() + sa.bindparam("seconds", type_=sa.Double),
    )
)
_EXTEND = sa.update(cells).where(cells.c.trial_id.in_(_IDS)).values(lease_until=now_epoch() + cells.c.lease_seconds)
_SETTLE = (
    sa.update(cells).where(cells.c.trial_id.in_(_IDS)).values(outcome=sa.bindparam("outcome"), lease_until=sa.null())
)
_COMPLETE = (
    sa.update(trials)
    .where(trials.c.trial_id.in_(_IDS))
    .values(state=sa.bindparam("state", type_=trials.c.state.type), datetime_complete=now_utc())
)
_EXPIRED = (
    sa.select(cells.c.trial_id)
    .where(cells.c.study_id == sa.bindparam("study"), _LEASED, cells.c.lease_until < now_epoch())
    .with_for_update(skip_locked=True)
)
_RESULT = [column for column in results.c if column is not results.c.trial_id]
_TRIALS = (
    sa.select(
        cells.c.trial_id,
        cells.c.number,
        cells.c.arm,
        cells.c.lr,
        cells.c.momentum,
        cells.c.seed,
        _NOW,
        cells.c.attempt,
        *_RESULT,
    )
    .outerjoin(results, results.c.trial_id == cells.c.trial_id)
    .where(cells.c.study_id == sa.bindparam("study"))
    .order_by(cells.c.trial_id)
)
_CURVES = (
    sa.select(curves.c.trial_id, curves.c.entries)
    .join(cells, sa.and_(cells.c.trial_id == curves.c.trial_id, cells.c.attempt == curves.c.attempt))
    .where(cells.c.study_id == sa.bindparam("study"), cells.c.outcome.not_in(("waiting", "lost")))
    .order_by(curves.c.trial_id, curves.c.first_step)
)


def _waiting(families: Collection[str] | None) -> Any:
    """The first k claimable cells, locked; rows that another claim has locked are passed over."""
    chosen = (
        sa.select(
            cells.c.trial_id, cells.c.number, cells.c.arm, cells.c.lr, cells.c.momentum, cells.c.seed, cells.c.attempt
        )
        .where(cells.c.study_id == sa.bindparam("study"), _CLAIMABLE)
        .order_by(cells.c.trial_id)
        .limit(sa.bindparam("k", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )
    return chosen if families is None else chosen.where(cells.c.family.in_(sa.bindparam("families", expanding=True)))


def _requeue(c: Connection, ids: list[int], outcome: Outcome) -> None:
    """Back to the queue, here and in Optuna's tables; points of the broken attempt leave Optuna's plots."""
    if not ids:
        return
    nobody = {"worker": None, "lease_until": None, "lease_seconds": None}
    c.execute(sa.update(cells).where(cells.c.trial_id.in_(ids)).values(outcome=outcome.value, **nobody))
    never = {"datetime_start": None, "datetime_complete": None}
    c.execute(sa.update(trials).where(trials.c.trial_id.in_(ids)).values(state=mirror.STATES[outcome], **never))
    c.execute(sa.delete(intermediate_values).where(intermediate_values.c.trial_id.in_(ids)))


def _forget(c: Connection, ids: list[int]) -> None:
    """Results, curves and what Optuna was told about them."""
    for table in (results, curves, values, trial_attributes):
        c.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))
    c.execute(sa.update(cells).where(cells.c.trial_id.in_(ids)).values(failures=0))


def _new_trial_ids(c: Connection, n: int) -> list[int]:
    """n unused trial ids, ascending."""
    if c.dialect.name == "postgresql":
        sequence = sa.func.nextval(sa.func.pg_get_serial_sequence("trials", "trial_id"))
        return list(c.scalars(sa.select(sequence).select_from(sa.func.generate_series(1, n))))
    first = c.scalar(sa.select(sa.func.coalesce(sa.func.max(trials.c.trial_id), 0))) or 0
    return list(range(first + 1, first + n + 1))


# --- values <-> rows --------------------------------------------------------------------------------------------------


def _checked(study: Study, points: Iterable[Point]) -> dict[str, Point]:
    """The points by key, once each. Raises ValueError for one that is not in the study's grid."""
    rates = {arm.name: set(arm.lr.values) for arm in study.arms}
    seeds = set(study.seeds)
    wanted = {point.key: point for point in points}
    for key, point in wanted.items():
        if point.lr not in rates.get(point.arm, ()) or point.seed not in seeds:
            raise ValueError(f"The point {key!r} is not in the grid of study {study.name!r}.")
    return wanted


def _joined(measured: Sequence[Measured]) -> list[Measured]:
    """One curve per trial."""
    parts: dict[Trial, list[Curve]] = {}
    for trial, curve in measured:
        parts.setdefault(trial, []).append(curve)
    return [(trial, Curve.join(curves)) for trial, curves in parts.items()]


def _outcome(ended: tuple[Trial, Result]) -> Outcome:
    return ended[1].outcome


def _result_columns(ended: Sequence[tuple[Trial, Result]]) -> dict[str, list[Any]]:
    def column(name: str) -> list[Any]:
        found = [getattr(result, name) for _, result in ended]
        return [None if isinstance(value, float) and math.isnan(value) else value for value in found]

    names = [c.name for c in _RESULT if c is not results.c.provenance]
    provenance = [json.dumps(dict(result.provenance)) for _, result in ended]
    return {"trial_id": [trial.id for trial, _ in ended], **{n: column(n) for n in names}, "provenance": provenance}


def _claimed(row: Row[Any]) -> Trial:
    point = Point(row.arm, row.lr, row.momentum, row.seed)
    return Trial(row.trial_id, row.number, point, Outcome.RUNNING, row.attempt + 1)


def _trial(
    trial_id: int,
    number: int,
    arm: str,
    lr: float,
    momentum: float | None,
    seed: int,
    outcome: str,
    attempt: int,
    *measured: Any,
) -> Trial:
    became = Outcome(outcome)
    result = _result(became, *measured) if became.finished else None
    return Trial(trial_id, number, Point(arm, lr, momentum, seed), became, attempt, result)


def _result(
    outcome: Outcome,
    steps: int,
    initial: float | None,
    final: float | None,
    best: float | None,
    accuracy: float | None,
    momentum: float | None,
    diverged_at: int | None,
    seconds: float | None,
    error: str | None,
    provenance: str,
) -> Result:
    return Result(
        outcome,
        steps,
        _real(initial),
        _real(final),
        _real(best),
        _real(accuracy),
        _real(momentum),
        diverged_at,
        _real(seconds),
        error,
        json.loads(provenance),
    )


def _real(stored: float | None) -> float:
    return math.nan if stored is None else stored


def _refuse_unusable_file(url: sa.URL, create: bool) -> None:
    """Say clearly what SQLite would say badly."""
    file = connection.database_file(url)
    if file.is_dir():
        raise StoreRefused(f"{file} is a folder. Try: --store sqlite:///{file / 'adamom.db'}")
    if not create and not file.exists():
        raise StoreMissing(f"There is no store at {file.absolute()} yet. Try: adamom plan STUDY --store {address(url)}")
    if not file.parent.is_dir():
        raise StoreRefused(f"There is no folder {file.parent.absolute()}. Try: mkdir -p {file.parent.absolute()}")
