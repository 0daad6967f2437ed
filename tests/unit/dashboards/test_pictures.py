"""What each picture holds, and that nothing is told by colour alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dashboards import Summary, style, summarise
from dashboards.curves import learning_info, lr_curves_figure, lr_curves_info
from dashboards.paired import along_info, forest_figure, forest_info
from dashboards.profiles import tolerance_info, tuning_info
from dashboards.surfaces import surfaces_figure, surfaces_info

NAN = float("nan")


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


class TestStyle:
    def test_no_two_of_nine_arms_look_alike_even_in_grey(self, finished: Any) -> None:
        looks = style.looks(finished[0].arms)
        assert len({look.colour for look in looks.values()}) == 9
        assert len({(look.dash, look.marker) for look in looks.values()}) == 9

    def test_every_arm_stands_out_from_paper(self, finished: Any) -> None:
        for name, look in style.looks(finished[0].arms).items():
            assert 1.05 / (luminance(look.colour) + 0.05) > 2, name

    def test_the_scale_of_losses_is_even_in_lightness_and_has_no_red(self) -> None:
        from plotly.colors import sample_colorscale

        shades = [style._hex(shade) for shade in sample_colorscale(style.LOSS_SCALE, 12)]
        lightness = [luminance(shade) for shade in shades]
        assert lightness == sorted(lightness, reverse=True)
        red, green, blue = (int(style.DIVERGED[at : at + 2], 16) for at in (1, 3, 5))
        assert red > 2 * max(green, blue)
        assert all(int(s[1:3], 16) <= 1.35 * max(int(s[3:5], 16), int(s[5:7], 16)) for s in shades)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0316227, "0.0316"),
            (1e-5, "1e-5"),
            (3.1622e-5, "3.16e-5"),
            (12345.0, "1.23e4"),
            (0.0, "0"),
            (NAN, "not run"),
            (999.6, "1000"),
            (float("inf"), "∞"),
            (2.5, "2.5"),
        ],
    )
    def test_numbers_as_a_reader_would_write_them(self, value: float, text: str) -> None:
        assert style.number(value) == text

    def test_fixed_numbers_keep_their_zeros(self) -> None:
        assert [style.fixed(value) for value in (0.11, 1.6, 80.0, 123.4)] == ["0.110", "1.60", "80.0", "123"]


class TestSurfaces:
    def test_a_stripe_by_hand(self, hand_made: Any) -> None:
        info = surfaces_info(summarise(*hand_made(a=[[0.5, 1.0, NAN], [0.7, 3.0, None]])))
        stripe = info.surfaces[0].constants[0]
        assert stripe.loss == pytest.approx([0.6, 1.5, 2.0])
        assert stripe.diverged.tolist() == [0, 0.5, 1]
        assert stripe.runs.tolist() == [2, 2, 1]
        assert (info.surfaces[0].best, info.surfaces[0].initial) == pytest.approx((0.6, 2.0))

    def test_constants_ascend_and_rules_stand_beside_them(self, summary: Summary) -> None:
        sgd, adam = surfaces_info(summary).surfaces
        assert [row.momentum for row in sgd.constants] == [0, 0.5, 0.9, 0.99]
        assert [row.arm for row in sgd.rules] == ["SGD, adaptive", "SGD, adaptive, smoothing 0.999"]
        assert (adam.title, len(adam.constants), len(adam.rules)) == ("Adam", 2, 1)

    def test_each_cell_is_drawn_once_as_a_loss_or_diverged_or_not_run(self, hand_made: Any) -> None:
        studied = hand_made(a=[[0.5, 1.0, NAN, None], [0.7, 3.0, NAN, None]])
        figure = surfaces_figure(surfaces_info(summarise(*studied)))
        layers = np.array(
            [np.isfinite(np.array(trace.z, dtype=float)) for trace in figure.data if trace.type == "heatmap"]
        )
        assert layers.sum(axis=0).tolist() == [[1, 1, 1, 1]]
        red = next(
            trace
            for trace in figure.data
            if trace.type == "heatmap" and trace.colorscale and trace.colorscale[0][1] == style.DIVERGED
        )
        assert np.isfinite(np.array(red.z, dtype=float)).tolist() == [[False, True, True, False]]
        marks = next(trace for trace in figure.data if trace.type == "scatter")
        assert list(marks.marker.symbol) == ["x-thin", "x-thin", "line-ew"]
        assert list(marks.x) == pytest.approx([1e-2, 1e-1, 1.0])

    def test_all_panels_share_one_colour_scale(self, summary: Summary) -> None:
        figure = surfaces_figure(surfaces_info(summary))
        losses = [trace for trace in figure.data if trace.type == "heatmap" and trace.coloraxis]
        assert len(losses) == 4
        assert {trace.coloraxis for trace in losses} == {"coloraxis"}

    def test_arms_with_other_learning_rates_leave_cells_not_run(self, finished: Any) -> None:
        from dataclasses import replace

        from storage.records import Axis

        study, trials, curves = finished
        shorter = replace(study.arms[0], lr=Axis("lr", study.arms[0].lr.values[:5]))
        info = surfaces_info(summarise(replace(study, arms=(shorter, *study.arms[1:])), trials, curves, resamples=10))
        assert (info.surfaces[0].constants[0].runs > 0).sum() == 5


class TestCurves:
    def test_a_curve_by_hand(self, hand_made: Any) -> None:
        curve = lr_curves_info(summarise(*hand_made(a=[[0.5, 1.0, NAN], [0.7, 3.0, None]]))).curves[0]
        assert curve.lrs.tolist() == pytest.approx([1e-3, 1e-2, 1e-1])
        assert curve.effective_lrs.tolist() == pytest.approx([1e-2, 1e-1, 1.0])
        assert curve.mean == pytest.approx([0.6, 1.5, 2.0])
        assert (curve.low.tolist(), curve.high.tolist()) == ([0.5, 1.0, 2.0], [0.7, 2.0, 2.0])

    def test_diverged_points_carry_crosses(self, hand_made: Any) -> None:
        figure = lr_curves_figure(lr_curves_info(summarise(*hand_made(a=[[0.5, 1.0, NAN]]))))
        crosses = [trace for trace in figure.data if trace.marker.symbol == "x"]
        assert [list(trace.x) for trace in crosses] == [[pytest.approx(0.1)], [pytest.approx(1.0)]]

    def test_learning_curves_are_those_of_the_best_learning_rate(self, finished: Any, summary: Summary) -> None:
        _, trials, curves = finished
        trace = learning_info(summary).traces[0]
        mine = [curves[t.id] for t in trials if t.point.arm == trace.arm and t.point.lr == trace.lr]
        assert trace.lr == summary.row(trace.arm).best_lr
        assert trace.mean == pytest.approx(np.mean([curve.validation_loss for curve in mine], axis=0), rel=1e-6)

    def test_only_rules_show_their_momentum(self, summary: Summary) -> None:
        shown = {trace.arm for trace in learning_info(summary).traces if len(trace.momentum)}
        assert shown == {"SGD, adaptive", "SGD, adaptive, smoothing 0.999", "Adam, adaptive"}


class TestProfilesAndForest:
    def test_widths_never_shrink_with_tolerance(self, summary: Summary) -> None:
        for widths in tolerance_info(summary).widths.values():
            assert (np.diff(widths) >= -1e-12).all()

    def test_the_profile_at_the_tables_tolerance_is_the_shared_basin(self, summary: Summary) -> None:
        info = tolerance_info(summary)
        at = int(np.argmin(np.abs(info.shares - info.marked)))
        assert info.shares[at] == info.marked
        for arm, widths in info.widths.items():
            assert widths[at] == pytest.approx(summary.row(arm).metrics["basin_shared"].value)

    def test_expected_best_never_rises(self, summary: Summary) -> None:
        for expected in tuning_info(summary).expected.values():
            assert (np.diff(expected) <= 1e-12).all()

    def test_the_forest_leaves_out_the_baselines(self, summary: Summary) -> None:
        info = forest_info(summary)
        assert {row.name for row in info.rows} == {row.arm for row in summary.rows} - set(summary.baselines.values())

    def test_undecided_differences_are_hollow_and_decided_ones_filled(self, hand_made: Any) -> None:
        better = [[1.5, 0.5 + 0.01 * s, 1.5] for s in range(6)]
        worse = [[1.5, 0.9 + 0.02 * s, 1.5] for s in range(6)]
        for seeds, ending in ((3, "-open"), (6, "")):
            info = forest_info(summarise(*hand_made(base=worse[:seeds], rule=better[:seeds])))
            assert forest_figure(info).data[0].marker.symbol == f"{info.rows[0].look.marker}{ending}"

    def test_differences_along_the_learning_rate_by_hand(self, hand_made: Any) -> None:
        base, rule = [[1.0, 0.5, 3.0], [1.2, 0.5, 3.0]], [[0.9, 0.7, 1.0], [0.9, None, 1.0]]
        trace = along_info(summarise(*hand_made(base=base, rule=rule))).families["SGD"][0]
        assert (trace.arm, trace.baseline) == ("rule", "base")
        assert trace.gap == pytest.approx([-0.2, 0.2, -1.0])
        assert (trace.low[0], trace.high[0]) == pytest.approx((-0.3, -0.1))
        assert np.isnan(trace.low[1])  # one seed is all there is
