"""How many trials to train as one program: measured here and now, the plain loop included.

The answer depends on the model and on the device: on a CPU perceptrons train fastest as many at a time as a core's
cache holds, recurrent models alone; on a GPU nearly every small model likes company. So a few steps of each are timed,
the widths growing while that pays.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from storage.records import Outcome, Study, Trial
from studies import arms, training
from studies.grid import points
from studies.lanes import Pack

__all__ = ["Choice", "calibrate"]

log = logging.getLogger(__name__)

WIDTHS = {"cpu": (8, 16, 32), "cuda": (8, 32, 128, 512)}  # on a CPU wider packs take their steps a few lanes at a time
WARM_UP, TIMED = 2, 6  # steps, at most
ENOUGH_SECONDS = 0.1  # of timed steps: long ones differ less from each other
LOOKS = 2  # at each width, with the other widths between them
COST = (LOOKS + 1) * (WARM_UP + TIMED)  # of trying one lane, in steps of a trial; writing the program down is one more
SHARE = 0.015  # of the study's steps may be spent on finding the width; two workers each find it for themselves
HOPELESS = 1.5  # once a pack is so many times slower per trial than the best, wider ones are not tried


@dataclass(frozen=True)
class Choice:
    """How many lanes to train at once (1 is the plain loop), and how long a step of one trial then takes."""

    lanes: int
    seconds_per_step: float
    loop_seconds_per_step: float

    def __str__(self) -> str:
        engine = f"{self.lanes} lanes" if self.lanes > 1 else "the plain loop"
        times = self.loop_seconds_per_step / self.seconds_per_step
        return f"{engine}: {self.seconds_per_step * 1e6:.0f} us per step and trial, {times:.1f}x the plain loop"


def calibrate(study: Study, device: torch.device) -> Choice:
    """The fastest way to train this study's trials on this device. Logs its choice, and why when it is the loop."""
    every = [Trial(i, i, point, Outcome.RUNNING) for i, point in enumerate(points(study))]
    trials = [trial for trial in every if arms.fits_lanes(study.arm(trial.point.arm))]
    affordable = SHARE * len(trials) * study.budget.steps
    study = replace(study, budget=replace(study.budget, steps=max(study.budget.steps, LOOKS * (WARM_UP + TIMED))))
    loop = alone(study, (trials or every)[0], device)
    seconds, packs = {1: loop}, dict[int, Pack]()
    budget, lane = memory_budget(device), 0.0
    for width in WIDTHS.get(device.type, WIDTHS["cpu"]):
        if width > len(trials) or COST * width > affordable or width * lane > budget:
            break
        try:
            pack = Pack(trials[:: len(trials) // width][:width], study, device)
            seconds[width] = timed(pack.step, device) / width
            lane = lane or pack.bytes_per_lane()
        except Exception as error:  # whatever vmap cannot express: the loop can
            log.info("%s cannot be trained in lanes (%s: %s)", study.workload, type(error).__name__, error)
            break
        if seconds[width] > HOPELESS * min(seconds.values()):
            break
        packs[width] = pack
    if device.type == "cpu":  # where a neighbour's work may have slowed one of them down, and not the others
        for width, pack in packs.items():
            seconds[width] = min(seconds[width], timed(pack.step, device, warm_up=1) / width)
    lanes = min(seconds, key=seconds.__getitem__)
    best = Choice(lanes, seconds[lanes], loop)
    log.info("%s on %s: %s", study.workload, device, best)
    return best


def alone(study: Study, trial: Trial, device: torch.device) -> float:
    """Seconds per step of the plain loop."""
    steps = (event for event in training.train(trial.point, study, device) if event is None)
    return timed(lambda: next(steps), device)


def memory_budget(device: torch.device) -> float:
    """Bytes that a pack may take: most of what a GPU has free; of the machine's memory this worker's share of half."""
    if device.type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.5 * free / len(os.sched_getaffinity(0))


def timed(step: Callable[[], object], device: torch.device, warm_up: int = WARM_UP) -> float:
    """The time of the fastest step: whatever else the machine does can only add to it.

    On the CPU it is the time this process was given, not the time that passed: on a busy machine a long step, of a wide
    pack, is interrupted more often than a short one, and would look slower than it is.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: list[float] = []
    while len(seconds) < warm_up + TIMED and sum(seconds[warm_up:]) < ENOUGH_SECONDS:
        started = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    return min(seconds[warm_up:])
