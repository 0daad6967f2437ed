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
from typing import Any

import torch

from storage import Curve, Outcome, Result, Store, Trial
from storage.stray import StrayTrial
from studies import training
from studies.worker import RENEW_SECONDS, worker_name

__all__ = ["Objective"]


class Objective:
    """Trains the cell behind an Optuna trial and returns its capped loss.

    device: as torch writes it. Raises StrayTrial, a TrialPruned, for a trial that is no cell of the study.
    """

    def __init__(self, store: Store, name: str, device: str = "cpu") -> None:
        self.store, self.name, self.device = store, name, torch.device(device)

    def __call__(self, asked: Any) -> float:
        """asked: the optuna.Trial."""
        trial = self.store.adopt(self.name, asked.number, worker=worker_name())
        if trial is None:
            raise StrayTrial(f"Trial {asked.number} is no cell of {self.name!r} that waits.")
        result = self.train(trial)
        if self.store.finish([(trial, result)], told=False):
            raise StrayTrial(f"Trial {asked.number} was silent for too long: another worker has it.")
        return result.capped_loss

    def train(self, trial: Trial) -> Result:
        """Train to the end, recording the curve and renewing the lease."""
        measured: list[tuple[Trial, Curve]] = []
        recorded_at = time.monotonic()
        result = Result(Outcome.FAILED)
        for event in training.train(trial.point, self.store.study(self.name), self.device):
            if isinstance(event, Curve):
                measured.append((trial, event))
            elif isinstance(event, Result):
                result = event
            elif time.monotonic() - recorded_at > RENEW_SECONDS:
                self.store.record(measured)
                self.store.renew([trial])
                measured, recorded_at = [], time.monotonic()
        self.store.record(measured)
        return result

    def stop_when_done(self, study: Any, _: object) -> None:
        """A callback for `study.optimize`: without it Optuna goes on asking for trials nobody planned."""
        counts = self.store.counts(self.name)
        if counts.waiting == counts.lost == 0:
            study.stop()
