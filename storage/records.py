"""The words that cross between the rooms: the glossary of the service.

Every value here is frozen and refuses to be built wrong. Nothing in this file holds a connection, a device or a
figure, so any of it may be kept, compared, printed or sent to another process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arm",
    "Axis",
    "Budget",
    "Counts",
    "Curve",
    "Outcome",
    "Planned",
    "Point",
    "Precision",
    "Result",
    "Study",
    "Trial",
]

Floats = NDArray[np.float32]


class Outcome(StrEnum):
    """What became of a cell. A diverged run is a result; a lost one is not."""

    WAITING = "waiting"  # planned, nobody has it
    RUNNING = "running"  # a worker holds its lease
    CONVERGED = "converged"  # finite final loss below the loss at initialisation
    DIVERGED = "diverged"  # non-finite loss, or a final loss no better than at initialisation
    PRUNED = "pruned"  # stopped early by a pruner: a result up to that step
    LOST = "lost"  # its worker died; the cell is back in the queue, same seed
    OOM = "oom"  # does not fit on the device even alone
    FAILED = "failed"  # the workload's code raised, as often as we were willing to try

    @property
    def finished(self) -> bool:
        """Nobody will train this cell again unless somebody asks for it."""
        return self not in (Outcome.WAITING, Outcome.RUNNING, Outcome.LOST)

    @property
    def measured(self) -> bool:
        """The cell has a loss that metrics may use."""
        return self in (Outcome.CONVERGED, Outcome.DIVERGED)


@dataclass(frozen=True, slots=True)
class Axis:
    """One hyperparameter's values, ascending and without repeats.

    Raises ValueError when there are no values, or when they are not finite, ascending and (on a log axis) positive.
    """

    name: str
    values: tuple[float, ...]
    log: bool = True

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"An axis needs at least one value: {self.name!r} has none.")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"The values of {self.name!r} must be finite: got {self.values}.")
        if any(after <= before for before, after in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"The values of {self.name!r} must ascend without repeats: got {self.values}.")
        if self.log and self.values[0] <= 0:
            raise ValueError(f"The values of {self.name!r} are on a log axis and must be > 0: got {self.values[0]}.")


Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a trial trains, how often it is looked at, and how precisely it computes (see `studies.precision`)."""

    steps: int
    evaluations: int
    batch_size: int
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "evaluations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"A budget needs {name} >= 1: got {getattr(self, name)}.")
        if self.evaluations > self.steps:
            raise ValueError(f"A trial of {self.steps} steps cannot be evaluated {self.evaluations} times.")

    @property
    def evaluated_at(self) -> tuple[int, ...]:
        """The steps after which the validation set is looked at, the last step always among them."""
        return tuple(round(self.steps * k / self.evaluations) for k in range(1, self.evaluations + 1))


@dataclass(frozen=True, slots=True)
class Arm:
    """One optimizer as it is compared: everything about it but the learning rate and the seed.

    family: arms that differ only in their momentum; they share one surface.
    momentum: the constant, or None when a rule computes it.
    rule: the rule's own words from the study file, such as {"rule": "adaptive", "smoothing": 0.999}; {} for a constant.
    options: what else the optimizer was given, such as {"weight_decay": 5e-4}.
    damped: the velocity is an average of gradients (Adam), so the effective learning rate is the learning rate itself;
        an undamped heavy ball (SGD) sums them, and its effective learning rate is lr / (1 - momentum).
    """

    name: str
    family: str
    optimizer: str
    momentum: float | None
    lr: Axis
    rule: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    damped: bool = False

    @property
    def adaptive(self) -> bool:
        return self.momentum is None

    @property
    def definition(self) -> dict[str, Any]:
        """What must not change while the arm keeps its name."""
        return {
            "optimizer": self.optimizer,
            "momentum": self.momentum,
            "rule": dict(self.rule),
            "options": dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class Study:
    """A question, and the grid of trials that answers it.

    text: the study file, verbatim, so that a report can show what was asked.
    """

    name: str
    question: str
    workload: str
    budget: Budget
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    text: str = ""

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError(f"A study compares arms: {self.name!r} has none.")
        if not self.seeds:
            raise ValueError(f"A study repeats its cells over seeds: {self.name!r} has none.")
        for name in (self.name, *(arm.name for arm in self.arms)):
            if not name.strip() or not name.isprintable():
                raise ValueError(f"A name is a line of printable characters, not all blank: got {name!r}.")
        for what, names in (("arms", [arm.name for arm in self.arms]), ("seeds", list(self.seeds))):
            if len(set(names)) != len(names):
                raise ValueError(f"The {what} of {self.name!r} must differ from each other: got {names}.")

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises KeyError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"Study {self.name!r} has no arm {name!r}. Its arms: {', '.join(self.arm_names)}.")

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.arms)

    @property
    def fixed(self) -> dict[str, Any]:
        """What must not change while the study keeps its name. Arms, rates and seeds may be added at any time."""
        return {"workload": self.workload, "budget": asdict(self.budget)}


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the grid: what is trained. Within a study, (arm, lr, seed) says everything.

    momentum repeats the arm's constant (None when a rule computes it), for the eyes of Optuna's dashboard.
    """

    arm: str
    lr: float
    momentum: float | None
    seed: int

    @property
    def key(self) -> str:
        """The cell's name, unique within its study and equal on every machine."""
        return f"{self.arm}|lr={self.lr!r}|seed={self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What one trial measured, one entry per evaluation: five read-only arrays of shape (evaluations,).

    steps: optimizer steps taken so far; 0 is the model at initialisation.
    train_loss: mean over the minibatches since the entry before; nan at step 0.
    validation_loss, validation_accuracy: on the whole validation set; accuracy is nan where a workload has none.
    momentum: mean of beta over the steps since the entry before, over tensors where each has its own; nan at step 0.

    Equal when every entry is, nan being equal to nan.
    """

    steps: NDArray[np.int32]
    train_loss: Floats
    validation_loss: Floats
    validation_accuracy: Floats
    momentum: Floats

    def __post_init__(self) -> None:
        for each in fields(self):
            dtype = np.int32 if each.name == "steps" else np.float32
            column = np.array(getattr(self, each.name), dtype=dtype, ndmin=1)
            if len(column) != len(np.atleast_1d(self.steps)):
                raise ValueError(
                    f"A curve needs one {each.name} per step: got {len(np.atleast_1d(self.steps))} steps "
                    f"and {len(column)} of {each.name}."
                )
            column.flags.writeable = False
            object.__setattr__(self, each.name, column)

    @classmethod
    def empty(cls) -> Self:
        return cls(*([()] * 5))  # type: ignore[arg-type]

    @classmethod
    def entry(cls, step: int, train_loss: float, validation_loss: float, accuracy: float, momentum: float) -> Self:
        """A curve of one evaluation."""
        columns = ([value] for value in (step, train_loss, validation_loss, accuracy, momentum))
        return cls(*columns)  # type: ignore[arg-type]

    @classmethod
    def join(cls, curves: Sequence[Curve]) -> Self:
        """The curves one after another, as one. A step that was measured twice, by a trial begun again, counts once."""
        if not curves:
            return cls.empty()
        columns = [np.concatenate([getattr(curve, each.name) for curve in curves]) for each in fields(cls)]
        if (np.diff(columns[0]) <= 0).any():
            _, once = np.unique(columns[0], return_index=True)
            columns = [column[once] for column in columns]
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name), equal_nan=f.name != "steps")
            for f in fields(self)
        )


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended.

    initial_loss, final_loss, best_loss: validation loss at initialisation, at the end (raw: nan or inf if so; the
        training loss where that one broke first) and the lowest finite one seen.
    final_accuracy: share of the validation set classified rightly at the end; nan where a workload has none.
    mean_momentum: mean of beta over every step taken.
    diverged_at: the first step with a non-finite training loss, or the last step when the final loss is no better than
        the initial one; None unless diverged.
    error: the traceback of a failed trial.
    provenance: what it ran on: device, software versions, commit, engine.
    """

    outcome: Outcome
    steps: int = 0
    initial_loss: float = math.nan
    final_loss: float = math.nan
    best_loss: float = math.nan
    final_accuracy: float = math.nan
    mean_momentum: float = math.nan
    diverged_at: int | None = None
    seconds: float = math.nan
    error: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outcome.finished:
            raise ValueError(f"A result says how a trial ended: {self.outcome.value!r} has not.")

    @property
    def capped_loss(self) -> float:
        """The loss that metrics and Optuna see: the final loss, or the initial one of a run that did no better.

        Wortsman et al. (2023, arXiv 2309.14322, section 2.2) cap the loss at initialisation in the same way.
        """
        better = self.outcome is not Outcome.DIVERGED and self.final_loss < self.initial_loss
        return self.final_loss if better else self.initial_loss


@dataclass(frozen=True, slots=True)
class Trial:
    """A planned cell and what became of it.

    id: the trial's row in the store. number: its number in Optuna's pages.
    attempt: how often it has been claimed; also the fencing token: a worker that lost its lease holds an old one.
    result: None until it is finished.
    """

    id: int
    number: int
    point: Point
    outcome: Outcome
    attempt: int = 0
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan did: how many cells it added, and how many were there already."""

    added: int
    present: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How many cells of a study stand where."""

    waiting: int = 0
    running: int = 0
    converged: int = 0
    diverged: int = 0
    pruned: int = 0
    lost: int = 0
    oom: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, outcome.value) for outcome in Outcome)

    @property
    def finished(self) -> int:
        return sum(getattr(self, outcome.value) for outcome in Outcome if outcome.finished)

    def as_dict(self) -> dict[str, int]:
        """The contract of `adamom status --json`."""
        return {outcome.value: getattr(self, outcome.value) for outcome in Outcome} | {"total": self.total}
