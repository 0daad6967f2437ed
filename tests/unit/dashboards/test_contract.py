"""What others script against is what the documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dashboards
from dashboards import Summary
from dashboards.measures import STATISTICS

PAGE = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")

ESTIMATE = {"value", "low", "high", "n", "bound"}
COMPARED = {"statistic", "arm", "baseline", "value", "base", "difference", "p", "p_holm", "seeds", "needed", "better"}


@pytest.fixture(scope="module")
def whole(summary: Summary) -> dict[str, Any]:
    return summary.as_dict()


def test_every_number_of_an_arm_is_documented(whole: dict[str, Any]) -> None:
    assert {name for arm in whole["arms"] for name in arm["metrics"]} == {*STATISTICS, "diverged"}
    for name in whole["arms"][0]["metrics"].keys() | whole["arms"][0].keys() - {"arm", "family", "adaptive", "metrics"}:
        if name not in ("planned", "measured", "seeds"):
            assert f"`{name}`" in PAGE, name


def test_every_key_is_documented(whole: dict[str, Any]) -> None:
    for key in whole:
        assert f"`{key}`" in PAGE, key


def test_the_keys_are_those_that_were_promised(whole: dict[str, Any]) -> None:
    assert whole.keys() >= {
        "version", "study", "counts", "planned", "sentence", "scale", "bootstrap", "arms", "claims", "comparisons",
        "importance", "laws", "calibration", "flags",
    }  # fmt: skip
    assert all(each.keys() == ESTIMATE for arm in whole["arms"] for each in arm["metrics"].values())
    assert all(each.keys() >= COMPARED for each in [*whole["comparisons"], *whole["claims"]])


def test_the_menu_is_there_and_sorted() -> None:
    assert list(dashboards.__all__) == sorted(
        dashboards.__all__, key=lambda name: (name.islower(), not name.isupper(), name)
    )
    assert all(hasattr(dashboards, name) for name in dashboards.__all__)
