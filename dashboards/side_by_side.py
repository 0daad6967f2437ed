"""Several studies, or the arms of one, side by side: sentences, differences, and what holds across workloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dashboards import metrics, style
from dashboards.across import (
    Across,
    across_workloads,
    plane_figure,
    plane_info,
    profile_figure,
    profile_info,
)
from dashboards.basins import basins_info
from dashboards.claims import QUESTIONS, sentence
from dashboards.paired import along_figure, along_info, forest_figure, forest_info
from dashboards.report import CAPTIONS, NOTHING, Caption, render, winners, write_atomically
from dashboards.summary import Summary, analyse
from dashboards.surfaces import surfaces_figure, surfaces_info

__all__ = ["Comparison", "compare", "comparison_page", "write_comparison"]

SPOKEN = ("basin", *(name for name in QUESTIONS if name != "basin"))  # a sentence for each claim, the headline first


@dataclass(frozen=True, eq=False)
class Comparison:
    """Studies side by side. baseline: the arm that all are compared with; None: each family's best constant."""

    summaries: tuple[Summary, ...]
    baseline: str | None

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """One computed sentence per study, arm and claim; arms with a rule only, where there are any."""
        return self._spoken(SPOKEN)

    @cached_property
    def headlines(self) -> tuple[str, ...]:
        """Those of the sentences that compare basins."""
        return self._spoken(SPOKEN[:1])

    def _spoken(self, statistics: Sequence[str]) -> tuple[str, ...]:
        several = len(self.summaries) > 1
        return tuple(text for summary in self.summaries for text in _sentences(summary, statistics, several))

    @cached_property
    def across(self) -> Across | None:
        """None unless two studies share an arm."""
        return across_workloads(self.summaries, self.baseline)

    def as_dict(self) -> dict[str, Any]:
        """The contract of `adamom compare --json`: strict JSON, null where nothing has been run."""
        return {
            "version": {"comparison": 2, "metrics": metrics.VERSION},
            "baseline": self.baseline,
            "sentences": list(self.sentences),
            "studies": [summary.as_dict() for summary in self.summaries],
            "across": self.across.as_dict() if self.across else None,
        }


def compare(summaries: Sequence[Summary], *, baseline: str | None = None) -> Comparison:
    """Put studies side by side, every arm against the same baseline.

    summaries: as `summarise` or `read_json` gave them; their numbers are computed anew against the baseline. Raises
    ValueError when there are none or a name comes twice, KeyError when a study has no arm called baseline.
    """
    names = [summary.study.name for summary in summaries]
    if not names:
        raise ValueError("A comparison needs at least one study.")
    if len(set(names)) < len(names):
        raise ValueError(f"Each study can be compared once: got {', '.join(names)}.")
    if baseline is not None:
        summaries = [
            analyse(each.evidence, seed=each.seed, resamples=each.resamples, baseline=baseline) for each in summaries
        ]
    return Comparison(tuple(summaries), baseline)


def _sentences(summary: Summary, statistics: Sequence[str], several: bool) -> Iterator[str]:
    rules = {row.arm for row in summary.rows if row.adaptive} & set(summary.baselines)
    compared = rules or set(summary.baselines)
    prefix = f"{summary.study.name}: " if several else ""
    found = {(each.arm, each.statistic): each for each in summary.differences if each.estimate.known}
    for arm, statistic in product((row.arm for row in summary.rows if row.arm in compared), statistics):
        if difference := found.get((arm, statistic)):
            yield prefix + sentence(difference, summary.row(arm), summary.row(difference.baseline))


# --------------------------------------------------------------------------------------------------------- the page


PLANE = Caption(
    "Performance-sensitivity plane",
    "Each arm's score when its learning rate is tuned per workload, against what it loses when all workloads share one "
    "(Adkins et al. 2024); up and to the left is better.",
    "how an arm would do on a workload that is not among these.",
    "it takes arms that ran the same learning rates in two studies.",
)


PROFILE = Caption(
    "Performance profiles",
    "The share of workloads whose target an arm reaches within τ times the steps of the fastest arm there, every arm "
    "at its best learning rate (Dahl et al. 2023); higher and further left is faster.",
    "anything absolute: adding an arm to the comparison may change every line.",
    "it takes learning curves, and an arm that reached a target.",
)


def write_comparison(
    comparison: Comparison, path: Path | str, *, command: str, provenance: Mapping[str, str] = NOTHING
) -> Path:
    """Write the comparison as one HTML file that opens without a network, whole or not at all; return its path."""
    return write_atomically(Path(path), comparison_page(comparison, command=command, provenance=provenance))


def comparison_page(comparison: Comparison, *, command: str, provenance: Mapping[str, str] = NOTHING) -> str:
    """The comparison as HTML: the same text for the same studies, command and provenance."""
    summaries = comparison.summaries
    alongs = {f"along-{at}": along_info(summary) for at, summary in enumerate(summaries)}
    return render(
        "comparison.html.j2",
        _figures(comparison) | {name: along_figure(info) for name, info in alongs.items() if info.families},
        captions={**CAPTIONS, "plane": PLANE, "profile": PROFILE, **dict.fromkeys(alongs, CAPTIONS["along"])},
        comparison=comparison,
        title=" · ".join(summary.study.name for summary in summaries),
        flags=list(_flags(summaries)),
        studies=[_study(summary, name) for summary, name in zip(summaries, alongs, strict=True)],
        across=comparison.across,
        command=command,
        provenance=provenance,
    )


def _figures(comparison: Comparison) -> dict[str, go.Figure]:
    drawn = {}
    if any(row.measured for summary in comparison.summaries for row in summary.rows):
        drawn["surfaces"] = surfaces_figure(surfaces_info(*comparison.summaries))
    if (forest := forest_info(*comparison.summaries)).rows:
        drawn["forest"] = forest_figure(forest)
    across, arms = comparison.across, comparison.summaries[0].study.arms
    if across and (plane := plane_info(across, arms)).points:
        drawn["plane"] = plane_figure(plane)
    if across and (profile := profile_info(across, arms)).shares:
        drawn["profile"] = profile_figure(profile)
    return drawn


def _flags(summaries: Sequence[Summary]) -> Iterator[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for summary in summaries:
        for flag in summary.flags:
            where = f"{summary.study.name}, {flag.arm}" if flag.arm else summary.study.name
            grouped.setdefault(flag.text, []).append(where)
    return iter(grouped.items())


def _study(summary: Summary, along: str) -> dict[str, Any]:
    counts = {name: count for name, count in summary.counts.as_dict().items() if count}
    return {
        "name": summary.study.name,
        "question": summary.study.question,
        "rows": summary.rows,
        "where": basins_info(summary),
        "looks": style.looks(summary.study.arms),
        "winners": winners(summary),
        "along": along,
        "counts": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        "digest": summary.evidence.digest,
    }
