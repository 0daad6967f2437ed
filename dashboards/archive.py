"""A report as a file of strict JSON that holds every cell it was computed from, and the same report back from it.

nan is null and infinities are the words "inf" and "-inf", so that any JSON reader can open it; every other number is
written with as many digits as give the same float back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dashboards import metrics
from dashboards.evidence import COLUMNS, Evidence
from dashboards.report import NOTHING, write_atomically
from dashboards.summary import Summary, analyse
from storage.records import Arm, Axis, Budget, Study

__all__ = ["Archived", "read_json", "write_json"]

SOFTWARE = ("numpy", "scipy", "plotly", "opda")  # whose next release could move a last digit


class Archived(NamedTuple):
    """What report.json holds: enough to write the same page again, byte for byte, without a database."""

    summary: Summary
    command: str
    provenance: Mapping[str, str]


def write_json(summary: Summary, path: Path | str, *, command: str, provenance: Mapping[str, str] = NOTHING) -> Path:
    """Write every number of a report and every cell behind it, whole or not at all; return the path."""
    whole = summary.as_dict() | {
        "command": command,
        "provenance": dict(provenance),
        "software": {name: version(name) for name in SOFTWARE},
        "chosen_baseline": summary.chosen,
        "evidence": _encoded(summary.evidence),
    }
    return write_atomically(Path(path), json.dumps(whole, allow_nan=False, ensure_ascii=False, separators=(",", ":")))


def read_json(path: Path | str) -> Archived:
    """The report that `write_json` wrote, its numbers computed anew from the cells in the file.

    Raises ValueError naming the file when it is not such a report or when its cells do not match their hash.
    """
    path = Path(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        evidence = _decoded(whole["evidence"])
        bootstrap, command, provenance = whole["bootstrap"], whole["command"], whole["provenance"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: not a report of adamom ({type(error).__name__}: {error}). Make one with: adamom report STUDY"
        ) from error
    if evidence.digest != whole["evidence"]["sha256"]:
        raise ValueError(f"{path}: its cells do not match their hash: the file was edited or cut short.")
    summary = analyse(
        evidence, seed=bootstrap["seed"], resamples=bootstrap["resamples"], baseline=whole["chosen_baseline"]
    )
    return Archived(summary, command, provenance)


def _encoded(evidence: Evidence) -> dict[str, Any]:
    return {
        "sha256": evidence.digest,
        "metrics": metrics.VERSION,
        "study": asdict(evidence.study),
        "cells": {name: _numbers(column) for name, column in evidence.columns.items()},
        "steps": evidence.steps.tolist(),
        "validation_loss": _rows(evidence.validation_loss),
        "momentum": _rows(evidence.momentum),
        "ran_on": evidence.provenance,
        "errors": evidence.errors,
        "strangers": evidence.strangers,
    }


def _decoded(whole: Mapping[str, Any]) -> Evidence:
    cells, evaluations = whole["cells"], len(whole["steps"])
    return Evidence(
        study=_study(whole["study"]),
        columns={name: _array(cells[name]).astype(kind) for name, kind in COLUMNS.items()},
        steps=np.array(whole["steps"], dtype=np.int64),
        validation_loss=_matrix(whole["validation_loss"], evaluations),
        momentum=_matrix(whole["momentum"], evaluations),
        provenance=whole["ran_on"],
        errors=tuple((int(count), str(text)) for count, text in whole["errors"]),
        strangers=int(whole["strangers"]),
    )


def _study(whole: Mapping[str, Any]) -> Study:
    arms = [arm | {"lr": Axis(**arm["lr"] | {"values": tuple(arm["lr"]["values"])})} for arm in whole["arms"]]
    parts = {"budget": Budget(**whole["budget"]), "arms": tuple(Arm(**arm) for arm in arms)}
    return Study(**{**whole, **parts, "seeds": tuple(whole["seeds"])})


def _numbers(values: NDArray[Any]) -> list[Any]:
    """As JSON: nan as null, infinities as words, float32 with only the digits that a float32 has."""
    plain = values.astype("U").astype(float) if values.dtype == np.float32 else values
    listed: list[Any] = plain.tolist()
    for at in np.flatnonzero(~np.isfinite(values)).tolist():
        listed[at] = None if np.isnan(values[at]) else str(float(values[at]))
    return listed


def _array(values: list[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=float)


def _rows(matrix: NDArray[np.float32]) -> list[Any]:
    """One list per trial; null for a trial that recorded nothing."""
    width = matrix.shape[1]
    flat = _numbers(matrix.ravel())
    empty = np.asarray(np.isnan(matrix).all(axis=1))
    return [None if empty[row] else flat[row * width : (row + 1) * width] for row in range(len(matrix))]


def _matrix(rows: list[Any], width: int) -> NDArray[np.float32]:
    matrix = np.full((len(rows), width), np.nan, dtype=np.float32)
    for at, row in enumerate(rows):
        if row is not None:
            matrix[at] = _array(row)
    return matrix
