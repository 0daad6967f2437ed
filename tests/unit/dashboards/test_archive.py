"""report.json: strict, complete, and the same page back from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dashboards import Summary, read_json, summarise, write_json
from dashboards.archive import _array, _numbers
from dashboards.report import page

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.fixture
def archived(summary: Summary, tmp_path: Path) -> Path:
    return write_json(summary, tmp_path / "report.json", command="adamom report digits", provenance={"commit": "abc"})


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_the_page_comes_back_byte_for_byte(summary: Summary, archived: Path) -> None:
    back = read_json(archived)
    assert (back.command, back.provenance) == ("adamom report digits", {"commit": "abc"})
    made = page(summary, command=back.command, provenance=back.provenance)
    assert page(back.summary, command=back.command, provenance=back.provenance) == made


def test_the_numbers_come_back_exactly(summary: Summary, archived: Path) -> None:
    back = read_json(archived).summary
    assert back.as_dict() == summary.as_dict()
    assert back.study == summary.study
    for name, column in summary.evidence.columns.items():
        assert np.array_equal(column, back.evidence.columns[name], equal_nan=column.dtype.kind == "f"), name
    assert np.array_equal(summary.evidence.validation_loss, back.evidence.validation_loss, equal_nan=True)


def test_a_chosen_baseline_and_another_seed_come_back(finished: Any, tmp_path: Path) -> None:
    chosen = summarise(*finished, seed=7, resamples=30, baseline="SGD, momentum 0.9")
    back = read_json(write_json(chosen, tmp_path / "report.json", command="", provenance={})).summary
    assert back.as_dict() == chosen.as_dict()


def test_the_file_is_strict_json_with_every_cell(summary: Summary, archived: Path) -> None:
    whole = json.loads(archived.read_text(), parse_constant=refuse_constants)
    cells = whole["evidence"]["cells"]
    assert len(cells["final_loss"]) == 729
    assert {None, "inf"} <= {value for value in cells["final_loss"] if not isinstance(value, float)}
    assert whole["evidence"]["study"]["text"] == summary.study.text


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_every_float_survives(dtype: type, data: Any) -> None:
    width = 32 if dtype is np.float32 else 64
    values = data.draw(arrays(dtype, st.integers(0, 20), elements=st.floats(width=width)))
    back = _array(json.loads(json.dumps(_numbers(values), allow_nan=False))).astype(dtype)
    assert np.array_equal(values, back, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not a report of adamom"), ("[]", "not a report of adamom"), ('{"arms": []}', "KeyError: 'evidence'")],
)
def test_a_file_that_is_no_report_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as refused:
        read_json(path)
    assert "other.json" in str(refused.value)


def test_an_edited_cell_is_noticed(archived: Path) -> None:
    whole = json.loads(archived.read_text())
    cells = whole["evidence"]["cells"]["final_loss"]
    at = next(index for index, value in enumerate(cells) if isinstance(value, float) and math.isfinite(value))
    cells[at] -= 0.01
    archived.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="edited or cut short"):
        read_json(archived)


def test_a_study_without_any_trial_comes_back(finished: Any, tmp_path: Path) -> None:
    empty = summarise(finished[0], [], {}, resamples=10)
    back = read_json(write_json(empty, tmp_path / "report.json", command="", provenance={})).summary
    assert back.sentence == empty.sentence
