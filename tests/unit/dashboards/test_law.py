"""The law, the Gaussian process it has to beat, and what short runs are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dashboards import Summary, summarise
from dashboards.calibration import _held_out
from dashboards.gaussian_process import GaussianProcess
from dashboards.law import Samples, SurfaceLaw, _drop, held_out_errors, samples

TRUTH = np.array([-1.0, 0.9, -0.7, 0.8, 1.0, 0.05, 0.1, np.log(0.25), np.log(0.1), 0.95, 0.02, -0.01, -0.05])


@pytest.fixture(scope="module")
def lawful() -> Samples:
    """Four momenta, 27 learning rates, three budgets of a surface that follows the law, with a little noise."""
    x, z, t = (
        axis.ravel()
        for axis in np.meshgrid(
            np.linspace(-4, 2.5, 27), np.log10([1, 0.5, 0.1, 0.01]), np.log10([0.25, 0.5, 1]), indexing="ij"
        )
    )
    exact = _drop(TRUTH, np.column_stack([x, z, t]))
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(x))
    return Samples(x, z, t, exact + noise, np.arange(len(x)) // 3)


class TestLaw:
    def test_its_edges_are_recovered_from_cells(self, lawful: Samples) -> None:
        law = SurfaceLaw.fit(lawful)
        assert law.parameters[[0, 1, 2, 3, 4]] == pytest.approx(TRUTH[[0, 1, 2, 3, 4]], abs=0.05)
        assert law.noise == pytest.approx(0.01, rel=0.3)

    def test_its_uncertainty_covers_what_it_did_not_see(self, lawful: Samples) -> None:
        hidden = lawful.point % 4 == 0
        drop, spread = SurfaceLaw.fit(lawful.at(~hidden)).predict(lawful.at(hidden).inputs)
        inside = np.abs(drop - lawful.drop[hidden]) < 2 * spread
        assert 0.85 < inside.mean() <= 1

    def test_what_two_momenta_do_not_determine_is_uncertain(self, lawful: Samples) -> None:
        two = lawful.at((lawful.z == 0) | (lawful.z == -2))
        law = SurfaceLaw.fit(two)
        (_, spread) = law.predict(np.array([[0.0, 0.0, 0.0], [-0.7, -1.0, 0.0]]))
        assert spread[1] > 5 * spread[0]

    def test_on_lawful_cells_it_predicts_better_than_the_nearest_one(self, lawful: Samples) -> None:
        errors = held_out_errors(lawful, seed=0)
        assert errors.law < errors.nearest / 3
        assert errors.points == 108

    def test_on_lawless_cells_it_does_not_pretend(self, lawful: Samples) -> None:
        noise = lawful._replace(drop=np.random.default_rng(1).uniform(size=len(lawful.x)))
        assert held_out_errors(noise, seed=0).law > 0.2

    def test_the_seed_of_the_folds_matters_and_suffices(self, lawful: Samples) -> None:
        first, again, other = (held_out_errors(lawful, seed=seed) for seed in (0, 0, 1))
        assert first == again
        assert first != other

    def test_too_few_grid_points_have_no_law(self, hand_made: Any) -> None:
        assert summarise(*hand_made(a=[[1.0, 0.5, 3.0]])).laws == ()

    def test_a_family_of_one_momentum_has_one(self, hand_made: Any) -> None:
        bowl = [[2.0 - 1.5 * np.exp(-((at - 15) ** 2) / 8) for at in range(30)]]
        (law,) = summarise(*hand_made(a=bowl)).laws
        assert law.errors.law < 0.2
        assert np.isfinite(law.drop).all()

    def test_a_study_has_one_law_per_family_fitted_to_its_cells(self, summary: Summary) -> None:
        assert [law.family for law in summary.laws] == ["SGD", "Adam"]
        cells = samples(summary.evidence, summary.scale, "SGD")
        assert cells is not None
        assert len(cells.x) == 4 * 27 * 3
        assert cells.drop.max() == pytest.approx(1, abs=0.02)
        assert "of the drop, over 108 grid points" in summary.laws[0].sentence


class TestGaussianProcess:
    def test_it_goes_through_smooth_data_and_knows_where_it_has_none(self) -> None:
        x = np.linspace(0, 6, 25)[:, None]
        process = GaussianProcess.fit(x, np.sin(x[:, 0]))
        between, spread = process.predict(np.array([[1.1], [3.3]]))
        assert between == pytest.approx(np.sin([1.1, 3.3]), abs=0.01)
        _, far = process.predict(np.array([[40.0]]))
        assert far[0] > 20 * spread.max()

    def test_far_away_it_returns_to_the_mean(self) -> None:
        x = np.linspace(0, 1, 10)[:, None]
        mean, _ = GaussianProcess.fit(x, x[:, 0]).predict(np.array([[1e4]]))
        assert mean[0] == pytest.approx(0.5)

    def test_an_input_that_never_varies_does_no_harm(self) -> None:
        x = np.column_stack([np.linspace(0, 1, 10), np.ones(10)])
        mean, _ = GaussianProcess.fit(x, x[:, 0]).predict(x)
        assert mean == pytest.approx(x[:, 0], abs=0.02)


class TestCalibration:
    def test_a_light_run_that_is_the_heavy_one_needs_no_correction(self) -> None:
        x = np.random.default_rng(0).uniform(size=(40, 3))
        assert _held_out(x, x[:, 2], seed=0) == pytest.approx((0, 0, 0), abs=1e-6)

    def test_a_constant_correction_is_found(self) -> None:
        x = np.random.default_rng(0).uniform(size=(40, 3))
        as_is, shifted, calibrated = _held_out(x, x[:, 2] - 0.3, seed=0)
        assert (as_is, shifted) == pytest.approx((0.3, 0))
        assert calibrated < 0.02

    def test_a_smooth_correction_is_found_where_its_mean_is_not_enough(self) -> None:
        x = np.random.default_rng(0).uniform(size=(80, 3))
        as_is, shifted, calibrated = _held_out(x, x[:, 2] - x[:, 0] ** 2, seed=0)
        assert calibrated < shifted / 4 < as_is

    def test_the_correction_is_never_upwards(self) -> None:
        x = np.random.default_rng(0).uniform(size=(40, 3))
        assert _held_out(x, x[:, 2] + 0.5, seed=0) == pytest.approx((0.5, 0.5, 0.5))

    def test_a_study_says_what_its_short_runs_are_worth(self, summary: Summary) -> None:
        found = summary.calibration
        assert found is not None
        assert (found.steps, found.points) == (100, 9 * 27)
        assert found.calibrated < found.as_is
        assert found.rank > 0.9

    def test_without_curves_there_is_nothing_to_calibrate(self, finished: Any) -> None:
        study, trials, _ = finished
        assert summarise(study, trials, {}, resamples=10).calibration is None
