"""A study file becomes a Study. Every complaint names the file, the table and the key.

question = "Does adaptive momentum survive larger learning rates?"
workload = "digits"
seeds = 3                        # 0, 1 and 2; or a list such as [7, 8, 9]

[budget]
steps = 420
evaluations = 20                 # of the validation set, evenly spread, the last step among them
batch_size = 64

[lr]
low = 1e-4                       # equally spaced in log space, both ends included
high = 10.0
points = 21                      # or, instead of the three: values = [0.01, 0.1, 1.0]

[arms.sgd]                       # a family; one arm for each momentum
optimizer = "sgd"
momentum = [0.0, 0.9, "adaptive", { rule = "adaptive", smoothing = 0.999 }]
weight_decay = 5e-4              # any other argument of the optimizer
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from storage.records import Arm, Axis, Budget, Study
from studies import arms, catalog, workloads
from studies.catalog import StudyFileError, suggestion

__all__ = ["StudyFileError", "load", "parse"]

DIGITS_OF_A_RATE = 6  # enough to tell grid points apart, few enough to print and to compare exactly

Name = Annotated[str, Field(min_length=1, max_length=120)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Momentum = float | str | dict[str, Any]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Lr(_Table):
    low: Rate | None = None
    high: Rate | None = None
    points: Count | None = None
    values: Annotated[list[Rate], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def one_way_of_saying_it(self) -> _Lr:
        ends = (self.low, self.high, self.points)
        if (self.values is None) == (ends == (None, None, None)) or (self.values is None and None in ends):
            raise ValueError("needs either low, high and points, or values")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low must not be above high: got low = {self.low} and high = {self.high}")
        if self.points == 1 and self.low != self.high:
            raise ValueError(f"one point cannot reach from low = {self.low} to high = {self.high}: say points >= 2")
        return self

    def axis(self) -> Axis:
        if self.values is not None:
            return Axis("lr", tuple(sorted(set(self.values))))
        return Axis("lr", log_spaced(self.low or 0, self.high or 0, self.points or 0))  # none of them is None here


class _Budget(_Table):
    steps: Count
    evaluations: Count
    batch_size: Count


class _Arms(_Table):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    optimizer: str
    momentum: Momentum | Annotated[list[Momentum], Field(min_length=1)]
    lr: _Lr | None = None

    def family(self, name: str, lr: Axis) -> Iterator[Arm]:
        """One arm for each momentum of this table."""
        for momentum in self.momentum if isinstance(self.momentum, list) else [self.momentum]:
            axis = self.lr.axis() if self.lr else lr
            yield arms.arm(name, self.optimizer, momentum, axis, self.model_extra or {})


class _File(_Table):
    name: Name | None = None
    question: Name
    workload: str
    seeds: Count | Annotated[list[int], Field(min_length=1)]
    budget: _Budget
    lr: _Lr
    arms: Annotated[dict[str, _Arms], Field(min_length=1)]

    @field_validator("workload")
    @classmethod
    def is_known(cls, workload: str) -> str:
        if workload not in workloads.known():
            raise ValueError(f"unknown workload {workload!r}. {suggestion(workload, workloads.known())}")
        return workload


def log_spaced(low: float, high: float, points: int) -> tuple[float, ...]:
    """Rates equally spaced in log space, both ends included, rounded so that they print as they compare."""
    if points == 1:
        return (low,)
    span = math.log10(high / low)
    return tuple(float(f"{low * 10 ** (span * k / (points - 1)):.{DIGITS_OF_A_RATE}g}") for k in range(points))


def load(study: str) -> Study:
    """The study of that shipped name, or in the file of that path. Raises StudyFileError."""
    path, text = catalog.read(study)
    return parse(text, where=str(path), name=path.stem)


def parse(text: str, where: str, name: str) -> Study:
    """The study that a file's text describes. where: what messages call the file; name: used where the file has none.

    Raises StudyFileError naming the file, the table and the key.
    """
    try:
        file = _File.model_validate(tomllib.loads(text))
        study = Study(
            name=file.name or name,
            question=file.question,
            workload=file.workload,
            budget=Budget(**file.budget.model_dump()),
            arms=tuple(arm for family, table in file.arms.items() for arm in table.family(family, file.lr.axis())),
            seeds=tuple(range(file.seeds)) if isinstance(file.seeds, int) else tuple(file.seeds),
            text=text,
        )
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{where}: not valid TOML: {error}.") from None
    except ValidationError as error:
        raise StudyFileError(f"{where}, {_first_complaint(error)}") from None
    except ValueError as error:
        raise StudyFileError(f"{where}: {error}") from None
    for arm in study.arms:
        try:
            arms.check(arm)
        except ValueError as error:
            raise StudyFileError(f"{where}, [arms.{arm.family}]: {error}") from None
    return study


def _first_complaint(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: [table] key: what is wrong."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if not _is_branch(part)]
    table, key = keys[:-1], keys[-1:]
    if first["type"] == "value_error" and not key:
        key = ["the file"]
    place = " ".join([*([f"[{'.'.join(table)}]"] if table else []), *key])
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    got = f", got {value!r}" if isinstance(value, str | int | float) and not message.startswith("unknown") else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {message[0].lower()}{message[1:]}{got}{more}"


def _is_branch(part: int | str) -> bool:
    """Whether pydantic names one branch of a union here, which no reader of a study file has heard of."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "str"})
