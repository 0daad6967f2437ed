"""Where each arm works: what the first picture holds, and that it stands in the page without a script."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from dashboards import Summary, summarise
from dashboards.basins import basins_figure, basins_info
from dashboards.report import page

NAN = float("nan")


def tracks(text: str) -> list[str]:
    return re.findall(r'<svg class="track".*?</svg>', text, flags=re.DOTALL)


def test_a_track_by_hand(hand_made: Any) -> None:
    """Five rates a decade apart: cells are fifths of the axis, and a point's place is the middle of its cell."""
    info = basins_info(summarise(*hand_made(a=[[1.5, 0.5, 0.5, NAN, NAN], [1.5, 0.5, 0.5, 3.0, NAN]])))
    (row,) = info.rows
    assert row.basin == pytest.approx((0.3 - 0.15 * 0.2, 0.5 + 0.1 * 0.2))  # a tenth of the rise from 0.5 to 2
    assert (row.best, row.good, row.apart) == (pytest.approx(0.3), True, False)
    assert [each.diverged for each in row.stretches] == [0, 1]
    assert [end for each in row.stretches for end in each.span] == pytest.approx([0, 0.6, 0.6, 1])
    assert [(tick.label, tick.at) for tick in info.ticks] == [
        ("10⁻³", pytest.approx(0.1)),
        ("10⁻²", pytest.approx(0.3)),
        ("0.1", pytest.approx(0.5)),
        ("1", pytest.approx(0.7)),
        ("10", pytest.approx(0.9)),
    ]


def test_what_was_not_run_is_a_stretch_of_its_own(hand_made: Any) -> None:
    (row,) = basins_info(summarise(*hand_made(a=[[0.5, None, None, 3.0]]))).rows
    assert [each.diverged for each in row.stretches] == pytest.approx([0, NAN, 1], nan_ok=True)


def test_some_seeds_diverged_is_the_share_that_did(hand_made: Any) -> None:
    (row,) = basins_info(summarise(*hand_made(a=[[0.5, 3.0], [0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]))).rows
    assert [each.diverged for each in row.stretches] == [0, 0.25]


def test_a_basin_around_a_poor_loss_is_not_a_good_one(hand_made: Any) -> None:
    good, poor = basins_info(summarise(*hand_made(good=[[1.5, 0.2, 1.5]], poor=[[1.5, 1.5, 1.5]]))).rows
    assert (good.good, poor.good) == (True, False)
    assert poor.basin == pytest.approx((1 / 6, 5 / 6))


def test_an_arm_that_never_learned_or_was_not_run_has_a_track_and_no_basin(hand_made: Any) -> None:
    study, trials, curves = hand_made(a=[[0.5, 1.0]], lost=[[NAN, NAN]], idle=[[1.0, 1.0]])
    summary = summarise(study, [trial for trial in trials if trial.point.arm != "idle"], curves)
    _, lost, idle = basins_info(summary).rows
    assert (lost.basin, idle.basin) == (None, None)
    assert [each.diverged for each in lost.stretches] == [1]
    assert math.isnan(idle.best)


def test_nothing_run_has_no_rows(finished: Any) -> None:
    assert basins_info(summarise(finished[0], [], {})).rows == ()


def test_a_family_stands_apart_from_the_one_above(summary: Summary) -> None:
    assert [row.arm for row in basins_info(summary).rows if row.apart] == ["Adam, beta1 0"]


def test_the_page_draws_a_track_for_each_arm_in_its_colour(summary: Summary) -> None:
    drawn, info = tracks(page(summary, command="", provenance={})), basins_info(summary)
    assert len(drawn) == len(info.rows) == 9
    for svg, row in zip(drawn, info.rows, strict=True):
        assert f'fill="{row.look.colour}"' in svg
        assert svg.count('class="lost"') == sum(each.diverged > 0 for each in row.stretches)
        assert "nan" not in svg


def test_the_figure_for_a_paper_shows_the_same(hand_made: Any) -> None:
    losses = [[1.5, 0.5, 0.5, 3.0, NAN], [1.5, 0.5, 0.5, 1.9, NAN]]
    info = basins_info(summarise(*hand_made(good=losses, poor=[[1.9] * 5] * 2)))
    figure = basins_figure(info)
    poor_lost, poor, lost, good = [trace for trace in figure.data if trace.type == "bar"]
    assert len(poor_lost.x) == 0
    assert [*lost.x, *lost.width, *lost.y] == pytest.approx([0.7, 0.9, 0.2, 0.2, 0.3, 0.6])
    assert (good.marker.color, poor.marker.color) == (info.rows[0].look.colour, "#ffffff")
    low, high = info.rows[0].basin or (NAN, NAN)
    assert (good.x[0], good.width[0]) == pytest.approx(((low + high) / 2, high - low))
    assert list(figure.layout.yaxis.ticktext) == [
        "poor<br><b>≥ 4.00 [4.00, 4.00] decades</b>",
        "good<br><b>1.25 [1.25, 1.26] decades</b>",
    ]
