"""Curves as bytes, and the points of them that a dashboard shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from storage import Budget, Curve
from storage.curves import pack, shown_steps, unpack

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    steps = sorted(draw(st.sets(st.integers(0, 2**31 - 1), max_size=8)))
    columns = (draw(arrays(np.float32, len(steps), elements=FLOATS)) for _ in range(4))
    return Curve(np.array(steps, np.int32), *columns)


@given(curves())
def test_a_packed_curve_unpacks_to_itself(curve: Curve) -> None:
    assert unpack(pack(curve)) == curve


@given(st.lists(curves(), min_size=1, max_size=4))
def test_pieces_unpack_to_the_curves_joined(pieces: list[Curve]) -> None:
    assert unpack(*(pack(piece) for piece in pieces)) == Curve.join(pieces)


def test_an_evaluation_is_five_little_endian_words() -> None:
    curve = Curve([258], [1.0], [-2.0], [0.5], [math.inf])  # type: ignore[arg-type]
    assert pack(curve).hex(" ", 4) == "02010000 0000803f 000000c0 0000003f 0000807f"


def test_half_an_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"An evaluation takes 20 bytes: got 30 bytes\."):
        unpack(bytes(30))


@pytest.mark.parametrize(
    ("evaluations", "shown"),
    [(1, {100}), (4, {25, 50, 75, 100}), (100, {12, 25, 38, 50, 62, 75, 88, 100})],
)
def test_a_dashboard_gets_at_most_eight_evaluations_and_the_last(evaluations: int, shown: set[int]) -> None:
    assert shown_steps(Budget(100, evaluations, 1)) == shown


@given(st.integers(1, 300), st.integers(1, 300))
def test_what_is_shown_was_evaluated(steps: int, evaluations: int) -> None:
    budget = Budget(steps, min(steps, evaluations), 1)
    shown = shown_steps(budget)
    assert shown <= set(budget.evaluated_at)
    assert steps in shown
    assert len(shown) == min(8, len(budget.evaluated_at))
