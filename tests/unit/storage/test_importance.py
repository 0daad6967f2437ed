"""Optuna's fANOVA over arrays: log scales, holes, seeds, and numbers Optuna would lose."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import optuna
import pytest

from storage.importance import fanova_shares

RATES = np.geomspace(1e-5, 10, 25)
LR, MOMENTUM = (axis.ravel() for axis in np.meshgrid(RATES, np.arange(4.0)))
LOSSES = np.where(LR < 1e-3, 2.0, 0.5) + 0.02 * MOMENTUM  # what matters happens below 1 % of the linear range


def test_the_learning_rate_dominates_by_its_logarithm_and_not_as_it_stands() -> None:
    assert fanova_shares({"lr": np.log10(LR), "momentum": MOMENTUM}, LOSSES, seed=0)["lr"] > 0.99
    assert fanova_shares({"lr": LR, "momentum": MOMENTUM}, LOSSES, seed=0)["lr"] < 0.6


def test_a_seed_suffices_and_matters() -> None:
    causes = {"lr": np.log10(LR), "momentum": MOMENTUM}
    noisy = LOSSES + np.random.default_rng(0).normal(size=LOSSES.size)
    first = fanova_shares(causes, noisy, seed=0)
    assert fanova_shares(causes, noisy, seed=0) == first
    assert fanova_shares(causes, noisy, seed=1) != first


def test_every_level_of_an_even_grid_counts_the_same() -> None:
    ends = np.isin(LR, RATES[[0, -1]]).astype(float)
    middle = np.isin(LR, RATES[[11, 12]]).astype(float)
    of_ends, of_middle = (
        fanova_shares({"lr": np.log10(LR), "momentum": MOMENTUM}, 0.5 + level + 0.3 * (MOMENTUM > 1), seed=0)["lr"]
        for level in (ends, middle)
    )
    assert of_ends == pytest.approx(of_middle, abs=0.05)


def test_a_cause_with_one_level_has_no_share() -> None:
    found = fanova_shares({"lr": np.log10(LR), "seed": np.zeros(LR.size)}, LOSSES, seed=0)
    assert found["seed"] == 0


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_what_optuna_would_leave_out_is_refused(lost: float) -> None:
    with pytest.raises(ValueError, match="cap the value of a diverged cell"):
        fanova_shares({"lr": np.log10(LR)}, np.where(LR > 1, lost, LOSSES), seed=0)


def test_values_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="all are the same"):
        fanova_shares({"lr": np.log10(LR)}, np.ones(LR.size), seed=0)


def test_optuna_says_nothing_and_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    fanova_shares({"lr": np.log10(LR)}, LOSSES, seed=0)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_the_import_costs_no_optuna() -> None:
    code = "import storage.importance, sys; sys.exit('optuna' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
