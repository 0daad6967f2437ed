"""Workers as processes of this machine: one per GPU, or one per CPU core."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch

from storage import Store, StoreError
from storage.connection import PATIENCE_SECONDS
from studies.checkpoints import FOLDER, Checkpoints
from studies.native.library import CompilerError, compiler
from studies.worker import Worker, dead, worker_name

__all__ = ["Crew", "Job", "devices", "inventory", "work"]

log = logging.getLogger(__name__)

RESTARTS = 5  # per worker: a machine that kills its processes again and again needs a person


def devices(wanted: str, workers: int | None) -> list[torch.device]:
    """One device per worker: each GPU in turn, or as many times the CPU as there are cores to run on.

    wanted: "auto", or a device as torch writes it, such as "cpu" or "cuda:1". Raises ValueError if it cannot be used.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        first = torch.device(wanted)
        torch.empty(1, device=first)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {wanted}: torch cannot use it ({reason}). Try: --device cpu") from None
    if first.type == "cuda" and first.index is None:
        there = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    elif first.type == "cpu":
        there = [first] * len(os.sched_getaffinity(0))
    else:
        there = [first]
    return [there[i % len(there)] for i in range(workers or len(there))]


def inventory() -> list[str]:
    """What there is to train on, a line for each: for `adamom doctor`."""
    cores = f"device: cpu, {len(os.sched_getaffinity(0))} cores"
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = [f"device: cuda:{i}, {card.name}, {card.total_memory / 2**30:.0f} GiB" for i, card in enumerate(cards)]
    return [f"torch: {torch.__version__}", cores, *(found or ["device: no GPU that torch can use"]), compiling()]


def compiling() -> str:
    """What compiles the steps of many lanes on a CPU."""
    try:
        return f"compiler: {compiler()[0]}"
    except CompilerError as error:
        return f"compiler: {error}; with gcc, lanes of perceptrons would train about twice as fast on a CPU"


@dataclass(frozen=True)
class Job:
    """What every worker of a crew is told.

    url: of the store. study: its name. lanes: None to measure how many. checkpoints: a folder for those of long trials.
    """

    url: str | None
    study: str
    lanes: int | None = None
    checkpoints: Path = FOLDER


def work(job: Job, device: torch.device, max_trials: int | None = None, parent: int | None = None) -> int:
    """Be one worker in this process until nothing is left, or until SIGTERM or Ctrl-C: then give everything back.

    On the CPU a worker uses one core, however many it sees, unless OMP_NUM_THREADS says otherwise: then workers do not
    fight, and no result depends on the machine's size. Numbers below 1e-38 count as zero, with which processors are
    slow: Adam's second moments of weights that hardly ever move are full of them.
    parent: stop as well when the process of that number is gone.
    Returns the number of trials finished.
    """
    told = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True

    def stopped() -> bool:
        return told or (parent is not None and os.getppid() != parent)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
    try:
        with Store.open(job.url, create=False, patience_seconds=PATIENCE_SECONDS) as store:
            study, checkpoints = store.study(job.study), Checkpoints(job.checkpoints)
            return Worker(store, study, device, job.lanes, stopped, checkpoints).work(max_trials)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Crew:
    """Several workers of one study on this machine, started together and watched by their parent.

    Use as a context manager: leaving it asks the workers to give back what they hold, and waits for them.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        self.job, self.devices = job, list(devices)
        self.processes: list[BaseProcess] = []
        self.restarts_left = RESTARTS * len(devices)

    def __enter__(self) -> Crew:
        with Store.open(self.job.url, create=False, patience_seconds=PATIENCE_SECONDS) as store:
            # What an earlier crew of this machine held when it was killed.
            for worker in filter(dead, store.holders(self.job.study)):
                store.bury(self.job.study, worker)
        self.processes = [self._start(device) for device in self.devices]
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                process.terminate()
        for process in self.processes:
            process.join()

    def alive(self) -> bool:
        """Whether anybody is still working. A worker that died of a signal is replaced, and its cells go back at once.

        Raises ChildProcessError when workers end in errors, or die more often than we are willing to replace them.
        """
        for i, process in enumerate(self.processes):
            code = process.exitcode
            if code is None or code == 0:
                continue
            if code > 0:
                raise ChildProcessError(f"A worker ended with exit code {code}: what it printed says why.")
            if self.restarts_left == 0:
                raise ChildProcessError(f"Workers were killed {RESTARTS} times each, last by signal {-code}.")
            self.restarts_left -= 1
            log.warning("worker %s was killed by signal %d: starting another", process.pid, -code)
            with Store.open(self.job.url, create=False, patience_seconds=PATIENCE_SECONDS) as store:
                store.bury(self.job.study, worker_name(process.pid))
            self.processes[i] = self._start(self.devices[i])
        return any(process.exitcode is None for process in self.processes)

    def _start(self, device: torch.device) -> BaseProcess:
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self.job, device, os.getpid()), daemon=True
        )
        process.start()
        return process


def _work(job: Job, device: torch.device, parent: int) -> None:
    """A worker process from beginning to end: errors of the store are one line, ours a traceback."""
    logging.basicConfig(format="adamom: %(message)s", level=logging.WARNING)
    try:
        work(job, device, parent=parent)
    except StoreError as error:
        log.error("%s", error)
        raise SystemExit(2) from None
