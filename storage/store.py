"""Store: the only door to the database.

A cell's life, in the store's own verbs:

    plan      waiting                      cells that are missing are added, in the order they will be claimed
    claim     waiting, lost -> running     each cell to exactly one worker, with a lease and a fencing token (attempt)
    record    running                      learning curves, a handful at a time; renews the lease
    renew     running                      the lease alone, for a heartbeat
    finish    running -> an outcome        the result, here and in Optuna's tables, in one transaction
    deliver   running -> an outcome        record, finish and renew in one transaction
    exchange  running -> an outcome        deliver and claim in one transaction: what a worker does between two packs
    fail      running -> waiting, failed   an attempt that raised: back to the queue, until it was tried often enough
    release   running -> waiting           given back at once
    sweep     running -> lost, failed      leases that ran out; every claim sweeps, and counts see them as lost before
    bury      running -> lost, failed      what a worker held that somebody saw die
    retry     failed, oom, ... -> waiting  when somebody asks for it
    restore   waiting, lost -> an outcome  a result that another store has, brought by an import
    adopt     running                      a trial that a process of stock Optuna has started, for our objective in it

The contract:
- A verb is one transaction: all of it is there afterwards, or nothing.
- A cell has one owner. Only the holder of its newest attempt can record or finish; everybody else is told so and
  changes nothing. An expired lease still belongs to its holder until it was swept up.
- A cell that costs one worker after another does not go on for ever, and takes no other cell with it: after
  SUSPECT_LOSSES it is tried alone, after LOSSES it has failed.
- Asking twice is harmless. A finish whose answer got lost on the way may be repeated: the result is there once.
- Time is the database's. No worker's clock decides anything.
- Optuna's tables agree with ours after every verb.
- What goes wrong is raised as one of `errors`. While the database is away a patient store waits and says so.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar

import sqlalchemy as sa

from . import connection, planning, rows, working
from .connection import address, patiently, translated
from .curves import shown_steps, unpack
from .errors import StoreError, StoreUnavailable, StudyMissing
from .records import Counts, Curve, Outcome, Planned, Point, Result, Study, Trial
from .session import Session, transaction
from .statements import (
    CELL_BY_NUMBER,
    COUNT_FAILURE,
    COUNTS,
    COUNTS_OF_STUDY,
    CURVES,
    ERRORS,
    EXPIRED,
    EXTEND_LEASES,
    FORGET_FAILURES,
    FORGET_RESULTS,
    HELD_BY,
    HOLDERS,
    LEASE,
    MOMENTS,
    NEXT_EXPIRY,
    OPEN_CELLS,
    OWED,
    RETRY,
    STUDY_ID,
    STUDY_NAMES,
    TRIALS,
    WITH_OUTCOMES,
)
from .working import LEASE_SECONDS, LOSSES, OPTUNA, Ended, Measured, Moments

__all__ = ["LEASE_SECONDS", "LOSSES", "RETRIES", "Moments", "Store"]

log = logging.getLogger(__name__)

RETRIES = 2  # a cell that raised is tried this often again
IDLE_SECONDS = 2.0  # a worker this slow gives its connection back, so that 200 of them fit into 100 connections
RETRIABLE = (Outcome.FAILED, Outcome.OOM, Outcome.PRUNED, Outcome.LOST)

P = ParamSpec("P")
T = TypeVar("T")


def _verb(ask: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """A method that is one transaction, asked again while the database is away, as long as the store is patient."""

    @functools.wraps(ask)
    def asked(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return patiently(
            lambda: ask(self, *args, **kwargs), patience_seconds=self._patience_seconds, on_wait=self._on_wait
        )

    return asked


class Store:
    """A store of studies, open. Use it in a `with`, or close it.

    One Store serves one process; threads may share it, a forked child opens its own.
    """

    def __init__(
        self,
        engine: sa.Engine,
        patience_seconds: float = 0.0,
        on_wait: Callable[[StoreUnavailable, float], None] | None = None,
    ) -> None:
        self._engine = engine
        self._backend = engine.dialect.name
        self._patience_seconds = patience_seconds
        self._on_wait = on_wait
        self._asked_at = time.monotonic()
        self._study_ids: dict[str, int] = {}  # as last seen by name; whoever finds nothing looks again
        self._shown_steps: dict[int, frozenset[int]] = {}  # by study id; a study's budget never changes

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        create: bool = True,
        patience_seconds: float = 0.0,
        on_wait: Callable[[StoreUnavailable, float], None] | None = None,
    ) -> Self:
        """The store at this address: `url`, else the environment's ADAMOM_STORE, else adamom.db in this folder.

        create: make or upgrade what is missing. Without it nothing is ever created or changed.
        patience_seconds: how long a verb, this one included, asks again while the database is away: a worker has
            minutes, a command none.
        on_wait: told the trouble and the seconds until the next try; the default logs a warning.

        Raises BadUrl, StoreMissing, StoreRefused, StoreForeign, StoreUnavailable.
        """
        parsed = connection.parse(url)
        connection.refuse_unusable_file(parsed, create)
        engine = connection.connect(parsed)
        store = cls(engine, patience_seconds, on_wait)
        try:
            store._prepare(create)
        except StoreError:
            engine.dispose()
            raise
        return store

    @_verb
    def _prepare(self, create: bool) -> None:
        with translated(self._engine):
            connection.check_server(self._engine)
            if create:
                connection.prepare(self._engine)
            connection.check_schema(self._engine)

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """The address, without a password."""
        return address(self._engine.url)

    @_verb
    def describe(self) -> str:
        """One line for a log: what the database is, and where."""
        if self._backend == "sqlite":
            return f"SQLite, {connection.database_file(self._engine.url).absolute()}"
        with translated(self._engine):
            return f"PostgreSQL {connection.server_version(self._engine)}, {self.url}"

    # --- plan ---------------------------------------------------------------------------------------------------------

    def plan(self, study: Study, points: Iterable[Point]) -> Planned:
        """Add the cells that are missing, to be claimed in this order; the rest is left as it is.

        A study that is there already is extended by new arms, rates and seeds. Many planners may do so at once.
        Raises StudyChanged when the name stands for something else, ValueError for a point that is not in the study.
        """
        return self._plan(study, planning.checked(study, points))

    @_verb
    def _plan(self, study: Study, wanted: Mapping[str, Point]) -> Planned:
        with self._writing() as session:
            study_id, whole = planning.lock_study(session, study)
            present = planning.planned_keys(session, study_id)
            new = [point for key, point in wanted.items() if key not in present]
            planning.describe(session, study_id, whole)
            space = planning.widen_space(session, study_id, whole)
            if new:
                planning.add_cells(session, study_id, whole, new, space)
        return Planned(added=len(new), present=len(wanted) - len(new))

    def missing(self, study: Study, points: Iterable[Point]) -> Planned:
        """What `plan` would do, without doing it. Raises as `plan` does."""
        return self._missing(study, planning.checked(study, points))

    @_verb
    def _missing(self, study: Study, wanted: Mapping[str, Point]) -> Planned:
        with self._reading() as session:
            present: set[str] = set()
            for (study_id,) in session.ask(STUDY_ID, name=study.name):
                planning.refuse_changes(session, study_id, study)
                present = planning.planned_keys(session, study_id)
        added = sum(key not in present for key in wanted)
        return Planned(added=added, present=len(wanted) - added)

    # --- work ---------------------------------------------------------------------------------------------------------

    @_verb
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

        families: only arms of these families. Empty when there is nothing to claim at the moment. A cell that has
        lost several workers comes alone, when no other waits.
        Raises StudyMissing.
        """
        with self._writing() as session:
            return self._claim(session, name, k, families, worker=worker, seconds=lease_seconds)

    @_verb
    def exchange(
        self,
        name: str,
        k: int,
        *,
        worker: str,
        measured: Sequence[Measured] = (),
        ended: Sequence[Ended] = (),
        lease_seconds: float = LEASE_SECONDS,
    ) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
        """`deliver` and `claim` in one transaction: what was claimed, and the trials whose lease was lost."""
        with self._writing() as session:
            delivered = self._deliver(session, measured, ended)
            lease: dict[str, Any] = {"worker": worker, "seconds": lease_seconds}
            study_id = self._study_ids.get(name) or self._study_id(session, name)
            taken = working.take(session, study_id, k, None, suspect=False, **lease)
            lost = delivered()  # before anything is swept up: an expired lease that nobody has swept is still ours
            return self._claim(session, name, k, None, taken, **lease), lost

    def _claim(
        self,
        session: Session,
        name: str,
        k: int,
        families: Collection[str] | None,
        taken: Sequence[tuple[Any, ...]] = (),
        **lease: Any,
    ) -> tuple[Trial, ...]:
        """taken: what a first `working.take` has found."""
        study_id = self._study_ids.get(name) or self._study_id(session, name)
        suspect = False
        while True:
            taken = taken or working.take(session, study_id, k, families, suspect=suspect, **lease)
            if back := [row[0] for *row, started in taken if not started]:
                working.yield_to_optuna(session, back)
            if ours := [row for *row, started in taken if started]:
                return tuple(rows.claimed(*row) for row in ours)
            if expired := session.ask(EXPIRED, study=study_id):
                working.recover(session, expired)
            elif not taken and suspect:
                break
            elif not taken:
                suspect, k = True, min(k, 1)
            taken = ()
        self._study_id(session, name)  # is it still there?
        return ()

    @_verb
    def adopt(self, name: str, number: int, *, worker: str, lease_seconds: float = LEASE_SECONDS) -> Trial | None:
        """The trial of this number, which a process of stock Optuna has just started, now held by this worker.

        None when it is none of our cells, or not to be had: Optuna's `ask` makes a trial of its own when none waits.
        """
        with self._writing() as session:
            study_id = self._study_id(session, name)
            for *cell, outcome, holder, state in session.ask(CELL_BY_NUMBER, study=study_id, number=number):
                if state == "RUNNING" and (outcome in ("waiting", "lost") or holder == OPTUNA):
                    session.tell(LEASE, ids=[cell[0]], worker=worker, seconds=lease_seconds)
                    return rows.claimed(*cell)
        return None

    def record(self, measured: Sequence[Measured] | Mapping[Trial, Curve]) -> tuple[Trial, ...]:
        """Append what was measured and renew the leases of these trials.

        Returns the trials whose lease was lost: nothing was written for them, and they are somebody else's.
        """
        return self.deliver(list(measured.items() if isinstance(measured, Mapping) else measured))

    def renew(self, held: Collection[Trial]) -> tuple[Trial, ...]:
        """Renew the leases of these trials. Returns those whose lease was lost."""
        return self.deliver(renewed=held)

    def finish(self, ended: Sequence[Ended], *, told: bool = True) -> tuple[Trial, ...]:
        """Store how these trials ended, here and in Optuna's tables.

        told: False when a process of stock Optuna runs the trial and will itself tell Optuna its value and state. If
            it dies before, whoever sweeps up its lease tells Optuna.

        Returns the trials whose lease was lost: nothing was written for them. A trial that this very attempt has
        finished already is left as it is and not lost, so a finish may be repeated when its answer did not arrive.
        """
        return self.deliver(ended=ended, told=told)

    @_verb
    def deliver(
        self,
        measured: Sequence[Measured] = (),
        ended: Sequence[Ended] = (),
        renewed: Collection[Trial] = (),
        *,
        told: bool = True,
    ) -> tuple[Trial, ...]:
        """`record` what was measured, `finish` what has ended and `renew` the other leases, all or nothing.

        Returns the trials whose lease was lost: nothing was written for them.
        """
        if not (measured or ended or renewed):
            return ()
        with self._writing() as session:
            return self._deliver(session, measured, ended, renewed, told=told)()

    def _deliver(
        self,
        session: Session,
        measured: Sequence[Measured],
        ended: Sequence[Ended],
        renewed: Collection[Trial] = (),
        *,
        told: bool = True,
    ) -> Callable[[], tuple[Trial, ...]]:
        """Ask who holds these trials; what comes back waits for the answer, writes, and returns the lost ones."""
        everyone = {trial.id: trial for trial in (*renewed, *(t for t, _ in measured), *(t for t, _ in ended))}
        answer = working.held(session, everyone.values())

        def write() -> tuple[Trial, ...]:
            held, lost = answer()
            finished = [(trial, result) for trial, result in ended if trial.id in held]
            if finished:
                working.settle(session, finished, told=told)
                working.describe_results(session, finished)
            if going_on := held.keys() - {trial.id for trial, _ in finished}:
                session.tell(EXTEND_LEASES, ids=list(going_on))
            if curves := working.joined([(trial, curve) for trial, curve in measured if trial.id in held]):
                working.append_curves(session, curves)
                shown = {trial.id: self._shown(session, held[trial.id]) for trial, _ in curves}
                working.show_points(session, curves, shown)
            if finished and told:  # last: what refers to a trial is checked faster before its row moves
                working.complete(session, finished)
            return lost

        return write

    @_verb
    def fail(self, trial: Trial, error: str, *, retries: int = RETRIES) -> Outcome:
        """An attempt raised: back to the queue, or FAILED with its traceback after `retries` further attempts.

        Returns what the cell is now: WAITING, FAILED, or LOST when the lease was lost and nothing was written.
        """
        with self._writing() as session:
            held, lost = working.held(session, [trial])()
            if lost:
                return Outcome.LOST
            if not held:  # finished by this very attempt: the answer of an earlier ask got lost
                return Outcome.FAILED
            ((failures,),) = session.ask(COUNT_FAILURE, ids=[trial.id], error=rows.keepable(error))
            if failures <= retries:
                working.requeue(session, [trial.id], Outcome.WAITING)
                return Outcome.WAITING
            failed = [(trial, Result(Outcome.FAILED, error=error))]
            working.settle(session, failed)
            working.describe_results(session, failed)
            working.complete(session, failed)
            return Outcome.FAILED

    @_verb
    def release(self, held: Collection[Trial]) -> None:
        """Give these trials back at once. Those that are not ours any more are left alone."""
        if held:
            with self._writing() as session:
                ours, _ = working.held(session, held)()
                working.requeue(session, list(ours), Outcome.WAITING)

    @_verb
    def sweep(self, name: str) -> int:
        """Put cells whose lease ran out back into the queue, for Optuna's eyes too. Returns how many."""
        with self._writing() as session:
            return working.sweep(session, self._study_id(session, name))

    @_verb
    def bury(self, name: str, worker: str) -> int:
        """Put back at once what a worker held that is known to be dead. Returns how many cells.

        For whoever saw it die: everybody else waits for its leases to run out.
        """
        with self._writing() as session:
            leased = session.ask(HELD_BY, study=self._study_id(session, name), worker=worker)
            return working.recover(session, leased)

    @_verb
    def retry(self, name: str, outcomes: Collection[Outcome]) -> int:
        """Queue the cells with these outcomes again, as if they had never run. Returns how many.

        Allowed: failed, oom, pruned, lost. A cell that failed because its workers died is both lost and failed. A
        diverged run is a result and is not retried. Raises ValueError.
        """
        if refused := [outcome.value for outcome in outcomes if outcome not in RETRIABLE]:
            allowed = ", ".join(outcome.value for outcome in RETRIABLE)
            raise ValueError(f"Cells that are {', '.join(refused)} are not retried. Allowed: {allowed}.")
        with self._writing() as session:
            study_id = self._study_id(session, name)
            working.sweep(session, study_id)
            words = [outcome.value for outcome in outcomes]
            losses = LOSSES if Outcome.LOST in outcomes else None  # nothing is more than null
            found = session.ask(WITH_OUTCOMES, study=study_id, outcomes=words, losses=losses)
            ids = [trial_id for (trial_id,) in found]
            if ids:
                for forget in (*FORGET_RESULTS, FORGET_FAILURES, RETRY):
                    session.tell(forget, ids=ids)
                working.requeue(session, ids, Outcome.WAITING)
        return len(ids)

    @_verb
    def restore(self, name: str, brought: Sequence[tuple[Trial, Curve, Moments]]) -> int:
        """Give cells that are not finished the results they have elsewhere. Returns how many took one.

        brought: finished trials of another store, known by their points; their ids and numbers mean nothing here.
        """
        with self._writing() as session:
            study_id = self._study_id(session, name)
            open_cells = {key: (trial_id, number) for trial_id, number, key in session.ask(OPEN_CELLS, study=study_id)}
            taken = [
                (
                    replace(there, id=open_cells[there.point.key][0], number=open_cells[there.point.key][1]),
                    curve,
                    moments,
                )
                for there, curve, moments in brought
                if there.point.key in open_cells
            ]
            if taken:
                working.restore(session, study_id, taken, self._shown(session, study_id))
        return len(taken)

    # --- read ---------------------------------------------------------------------------------------------------------

    @_verb
    def studies(self) -> dict[str, Counts]:
        """Every study of this store by name, with its counts; an expired lease counts as lost."""
        with self._reading() as session:
            return rows.counts(session.ask(COUNTS))

    @_verb
    def counts(self, name: str) -> Counts:
        """How many cells of this study stand where; an expired lease counts as lost. Raises StudyMissing."""
        with self._reading() as session:
            counted = rows.counts(session.ask(COUNTS_OF_STUDY, name=name))
            if name not in counted:
                self._no_such_study(session, name)
        return counted[name]

    @_verb
    def study(self, name: str) -> Study:
        """The study of that name, with every arm, rate and seed planned so far. Raises StudyMissing."""
        with self._reading() as session:
            return planning.stored_study(session, self._study_id(session, name), name)

    @_verb
    def trials(self, name: str) -> tuple[Trial, ...]:
        """Every cell of the study in planned order, finished or not. Raises StudyMissing."""
        with self._reading() as session:
            return tuple(rows.trial(*row) for row in session.ask(TRIALS, study=self._study_id(session, name)))

    @_verb
    def curves(self, name: str) -> dict[int, Curve]:
        """Learning curves by trial id: of the attempt that counted, or that is running. Raises StudyMissing."""
        with self._reading() as session:
            pieces = session.ask(CURVES, study=self._study_id(session, name))
        return {
            trial_id: unpack(*(entries for _, entries in mine))
            for trial_id, mine in groupby(pieces, key=lambda piece: int(piece[0]))
        }

    @_verb
    def errors(self, name: str) -> dict[int, str]:
        """Traceback of the last attempt that raised, by trial id; the cell may be fine by now. Raises StudyMissing."""
        with self._reading() as session:
            return dict(session.ask(ERRORS, study=self._study_id(session, name)))

    @_verb
    def holders(self, name: str) -> tuple[str, ...]:
        """The workers that hold cells of this study or have yet to tell Optuna of one, by name. Raises StudyMissing."""
        with self._reading() as session:
            return tuple(worker for (worker,) in session.ask(HOLDERS, study=self._study_id(session, name)))

    @_verb
    def moments(self, name: str) -> dict[int, Moments]:
        """When each trial started and ended, by trial id. Raises StudyMissing."""
        with self._reading() as session:
            found = session.ask(MOMENTS, study=self._study_id(session, name))
        return {trial_id: (started, completed) for trial_id, started, completed in found}

    @_verb
    def untold(self) -> int:
        """How many trials a process of stock Optuna has finished and died before it told Optuna; a sweep will."""
        with self._reading() as session:
            ((owed,),) = session.ask(OWED)
        return int(owed)

    def unfinished(self, name: str) -> int:
        """How many cells are waiting, running or lost: while there are any, a worker has a reason to stay."""
        counts = self.counts(name)
        return counts.total - counts.finished

    @_verb
    def next_expiry(self, name: str) -> float | None:
        """Seconds until the next lease runs out, 0 when one has, None when nothing is running. Raises StudyMissing."""
        with self._reading() as session:
            ((left,),) = session.ask(NEXT_EXPIRY, study=self._study_id(session, name))
        return None if left is None else max(0.0, left)

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._transaction(writes=True) as session:
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._transaction(writes=False) as session:
            yield session

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Session]:
        """One transaction on a connection of the pool.

        A connection that lay idle may be dead: it is closed, not trusted. Who asks rarely keeps none in between.
        """
        rarely = time.monotonic() - self._asked_at > IDLE_SECONDS
        if rarely:
            self._engine.dispose()
        with translated(self._engine):
            pooled = self._engine.raw_connection()
            try:
                with transaction(pooled.driver_connection, self._backend, writes=writes) as session:
                    yield session
            except self._engine.dialect.loaded_dbapi.Error:
                pooled.invalidate()  # it may be dead; the next verb gets another one
                raise
            finally:
                pooled.close()  # rolls back what was not committed
        if rarely:
            self._engine.dispose()
        self._asked_at = time.monotonic()

    def _study_id(self, session: Session, name: str) -> int:
        found = session.ask(STUDY_ID, name=name)
        if not found:
            self._study_ids.pop(name, None)
            self._no_such_study(session, name)
        study_id = int(found[0][0])
        if self._backend == "postgresql":  # SQLite may use the id of a deleted study again
            self._study_ids[name] = study_id
        return study_id

    def _no_such_study(self, session: Session, name: str) -> NoReturn:
        known = ", ".join(known for (known,) in session.ask(STUDY_NAMES)) or "none"
        raise StudyMissing(f"{self.url} has no study {name!r}. Known: {known}. Try: adamom plan {name}")

    def _shown(self, session: Session, study_id: int) -> frozenset[int]:
        """The steps that Optuna's dashboard gets of this study."""
        if study_id not in self._shown_steps:
            self._shown_steps[study_id] = shown_steps(planning.stored_budget(session, study_id))
        return self._shown_steps[study_id]
