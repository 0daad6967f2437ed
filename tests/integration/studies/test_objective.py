"""Stock `study.optimize` trains our cells with the objective we export."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from storage import Counts, Outcome, Store
from studies import spec
from studies.objective import Objective
from studies.plan import plan
from studies.worker import Worker, dead

TEXT = """
question = "Does Optuna train our cells?"
workload = "digits"
seeds = 2

[budget]
steps = 6
evaluations = 2
batch_size = 32

[lr]
values = [0.01, 1e8]

[arms.sgd]
optimizer = "sgd"
momentum = [0.9, "adaptive"]
"""


@pytest.fixture
def by_optuna(store: Store, store_url: str) -> Store:
    """A store whose cells were all trained by stock Optuna."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan(store, spec.parse(TEXT, where="here", name="study"))
    objective = Objective(store, "study")
    loaded(store_url).optimize(objective, callbacks=[objective.stop_when_done])
    return store


def loaded(store_url: str) -> optuna.Study:
    storage = store_url.replace("postgresql://", "postgresql+psycopg://")
    return optuna.load_study(study_name="study", storage=storage)


# A stock process with the real objective; TOLD says what happens between our finish and its own word to Optuna.
STOCK = """
import os, signal, sys
import optuna
from storage import Store
from studies.objective import Objective

optuna.logging.set_verbosity(optuna.logging.ERROR)
url, told = sys.argv[1:]
with Store.open(url, patience_seconds=30) as store:
    objective = Objective(store, "study")

    def trained(asked):
        value = objective(asked)
        print(asked.number, flush=True)
        if told == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    storage = url.replace("postgresql://", "postgresql+psycopg://")
    optuna.load_study(study_name="study", storage=storage).optimize(trained, callbacks=[objective.stop_when_done])
"""


def stock(store_url: str, told: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", STOCK, store_url, told], stdout=subprocess.PIPE, text=True)


def test_several_stock_processes_train_every_cell_once(store: Store, store_url: str) -> None:
    plan(store, spec.parse(TEXT.replace("seeds = 2", "seeds = 10"), where="here", name="study"))
    workers = [stock(store_url, "alive") for _ in range(3)]
    trained = [int(line) for worker in workers for line in worker.communicate(timeout=250)[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert store.counts("study") == Counts(converged=20, diverged=20)
    assert sorted(trained) == list(range(40))
    cells = [trial for trial in loaded(store_url).trials if trial.params]
    assert {trial.state for trial in cells} == {TrialState.COMPLETE}


def test_what_a_killed_stock_process_had_finished_is_told_by_the_next_worker(store: Store, store_url: str) -> None:
    study = spec.parse(TEXT, where="here", name="study")
    plan(store, study)
    killed = stock(store_url, "killed")
    (line,) = killed.communicate(timeout=120)[0].split()
    assert killed.returncode == -signal.SIGKILL
    assert loaded(store_url).trials[int(line)].state == TrialState.RUNNING
    (holder,) = store.holders("study")
    assert dead(holder)
    store.bury("study", holder)  # as a crew does when it starts
    Worker(store, study, Objective(store, "study").device, lanes=1).work()
    assert store.counts("study") == Counts(converged=4, diverged=4)
    ours = {trial.number: trial for trial in store.trials("study")}
    for trial in loaded(store_url).trials:
        result = ours[trial.number].result
        assert result is not None
        assert (trial.state, trial.value) == (TrialState.COMPLETE, result.capped_loss)


def test_code_that_raises_ends_the_stock_process_and_is_kept_as_the_outcome(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(store, spec.parse(TEXT, where="here", name="study"))

    def broken(*_: object) -> Any:
        raise IndexError("the workload has a bug")

    monkeypatch.setattr("studies.training.train", broken)
    with pytest.raises(IndexError, match="the workload has a bug"):
        loaded(store_url).optimize(Objective(store, "study"), n_trials=1)
    first = store.trials("study")[0]
    assert first.outcome is Outcome.FAILED
    assert first.result is not None
    assert "IndexError: the workload has a bug" in str(first.result.error)
    assert loaded(store_url).trials[0].state == TrialState.FAIL


def test_a_process_that_comes_too_late_for_its_trial_leaves_it_alone_and_goes_on(store: Store, store_url: str) -> None:
    plan(store, spec.parse(TEXT, where="here", name="study"))
    late = Objective(store, "study")

    def overtaken(asked: optuna.Trial) -> float:
        if asked.number == 0:
            assert store.adopt("study", 0, worker="somebody else") is not None
        return late(asked)

    loaded(store_url).optimize(overtaken, n_trials=2)
    first, second, *_ = loaded(store_url).trials
    assert (first.state, second.state) == (TrialState.RUNNING, TrialState.COMPLETE)
    assert "somebody else" in store.holders("study")
    assert store.counts("study") == Counts(waiting=6, running=1, converged=1)


def test_optuna_trains_every_cell_once_and_diverged_ones_are_results(by_optuna: Store) -> None:
    assert by_optuna.counts("study") == Counts(converged=4, diverged=4)
    assert all(trial.attempt == 1 for trial in by_optuna.trials("study"))
    assert len(by_optuna.curves("study")) == 8


def test_a_cell_trained_by_optuna_is_the_cell_our_loop_trains(by_optuna: Store, tmp_path: Path) -> None:
    theirs = {trial.point.key: trial.result for trial in by_optuna.trials("study")}
    study = by_optuna.study("study")
    with Store.open(f"sqlite:///{tmp_path / 'own.db'}") as own:
        plan(own, study)
        Worker(own, study, Objective(own, "study").device, lanes=1).work()
        for trial in own.trials("study"):
            result = theirs[trial.point.key]
            assert trial.result is not None
            assert result is not None
            assert repr(trial.result.final_loss) == repr(result.final_loss)


def test_a_trial_that_optuna_makes_of_its_own_is_pruned_and_no_cell(by_optuna: Store, store_url: str) -> None:
    loaded(store_url).optimize(Objective(by_optuna, "study"), n_trials=1)
    assert loaded(store_url).trials[-1].state == TrialState.PRUNED
    assert by_optuna.counts("study") == Counts(converged=4, diverged=4)
