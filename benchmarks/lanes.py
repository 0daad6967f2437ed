"""What training many trials as one program gains, beside a plain script with stock Optuna and torch.optim.

    python benchmarks/lanes.py [--json FILE]

The peer is what one would write without this project: `study.optimize`, as many processes as there are cores, each on
an SQLite file of its own (on one file stock processes take the same cells), one trial after another, the same cells
with the same batches, evaluations and learning curves (`trial.report`); torch.optim for constant momenta, adamom's
optimizers where a rule computes it. It trains every twelfth cell of the study, because it is slow; its processes are
ready before its clock starts. Ours trains the whole study through the real workers and the real store, and its clock
runs from before the workers start: calibration is included, and so is compiling, since no worker finds anything that
another run has compiled. Pairs alternate; medians count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from torch.nn import functional as F

import adamom
from storage import Outcome, Point, Store, Study, Trial
from studies import catalog, spec, training, workloads
from studies.calibration import TIMED, WIDTHS, alone, calibrate, timed
from studies.grid import points
from studies.lanes import Pack

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]

CPU = torch.device("cpu")
CORES = len(os.sched_getaffinity(0))
PAIRS = 3
EVERY = 12  # one cell of so many is trained by the peer
GPU_WIDTHS = (1, 8, 64, 512)
GPU_LOOPS = (1, 2, 4, 8, 16)  # plain loops at once
LOOP_SECONDS = 3.0
GPU_WORKLOADS = {"digits": 50.0, "digits-cnn": None, "digits-resnet": 10.0, "chars-gpt": None}  # name -> target


def row(name: str, ours: float | None, peer: float | None, ratio: float | None, target: str, met: bool | None) -> Row:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met}


# ------------------------------------------------------------------------------------------------------ the whole study


def whole_study() -> list[Row]:
    """Trials per second of the study `digits`, ours and the peer's, and how long ours takes."""
    pairs = [(ours(), peer()) for _ in range(PAIRS)]
    cells = sum(1 for _ in points(spec.load("digits")))
    seconds, rates = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = cells / seconds / rates
    return [
        row("digits, trials/s (peer: Optuna + torch.optim)", cells / seconds, rates, ratio, ">= 12 x", ratio >= 12),
        row("digits, whole study, s", seconds, cells / rates, ratio, "<= 40 s", seconds <= 40),
    ]


def ours() -> float:
    """Seconds for the whole study: from before one `adamom work` per core starts until the last has left."""
    study = spec.load("digits")
    with in_new_folder() as folder:
        url = f"sqlite:///{folder / 'adamom.db'}"
        command = [sys.executable, "-m", "cli", "work", study.name, "--store", url, "--device", "cpu"]
        with Store.open(url) as store:
            store.plan(study, points(study))
            began = time.perf_counter()
            fresh = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)}
            workers = [subprocess.Popen(command, env=fresh) for _ in range(CORES)]
            codes = [worker.wait() for worker in workers]
            took = time.perf_counter() - began
            counts = store.counts(study.name)
    assert not any(codes), codes
    assert counts.converged + counts.diverged == counts.total, counts
    return took


def peer() -> float:
    """The plain script's trials per second."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = spec.load("digits")
    cells = list(points(study))[::EVERY]
    with in_new_folder() as folder:
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(CORES + 1)
        queues, processes = [], []
        for i in range(CORES):
            url = f"sqlite:///{folder / f'optuna-{i}.db'}"
            queues.append(optuna.create_study(study_name="digits", storage=url))
            for cell in cells[i::CORES]:
                queues[i].enqueue_trial({"arm": cell.arm, "lr": cell.lr, "seed": cell.seed})
            processes.append(context.Process(target=plain_script, args=(url, len(cells[i::CORES]), ready)))
            processes[i].start()
        ready.wait()
        began = time.perf_counter()
        for process in processes:
            process.join()
        took = time.perf_counter() - began
        done = sum(trial.state == optuna.trial.TrialState.COMPLETE for queue in queues for trial in queue.trials)
    assert done == len(cells), f"the peer finished {done} of {len(cells)} trials"
    return done / took


def plain_script(url: str, trials: int, ready: Barrier) -> None:
    """What one would write without this project."""
    import optuna

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = spec.load("digits")
    workload = workloads.load("digits")
    queue = optuna.load_study(study_name="digits", storage=url)

    def objective(trial: optuna.Trial) -> float:
        arm = study.arm(trial.suggest_categorical("arm", study.arm_names))
        lr = trial.suggest_float("lr", 1e-4, 10.0, log=True)
        seed = trial.suggest_categorical("seed", study.seeds)
        model = workload.initial_model(seed)
        optimizer = plain_optimizer(arm.optimizer, arm.momentum, dict(arm.rule), model, lr)
        order = workload.batch_order(seed, study.budget.steps, study.budget.batch_size)
        final = initial = judged(model, workload)
        for step, batch in enumerate(order, start=1):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(workload.train.inputs[batch]), workload.train.targets[batch])
            loss.backward()
            optimizer.step()
            if step in study.budget.evaluated_at:
                final = judged(model, workload)
                trial.report(final, step)
                if not torch.isfinite(loss):
                    break
        return final if final < initial else initial

    objective_of_nothing(queue, workload)
    ready.wait()
    queue.optimize(objective, n_trials=trials)


def objective_of_nothing(queue: Any, workload: workloads.Workload) -> None:
    """Pay once, before the clock starts, for what torch and Optuna import on first use."""
    model = workload.initial_model(0)
    optimizer = plain_optimizer("adam", None, {"rule": "adaptive"}, model, 1e-3)
    F.cross_entropy(model(workload.train.inputs[:8]), workload.train.targets[:8]).backward()
    optimizer.step()
    len(queue.trials)


def plain_optimizer(
    name: str, momentum: float | None, rule: dict[str, Any], model: nn.Module, lr: float
) -> torch.optim.Optimizer:
    if momentum is None:
        adaptive = adamom.rule(rule.pop("rule"), **rule)
        if name == "sgd":
            return adamom.SGD(model.parameters(), lr=lr, momentum=adaptive)
        return adamom.Adam(model.parameters(), lr=lr, betas=(adaptive, 0.999))
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(momentum, 0.999))


@torch.no_grad()
def judged(model: nn.Module, workload: workloads.Workload) -> float:
    model.eval()
    loss = float(F.cross_entropy(model(workload.validation.inputs), workload.validation.targets))
    model.train()
    return loss


@contextmanager
def in_new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


# -------------------------------------------------------------------------------------------------- the other workloads


def other_workloads() -> Iterator[Row]:
    """The engine that calibration chooses against the plain loop, and what choosing costs."""
    for name in catalog.shipped():
        if name == "digits":
            continue
        study = spec.load(name)
        began = time.perf_counter()
        choice = calibrate(study, CPU)
        cost = time.perf_counter() - began
        loop = min(alone(study, trials_of(study)[0], CPU) for _ in range(2))
        ratio = loop / min(choice.seconds_per_step, loop) if choice.lanes == 1 else loop / choice.seconds_per_step
        engine = "loop" if choice.lanes == 1 else f"{choice.lanes} lanes"
        yield row(
            f"{name}: {engine}, us/step/trial", choice.seconds_per_step * 1e6, loop * 1e6, ratio, ">= 1 x", ratio >= 1
        )
        whole = choice.seconds_per_step * study.budget.steps * len(trials_of(study)) / CORES
        yield row(
            f"{name}: calibration, s (peer: the study)", cost, whole, cost / whole, "<= 3 %", cost <= 0.03 * whole
        )


def together(study: Study, trials: list[Trial], device: torch.device) -> float:
    """Seconds per step and trial of a pack, which trains from one evaluation to the next as it does in a study."""
    pack, budget = Pack(trials, study, device), study.budget
    stretch = min(budget.evaluated_at[0], budget.steps // (2 + TIMED))  # there are batches for so many
    list(pack.advance(2))

    def train() -> None:
        list(pack.advance(pack.steps + stretch))

    return timed(train, device, warm_up=1) / stretch / len(trials)


def trials_of(study: Study) -> list[Trial]:
    return [Trial(i, i, point, Outcome.RUNNING) for i, point in enumerate(points(study))]


def spread(study: Study, lanes: int) -> list[Trial]:
    """So many trials from all over the study; its cells again where it has too few."""
    cells = list(points(study))
    chosen = [cells[i * len(cells) // lanes % len(cells)] for i in range(lanes)]
    return [
        Trial(i, i, Point(cell.arm, cell.lr, cell.momentum, cell.seed), Outcome.RUNNING)
        for i, cell in enumerate(chosen)
    ]


# ------------------------------------------------------------------------------------------------- the limits of a core


def limits() -> Iterator[Row]:
    """The perceptron against the core's own matrix product, and its cost from 64 to 1,000 lanes."""
    study = spec.load("digits")
    one_arm = [trial for trial in trials_of(study) if trial.point.arm == "sgd 0.9"]
    seconds = min(together(study, one_arm[:lanes], CPU) for lanes in WIDTHS["cpu"] for _ in range(3))
    batch, layers = study.budget.batch_size, [(64, 64), (64, 64), (64, 10)]
    products = sum(2 * batch * a * b * 3 for a, b in layers) - 2 * batch * 64 * 64  # no gradient of the input
    peak = product_peak()
    share = products / seconds / peak
    yield row(
        "digits, share of torch.bmm's peak, GFLOP/s",
        products / seconds / 1e9,
        peak / 1e9,
        share,
        ">= 50 %",
        share >= 0.5,
    )

    few, many = (min(together(study, spread(study, lanes), CPU) for _ in range(3)) for lanes in (64, 1000))
    flat = many / few
    yield row("us/step/trial, 1,000 lanes (peer: 64)", many * 1e6, few * 1e6, flat, "<= 1.1 x", flat <= 1.1)

    measured, predicted = (
        statistics.mean(column) for column in zip(*(memory(lanes) for lanes in (256, 1000)), strict=True)
    )
    near = measured / predicted
    yield row(
        "MB/lane, 256 to 1,000 (peer: predicted)",
        measured / 1e6,
        predicted / 1e6,
        near,
        "0.8 to 1.2 x",
        0.8 <= near <= 1.2,
    )


def product_peak() -> float:
    """Floating-point operations per second of torch.bmm on the perceptron's products."""
    a, b = torch.randn(128, 64, 64), torch.randn(128, 64, 64)
    best = float("inf")
    for _ in range(50):
        began = time.perf_counter()
        torch.bmm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * 128 * 64**3 / best


def memory(lanes: int) -> tuple[float, float]:
    """Bytes per lane that a process needs at its peak beyond what it needs for two lanes, and the prediction."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--memory", str(lanes)], capture_output=True, text=True, check=True
    )
    measured, predicted = json.loads(done.stdout)
    return measured, predicted


def print_memory(lanes: int) -> None:
    study = spec.load("digits")
    walk(Pack(spread(study, 2), study, CPU))
    before = resident("VmRSS")
    pack = Pack(spread(study, lanes), study, CPU)
    walk(pack)
    print(json.dumps([(resident("VmHWM") - before) / lanes, pack.bytes_per_lane()]))


def resident(word: str) -> int:
    """Bytes of memory this process has (VmRSS), or has had at most since it was started (VmHWM)."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said[word].split()[0]) * 1024


def walk(pack: Pack) -> None:
    list(pack.evaluate())
    for _ in range(4):
        pack.step()
    list(pack.evaluate())


# --------------------------------------------------------------------------------------------------------------- a GPU


def on_gpu() -> Iterator[Row]:
    """Steps of one trial per second: K lanes against the plain loop on the same GPU, and against many loops at once."""
    for name, target in GPU_WORKLOADS.items():
        wanted = f">= {target:g} x" if target else ""
        if not torch.cuda.is_available():
            yield row(f"{name} on a GPU, steps/s", None, None, None, wanted, None)
            continue
        device, study = torch.device("cuda"), spec.load(name)
        loop = 1 / alone(study, trials_of(study)[0], device)
        rates = {lanes: 1 / together(study, spread(study, lanes), device) for lanes in GPU_WIDTHS}
        for lanes, rate in rates.items():
            met = rate >= target * loop if target and rate == max(rates.values()) else None
            yield row(f"{name} on a GPU, {lanes} lanes, steps/s", rate, loop, rate / loop, wanted, met)
        best, crowd = max(rates.values()), max(at_once(name, loops, device) for loops in GPU_LOOPS)
        yield row(f"{name} on a GPU (peer: loops at once)", best, crowd, best / crowd, "> 1 x", best > crowd)


def at_once(name: str, loops: int, device: torch.device) -> float:
    """Steps per second of so many plain loops together, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ready, counted = context.Barrier(loops), context.SimpleQueue()
    processes = [context.Process(target=one_of_many, args=(name, str(device), ready, counted)) for _ in range(loops)]
    for process in processes:
        process.start()
    rates = [counted.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def one_of_many(name: str, device: str, ready: Barrier, counted: Any) -> None:
    torch.set_num_threads(1)
    study, on = spec.load(name), torch.device(device)
    endless = replace(study, budget=replace(study.budget, steps=100_000))
    steps = (event for event in training.train(trials_of(study)[0].point, endless, on) if event is None)
    for _ in range(20):
        next(steps)
    ready.wait()
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < LOOP_SECONDS:
        next(steps)
        taken += 1
    if on.type == "cuda":
        torch.cuda.synchronize()
    counted.put(taken / (time.perf_counter() - began))


def show(found: Row) -> None:
    numbers = [f"{found[key]:12.3f}" if found[key] is not None else f"{'not measured':>12}" for key in ("ours", "peer")]
    ratio = f"{found['ratio']:8.2f}" if found["ratio"] is not None else " " * 8
    met = {True: "met", False: "MISSED", None: ""}[found["met"]]
    print(f"{found['name']:<50}", *numbers, ratio, f"{found['target']:>13}", met, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What training many trials as one program gains.")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print_memory(options.memory)
        return
    print(f"{'':<50} {'ours':>12} {'peer':>12} {'ratio':>8} {'target':>13}")
    rows: list[Row] = []
    for part in (limits, other_workloads, on_gpu, whole_study):
        for found in part():
            show(found)
            rows.append(found)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
