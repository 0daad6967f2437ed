"""Optuna's importances of cells that are no full grid."""

from __future__ import annotations

import math

import optuna
import pytest

from storage.importance import fanova

RATES = [10.0**k for k in range(-4, 2)]
CELLS = [(lr, momentum) for lr in RATES for momentum in (0.0, 0.5, 0.9)]


def shares(of_lr: float, of_momentum: float) -> dict[str, float]:
    values = [of_lr * math.log10(lr) + of_momentum * momentum for lr, momentum in CELLS]
    columns = {"lr": [math.log10(lr) for lr, _ in CELLS], "momentum": [momentum for _, momentum in CELLS]}
    return fanova(columns, values)


@pytest.mark.parametrize(("of_lr", "of_momentum", "winner"), [(1.0, 0.1, "lr"), (0.01, 5.0, "momentum")])
def test_the_cause_has_the_larger_share(of_lr: float, of_momentum: float, winner: str):
    found = shares(of_lr, of_momentum)
    assert sum(found.values()) == pytest.approx(1)
    assert found[winner] > 0.9
    assert found == shares(of_lr, of_momentum)


def test_a_column_that_never_changes_explains_nothing():
    assert fanova({"lr": [1.0, 2.0, 3.0, 4.0], "seed": [0.0] * 4}, [1.0, 2.0, 3.0, 4.0])["seed"] == 0


def test_optuna_speaks_no_louder_afterwards():
    before = optuna.logging.get_verbosity()
    shares(1.0, 0.0)
    assert optuna.logging.get_verbosity() == before
