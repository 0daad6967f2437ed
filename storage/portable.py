"""A study as one file, and back: nothing is lost on the way, and the file can be read without us.

    .json     {"format": "adamom study", "version": 1, "study": {...}, "cells": [{...}, ...]}
    .parquet  one row per cell, curves as lists; the study as JSON in the schema's metadata
    .csv      one row per cell, curves as JSON arrays; the study as JSON in the column `study` of the first row

A cell has the columns of `CELL`. What was not measured is nan, what does not apply is missing, and in JSON and CSV the
numbers that are not finite are the words nan, inf and -inf. Cells that nobody has finished are exported as waiting.
"""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .definition import attributes, rebuilt
from .errors import BadExport
from .records import Curve, Outcome, Planned, Point, Result, Study, Trial
from .store import Moments, Store

__all__ = ["Imported", "export_study", "import_study"]

FORMAT, VERSION = "adamom study", 1

POINT = {"arm": str, "lr": float, "momentum": float, "seed": int}
STATE = {"outcome": str, "attempt": int, "started": str, "completed": str}
RESULT = {
    "steps": int,
    "initial_loss": float,
    "final_loss": float,
    "best_loss": float,
    "final_accuracy": float,
    "mean_momentum": float,
    "diverged_at": int,
    "seconds": float,
    "error": str,
    "provenance": str,  # JSON
}
CURVE = {f"curve_{field.name}": int if field.name == "steps" else float for field in fields(Curve)}
CELL: dict[str, type] = {**POINT, **STATE, **RESULT, **CURVE}  # in CURVE, lists of these

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: the cells that it planned, and the results that it brought."""

    planned: Planned
    results: int


def export_study(store: Store, name: str, to: str | Path) -> int:
    """Write the study and everything measured to a .json, .parquet or .csv file. Returns the number of cells.

    The file is complete or not there. Raises StudyMissing, BadExport for another suffix.
    """
    path = Path(to)
    write, _ = _format(path)
    study, curves, moments = store.study(name), store.curves(name), store.moments(name)
    cells = [_cell(trial, curves.get(trial.id), moments[trial.id]) for trial in store.trials(name)]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        unfinished = Path(folder) / path.name
        write(unfinished, study, cells)
        os.replace(unfinished, path)
    return len(cells)


def import_study(store: Store, path: str | Path) -> Imported:
    """Bring an exported study into this store: cells that are missing are planned, those not finished get their result.

    What this store has finished already stays as it is. Raises BadExport, StudyChanged.
    """
    _, read = _format(Path(path))
    try:
        study, cells = read(Path(path))
        brought = [_trial(cell) for cell in cells]
    except OSError as error:
        raise BadExport(f"{path} cannot be read: {error.strerror or error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BadExport(f"{path} holds no exported study: {error!r}. Try: adamom export STUDY --to {path}") from error
    planned = store.plan(study, [trial.point for trial, _, _ in brought])
    finished = [each for each in brought if each[0].outcome.finished]
    return Imported(planned, store.restore(study.name, finished))


# --- cells ------------------------------------------------------------------------------------------------------------


def _cell(trial: Trial, curve: Curve | None, moments: Moments) -> Cell:
    cell: Cell = {name: getattr(trial.point, name) for name in POINT}
    cell |= {"outcome": Outcome.WAITING.value, "attempt": trial.attempt, "started": None, "completed": None}
    result = trial.result
    if result is None:
        return cell | dict.fromkeys((*RESULT, *CURVE))
    cell |= {"outcome": trial.outcome.value, "started": moments[0], "completed": moments[1]}
    cell |= {name: getattr(result, name) for name in RESULT if name != "provenance"}
    cell["provenance"] = json.dumps(dict(result.provenance))
    lists = curve and {f"curve_{field.name}": getattr(curve, field.name).tolist() for field in fields(curve)}
    return cell | (lists or dict.fromkeys(CURVE))


def _trial(cell: Mapping[str, Any]) -> tuple[Trial, Curve, Moments]:
    """A cell as a trial without an id."""
    point = Point(**{name: cell[name] for name in POINT})
    outcome = Outcome(cell["outcome"])
    result = None
    if outcome.finished:
        measured = {name: cell[name] for name in RESULT if name != "provenance"}
        result = Result(outcome, **measured, provenance=json.loads(cell["provenance"]))
    listed = [cell[name] for name in CURVE]
    curve = Curve.empty() if listed[0] is None else Curve(*listed)
    return Trial(0, 0, point, outcome, cell["attempt"], result), curve, (cell["started"], cell["completed"])


# --- files ------------------------------------------------------------------------------------------------------------

Writer = Callable[[Path, Study, Sequence[Cell]], None]
Reader = Callable[[Path], tuple[Study, Iterable[Cell]]]


def _format(path: Path) -> tuple[Writer, Reader]:
    formats: dict[str, tuple[Writer, Reader]] = {
        ".json": (_write_json, _read_json),
        ".parquet": (_write_parquet, _read_parquet),
        ".csv": (_write_csv, _read_csv),
    }
    if path.suffix not in formats:
        raise BadExport(f"{path}: unknown format {path.suffix!r}. Known: {', '.join(formats)}.")
    return formats[path.suffix]


def _study_json(study: Study) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, "study": {"name": study.name, **attributes(study)}})


def _study(text: str | bytes) -> Study:
    said = json.loads(text)
    if (said.get("format"), said.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"expected {FORMAT!r} version {VERSION}")
    return rebuilt(said["study"]["name"], said["study"])


def _write_json(path: Path, study: Study, cells: Sequence[Cell]) -> None:
    worded = [{name: _worded(value) for name, value in cell.items()} for cell in cells]
    path.write_text(json.dumps({**json.loads(_study_json(study)), "cells": worded}, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> tuple[Study, Iterable[Cell]]:
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    return _study(text), [{name: _typed(name, cell[name]) for name in CELL} for cell in cells]


def _write_csv(path: Path, study: Study, cells: Sequence[Cell]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*CELL, "study"])
        writer.writeheader()
        for number, cell in enumerate(cells):
            text = {name: _as_text(value) for name, value in cell.items()}
            writer.writerow(text | {"study": "" if number else _study_json(study)})


def _read_csv(path: Path) -> tuple[Study, Iterable[Cell]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("no cells")
    if any(None in row.values() for row in rows):
        raise ValueError("a row that is cut off")
    return _study(rows[0]["study"]), [
        {name: _typed(name, _from_text(name, row[name])) for name in CELL} for row in rows
    ]


def _write_parquet(path: Path, study: Study, cells: Sequence[Cell]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    kinds_in_lists = {int: pa.list_(pa.int32()), float: pa.list_(pa.float32())}
    columns = [(name, kinds_in_lists[kind] if name in CURVE else kinds[kind]) for name, kind in CELL.items()]
    schema = pa.schema(columns, metadata={"adamom": _study_json(study)})
    parquet.write_table(pa.Table.from_pylist(list(cells), schema=schema), path)


def _read_parquet(path: Path) -> tuple[Study, Iterable[Cell]]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    return _study((table.schema.metadata or {})[b"adamom"]), table.select(list(CELL)).to_pylist()


# --- text -------------------------------------------------------------------------------------------------------------


def _worded(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, list):
        return [_worded(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _typed(name: str, value: Any) -> Any:
    """The value that `_worded` made into this, by the type of its column."""
    if isinstance(value, list):
        return [CELL[name](each) for each in value]
    return None if value is None else CELL[name](value)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(_worded(value)) if isinstance(value, list) else str(value)


def _from_text(name: str, text: str) -> Any:
    if text == "":
        return None
    return json.loads(text) if name in CURVE else text
