"""A study file becomes a Study. Every complaint names the file, the table and the key.

question = "Does adaptive momentum survive larger learning rates?"
workload = "digits"
seeds = 3                        # 0, 1 and 2; or a list such as [7, 8, 9]

[budget]
steps = 420
evaluations = 20                 # of the validation set, evenly spread, the last step among them
batch_size = 64
precision = "float32"            # or "tf32", "bfloat16": see studies/precision.py

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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from storage.records import Arm, Axis, Budget, Precision, Study
from studies import arms, catalog, workloads
from studies.catalog import StudyFileError, suggestion

__all__ = ["StudyFileError", "load", "parse"]

DIGITS_OF_A_RATE = 6  # enough to tell grid points apart, few enough to print and to compare exactly


def printable(text: str) -> str:
    """The text, if it is one line that a table can show."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"needs a line of printable characters, not all blank, got {text!r}")
    return text


Name = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(printable)]


def computable(rate: float) -> float:
    """The rate, if float32 can compute with it."""
    if not 1e-30 <= rate <= 1e30:
        raise ValueError(f"a learning rate lies between 1e-30 and 1e+30, got {rate:g}")
    return rate


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(computable)]
LARGEST = 2**31 - 1  # what the columns of the store hold
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Many = Annotated[int, Field(ge=1, le=100_000)]  # seeds, or points of an axis
CELLS = 10_000_000  # of a grid, at most: that many are planned in a quarter of an hour
Seed = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Lr(_Table):
    low: Rate | None = None
    high: Rate | None = None
    points: Many | None = None
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
    precision: Precision = "float32"

    @model_validator(mode="after")
    def fits(self) -> _Budget:
        Budget(**self.model_dump())
        return self


class _Arms(_Table):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    optimizer: str
    momentum: Any = Field(default=None, validate_default=True)
    lr: _Lr | None = None

    @field_validator("momentum")
    @classmethod
    def says_a_momentum(cls, said: Any) -> list[arms.Said]:
        momenta = said if isinstance(said, list) else [said]
        if not momenta:
            raise ValueError("needs at least one momentum")
        for momentum in momenta:
            constant = isinstance(momentum, float | int) and not isinstance(momentum, bool)
            if not (0 <= momentum < 1 if constant else momentum is None or isinstance(momentum, str | dict)):
                raise ValueError(
                    f"a momentum is a number in [0, 1), a rule's name such as 'adaptive', or a table such as "
                    f'{{ rule = "adaptive", smoothing = 0.999 }}: got {momentum!r}'
                )
        return momenta

    def family(self, name: str, lr: Axis) -> Iterator[Arm]:
        """One arm for each momentum of this table."""
        for momentum in self.momentum:
            axis = self.lr.axis() if self.lr else lr
            try:
                yield arms.arm(name, self.optimizer, momentum, axis, self.model_extra or {})
            except ValueError as error:
                raise ValueError(f"[arms.{name}]: {error}") from None


class _File(_Table):
    name: Name | None = None
    question: Name
    workload: str
    seeds: Many | Annotated[list[Seed], Field(min_length=1)]
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
            arms=tuple(arm for name, table in file.arms.items() for arm in table.family(name, file.lr.axis())),
            seeds=tuple(range(file.seeds)) if isinstance(file.seeds, int) else tuple(file.seeds),
            text=text,
        )
        check_size(study)
        check_batch(study)
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{where}: not valid TOML: {error}.") from None
    except ValidationError as error:
        raise StudyFileError(f"{where}, {_first_complaint(error)}") from None
    except ValueError as error:
        raise StudyFileError(f"{where}{', ' if str(error).startswith('[') else ': '}{error}") from None
    return study


def check_size(study: Study) -> None:
    """Raise ValueError when nobody could mean that many cells."""
    cells = len(study.seeds) * sum(len(arm.lr.values) for arm in study.arms)
    if cells > CELLS:
        raise ValueError(f"the grid has {cells:,} cells, more than {CELLS:,}: fewer seeds, arms or learning rates")


def check_batch(study: Study) -> None:
    """Raise ValueError when the workload's training set does not fill one batch."""
    try:
        workloads.load(study.workload).batch_order(seed=0, steps=1, batch_size=study.budget.batch_size)
    except ValueError as error:
        raise ValueError(f"[budget] batch_size: {error}") from None


def _first_complaint(error: ValidationError) -> str:
    """The most telling of pydantic's complaints as one line: [table] key: what is wrong."""
    complaints = sorted(error.errors(), key=lambda each: (each["type"] != "extra_forbidden", -len(each["loc"])))
    first = complaints[0]
    place = [str(part) for part in first["loc"] if part not in BRANCHES]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key. {suggestion(place[-1], _keys(place[:-1]))}"
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "model_type":
        message = f"is a table of {', '.join(_keys(place))}, got {first['input']!r}"
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {first['input']!r}"
    about_a_table = first["type"] == "value_error" and place[-1] in ("lr", "budget")
    table, key = (place, []) if about_a_table else (place[:-1], place[-1:])
    where = " ".join([*([f"[{'.'.join(table)}]"] if table else []), *key])
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return f"{where}: {message}{more}"


BRANCHES = ("int", "constrained-int", "list[constrained-int]")  # pydantic's names for ways to read one key


def _keys(table: list[str]) -> list[str]:
    """What a table of a study file may hold."""
    models: dict[str, type[BaseModel]] = {"lr": _Lr, "budget": _Budget}
    return list(models.get(table[-1] if table else "", _File).model_fields)
