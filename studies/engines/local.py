"""Workers as processes of this machine: one per GPU, or one per CPU core."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from types import FrameType

import torch

from storage import Store, StoreError
from storage.connection import PATIENCE_SECONDS
from studies.worker import Worker, dead, worker_name

__all__ = ["Crew", "devices", "work"]

log = logging.getLogger(__name__)

RESTARTS = 3  # per worker: a machine that kills its processes again and again needs a person


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


def work(
    url: str | None, study: str, device: torch.device, lanes: int | None = None, max_trials: int | None = None,
    threads: int | None = None, parent: int | None = None,
) -> int:  # fmt: skip
    """Be one worker in this process until nothing is left, or until SIGTERM or Ctrl-C: then give everything back.

    threads: how many CPU threads torch may use. parent: stop as well when the process of that number is gone.
    Returns the number of trials finished.
    """
    told = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True

    def stopped() -> bool:
        return told or (parent is not None and os.getppid() != parent)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    if threads is not None:
        torch.set_num_threads(threads)
    Store.open(url, create=False).close()  # a wrong address is a mistake, a database that goes away later is not
    try:
        with Store.open(url, create=False, patience_seconds=PATIENCE_SECONDS) as store:
            worker = Worker(store, store.study(study), device, lanes, stopped)
            return worker.work(max_trials)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Crew:
    """Several workers of one study on this machine, started together and watched by their parent.

    Use as a context manager: leaving it asks the workers to give back what they hold, and waits for them.
    """

    def __init__(self, url: str | None, study: str, devices: Sequence[torch.device], lanes: int | None = None) -> None:
        self.url, self.study, self.devices, self.lanes = url, study, list(devices), lanes
        self.processes: list[BaseProcess] = []
        self.restarts_left = RESTARTS * len(devices)

    def __enter__(self) -> Crew:
        with Store.open(self.url, create=False) as store:  # what an earlier crew held when it was killed
            for worker in filter(dead, store.holders(self.study)):
                store.bury(self.study, worker)
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
            with Store.open(self.url, create=False) as store:
                store.bury(self.study, worker_name(process.pid))
            self.processes[i] = self._start(self.devices[i])
        return any(process.exitcode is None for process in self.processes)

    def _start(self, device: torch.device) -> BaseProcess:
        # Workers on the CPU share its cores evenly; one thread each is fastest for small models.
        on_cpu = sum(other.type == "cpu" for other in self.devices)
        threads = max(1, len(os.sched_getaffinity(0)) // on_cpu) if device.type == "cpu" else None
        process = multiprocessing.get_context("spawn").Process(
            target=_work,
            args=(self.url, self.study, device, self.lanes, threads, os.getpid()),
            daemon=True,
        )
        process.start()
        return process


def _work(
    url: str | None, study: str, device: torch.device, lanes: int | None, threads: int | None, parent: int
) -> None:
    """A worker process from beginning to end: errors of the store are one line, ours a traceback."""
    try:
        work(url, study, device, lanes, threads=threads, parent=parent)
    except StoreError as error:
        log.error("%s", error)
        raise SystemExit(2) from None
