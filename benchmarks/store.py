"""What the store costs: plan, claim, record, finish and read, beside stock Optuna on the same server in the same run.

    python benchmarks/store.py [--json FILE]

The server is a PostgreSQL of its own with its default settings (every commit waits for the disk). A trial of the no-op
objective records ten evaluations in one piece and finishes, and its worker claims the next ones in the same
transaction, as ours do between two packs; the peer asks, reports the same ten values and tells. The peer is too slow
for whole grids: it works for a few seconds at a full queue of the same length, or on a tenth of the trials, as each row
says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg

from storage import Arm, Axis, Budget, Curve, Outcome, Point, Result, Store, Study
from tests.postgres import Postgres

SECONDS = 6.0  # how long a rate is measured, unless the grid ends before
PEER_SECONDS = 10.0
EVALUATIONS = 10
RESULT = Result(
    Outcome.CONVERGED, 100, 2.3, 0.25, 0.2, 0.95, 0.9, None, 1.5, None, {"device": "cpu", "commit": "0" * 40}
)


def study_of(cells: int, name: str, evaluations: int = EVALUATIONS) -> Study:
    """A study of this many cells, a multiple of 20: four arms, five seeds, the rest learning rates."""
    rates = Axis("lr", tuple(10 ** (-5 + 7 * i * 20 / cells) for i in range(cells // 20)))
    arms = tuple(Arm(f"sgd-{momentum}", "sgd", "sgd", momentum, rates) for momentum in (0.0, 0.5, 0.9, 0.99))
    return Study(name, "How fast?", "none", Budget(100, evaluations, 1), arms, seeds=(0, 1, 2, 3, 4))


def points_of(study: Study) -> list[Point]:
    """Every cell of the study."""
    return [
        Point(arm.name, lr, arm.momentum, seed) for arm in study.arms for lr in arm.lr.values for seed in study.seeds
    ]


def curve_of(evaluations: int) -> Curve:
    """As many evaluations, the last at step 100."""
    steps = [100 * k // evaluations for k in range(1, evaluations + 1)]
    losses = [2.3 * 0.97**k for k in range(evaluations)]
    return Curve(steps, losses, losses, [0.5] * evaluations, [0.9] * evaluations)  # type: ignore[arg-type]


def row(name: str, ours: float, peer: float | None, target: float, *, least: bool = False) -> dict[str, Any]:
    """A line of the table. least: the target is the least, not the most, that `ours` may be."""
    ratio = None if peer is None else (ours / peer if least else peer / ours)
    met = ours >= target if least else ours <= target
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met}


def seconds(act: Callable[[], Any]) -> float:
    """How long it took."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


# --- working ----------------------------------------------------------------------------------------------------------


def work(url: str, name: str, k: int, ready: Barrier) -> tuple[int, float, float]:
    """Claim, record and finish k trials at a time: how many, from when to when."""
    curve = curve_of(EVALUATIONS)
    with Store.open(url, create=False) as store:
        store.counts(name)
        ready.wait()
        start, done = time.time(), 0
        held = store.claim(name, k, worker=str(os.getpid()))
        while held:
            measured, ended = [(trial, curve) for trial in held], [(trial, RESULT) for trial in held]
            done += len(held)
            if time.time() - start < SECONDS:  # as a worker goes from one pack to the next
                held, lost = store.exchange(name, k, worker=str(os.getpid()), measured=measured, ended=ended)
            else:
                held, lost = (), store.deliver(measured, ended)
            done -= len(lost)
        return done, start, time.time()


def work_stock(url: str, name: str, _: int, ready: Barrier) -> tuple[int, float, float]:
    """The same by stock Optuna, one at a time, for it knows no other way."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    study = optuna.load_study(study_name=name, storage=storage)
    curve = curve_of(EVALUATIONS)
    ready.wait()
    start, done = time.time(), 0
    while time.time() - start < PEER_SECONDS:
        trial = study.ask()
        for step, loss in zip(curve.steps.tolist(), curve.validation_loss.tolist(), strict=True):
            trial.report(loss, step)
        study.tell(trial, RESULT.capped_loss)
        done += 1
    return done, start, time.time()


def rate(act: Callable[..., tuple[int, float, float]], url: str, name: str, k: int, processes: int) -> float:
    """Trials per second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        ready = manager.Barrier(processes)
        done = pool.starmap(act, [(url, name, k, ready)] * processes)
    return sum(n for n, _, _ in done) / (max(end for _, _, end in done) - min(start for _, start, _ in done))


def planned(url: str, cells: int, name: str) -> float:
    """Plan a study of this many cells: the seconds it took."""
    study = study_of(cells, name)
    points = points_of(study)
    with Store.open(url) as store:
        return seconds(lambda: store.plan(study, points))


def check_once(url: str, name: str, cells: int) -> bool:
    """Whether every cell was run exactly once, and Optuna's tables hold no other trial."""
    with Store.open(url) as store:
        ours = [trial.attempt for trial in store.trials(name)] == [1] * cells
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE state = 'COMPLETE') FROM trials JOIN studies USING (study_id) "
            "WHERE study_name = %s",
            [name],
        ).fetchone()
    return ours and found == (cells, cells)


def planning(server: Postgres) -> list[dict[str, Any]]:
    """Rows of plan against enqueue_trial."""
    import optuna

    stock = optuna.create_study(storage=server.create_database("enqueue").replace("postgresql:", "postgresql+psycopg:"))
    points = points_of(study_of(300, "enqueue"))
    parameters = [{"arm": point.arm, "lr": point.lr, "seed": point.seed} for point in points]

    def enqueue() -> None:
        for given in parameters:
            stock.enqueue_trial(given)

    each = seconds(enqueue) / len(parameters)
    return [
        row(
            f"plan {cells:,} cells, s (peer: enqueue_trial, from {len(points)})",
            planned(server.create_database(f"plan{cells}"), cells, "big"),
            each * cells,
            target,
        )
        for cells, target in ((10_000, 1.5), (100_000, 15.0))
    ]


def working(server: Postgres) -> list[dict[str, Any]]:
    """Rows of claim + record + finish against ask + report + tell."""
    url = server.create_database("peer")
    planned(url, 10_000, "peer")
    peer = {processes: rate(work_stock, url, "peer", 1, processes) for processes in (1, 8)}
    rows = []
    for k, target, cases in (
        (16, 3000.0, ((1, 1_000), (1, 10_000), (2, 10_000), (8, 10_000), (1, 100_000), (2, 100_000), (8, 100_000))),
        (1, 300.0, ((1, 1_000), (1, 10_000), (2, 10_000), (8, 10_000), (1, 100_000))),
    ):
        for processes, cells in cases:
            name = f"work{k}_{processes}_{cells}"
            url = server.create_database(name)
            planned(url, cells, name)
            ours = rate(work, url, name, k, processes)
            which = f"trials/s, claims of {k}, {processes} processes, {cells:,} cells (peer: at 10,000)"
            rows.append(row(which, ours, peer[8 if processes == 8 else 1], target, least=True))
            if k == 16 and cells == 10_000:
                with Store.open(url) as store:
                    left = store.unfinished(name)
                if left == 0:
                    once = check_once(url, name, cells)
                    rows.append(
                        row(f"cells run more or less than once, {processes} processes", float(not once), None, 0.0)
                    )
            server.drop_database(name)
    return rows


# --- recording and reading --------------------------------------------------------------------------------------------


def recording(server: Postgres) -> list[dict[str, Any]]:
    """The row of one curve of 100 points against 100 reports."""
    import optuna

    url, study = server.create_database("curves"), study_of(1_000, "curves", evaluations=100)
    curve = curve_of(100)
    with Store.open(url) as store:
        store.plan(study, points_of(study))
        trials = store.claim("curves", 60, worker="me")
        store.record([(trials[0], curve)])
        ours = sorted(seconds(lambda t=trial: store.record([(t, curve)])) for trial in trials[1:51])[25]  # type: ignore[misc]
        whole = sorted(seconds(lambda: store.record([(t, curve) for t in trials[:50]])) / 50 for _ in range(5))[2]
    stock = optuna.create_study(storage=url.replace("postgresql://", "postgresql+psycopg://"))
    losses = curve.validation_loss.tolist()

    def report() -> None:
        trial = stock.ask()
        for step, loss in enumerate(losses):
            trial.report(loss, step)

    report()
    peer = sorted(seconds(report) for _ in range(5))[2]
    return [
        row("100 curve points of one trial, ms (target: a fiftieth of 100 reports)", ours * 1e3, peer * 1e3, peer * 20),
        row("100 curve points, 50 trials at once, ms per trial", whole * 1e3, peer * 1e3, peer * 20),
    ]


def fill(store: Store, name: str, cells: int) -> None:
    """Finish every cell with a curve of 100 points."""
    curve = curve_of(100)
    study = study_of(cells, name, evaluations=100)
    store.plan(study, points_of(study))
    while held := store.claim(name, 1_000, worker="me"):
        store.deliver([(trial, curve) for trial in held], [(trial, RESULT) for trial in held])


def reading(server: Postgres) -> list[dict[str, Any]]:
    """Rows of reading everything for a report, and of status."""
    import optuna

    url, rows = server.create_database("reading"), []
    with Store.open(url) as store:
        fill(store, "thousand", 1_000)
        with psycopg.connect(url) as connection:  # what the peer would hold: every point as an intermediate value
            connection.execute("DELETE FROM trial_intermediate_values")
            connection.execute(
                "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
                "SELECT trial_id, step, 0.5, 'FINITE' FROM trials, generate_series(1, 100) AS step"
            )
        storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
        stock = optuna.load_study(study_name="thousand", storage=storage)
        peer = seconds(stock.get_trials) / 1_000
        summaries = seconds(lambda: optuna.get_all_study_summaries(storage))
        for cells, target in ((10_000, 2.0), (100_000, 15.0)):
            name = f"read{cells}"
            fill(store, name, cells)
            ours = seconds(lambda name=name: (store.trials(name), store.curves(name)))  # type: ignore[misc]
            rows.append(row(f"read {cells:,} trials x 100 points, s (peer: from 1,000)", ours, peer * cells, target))
        ours = sorted(seconds(lambda: store.counts("read100000")) for _ in range(5))[2]
        rows.append(row("status of 100,000 cells, s (peer: summaries of 1,000 trials)", ours, summaries, 0.2))
    return rows


def line(each: dict[str, Any]) -> str:
    """One row of the table."""
    peer, ratio = ("", "") if each["peer"] is None else (f"{each['peer']:.3f}", f"{each['ratio']:.1f}x")
    verdict = "met" if each["met"] else "NOT MET"
    return f"{each['name']:<76}{each['ours']:>10.3f}{peer:>12}{ratio:>10}{each['target']:>10.2f}  {verdict}"


def main() -> None:
    """Measure, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", choices=["planning", "working", "recording", "reading"], help="one part")
    arguments = parser.parse_args()
    parts = {"planning": planning, "working": working, "recording": recording, "reading": reading}
    rows: list[dict[str, Any]] = []
    print(f"load of this machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with Postgres.start() as server:
        for part, measure in parts.items():
            if arguments.only in (None, part):
                for each in measure(server):
                    rows.append(each)
                    print(line(each), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    main()
