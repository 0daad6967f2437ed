"""A worker whose training is a sleep: python worker.py URL NAME TRIALS SECONDS LEASE_SECONDS

Claims TRIALS at once, measures each in ten evaluations over SECONDS, finishes them, until nothing is left. SIGTERM
makes it give back what it holds and leave. It says on stdout when it waits for the database.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time

from storage import Curve, Outcome, Result, Store

STEPS = list(range(4, 41, 4))


class Stopped(BaseException):
    """SIGTERM arrived."""


def stop(*_: object) -> None:
    raise Stopped


def work(store: Store, name: str, k: int, seconds: float, lease_seconds: float) -> None:
    """Claim, record and finish until nothing is left."""
    me = f"worker {os.getpid()}"
    while store.unfinished(name):
        held = store.claim(name, k, worker=me, lease_seconds=lease_seconds)
        try:
            for step in STEPS:
                if not held:
                    break
                measured = Curve([step], [math.nan], [1.0 / step], [0.5], [0.9])  # type: ignore[arg-type]
                lost = {trial.id for trial in store.record([(trial, measured) for trial in held])}
                held = tuple(trial for trial in held if trial.id not in lost)
                time.sleep(seconds / len(STEPS))
            ended = Result(Outcome.CONVERGED, 40, 2.0, 1.0, 1.0, provenance={"worker": me})
            store.finish([(trial, ended) for trial in held])
        except Stopped:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            store.release(held)
            raise
        if not held:
            time.sleep(0.05)


def main() -> None:
    """The command line above."""
    url, name, k, seconds, lease_seconds = sys.argv[1:]
    signal.signal(signal.SIGTERM, stop)
    patience = {"patience_seconds": 60.0, "on_wait": lambda trouble, wait: print(f"waiting: {trouble}", flush=True)}
    with Store.open(url, **patience) as store:  # type: ignore[arg-type]
        try:
            work(store, name, int(k), float(seconds), float(lease_seconds))
        except Stopped:
            print("stopped", flush=True)


if __name__ == "__main__":
    main()
