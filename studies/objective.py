"""The study as an objective for stock Optuna: processes of `study.optimize` may work beside our workers.

    import optuna
    from storage import Store
    from studies.objective import Objective

    with Store.open(url) as store:
        objective = Objective(store, "digits")
        optuna.load_study(study_name="digits", storage=url).optimize(objective, callbacks=[objective.stop_when_done])

Optuna takes the waiting trial, the objective takes over its cell, so no cell is trained twice. It trains one trial at a
time, as Optuna does: our own workers are the fast way.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

import torch

from storage import Curve, Outcome, Result, Store, StoreError, Trial
from storage.stray import StrayTrial
from studies import training
from studies.worker import RENEW_SECONDS, worker_name

__all__ = ["Objective"]


class Objective:
    """Trains the cell behind an Optuna trial and returns its capped loss.

    device: as torch writes it. Raises StrayTrial, a TrialPruned, for a trial that is no cell of the study, and for one
    that another worker has: of that one Optuna's pruning is refused by the database, and the process goes on.
    """

    def __init__(self, store: Store, name: str, device: str = "cpu") -> None:
        self.store, self.name, self.device = store, name, torch.device(device)

    def __call__(self, asked: Any) -> float:
        """asked: the optuna.Trial. What the workload's code raises is kept as the cell's outcome, and raised again."""
        trial = self.store.adopt(self.name, asked.number, worker=worker_name())
        if trial is None:
            raise StrayTrial(f"Trial {asked.number} is no cell of {self.name!r} that waits.")
        try:
            measured, result = self.train(trial)
        except StoreError:
            raise
        except Exception as error:
            outcome = Outcome.OOM if isinstance(error, torch.OutOfMemoryError) else Outcome.FAILED
            self.store.finish([(trial, Result(outcome, error=traceback.format_exc()))], told=False)
            raise
        if self.store.deliver(measured, [(trial, result)], told=False):
            raise StrayTrial(f"Trial {asked.number} was silent for too long: another worker has it.")
        return result.capped_loss

    def train(self, trial: Trial) -> tuple[list[tuple[Trial, Curve]], Result]:
        """Train to the end, recording and renewing the lease. Returns what is left to record, and the result."""
        measured: list[tuple[Trial, Curve]] = []
        recorded_at = time.monotonic()
        result = Result(Outcome.FAILED)
        for event in training.train(trial.point, self.store.study(self.name), self.device):
            if isinstance(event, Curve):
                measured.append((trial, event))
            elif isinstance(event, Result):
                result = event
            elif time.monotonic() - recorded_at > RENEW_SECONDS:
                self.store.deliver(measured, renewed=[trial])
                measured, recorded_at = [], time.monotonic()
        return measured, result

    def stop_when_done(self, study: Any, _: object) -> None:
        """A callback for `study.optimize`: without it Optuna goes on asking for trials nobody planned."""
        counts = self.store.counts(self.name)
        if counts.waiting == counts.lost == 0:
            study.stop()
