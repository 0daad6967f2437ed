"""Stock `study.optimize` trains our cells with the objective we export."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from storage import Counts, Store
from studies import spec
from studies.objective import Objective
from studies.plan import plan
from studies.worker import Worker

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
    storage = store_url.replace("postgresql://", "postgresql+psycopg://")
    loaded = optuna.load_study(study_name="study", storage=storage)
    loaded.optimize(objective, callbacks=[objective.stop_when_done])
    return store


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
    storage = store_url.replace("postgresql://", "postgresql+psycopg://")
    loaded = optuna.load_study(study_name="study", storage=storage)
    loaded.optimize(Objective(by_optuna, "study"), n_trials=1)
    assert loaded.trials[-1].state == optuna.trial.TrialState.PRUNED
    assert by_optuna.counts("study") == Counts(converged=4, diverged=4)
