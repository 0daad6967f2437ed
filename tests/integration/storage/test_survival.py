"""What survives: real processes that die, a real server that goes away; nothing is lost, duplicated or half-written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from storage import (
    Counts,
    Curve,
    Outcome,
    Planned,
    Point,
    Result,
    Store,
    StoreForeign,
    StoreRefused,
    StoreUnavailable,
    Study,
)
from storage.connection import OPTUNA_SCHEMA, OUR_SCHEMAS, connect, parse, prepare, schema
from storage.curves import pack
from storage.session import commit
from storage.statements import EXPIRED, LOCK_CELLS
from storage.store import LOSSES
from storage.working import recover, take
from tests.postgres import Postgres

from .conftest import CONVERGED, curve, grid
from .test_optuna import loaded
from .test_store import claim, expire

WORKER = Path(__file__).parent / "worker.py"
WHOLE = Curve(list(range(4, 41, 4)), [float("nan")] * 10, [1 / s for s in range(4, 41, 4)], [0.5] * 10, [0.9] * 10)  # type: ignore[arg-type]

POISONED = """
import os, signal, sys
from storage import Outcome, Result, Store
with Store.open(sys.argv[1]) as store:
    while trials := store.claim("digits", 4, worker=f"worker {os.getpid()}"):
        if sys.argv[2] in [trial.point.key for trial in trials]:
            os.kill(os.getpid(), signal.SIGSEGV)
        store.finish([(trial, Result(Outcome.CONVERGED, initial_loss=2.0, final_loss=1.0)) for trial in trials])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, and ends those that the test left."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, *, k: int = 4, seconds: float = 0.2, lease_seconds: float = 1.5) -> subprocess.Popen[str]:
        words = [sys.executable, str(WORKER), url, "digits", str(k), str(seconds), str(lease_seconds)]
        path = os.pathsep.join(sys.path)
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server of this test's own, to be stopped, filled and crashed. With fsync, as in earnest."""
    with Postgres.start(max_connections="20") as server:
        yield server


def study_of_200(study: Study) -> Study:
    return replace(study, arms=study.arms[:2], seeds=tuple(range(34)))  # 2 arms x 3 rates x 34 seeds = 204 cells


def assert_every_cell_once(store: Store, cells: int) -> None:
    """Every cell has one result, one whole curve, and one complete trial in Optuna's tables."""
    assert store.counts("digits") == Counts(converged=cells)
    trials = store.trials("digits")
    assert len({trial.point.key for trial in trials}) == cells
    assert [found == WHOLE for found in store.curves("digits").values()] == [True] * cells


class TestKilledWorkers:
    def test_eight_workers_one_killed_every_second_finish_every_cell_once(
        self, store: Store, store_url: str, study: Study, start: Start
    ) -> None:
        larger = study_of_200(study)
        store.plan(larger, grid(larger))
        # 102 claims of 0.8 s among 8 workers: ten seconds however fast the machine is, so that there is time to kill.
        dice = random.Random(0)
        workers = [start(store_url, k=2, seconds=0.8) for _ in range(8)]
        killed = 0
        deadline = time.monotonic() + 150
        while store.unfinished("digits"):
            assert time.monotonic() < deadline, store.counts("digits")
            time.sleep(1.0)
            victim = dice.randrange(8)
            if store.counts("digits").running:
                workers[victim].kill()
                killed += 1
                workers[victim] = start(store_url, k=2, seconds=0.8)
        assert killed >= 3
        assert_every_cell_once(store, 204)
        complete = [trial.number for trial in loaded(store_url).trials if trial.state.name == "COMPLETE"]
        assert complete == list(range(204))

    def test_all_workers_dead_still_means_the_cells_are_to_be_had(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...], start: Start
    ) -> None:
        store.plan(study, points)
        worker = start(store_url, k=18, seconds=60, lease_seconds=0.5)
        wait_until(lambda: store.counts("digits").running == 18)
        worker.kill()
        wait_until(lambda: store.counts("digits") == Counts(lost=18))
        assert len(claim(store, 18)) == 18

    def test_a_cell_that_kills_its_workers_fails_and_every_other_is_trained(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        deaths = 0
        while store.unfinished("digits"):
            worker = subprocess.Popen([sys.executable, "-c", POISONED, store_url, points[5].key])
            if code := worker.wait(60):
                assert code == -signal.SIGSEGV
                deaths += 1
                store.bury("digits", f"worker {worker.pid}")
        assert deaths == LOSSES
        assert store.counts("digits") == Counts(converged=17, failed=1)
        assert store.trials("digits")[5].outcome is Outcome.FAILED
        assert store.retry("digits", [Outcome.LOST]) == 1
        assert store.counts("digits") == Counts(waiting=1, converged=17)

    def test_sigterm_under_load_gives_everything_back_at_once(
        self, store: Store, store_url: str, study: Study, start: Start
    ) -> None:
        larger = study_of_200(study)
        store.plan(larger, grid(larger))
        workers = [start(store_url, k=8, seconds=20, lease_seconds=600) for _ in range(3)]
        wait_until(lambda: store.counts("digits").running == 24)
        for worker in workers:
            worker.terminate()
        assert ["stopped" in worker.communicate(timeout=20)[0] for worker in workers] == [True] * 3
        assert store.counts("digits") == Counts(waiting=204)

    def test_a_hung_worker_loses_its_cells_and_cannot_write_when_it_wakes(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...], start: Start
    ) -> None:
        store.plan(study, points)
        hung = start(store_url, k=18, seconds=15.0, lease_seconds=3.0)
        wait_until(lambda: len(store.curves("digits")) == 18)
        hung.send_signal(signal.SIGSTOP)  # it has just recorded, and sleeps for 1.5 s between its transactions
        wait_until(lambda: store.counts("digits").lost == 18)
        second = claim(store, 18, worker="second")
        assert len(second) == 18
        hung.send_signal(signal.SIGCONT)
        time.sleep(3.0)
        assert store.curves("digits") == {}
        assert store.finish([(trial, CONVERGED) for trial in second]) == ()
        hung.communicate(timeout=60)
        assert [trial.result for trial in store.trials("digits")] == [CONVERGED] * 18

    def test_a_process_frozen_in_the_middle_of_a_transaction_lets_its_rows_go(
        self, postgres_url: str, study: Study, points: tuple[Point, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("storage.connection.FROZEN_SECONDS", 1)
        with Store.open(postgres_url) as frozen, Store.open(postgres_url) as other:
            frozen.plan(study, points)
            trials = claim(frozen, 18)
            with pytest.raises(StoreUnavailable), frozen._writing() as session:  # noqa: PT012
                session.ask(LOCK_CELLS, ids=[trial.id for trial in trials])
                assert other.bury("digits", "me") == 18, "it waits for the rows, and gets them"
            assert other.counts("digits") == Counts(lost=18)
            assert frozen.finish([(trial, CONVERGED) for trial in trials]) == trials


class TestLostServer:
    def test_workers_wait_for_a_server_that_restarts_and_say_so(
        self, own_server: Postgres, study: Study, start: Start
    ) -> None:
        larger = study_of_200(study)
        url = own_server.create_database("adamom")
        with Store.open(url, patience_seconds=60) as store:
            store.plan(larger, grid(larger))
            workers = [start(url, seconds=0.3, lease_seconds=5) for _ in range(3)]
            wait_until(lambda: store.counts("digits").converged > 10)
            for how in (signal.SIGINT, signal.SIGQUIT):
                before = store.counts("digits").converged
                own_server.stop(how)
                time.sleep(1.0)
                own_server.run()
                assert store.counts("digits").converged >= before, "what was finished stays finished"
            told = [worker.communicate(timeout=120)[0] for worker in workers]
            assert [worker.returncode for worker in workers] == [0, 0, 0]
            assert all("waiting: postgresql://postgres@127.0.0.1" in text for text in told)
            assert own_server.password not in "".join(told)
            assert_every_cell_once(store, 204)

    def test_a_connection_cut_inside_the_finishing_transaction_leaves_the_result_there_once(
        self, postgres: Postgres, postgres_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        with Store.open(postgres_url, patience_seconds=20) as store:
            store.plan(study, points)
            trials = claim(store, 18)
            done = Event()
            cutting = Thread(target=cut_connections, args=(postgres, postgres_url, done))
            cutting.start()
            for trial in trials:
                assert store.finish([(trial, CONVERGED)]) == ()
                store.record([(trial, curve([2]))])
            done.set()
            cutting.join()
            assert store.counts("digits") == Counts(converged=18)
        assert [trial.value for trial in loaded(postgres_url).trials] == [0.25] * 18

    @pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
    def test_a_finish_whose_answer_is_lost_may_be_repeated(
        self,
        postgres: Postgres,
        postgres_url: str,
        study: Study,
        points: tuple[Point, ...],
        moment: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with Store.open(postgres_url) as store:
            store.plan(study, points)
            (trial,) = claim(store, 1)
            with monkeypatch.context() as patch:
                patch.setattr("storage.session.commit", lost_answer(moment))
                with pytest.raises(StoreUnavailable):
                    store.finish([(trial, CONVERGED)])
            expected = (
                Counts(waiting=17, converged=1) if moment == "after the commit" else Counts(waiting=17, running=1)
            )
            assert store.counts("digits") == expected
            assert store.finish([(trial, CONVERGED)]) == ()
            assert store.counts("digits") == Counts(waiting=17, converged=1)
        first = loaded(postgres_url).trials[0]
        assert (first.value, first.user_attrs["final_loss"]) == (0.25, 0.25)

    def test_two_hundred_workers_fit_into_twenty_connections(
        self, own_server: Postgres, study: Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("storage.store.IDLE_SECONDS", 0.0)  # as if each trained for long between its verbs
        url = own_server.create_database("adamom")
        larger = study_of_200(study)
        with Store.open(url, patience_seconds=60) as planner:
            planner.plan(larger, grid(larger))

        def work(number: int) -> None:
            with Store.open(url, patience_seconds=60, on_wait=lambda *_: None) as store:
                (trial,) = store.claim("digits", 1, worker=f"worker {number}")
                store.record([(trial, WHOLE)])
                time.sleep(0.5)
                assert store.finish([(trial, CONVERGED)]) == ()

        with ThreadPoolExecutor(204) as threads:
            list(threads.map(work, range(204)))
        with Store.open(url) as store:
            assert_every_cell_once(store, 204)

    def test_an_idle_worker_keeps_no_connection(
        self, own_server: Postgres, study: Study, points: tuple[Point, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = own_server.create_database("adamom")
        with Store.open(url) as store:
            store.plan(study, points)
            claim(store, 1)
            assert connections(own_server, "adamom") == 1
            monkeypatch.setattr("storage.store.IDLE_SECONDS", 0.0)
            claim(store, 1)
            assert connections(own_server, "adamom") == 0

    def test_a_full_disk_ends_with_a_clear_line_and_loses_nothing_recorded(
        self, study: Study, points: tuple[Point, ...]
    ) -> None:
        with Postgres.start(file_bytes=17 * 2**20) as full, Store.open(full.create_database("adamom")) as store:
            store.plan(study, points)
            trials = claim(store, 3)
            store.record([(trials[0], curve([2, 4]))])
            store.finish([(trials[1], CONVERGED)])
            endless = (curve(range(start, start + 200_000)) for start in range(10, 3_000_000, 200_000))  # 4 MB each
            with pytest.raises(StoreRefused, match=r"Make room on the server's disk; everything recorded so far is"):
                any(store.record([(trials[2], piece)]) for piece in endless)
            assert store.curves("digits")[trials[0].id] == curve([2, 4])
            assert store.counts("digits") == Counts(waiting=15, running=2, converged=1)

    def test_a_read_only_server_ends_with_a_clear_line(
        self, postgres: Postgres, postgres_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        with Store.open(postgres_url) as store:
            store.plan(study, points)
        name = sql.Identifier(postgres_url.rsplit("/", 1)[1])
        postgres.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        with Store.open(postgres_url) as store:
            with pytest.raises(StoreRefused, match="This user may not write here"):
                claim(store, 1)
            assert store.counts("digits") == Counts(waiting=18), "reading goes on"


class TestManyAtOnce:
    def test_four_workers_in_a_hurry_run_each_cell_once(
        self, store: Store, store_url: str, study: Study, start: Start
    ) -> None:
        larger = study_of_200(study)
        store.plan(larger, grid(larger))
        workers = [start(store_url, k=3, seconds=0.0, lease_seconds=60) for _ in range(4)]
        assert [worker.wait(120) for worker in workers] == [0] * 4
        assert_every_cell_once(store, 204)
        trials = store.trials("digits")
        assert {trial.attempt for trial in trials} == {1}

    def test_a_sweep_in_the_middle_of_a_claim_takes_nothing_from_it(
        self, postgres_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        with Store.open(postgres_url) as slow, Store.open(postgres_url) as quick:
            slow.plan(study, points)
            expire(slow, claim(slow, 3, worker="dead"))
            study_id = slow._study_ids["digits"]
            with slow._writing() as session:
                expired = session.ask(EXPIRED, study=study_id)
                held = claim(quick, 18, worker="quick")
                recover(session, expired)
            assert len(expired) == 3
            assert quick.finish([(trial, CONVERGED) for trial in held]) == ()
            assert slow.counts("digits") == Counts(lost=3, converged=15)

    def test_a_claim_passes_over_what_another_claim_is_taking(
        self, postgres_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        with Store.open(postgres_url) as slow, Store.open(postgres_url) as quick:
            slow.plan(study, points)
            study_id = claim(slow, 1) and slow._study_ids["digits"]
            with slow._writing() as session:
                taken = take(session, study_id, 5, None, suspect=False, worker="slow", seconds=60.0)
                held = claim(quick, 5, worker="quick")
            assert {row[0] for row in taken}.isdisjoint(trial.id for trial in held)
            assert len(held) == 5

    def test_two_planners_at_once_add_each_cell_once(self, store_url: str, store: Store, study: Study) -> None:
        larger = study_of_200(study)
        halves = [grid(larger)[:150], grid(larger)[50:]]
        with ThreadPoolExecutor(8) as threads:
            plans = list(threads.map(lambda n: planned(store_url, larger, halves[n % 2]), range(8)))
        assert sum(plan.added for plan in plans) == 204
        numbers = [trial.number for trial in loaded(store_url).trials]
        assert numbers == list(range(204))
        assert {trial.point.key for trial in store.trials("digits")} == {point.key for point in grid(larger)}

    def test_a_plan_extended_under_load_reaches_the_workers(
        self, store: Store, store_url: str, study: Study, start: Start
    ) -> None:
        larger = study_of_200(study)
        store.plan(larger, grid(larger)[:60])
        worker = start(store_url, seconds=0.1)
        wait_until(lambda: store.counts("digits").converged > 0)
        assert store.plan(larger, grid(larger)) == Planned(added=144, present=60)
        wait_until(lambda: store.counts("digits").converged == 204)
        assert worker.wait(20) == 0
        assert_every_cell_once(store, 204)

    def test_the_clock_of_a_worker_decides_nothing(
        self, store: Store, study: Study, points: tuple[Point, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.plan(study, points)
        really = time.time
        for skew in (-7200.0, 7200.0):
            monkeypatch.setattr(time, "time", lambda skew=skew: really() + skew)
            trials = claim(store, 3, worker=f"skewed by {skew}")
            assert store.counts("digits").lost == 0
            assert 55.0 < (store.next_expiry("digits") or 0.0) <= 60.0
            assert store.finish([(trial, CONVERGED) for trial in trials]) == ()


AS_WRITTEN_THEN = (  # by every release so far: a finished cell with its curve, and one that is held
    "UPDATE adamom_cells SET outcome = 'converged', attempt = 1, worker = 'me' WHERE trial_id = :first",
    "UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :first",
    "INSERT INTO adamom_results (trial_id, steps, initial_loss, final_loss, provenance) "
    "VALUES (:first, 40, 2.5, 0.25, '{}')",
    "INSERT INTO adamom_curves (trial_id, attempt, first_step, entries) VALUES (:first, 1, 2, :curve)",
    "UPDATE adamom_cells SET outcome = 'running', attempt = 1, worker = 'me', lease_seconds = 60, lease_until = 4e9 "
    "WHERE trial_id = :second",
    "UPDATE trials SET state = 'RUNNING' WHERE trial_id = :second",
)


class TestUpgrade:
    @pytest.mark.parametrize("revision", OUR_SCHEMAS[:-1])
    def test_a_store_of_an_earlier_schema_is_upgraded_and_keeps_its_trials(
        self, empty_url: str, study: Study, points: tuple[Point, ...], revision: str
    ) -> None:
        engine = connect(parse(empty_url))
        prepare(engine, revision)
        with Store(engine) as old:
            old.plan(study, points)
        with engine.begin() as connection:
            first, second = connection.scalars(sa.text("SELECT trial_id FROM adamom_cells ORDER BY 1 LIMIT 2"))
            for statement in AS_WRITTEN_THEN:
                given = {"first": first, "second": second, "curve": pack(curve([2, 4]))}
                words = sa.text(statement)
                connection.execute(words, {name: given[name] for name in words._bindparams})
        with pytest.raises(StoreForeign, match=rf"has schema {revision} of an older adamom. Try: adamom plan"):
            Store.open(empty_url, create=False)
        with Store.open(empty_url) as store:
            assert store.study("digits") == study
            assert store.counts("digits") == Counts(waiting=16, running=1, converged=1)
            done, held, *waiting = store.trials("digits")
            assert repr(done.result) == repr(Result(Outcome.CONVERGED, 40, 2.5, 0.25))
            assert store.curves("digits") == {first: curve([2, 4])}
            assert {trial.outcome for trial in waiting} == {Outcome.WAITING}
            assert store.fail(held, "Traceback") is Outcome.WAITING
            assert store.errors("digits") == {second: "Traceback"}
            assert len(claim(store, 18)) == 17
        assert schema(engine) == (OPTUNA_SCHEMA, OUR_SCHEMAS[-1])

    def test_eight_processes_upgrade_at_once(self, empty_url: str) -> None:
        prepare(connect(parse(empty_url)), "0001")
        with ThreadPoolExecutor(8) as threads:
            stores = list(threads.map(lambda _: Store.open(empty_url), range(8)))
        assert [store.studies() for store in stores] == [{}] * 8
        for store in stores:
            store.close()


def planned(url: str, study: Study, points: tuple[Point, ...]) -> Planned:
    with Store.open(url, patience_seconds=30) as store:
        return store.plan(study, points)


def lost_answer(moment: str) -> Callable[[psycopg.Connection], None]:
    """A commit whose connection breaks before it is sent, or after it was done and before the answer is read."""

    def lose(connection: psycopg.Connection) -> None:
        if moment == "after the commit":
            commit(connection)
            connection.execute("SELECT 1").fetchall()  # everything sent so far is done
        connection.pgconn.finish()
        raise psycopg.OperationalError("the connection is lost")

    return lose


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)


def connections(server: Postgres, database: str) -> int:
    with psycopg.connect(server.url()) as connection:
        found = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [database]).fetchone()
    assert found is not None
    return int(found[0])


def cut_connections(server: Postgres, url: str, done: Event) -> None:
    """Terminate whoever is connected to this database, again and again."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        while not done.wait(0.02):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.rsplit("/", 1)[1]]
            )
