"""Still Optuna's: stock Optuna reads what we wrote, as if it had written it itself, and may work beside us."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from storage import Arm, Axis, Counts, Curve, Outcome, Point, Result, Store, Study, Trial
from storage.connection import connect, parse
from storage.tables import optuna_tables

from .conftest import CONVERGED, DIVERGED, FAILED, OOM, PRUNED, curve, grid
from .test_store import expire

optuna.logging.set_verbosity(optuna.logging.ERROR)


def stock(url: str) -> str:
    """The address as stock Optuna needs it to find the installed driver."""
    return url.replace("postgresql://", "postgresql+psycopg://")


def loaded(store_url: str) -> optuna.Study:
    return optuna.load_study(study_name="digits", storage=stock(store_url))


SPACE: dict[str, BaseDistribution] = {
    "arm": CategoricalDistribution(["sgd-0.9", "sgd-adaptive", "adam-0.9"]),
    "lr": FloatDistribution(0.01, 1.0, log=True),
    "momentum": CategoricalDistribution(["0.9", "adaptive"]),
    "seed": IntDistribution(0, 1),
}

INFINITE = Result(Outcome.DIVERGED, initial_loss=math.inf, final_loss=math.inf, diverged_at=0)
NEVER_FINITE = Result(Outcome.DIVERGED, initial_loss=math.nan, final_loss=math.nan, diverged_at=0)
ENDINGS = [CONVERGED, DIVERGED, INFINITE, NEVER_FINITE, PRUNED, FAILED, OOM]
BROKEN = Curve([4, 10, 16], [1, 1, 1], [math.inf, -math.inf, math.nan], [0, 0, 0], [0, 0, 0])  # type: ignore[arg-type]


@pytest.fixture
def every_ending(store: Store, study: Study, points: tuple[Point, ...]) -> tuple[Trial, ...]:
    """A study with one trial of every ending, one running and the rest waiting."""
    store.plan(study, points)
    trials = store.claim("digits", len(ENDINGS) + 1, worker="me")
    store.record([(trial, curve(list(range(2, 41, 2)))) for trial in trials[:-2]] + [(trials[-1], BROKEN)])
    store.finish(list(zip(trials, ENDINGS, strict=False)))
    return store.trials("digits")


def written_by_optuna(url: str, trials: tuple[Trial, ...], attributes: dict[str, Any]) -> optuna.Study:
    """The same study through Optuna's public API, value by value."""
    theirs = optuna.create_study(study_name="digits", storage=stock(url), direction="minimize")
    for key, value in attributes.items():
        theirs.set_user_attr(key, value)
    for trial in trials:
        theirs.add_trial(as_frozen(trial))
    return theirs


def as_frozen(trial: Trial) -> FrozenTrial:
    """What this trial should look like to Optuna, said in its own words."""
    point, result = trial.point, trial.result
    states = {
        Outcome.WAITING: TrialState.WAITING,
        Outcome.RUNNING: TrialState.RUNNING,
        Outcome.CONVERGED: TrialState.COMPLETE,
        Outcome.DIVERGED: TrialState.COMPLETE,
        Outcome.PRUNED: TrialState.PRUNED,
    }
    shown = {step: loss for step, loss in shown_points(trial) if step}
    value = None
    if result is not None and result.outcome.measured:
        value = math.inf if math.isnan(result.capped_loss) else result.capped_loss
    elif result is not None and result.outcome is Outcome.PRUNED:
        value = result.final_loss
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=states.get(trial.outcome, TrialState.FAIL),
        value=value,
        values=None,
        params={
            "arm": point.arm,
            "lr": point.lr,
            "momentum": "adaptive" if point.momentum is None else str(point.momentum),
            "seed": point.seed,
        },
        distributions=SPACE,
        user_attrs={} if result is None else said(result),
        system_attrs={},
        intermediate_values=shown,
        datetime_start=None if trial.outcome is Outcome.WAITING else datetime.now(),
        datetime_complete=datetime.now() if trial.outcome.finished else None,
    )


def shown_points(trial: Trial) -> list[tuple[int, float]]:
    if trial.number == len(ENDINGS):
        return [(4, math.inf), (10, -math.inf), (16, math.nan)]
    if trial.number < len(ENDINGS) - 1:
        whole = curve(list(range(2, 41, 2)))
        return [(step, float(whole.validation_loss[step // 2 - 1])) for step in (4, 10, 16, 20, 24, 30, 36, 40)]
    return []


def said(result: Result) -> dict[str, Any]:
    numbers = ("initial_loss", "final_loss", "best_loss", "final_accuracy", "mean_momentum")
    measured = {name: getattr(result, name) for name in numbers if not math.isnan(getattr(result, name))}
    measured = {name: value if math.isfinite(value) else str(value) for name, value in measured.items()}
    if result.outcome.measured and math.isnan(result.final_loss):
        measured["final_loss"] = "nan"
    rest = {name: getattr(result, name) for name in ("diverged_at", "error") if getattr(result, name) is not None}
    seconds = result.seconds if math.isfinite(result.seconds) else str(result.seconds)
    provenance = {**result.provenance, "steps": result.steps, "seconds": seconds}
    return {"outcome": result.outcome.value, **measured, **rest, "provenance": provenance}


class TestReading:
    def test_every_field_is_as_optuna_would_have_written_it(
        self, store: Store, store_url: str, every_ending: tuple[Trial, ...], tmp_path: Any
    ) -> None:
        ours = loaded(store_url)
        theirs = written_by_optuna(f"sqlite:///{tmp_path}/theirs.db", every_ending, ours.user_attrs)
        assert len(ours.trials) == len(theirs.trials) == 18
        for our, their in zip(ours.trials, theirs.trials, strict=True):
            for field in ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs"):
                assert getattr(our, field) == getattr(their, field), (our.number, field)
            assert repr(our.intermediate_values) == repr(their.intermediate_values), our.number
            for moment in ("datetime_start", "datetime_complete"):
                assert_about_now(getattr(our, moment), getattr(their, moment))
        assert ours.direction == theirs.direction
        assert ours.user_attrs == theirs.user_attrs
        assert ours.best_trial.number == theirs.best_trial.number == 0
        dropped = ["datetime_start", "datetime_complete", "duration"]
        frames = [each.trials_dataframe().drop(columns=dropped) for each in (ours, theirs)]
        assert list(frames[0].columns) == list(frames[1].columns)
        assert frames[0].astype(str).equals(frames[1].astype(str))

    def test_every_row_is_as_optuna_would_have_written_it(
        self, store: Store, store_url: str, every_ending: tuple[Trial, ...], tmp_path: Any
    ) -> None:
        theirs = f"sqlite:///{tmp_path}/theirs.db"
        written_by_optuna(theirs, every_ending, loaded(store_url).user_attrs)
        for table in optuna_tables.tables.values():
            assert rows_of(store_url, table) == rows_of(theirs, table), table.name

    def test_the_study_says_what_was_asked(self, store: Store, store_url: str, study: Study) -> None:
        store.plan(study, grid(study))
        said = loaded(store_url).user_attrs
        assert (said["question"], said["workload"], said["seeds"]) == (study.question, "digits", [0, 1])
        assert said["budget"] == {"steps": 40, "evaluations": 20, "batch_size": 64, "precision": "float32"}
        assert [arm["name"] for arm in said["arms"]] == ["sgd-0.9", "sgd-adaptive", "adam-0.9"]
        assert said["study_file"] == study.text

    def test_importances_see_every_parameter(self, store: Store, store_url: str, study: Study) -> None:
        wider = extended_study(study)
        store.plan(study, grid(study))
        finish_by(store, lambda point: abs(math.log10(point.lr) + 1) + point.seed / 100)
        store.plan(wider, grid(wider))
        finish_by(store, lambda point: abs(math.log10(point.lr) + 1) + point.seed / 100)
        found = optuna.importance.get_param_importances(
            loaded(store_url), evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        assert set(found) == {"arm", "lr", "momentum", "seed"}
        assert max(found, key=lambda name: found[name]) == "lr"

    def test_a_grown_search_space_is_the_same_for_old_and_new_trials(
        self, store: Store, store_url: str, study: Study
    ) -> None:
        store.plan(study, grid(study))
        before = [trial.params for trial in loaded(store_url).trials]
        wider = extended_study(study)
        store.plan(wider, grid(wider))
        trials = loaded(store_url).trials
        assert [trial.params for trial in trials[:18]] == before
        assert {repr(trial.distributions) for trial in trials} == {repr(trials[-1].distributions)}
        assert trials[0].distributions["arm"].choices == ("sgd-0.9", "sgd-adaptive", "adam-0.9", "aaa")  # type: ignore[attr-defined]
        assert (trials[0].distributions["lr"].low, trials[0].distributions["seed"].high) == (0.001, 7)  # type: ignore[attr-defined]

    def test_states_agree_after_every_verb(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        agree = agreement(store, store_url)
        store.plan(study, points)
        agree(WAITING=18)
        trials = store.claim("digits", 6, worker="me")
        agree(WAITING=12, RUNNING=6)
        store.record([(trial, curve([2, 4, 6, 8, 10])) for trial in trials])
        agree(WAITING=12, RUNNING=6)
        store.release(trials[:1])
        agree(WAITING=13, RUNNING=5)
        store.fail(trials[1], "Traceback")
        agree(WAITING=14, RUNNING=4)
        store.finish([(trials[2], FAILED), (trials[3], CONVERGED), (trials[4], DIVERGED)])
        agree(WAITING=14, RUNNING=1, FAIL=1, COMPLETE=2)
        expire(store, trials[5:])
        store.sweep("digits")
        agree(WAITING=15, FAIL=1, COMPLETE=2)
        store.retry("digits", [Outcome.FAILED])
        agree(WAITING=16, COMPLETE=2)
        (trial,), lost = store.exchange("digits", 1, worker="me", ended=[(trials[5], CONVERGED)])
        assert lost == (trials[5],)
        agree(WAITING=15, RUNNING=1, COMPLETE=2)
        assert store.deliver([(trial, curve([2, 4]))], [(trial, PRUNED)]) == ()
        agree(WAITING=15, PRUNED=1, COMPLETE=2)
        store.retry("digits", [Outcome.PRUNED])
        agree(WAITING=16, COMPLETE=2)
        assert {trial.number for trial in loaded(store_url).trials if trial.intermediate_values} == {3, 4}
        assert {trial.number for trial in loaded(store_url).trials if trial.user_attrs} == {3, 4}
        while store.counts("digits").failed == 0:
            assert store.claim("digits", 1, worker="dead", families=["adam"])
            store.bury("digits", "dead")
        agree(WAITING=15, FAIL=1, COMPLETE=2)

    def test_a_study_deleted_by_optuna_takes_its_cells_with_it(
        self, store: Store, store_url: str, study: Study, every_ending: tuple[Trial, ...]
    ) -> None:
        optuna.delete_study(study_name="digits", storage=stock(store_url))
        assert store.studies() == {}
        for table in ("adamom_cells", "adamom_results", "adamom_curves"):
            with connect(parse(store_url)).connect() as connection:
                assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() == 0  # noqa: S608
        store.plan(study, grid(study))
        assert store.counts("digits") == Counts(waiting=18)

    def test_the_dashboard_of_optuna_shows_the_study(self, store_url: str, every_ending: tuple[Trial, ...]) -> None:
        from optuna_dashboard import wsgi

        application = wsgi(optuna.storages.get_storage(stock(store_url)))
        (summary,) = asked(application, "/api/studies")["study_summaries"]
        assert summary["study_name"] == "digits"
        detail = asked(application, f"/api/studies/{summary['study_id']}?after=0")
        assert len(detail["trials"]) == 18
        assert detail["best_trials"][0]["number"] == 0
        assert [trial["state"] for trial in detail["trials"]][:8] == [
            *("Complete", "Complete", "Complete", "Complete", "Pruned", "Fail", "Fail", "Running")
        ]


STOCK_WORKER = """
import sys, optuna
from storage import Outcome, Result, Store
optuna.logging.set_verbosity(optuna.logging.ERROR)
store, study = Store.open(sys.argv[1]), optuna.load_study(study_name="digits", storage=sys.argv[2])

def objective(trial):
    ours = store.adopt("digits", trial.number, worker="stock")
    if ours is None:
        raise optuna.TrialPruned("none of our cells")
    result = Result(Outcome.CONVERGED, initial_loss=2.0, final_loss=1.0, provenance={"worker": "stock"})
    assert store.finish([(ours, result)], told=False) == ()
    print(trial.number)
    return result.capped_loss

def stop_when_done(study, _):
    if store.counts("digits").waiting == 0:
        study.stop()

study.optimize(objective, callbacks=[stop_when_done])
"""

OUR_WORKER = """
import sys, time
from storage import Outcome, Result, Store
store = Store.open(sys.argv[1], patience_seconds=60)
while store.counts("digits").finished == 0:  # the others are slow to start
    time.sleep(0.01)
while trials := store.claim("digits", 3, worker="ours"):
    result = Result(Outcome.CONVERGED, initial_loss=2.0, final_loss=1.0, provenance={"worker": "ours"})
    assert store.finish([(trial, result) for trial in trials]) == ()
    print(*[trial.number for trial in trials], sep="\\n")
"""


class TestWorkingTogether:
    def test_processes_of_stock_optuna_work_beside_ours_and_no_cell_runs_twice(
        self, store: Store, store_url: str, study: Study
    ) -> None:
        larger = replace(study, arms=study.arms[:2], seeds=tuple(range(20)))
        store.plan(larger, grid(larger))
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code, store_url, stock(store_url)], stdout=subprocess.PIPE, text=True
            )
            for code in (STOCK_WORKER, STOCK_WORKER, STOCK_WORKER, OUR_WORKER)
        ]
        trained = [int(line) for worker in workers for line in worker.communicate(timeout=200)[0].split()]
        assert [worker.returncode for worker in workers] == [0] * 4
        assert store.counts("digits") == Counts(converged=120)
        trials = store.trials("digits")
        assert sorted(trained) == sorted(trial.number for trial in trials), "each cell was trained by one of them, once"
        assert {trial.result.provenance["worker"] for trial in trials if trial.result} == {"stock", "ours"}
        planned = [trial for trial in loaded(store_url).trials if trial.params]
        assert [(trial.state, trial.value) for trial in planned] == [(TrialState.COMPLETE, 1.0)] * 120
        strays = [trial for trial in loaded(store_url).trials if not trial.params]
        assert {trial.state for trial in strays} <= {TrialState.PRUNED}

    def test_two_that_have_both_read_that_a_trial_waits_start_it_once(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        """What stock Optuna does on SQLite: it reads, and then writes without looking again."""
        store.plan(study, points)
        start = sa.text("UPDATE trials SET state = 'RUNNING' WHERE number = 0")
        engine = connect(parse(store_url))
        with engine.begin() as connection:
            connection.execute(start)
        if engine.dialect.name == "sqlite":  # PostgreSQL locks what Optuna has read
            with (
                pytest.raises(sa.exc.IntegrityError, match="another process has started"),
                engine.begin() as connection,
            ):
                connection.execute(start)

    @pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
    def test_nobody_ends_a_trial_that_somebody_else_holds(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...], state: TrialState
    ) -> None:
        store.plan(study, points)
        theirs = loaded(store_url)
        slow = theirs.ask()
        held = store.adopt("digits", slow.number, worker="quick")
        assert held is not None
        assert store.adopt("digits", slow.number, worker="slow") is None
        theirs.tell(slow, state=state)
        assert loaded(store_url).trials[0].state == TrialState.RUNNING
        assert store.finish([(held, CONVERGED)], told=False) == ()
        theirs.tell(slow, CONVERGED.final_loss)
        assert (loaded(store_url).trials[0].state, loaded(store_url).trials[0].value) == (TrialState.COMPLETE, 0.25)

    @pytest.mark.parametrize("result", [CONVERGED, DIVERGED, PRUNED, FAILED], ids=lambda r: r.outcome.value)
    @pytest.mark.parametrize("healed_by", ["claim", "sweep", "bury", "retry"])
    def test_what_a_stock_process_did_not_live_to_tell_optuna_is_told_by_others(
        self,
        store: Store,
        store_url: str,
        study: Study,
        points: tuple[Point, ...],
        result: Result,
        healed_by: str,
    ) -> None:
        store.plan(study, points)
        held = store.adopt("digits", loaded(store_url).ask().number, worker="dead")
        assert held is not None
        store.finish([(held, result)], told=False)
        assert store.holders("digits") == ("dead",)
        verbs = {
            "claim": lambda: store.claim("digits", 1, worker="me"),
            "sweep": lambda: store.sweep("digits"),
            "bury": lambda: store.bury("digits", "dead"),
            "retry": lambda: store.retry("digits", [Outcome.OOM]),
        }
        if healed_by != "bury":
            verbs[healed_by]()
            assert loaded(store_url).trials[0].state == TrialState.RUNNING, "it may be alive, and about to tell"
            expire(store, [held])
            assert store.untold() == 1
        verbs[healed_by]()
        trial = loaded(store_url).trials[0]
        states = {Outcome.PRUNED: TrialState.PRUNED, Outcome.FAILED: TrialState.FAIL}
        values = {Outcome.CONVERGED: 0.25, Outcome.DIVERGED: 2.3, Outcome.PRUNED: 1.5}
        assert (trial.state, trial.value) == (
            states.get(result.outcome, TrialState.COMPLETE),
            values.get(result.outcome),
        )
        assert trial.user_attrs["outcome"] == result.outcome.value
        assert (store.untold(), repr(store.trials("digits")[0].result)) == (0, repr(result))

    def test_what_a_stock_process_told_optuna_itself_stays_as_it_told_it(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        theirs = loaded(store_url)
        asked = theirs.ask()
        held = store.adopt("digits", asked.number, worker="alive")
        assert held is not None
        store.finish([(held, CONVERGED)], told=False)
        theirs.tell(asked, 0.25)
        before = loaded(store_url).trials[0]
        expire(store, [held])
        assert (store.untold(), store.sweep("digits"), store.holders("digits")) == (0, 0, ())
        assert repr(loaded(store_url).trials[0]) == repr(before)

    def test_a_process_of_stock_optuna_runs_a_whole_study_alone(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        subprocess.run([sys.executable, "-c", STOCK_WORKER, store_url, stock(store_url)], check=True, timeout=120)
        assert store.counts("digits") == Counts(converged=18)
        assert [trial.value for trial in loaded(store_url).trials] == [1.0] * 18

    def test_a_trial_that_stock_optuna_started_is_not_claimed(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        theirs = loaded(store_url).ask()
        assert theirs.params["arm"] == "sgd-0.9"
        ours = store.claim("digits", 2, worker="me")
        assert [trial.number for trial in ours] == [1]
        assert store.counts("digits") == Counts(waiting=16, running=2)
        adopted = store.adopt("digits", theirs.number, worker="objective")
        assert adopted is not None
        assert adopted.point == points[0]
        assert store.adopt("digits", theirs.number, worker="second") is None

    def test_a_stock_process_that_died_loses_its_trial_to_us(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        number = loaded(store_url).ask().number
        noticed = store.claim("digits", 1, worker="me")
        dead = [trial for trial in store.trials("digits") if trial.number == number]
        expire(store, dead)
        again = store.claim("digits", 1, worker="me")
        assert [trial.number for trial in (*noticed, *again)] == [1, 0]
        assert loaded(store_url).trials[0].state == TrialState.RUNNING

    def test_a_trial_that_stock_optuna_finished_without_us_is_shown_as_failed_until_it_is_retried(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        theirs = loaded(store_url)
        theirs.tell(theirs.ask(), 0.5)
        assert store.claim("digits", 1, worker="me") == ()
        (trial,) = store.trials("digits")
        assert trial.result is not None
        assert trial.result.error == "Finished by another program than adamom. Try: adamom retry STUDY --failed"
        assert loaded(store_url).trials[0].value == 0.5, "what they measured is left alone"
        assert store.retry("digits", [Outcome.FAILED]) == 1
        (again,) = store.claim("digits", 1, worker="me")
        store.finish([(again, CONVERGED)])
        assert loaded(store_url).trials[0].value == 0.25

    def test_a_trial_that_optuna_makes_of_its_own_is_none_of_ours(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points[:1])
        store.claim("digits", 1, worker="me")
        stray = loaded(store_url).ask()
        assert store.adopt("digits", stray.number, worker="objective") is None
        assert store.counts("digits") == Counts(running=1)
        assert store.plan(study, points[:3]).added == 2
        numbers = [trial.number for trial in loaded(store_url).trials]
        assert numbers == [0, 1, 2, 3], "the stray trial keeps its number"


def extended_study(study: Study) -> Study:
    """One arm, one rate and one seed more, each outside what was there."""
    rates = Axis("lr", (0.001, 0.01, 0.1, 1.0))
    arms = (Arm("aaa", "sgd", "sgd", 0.5, rates), *(replace(arm, lr=rates) for arm in study.arms))
    return replace(study, arms=arms, seeds=(0, 1, 7))


def finish_by(store: Store, loss: Callable[[Point], float]) -> None:
    trials = store.claim("digits", 1000, worker="me")
    ended = [(t, Result(Outcome.CONVERGED, initial_loss=99.0, final_loss=loss(t.point))) for t in trials]
    assert store.finish(ended) == ()


def agreement(store: Store, store_url: str) -> Callable[..., None]:
    """Asserts that Optuna counts these states, and that our own view says the same of each trial."""
    states = {"waiting": "WAITING", "lost": "WAITING", "running": "RUNNING", "pruned": "PRUNED"}
    states |= {"converged": "COMPLETE", "diverged": "COMPLETE", "failed": "FAIL", "oom": "FAIL"}

    def agree(**expected: int) -> None:
        theirs = loaded(store_url).trials
        assert {state: sum(t.state.name == state for t in theirs) for state in expected} == expected
        assert [trial.state.name for trial in theirs] == [states[t.outcome.value] for t in store.trials("digits")]

    return agree


def rows_of(url: str, table: sa.Table) -> list[Any]:
    """A table of Optuna's as comparable values: without its own keys and times, and JSON as values."""
    left_out = {*(column.name for column in table.primary_key), "datetime_start", "datetime_complete"}
    if table.name in ("trials", "studies"):
        left_out -= {"trial_id", "study_id"}
    kept = [column for column in table.columns if column.name not in left_out]
    with connect(parse(url.replace("postgresql+psycopg", "postgresql"))).connect() as connection:
        rows = connection.execute(sa.select(*kept)).all()

    def comparable(name: str, value: Any) -> Any:
        return json.dumps(json.loads(value), sort_keys=True) if name.endswith("json") else value

    return sorted(([comparable(*item) for item in row._mapping.items()] for row in rows), key=repr)


def assert_about_now(ours: datetime | None, theirs: datetime | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert abs(ours - theirs) < timedelta(minutes=5)


def asked(application: Any, path: str) -> Any:
    """What a WSGI application answers to GET, as JSON."""
    answer: list[str] = []
    path, _, query = path.partition("?")
    environment = {"PATH_INFO": path, "QUERY_STRING": query, "HTTP_ACCEPT_ENCODING": ""}
    setup_testing_defaults(environment)
    body = b"".join(application(environment, lambda status, headers, error=None: answer.append(status)))
    assert answer == ["200 OK"], body
    return json.loads(body)
