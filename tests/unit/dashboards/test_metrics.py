"""Every metric against a vector worked out by hand, and against its definition written the slow way."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from dashboards import metrics

NAN = float("nan")
DECADES = np.array([-3.0, -2.0, -1.0, 0.0, 1.0])

losses = arrays(float, (3, 7), elements=st.floats(0.01, 2.3))
curves = arrays(float, 7, elements=st.floats(0.01, 2.3))
X7 = np.linspace(-3, 0, 7)


class TestCap:
    def test_wortsmans_vector_counts_divergence_as_the_loss_at_initialisation(self) -> None:
        final = [3.20, 3.00, 2.90, 2.95, 3.10, 9.0, NAN]
        assert metrics.learning_rate_sensitivity(metrics.cap(final, 7.0)) == pytest.approx(1.264286, abs=5e-7)

    def test_infinite_and_nan_losses_become_the_loss_at_initialisation(self) -> None:
        assert metrics.cap([0.5, np.inf, NAN, -np.inf, 8.0], 7.0).tolist() == [0.5, 7.0, 7.0, 7.0, 7.0]

    @given(curves, st.integers(0, 6))
    def test_a_diverged_cell_never_improves_a_score(self, curve: np.ndarray, where: int) -> None:
        worse = curve.copy()
        worse[where] = NAN
        before, after = metrics.cap(curve, 2.3), metrics.cap(worse, 2.3)
        assert metrics.best(after) >= metrics.best(before)
        area = {"initial": 2.3, "reference": 0.005}
        assert metrics.normalised_area(after, **area) <= metrics.normalised_area(before, **area) + 1e-12
        level = {"tolerance": 0.2, "reference": 0.01}
        if after.argmin() == before.argmin():  # else the basin is another one
            assert metrics.basin(after, X7, **level).width[0] <= metrics.basin(before, X7, **level).width[0] + 1e-12

    @given(curves, st.integers(0, 6), st.integers(1, 7))
    def test_nor_does_it_make_an_arm_look_easier_to_tune(self, curve: np.ndarray, where: int, tries: int) -> None:
        worse = curve.copy()
        worse[where] = NAN
        before, after = metrics.cap(curve, 2.3), metrics.cap(worse, 2.3)
        assert metrics.expected_best(after, tries) >= metrics.expected_best(before, tries) - 1e-12
        assert metrics.interquartile_mean(2.3 - after) <= metrics.interquartile_mean(2.3 - before) + 1e-12
        assert metrics.optimality_gap(2.3 - after, optimum=2.3) >= metrics.optimality_gap(2.3 - before, optimum=2.3)
        if metrics.best(after) == metrics.best(before):  # else Wortsman's mean excess is over another best: his limit
            less = metrics.learning_rate_sensitivity(before) - 1e-12
            assert metrics.learning_rate_sensitivity(after) >= less

    @given(arrays(bool, 7), st.integers(0, 6), st.integers(0, 6))
    def test_nor_more_stable(self, diverged: np.ndarray, where: int, at: int) -> None:
        more = diverged | (np.arange(7) == where)
        before, after = (
            np.nan_to_num(metrics.largest_stable_lr(each.astype(float), 10**X7, at=at)[0]) for each in (diverged, more)
        )
        assert after <= before


class TestSeeds:
    def test_a_missing_cell_has_no_part_in_the_mean(self) -> None:
        assert metrics.mean_over_seeds([[1.0, NAN], [3.0, 5.0]]).tolist() == [2.0, 5.0]

    def test_a_point_without_any_seed_stays_missing(self) -> None:
        assert np.isnan(metrics.mean_over_seeds([[1.0, NAN], [3.0, NAN]])[1])

    @given(losses, st.permutations(range(3)))
    def test_the_order_of_seeds_does_not_matter(self, values: np.ndarray, order: list[int]) -> None:
        assert metrics.mean_over_seeds(values[order]) == pytest.approx(metrics.mean_over_seeds(values))

    def test_every_draw_has_as_many_seeds_as_there_are(self) -> None:
        drawn = metrics.draws(5, seed=0, resamples=100)
        assert drawn.shape == (100, 5)
        assert (drawn.sum(axis=1) == 5).all()

    def test_the_seed_of_the_draws_matters_and_suffices(self) -> None:
        first, again, other = (metrics.draws(4, seed=s, resamples=50) for s in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()

    def test_weights_repeat_seeds(self) -> None:
        assert metrics.mean_over_seeds([[1.0], [4.0]], np.array([[2.0, 0.0], [1.0, 1.0]])).tolist() == [[1.0], [2.5]]

    def test_an_interval_holds_the_middle_95_percent(self) -> None:
        assert metrics.interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))

    def test_an_interval_of_nothing_is_unknown(self) -> None:
        assert np.isnan(metrics.interval([NAN, NAN])).all()

    def test_the_stratified_bootstrap_resamples_within_each_workload(self) -> None:
        constant = [np.array([1.0, 1.0]), np.array([3.0, 3.0, 3.0])]
        mean_of_means = lambda scores: float(np.mean([runs.mean() for runs in scores]))  # noqa: E731
        assert metrics.stratified_bootstrap(mean_of_means, constant, seed=0, resamples=20) == (2.0, 2.0)


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "runs", "low", "high"), [(0, 3, 0.0, 0.5615), (1, 3, 0.0615, 0.7923), (5, 10, 0.2366, 0.7634)]
    )
    def test_matches_published_values(self, successes: int, runs: int, low: float, high: float) -> None:
        assert np.ravel(metrics.wilson(successes, runs)) == pytest.approx([low, high], abs=1e-4)

    def test_no_runs_no_interval(self) -> None:
        assert np.isnan(metrics.wilson(0, 0)).all()

    @given(st.integers(0, 40), st.integers(1, 40))
    def test_holds_the_share_and_stays_between_0_and_1(self, successes: int, runs: int) -> None:
        successes = min(successes, runs)
        low, high = metrics.wilson(successes, runs)
        assert 0 <= low <= successes / runs <= high <= 1


class TestBasin:
    def test_ends_are_interpolated_between_grid_points(self) -> None:
        found = metrics.basin([2.0, 1.0, 0.0, 0.5, 2.0], DECADES, tolerance=0.5)
        assert (found.low[0], found.high[0], found.width[0]) == (-1.5, 0.0, 1.5)
        assert not found.at_low[0]
        assert not found.at_high[0]

    def test_a_second_valley_beyond_a_ridge_does_not_count(self) -> None:
        assert metrics.basin([0.0, 2.0, 2.0, 0.1, 2.0], DECADES, tolerance=1.0).width[0] == pytest.approx(0.5)

    def test_touching_the_edge_is_said(self) -> None:
        found = metrics.basin([0.0, 0.1, 0.2, 2.2, 2.3], DECADES, tolerance=0.2)
        assert found.at_low[0]
        assert not found.at_high[0]
        assert found.width[0] == pytest.approx(2.0)

    def test_an_arm_that_never_comes_near_the_reference_has_no_width(self) -> None:
        found = metrics.basin([2.0, 1.0, 2.0, 2.0, 2.0], DECADES, tolerance=0.2, reference=0.1)
        assert found.width[0] == 0
        assert np.isnan([found.low[0], found.high[0]]).all()

    def test_points_that_were_not_run_are_bridged(self) -> None:
        whole = metrics.basin([2.0, 1.0, 0.0, 0.5, 1.0], DECADES, tolerance=0.75)
        bridged = metrics.basin([2.0, 1.0, 0.0, NAN, 1.0], DECADES, tolerance=0.75)
        assert whole.high[0] == pytest.approx(0.5)
        assert bridged.high[0] == pytest.approx(0.5)

    def test_one_point_has_width_zero_and_touches_both_edges(self) -> None:
        found = metrics.basin([1.0], [0.0], tolerance=0.1)
        assert (found.width[0], bool(found.at_low[0]), bool(found.at_high[0])) == (0.0, True, True)

    def test_many_curves_at_once_give_what_each_gives_alone(self) -> None:
        generator = np.random.default_rng(0)
        many = generator.uniform(0.1, 2.3, (50, 5))
        many[generator.uniform(size=many.shape) < 0.2] = NAN
        many[:, 0] = 2.3
        together = metrics.basin(many, DECADES, tolerance=0.4)
        alone = [metrics.basin(curve, DECADES, tolerance=0.4) for curve in many]
        assert together.width.tolist() == [each.width[0] for each in alone]

    @given(curves, st.floats(0.01, 1.0))
    def test_equals_walking_outwards_from_the_best_point(self, curve: np.ndarray, tolerance: float) -> None:
        found = metrics.basin(curve, X7, tolerance=tolerance)
        assert found.width[0] == pytest.approx(_walked_width(curve, X7, tolerance), abs=1e-9)

    @given(curves, st.floats(0.01, 0.5), st.floats(0.0, 0.5))
    def test_grows_with_tolerance(self, curve: np.ndarray, tolerance: float, more: float) -> None:
        narrow, wide = (metrics.basin(curve, X7, tolerance=t).width[0] for t in (tolerance, tolerance + more))
        assert narrow <= wide + 1e-12


def _walked_width(curve: np.ndarray, x: np.ndarray, tolerance: float) -> float:
    level, start = curve.min() + tolerance, int(curve.argmin())
    ends = []
    for direction in (1, -1):
        at = start
        while 0 <= at + direction < len(x) and curve[at + direction] <= level:
            at += direction
        end = x[at]
        if 0 <= at + direction < len(x):
            rise = curve[at + direction] - curve[at]
            end += (level - curve[at]) / rise * (x[at + direction] - x[at])
        ends.append(end)
    return float(ends[0] - ends[1])


class TestStability:
    LRS = 10**DECADES

    def test_the_last_rate_before_the_first_divergence_above_the_best(self) -> None:
        assert metrics.largest_stable_lr([0, 0, 0, 0.5, 1], self.LRS, at=1).item() == pytest.approx(0.1)
        assert metrics.largest_stable_lr([0, 0, 0, 0.5, 1], self.LRS, at=1, share=0.5).item() == pytest.approx(1.0)

    def test_a_lone_survivor_beyond_the_frontier_does_not_move_it(self) -> None:
        assert metrics.largest_stable_lr([0, 0, 1, 1, 0], self.LRS, at=1).item() == pytest.approx(0.01)

    def test_noise_below_the_best_does_not_matter(self) -> None:
        assert metrics.largest_stable_lr([1, 0, 0, 0, 1], self.LRS, at=2).item() == pytest.approx(1.0)

    def test_where_the_best_itself_diverges_the_next_stable_one_below(self) -> None:
        assert metrics.largest_stable_lr([0, 0, 0.5, 1, 0], self.LRS, at=2).item() == pytest.approx(0.01)
        assert metrics.largest_stable_lr([0, 0, 0.5, 1, 0], self.LRS, at=2, share=0.5).item() == pytest.approx(0.1)

    def test_none_when_nothing_up_to_the_best_is_stable(self) -> None:
        assert np.isnan(metrics.largest_stable_lr([1, 1, 1, 0, 1], self.LRS, at=1)).item()

    def test_points_that_were_not_run_are_passed_over(self) -> None:
        assert metrics.largest_stable_lr([0, 0, NAN, 0, NAN], self.LRS, at=1).item() == pytest.approx(1.0)
        assert metrics.largest_stable_lr([0, NAN, 1, 0, 0], self.LRS, at=0).item() == pytest.approx(0.001)

    def test_the_half_contour_lies_where_the_share_crosses_it(self) -> None:
        assert metrics.frontier([0, 0, 0, 1, 1], DECADES, at=0) == pytest.approx(-0.5)
        assert metrics.frontier([0, 0, 1 / 3, 2 / 3, 1], DECADES, at=0) == pytest.approx(-0.5)

    def test_no_contour_inside_a_grid_where_nothing_diverges(self) -> None:
        assert np.isnan(metrics.frontier([0, 0, 0, 0, 0], DECADES, at=0))


class TestAreaAndTuning:
    def test_area_is_the_mean_share_of_the_drop(self) -> None:
        assert metrics.normalised_area([2.0, 1.0, 0.0, 3.0], initial=2.0, reference=0.0) == pytest.approx(0.375)

    def test_area_is_unknown_when_there_is_nothing_to_gain(self) -> None:
        assert np.isnan(metrics.normalised_area([2.0, 2.0], initial=2.0, reference=2.0))

    @given(curves, st.floats(0.5, 20.0))
    def test_area_does_not_depend_on_the_scale_of_the_loss(self, curve: np.ndarray, factor: float) -> None:
        small = metrics.normalised_area(curve, initial=2.3, reference=0.005)
        large = metrics.normalised_area(curve * factor, initial=2.3 * factor, reference=0.005 * factor)
        assert small == pytest.approx(large)

    def test_expected_best_of_one_is_the_mean_and_of_all_the_minimum(self) -> None:
        values = [3.0, 1.0, 2.0, 10.0]
        assert metrics.expected_best(values, 1) == pytest.approx(4.0)
        assert metrics.expected_best(values, 4) == pytest.approx(1.0)

    @given(arrays(float, 6, elements=st.floats(0, 5)), st.integers(1, 6))
    def test_expected_best_equals_the_mean_over_all_subsets(self, values: np.ndarray, n: int) -> None:
        slow = np.mean([min(subset) for subset in combinations(values.tolist(), n)])
        assert metrics.expected_best(values, n) == pytest.approx(slow, abs=1e-9)

    def test_more_draws_than_cells_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 <= n <= 2, the number of cells: got n = 3"):
            metrics.expected_best([1.0, 2.0, NAN], 3)

    def test_bands_hold_the_tuning_curve_and_narrow_with_more_cells(self) -> None:
        widths = []
        for cells in (20, 200):
            values = np.random.default_rng(0).uniform(0.1, 2.0, cells)
            low, high = metrics.tuning_bands(values, draws=5, initial=2.3)
            curve = metrics.tuning_curve(values, draws=5)
            assert (low < curve).all()
            assert (curve < high).all()
            widths.append((high - low).mean())
        assert widths[1] < widths[0] / 2

    def test_bands_of_nothing_are_empty(self) -> None:
        assert [len(band) for band in metrics.tuning_bands([NAN], draws=5, initial=2.3)] == [0, 0]

    def test_steps_to_target_is_the_first_evaluation_at_or_below_it(self) -> None:
        found = metrics.steps_to_target([[2.0, 0.5, 0.4], [2.0, 1.0, 0.9], [NAN, NAN, NAN]], [0, 10, 20], target=0.5)
        assert found[:2].tolist() == [10, np.inf]
        assert np.isnan(found[2])


class TestShares:
    def test_a_surface_that_only_depends_on_the_learning_rate(self) -> None:
        surface = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (2, 4, 3))
        assert metrics.anova_shares(surface) == pytest.approx((1, 0, 0, 0))

    def test_a_pure_interaction(self) -> None:
        surface = np.array([[[1.0, -1.0]], [[-1.0, 1.0]]])
        assert metrics.anova_shares(surface) == pytest.approx((0, 0, 1, 0))

    @given(arrays(float, (3, 2, 4), elements=st.floats(-2, 2)))
    @settings(max_examples=25, deadline=None)
    def test_statsmodels_finds_the_same(self, surface: np.ndarray) -> None:
        assume(np.ptp(surface) > 1e-3)
        momentum, _, lr = (axis.ravel() for axis in np.indices(surface.shape))
        cells = pd.DataFrame({"y": surface.ravel(), "lr": lr, "momentum": momentum})
        squares = anova_lm(ols("y ~ C(lr) * C(momentum)", cells).fit())["sum_sq"]
        assert list(squares.index) == ["C(lr)", "C(momentum)", "C(lr):C(momentum)", "Residual"]
        assert metrics.anova_shares(surface) == pytest.approx((squares / squares.sum()).tolist(), abs=1e-9)

    @given(arrays(float, (2, 3, 4), elements=st.floats(-2, 2)))
    def test_shares_sum_to_one(self, surface: np.ndarray) -> None:
        shares = metrics.anova_shares(surface)
        assert sum(shares) == pytest.approx(1) or np.ptp(surface) < 1e-6

    def test_a_missing_cell_is_refused(self) -> None:
        with pytest.raises(ValueError, match="some cell has not been run"):
            metrics.anova_shares(np.full((2, 2, 2), NAN))


class TestManyWorkloads:
    SCORES = ((0.91, 0.52, 0.33), (0.88, 0.55, 0.31), (0.93, 0.50, 0.36), (0.90, 0.58, 0.30), (0.86, 0.53, 0.34))

    def test_interquartile_mean_of_the_published_example(self) -> None:
        assert metrics.interquartile_mean(self.SCORES) == pytest.approx(0.5688889, abs=5e-8)

    def test_optimality_gap_counts_nothing_beyond_the_optimum(self) -> None:
        assert metrics.optimality_gap([0.5, 2.0]) == 0.25

    def test_probability_of_improvement_counts_ties_half(self) -> None:
        assert metrics.probability_of_improvement([1, 2], [1, 0]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)

    @given(arrays(float, 5, elements=st.floats(0, 1)), arrays(float, 3, elements=st.floats(0, 1)))
    def test_probability_of_improvement_is_mann_whitneys(self, scores: np.ndarray, others: np.ndarray) -> None:
        theirs = stats.mannwhitneyu(scores, others).statistic / 15
        assert metrics.probability_of_improvement(scores, others) == pytest.approx(theirs)

    def test_many_grids_at_once_are_as_sensitive_as_each_alone(self) -> None:
        scores = np.random.default_rng(0).uniform(size=(7, 3, 5))
        alone = [metrics.cross_workload_sensitivity(each) for each in scores]
        assert metrics.cross_workload_sensitivity(scores) == pytest.approx(np.array(alone))

    def test_one_setting_best_everywhere_is_insensitive(self) -> None:
        assert metrics.cross_workload_sensitivity([[1.0, 0.2], [0.9, 0.1]]) == pytest.approx(0.0)

    def test_opposite_optima_are_sensitive(self) -> None:
        assert metrics.cross_workload_sensitivity([[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(0.5)

    def test_no_hyperparameter_needs_tuning_when_one_setting_wins(self) -> None:
        assert metrics.effective_dimension(np.array([[[1.0, 0.2], [0.1, 0.1]]] * 2)) == 0

    def test_one_hyperparameter_needs_tuning_when_only_it_moves(self) -> None:
        first, second = np.array([[1.0, 0.9], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.9]])
        assert metrics.effective_dimension(np.array([first, second])) == 1

    def test_both_need_tuning_when_the_optimum_moves_along_the_diagonal(self) -> None:
        assert metrics.effective_dimension(np.array([[[1.0, 0], [0, 0]], [[0, 0], [0, 1.0]]])) == 2

    def test_normalised_scores_run_from_0_to_1_within_each_workload(self) -> None:
        scaled = metrics.normalise_scores([np.linspace(0, 100, 101), np.linspace(5, 6, 101)])
        assert scaled[0] == pytest.approx(scaled[1])
        assert scaled[0, 50] == pytest.approx(0.5)
        assert (scaled.min(), scaled.max()) == (0, 1)

    def test_profile_counts_workloads_within_a_factor_of_the_fastest(self) -> None:
        times = [[10.0, 10.0], [15.0, np.inf]]
        assert metrics.performance_profile(times, [1.0, 1.5, 4.0]).tolist() == [[1, 1, 1], [0, 0.5, 0.5]]

    def test_profile_score_is_the_area_under_the_profile(self) -> None:
        times, taus = np.array([[10.0, 12.0], [25.0, 6.0]]), np.linspace(1, 4, 30_001)
        area = metrics.performance_profile(times, taus).mean(axis=1)
        assert metrics.profile_score(times) == pytest.approx(area, abs=1e-3)

    def test_an_arm_that_never_arrives_scores_nothing(self) -> None:
        assert metrics.profile_score([[10.0], [np.inf]]).tolist() == [1, 0]
