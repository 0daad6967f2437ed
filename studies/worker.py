"""Claim, train, record, finish: the life of a worker, until nothing is left or somebody asks it to stop.

A worker owns what it has claimed and nothing else. It may be killed at any time: what it recorded stays, and what it
held goes back to the queue when its lease runs out. Asked to stop, it gives back what it holds at once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from storage import Curve, Outcome, Result, Store, StoreError, Study, Trial
from studies import arms, lanes, training
from studies.calibration import calibrate
from studies.checkpoints import Checkpoints
from studies.training import Event

__all__ = ["Worker", "dead", "worker_name"]

log = logging.getLogger(__name__)

RENEW_SECONDS = 10.0  # a lease lasts 60 s: five renewals may fail before a trial goes back to the queue
FINISH_SECONDS = 1.0  # how long a result may wait to be written together with others
POLL_SECONDS = 0.5  # how often to look again while the last cells are in other hands


def worker_name(pid: int | None = None) -> str:
    """A process of this machine, by default this one, as the store and the log call it."""
    return f"{socket.gethostname()}:{pid or os.getpid()}"


def dead(worker: str) -> bool:
    """Whether that worker ran on this machine and is gone. Of workers elsewhere nobody here can tell."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)  # asks only whether the process is there
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass
class Worker:
    """One worker of one study on one device.

    lanes: how many trials to train as one program; None measures what is fastest here; 1 is the plain loop.
    checkpoints: where long trials leave what another worker can go on from.
    stopped: asked after every training step; True means give everything back and return.
    """

    store: Store
    study: Study
    device: torch.device
    lanes: int | None = None
    stopped: Callable[[], bool] = lambda: False
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    name: str = field(default_factory=worker_name)
    held: dict[int, Trial] = field(default_factory=dict)
    finished: int = 0

    def work(self, max_trials: int | None = None) -> int:
        """Train until nothing is left, max_trials are finished, or stopped() says so. Returns how many it finished."""
        while not self.stopped():
            allowed = None if max_trials is None else max_trials - self.finished
            if allowed == 0:
                break
            trials = self.claim(allowed)
            if trials:
                packed, plain = partition(trials, self.study) if self.width > 1 else ((), trials)
                self.train(packed, in_lanes=True)
                self.train(plain, in_lanes=False)
            elif not self.store.unfinished(self.study.name):
                break
            else:
                time.sleep(POLL_SECONDS)  # others hold the rest; should one of them die, its cells are ours
        return self.finished

    @cached_property
    def width(self) -> int:
        """How many trials to train at once here."""
        return self.lanes or calibrate(self.study, self.device).lanes

    def claim(self, at_most: int | None) -> tuple[Trial, ...]:
        """As many trials as train well together here, never more than at_most."""
        wanted = min(self.width, at_most or self.width)
        trials = self.store.claim(self.study.name, wanted, worker=self.name)
        if any(trial.point.arm not in self.study.arm_names for trial in trials):
            self.study = self.store.study(self.study.name)  # somebody extended the grid
        self.held |= {trial.id: trial for trial in trials}
        return trials

    def train(self, pack: tuple[Trial, ...], *, in_lanes: bool) -> None:
        """Train these trials to their end, whatever that is: no fault of one of them reaches another."""
        pack = self.still_held(pack)
        try:
            self.follow(pack, lanes.train if in_lanes else one_by_one)
        except StoreError:
            raise
        except torch.OutOfMemoryError:
            self.split(self.still_held(pack), traceback.format_exc())
        except Exception:
            self.blame(self.still_held(pack), traceback.format_exc())
        if self.stopped():
            self.give_back()

    def follow(self, pack: tuple[Trial, ...], engine: Engine) -> None:
        """Train one pack, recording what it measures in handfuls and finishing its trials as they end."""
        measured: list[tuple[Trial, Curve]] = []
        ended: list[tuple[Trial, Result]] = []
        recorded_at = time.monotonic()
        if not pack:
            return
        for trial, event in engine(pack, self.study, self.device, self.checkpoints):
            if isinstance(event, Curve):
                measured.append((trial, event))
            elif isinstance(event, Result):
                ended.append((trial, event))
            elif time.monotonic() - recorded_at > (FINISH_SECONDS if ended else RENEW_SECONDS):
                self.record(measured, ended)
                recorded_at = time.monotonic()
            if self.stopped():
                break
        self.record(measured, ended)

    def record(self, measured: list[tuple[Trial, Curve]], ended: list[tuple[Trial, Result]]) -> None:
        """Write what was measured and who has ended, renew every lease, and empty both lists.

        A trial whose lease was lost belongs to somebody else by now: nothing of ours is written, and we let go of it.
        """
        unrecorded = self.store.record(measured)
        unfinished = self.store.finish(ended)
        self.finished += len(ended) - len(unfinished)
        for trial, _ in ended:
            self.held.pop(trial.id, None)
            self.checkpoints.drop(self.study, trial.point)
        unrenewed = self.store.renew(list(self.held.values()))
        for trial in {*unrecorded, *unfinished, *unrenewed}:
            log.warning("lost the lease of trial %d: another worker has it", trial.number)
            self.held.pop(trial.id, None)
        measured.clear()
        ended.clear()

    def split(self, pack: tuple[Trial, ...], error: str) -> None:
        """Too large for the device: half as many at once; what does not fit even alone is a result of its own."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(pack) == 1:
            self.record([], [(pack[0], Result(Outcome.OOM, error=error))])
            return
        self.width = len(pack) // 2
        log.warning("out of memory with %d lanes: going on with %d", len(pack), self.width)
        while pack:
            part, pack = pack[: self.width], pack[self.width :]
            self.train(part, in_lanes=True)

    def blame(self, pack: tuple[Trial, ...], error: str) -> None:
        """Something raised. Alone, it was this trial; in a pack nobody knows, so each is tried alone."""
        if len(pack) > 1:
            log.warning("a pack of %d raised, trying each of its trials alone:\n%s", len(pack), error)
            for trial in pack:
                self.train((trial,), in_lanes=False)
        for trial in self.still_held(pack):
            log.warning("trial %d raised:\n%s", trial.number, error)
            self.store.fail(trial, error)
            self.held.pop(trial.id, None)

    def still_held(self, pack: Iterable[Trial]) -> tuple[Trial, ...]:
        return tuple(trial for trial in pack if trial.id in self.held)

    def give_back(self) -> None:
        """Put everything we hold back into the queue at once."""
        self.store.release(list(self.held.values()))
        self.held.clear()


def partition(trials: Iterable[Trial], study: Study) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
    """The trials whose optimizer can work in lanes, and the others."""
    able: dict[bool, list[Trial]] = {True: [], False: []}
    for trial in trials:
        able[arms.fits_lanes(study.arm(trial.point.arm))].append(trial)
    return tuple(able[True]), tuple(able[False])


Engine = Callable[[Sequence[Trial], Study, torch.device, Checkpoints], Iterator[tuple[Trial, Event]]]


def one_by_one(
    trials: Sequence[Trial], study: Study, device: torch.device, checkpoints: Checkpoints
) -> Iterator[tuple[Trial, Event]]:
    """The plain loop, for these trials one after another."""
    for trial in trials:
        for event in training.train(trial.point, study, device, checkpoints):
            yield trial, event
