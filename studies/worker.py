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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
    measured: list[tuple[Trial, Curve]] = field(default_factory=list)  # not written yet, as those that have ended
    ended: list[tuple[Trial, Result]] = field(default_factory=list)
    finished: int = 0

    def work(self, max_trials: int | None = None) -> int:
        """Train until nothing is left, max_trials are finished, or stopped() says so. Returns how many it finished."""
        while not self.stopped():
            if max_trials is not None:
                self.record()  # only what is written counts
                if self.finished == max_trials:
                    break
            trials = self.claim(None if max_trials is None else max_trials - self.finished)
            if trials:
                packed, plain = partition(trials, self.study) if self.width > 1 else ((), trials)
                self.train(packed, in_lanes=True)
                self.train(plain, in_lanes=False)
            elif not self.store.unfinished(self.study.name):
                break
            else:
                time.sleep(POLL_SECONDS)  # others hold the rest; should one of them die, its cells are ours
        self.record()
        return self.finished

    @cached_property
    def width(self) -> int:
        """How many trials to train at once here."""
        return self.lanes or calibrate(self.study, self.device).lanes

    def claim(self, at_most: int | None) -> tuple[Trial, ...]:
        """As many trials as train well together here, never more than at_most; what is left of the last is written."""
        wanted = min(self.width, at_most or self.width)
        trials, lost = self.store.exchange(
            self.study.name, wanted, worker=self.name, measured=self.measured, ended=self.ended
        )
        self.settle(lost)
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
            self.record()
            self.split(self.still_held(pack), traceback.format_exc())
        except Exception:
            self.record()
            self.blame(self.still_held(pack), traceback.format_exc())
        if self.stopped():
            self.give_back()

    def follow(self, pack: tuple[Trial, ...], engine: Engine) -> None:
        """Train one pack, recording what it measures in handfuls and finishing its trials as they end.

        The last handful is left for the next claim to write.
        """
        recorded_at = time.monotonic()
        if not pack:
            return
        for trial, event in engine(pack, self.study, self.device, self.checkpoints):
            if isinstance(event, Curve):
                self.measured.append((trial, event))
            elif isinstance(event, Result):
                self.ended.append((trial, event))
            elif time.monotonic() - recorded_at > (FINISH_SECONDS if self.ended else RENEW_SECONDS):
                self.record()
                recorded_at = time.monotonic()
            if self.stopped():
                break

    def record(self) -> None:
        """Write what was measured and who has ended, and renew every lease."""
        if self.measured or self.ended or self.held:
            self.settle(self.store.deliver(self.measured, self.ended, list(self.held.values())))

    def settle(self, lost: Collection[Trial]) -> None:
        """What was measured and who has ended is written, but for the lost ones: they are somebody else's by now."""
        self.finished += len(self.ended) - len({trial.id for trial, _ in self.ended} & {trial.id for trial in lost})
        for trial, _ in self.ended:
            self.held.pop(trial.id, None)
            self.checkpoints.drop(self.study, trial.point)
        for trial in lost:
            log.warning("lost the lease of trial %d: another worker has it", trial.number)
            self.held.pop(trial.id, None)
        self.measured.clear()
        self.ended.clear()

    def split(self, pack: tuple[Trial, ...], error: str) -> None:
        """Too large for the device: half as many at once; what does not fit even alone is a result of its own."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(pack) < 2:
            self.ended += [(trial, Result(Outcome.OOM, error=error)) for trial in pack]
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
        ended = {trial.id for trial, _ in self.ended}
        return tuple(trial for trial in pack if trial.id in self.held and trial.id not in ended)

    def give_back(self) -> None:
        """Write what has ended, and put everything else we hold back into the queue at once."""
        self.record()
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
