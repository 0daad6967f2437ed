"""Numbers and figures become one HTML page that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dashboards import metrics, style
from dashboards.basins import basins_info
from dashboards.calibration import calibration_figure
from dashboards.claims import QUESTIONS, Claim, difference_text
from dashboards.comparison import Difference
from dashboards.curves import learning_figure, learning_info, lr_curves_figure, lr_curves_info
from dashboards.interpolation import law_figure
from dashboards.measures import STATISTICS, TOLERANCE
from dashboards.paired import along_figure, along_info, forest_figure, forest_info
from dashboards.profiles import tolerance_figure, tolerance_info, tuning_figure, tuning_info
from dashboards.style import decades, fixed, number, percent
from dashboards.summary import Summary
from dashboards.surfaces import surfaces_figure, surfaces_info

__all__ = ["figures", "write_page"]

HERE = Path(__file__).parent
NOTHING: Mapping[str, str] = MappingProxyType({})
SVG_DASHES = {
    "solid": "none",
    "dash": "6 3",
    "dot": "2 2",
    "dashdot": "7 2 2 2",
    "longdash": "11 3",
    "longdashdot": "11 2 2 2",
}


class Caption(NamedTuple):
    """What a picture is called, what it can tell, what it cannot, and why it may be missing."""

    title: str
    reads: str
    cannot: str
    empty: str


CAPTIONS = {
    "basins": Caption(
        "Where each arm works",
        "A bar is an arm's basin: the learning rates around its best one, the dot, whose mean loss stays within the "
        "tolerance; a hollow bar lies around a loss that misses the study's best by more than that, and one that "
        "reaches the end of its track may be wider than the grid. Hatched red is the share of seeds that diverged, "
        "full height for all of them; a dashed track was not run.",
        "how low the loss is in there, or compare families: a learning rate means another step there.",
        "no cell has a result yet.",
    ),
    "surfaces": Caption(
        "Loss over learning rate and momentum",
        "Each cell is the mean final loss over seeds, all panels on one colour scale; red cells with a cross "
        "diverged in half of their seeds or more, a red dot marks fewer, pale cells with a dash were not run, and the "
        "dotted line is where half diverge.",
        "what happens between two cells, or compare columns of different families: a learning rate means another "
        "step there.",
        "no cell has a result yet.",
    ),
    "lr_curves": Caption(
        "Loss against learning rate and effective learning rate",
        "Lines are means over seeds and bands reach from the lowest seed to the highest; a red cross is a "
        "learning rate at which half of the seeds or more diverged, the dotted line the loss at initialisation, "
        "the dashed one the basin's edge. On the right, each step is rescaled by what momentum sums up: a method "
        "whose curve only moves has no advantage there.",
        "whether a small gap is chance: see the paired comparisons.",
        "no cell has a result yet.",
    ),
    "tolerance": Caption(
        "Decades of learning rate within a tolerance",
        "How many decades around an arm's best learning rate stay within a tolerance of the best loss of the "
        "whole study; a line that starts further left reaches a lower loss, a higher one forgives more. The "
        "dashed line is the table's tolerance.",
        "where on the learning-rate axis the basin lies, or whether you could have guessed it.",
        "no cell has a result yet.",
    ),
    "forest": Caption(
        "Paired differences from the baseline",
        "Each arm minus its baseline on the learning rates and seeds both ran, with a 95 % interval; filled marks"
        " are differences that a sign-flip test over seeds (Holm-corrected over the arms) does not put down to "
        "chance, hollow ones are undecided. The baseline is the family's constant momentum with the lowest loss "
        "unless another was asked for.",
        "that two arms are equal: an interval that crosses zero only means that these seeds do not decide it.",
        "it takes two arms of one family, one of them with a constant momentum, and a result for each.",
    ),
    "along": Caption(
        "Paired difference along the learning rate",
        "Loss of an arm minus that of its baseline at the same learning rate and seed, mean and 95 % interval "
        "over seeds point by point; below zero the arm is better there.",
        "whether the arm is better when both are tuned: that is the best loss above.",
        "it takes two arms of one family, one of them with a constant momentum, and a result for each.",
    ),
    "tuning": Caption(
        "Expected best of n random grid points",
        "The lowest loss to expect from trying n cells of the arm's grid at random (Tang et al. 2020), with "
        "simultaneous 95 % bands; lower and sooner is easier to tune.",
        "how a sampler that learns from its trials would do, and it moves with the grid's window.",
        "no cell has a result yet.",
    ),
    "law": Caption(
        "A law of the loss between grid points",
        "A parametric form of our own fitted to the constant momenta, as the share of the study's drop in loss "
        "that is achieved; dots are the measured cells on the same scale, and the right panel is how far off the "
        "law may be.",
        "anything beyond the grid, and it stands in for no cell: where dot and surface differ, believe the dot.",
        "it takes 20 grid points with a constant momentum in one family, and something that learned.",
    ),
    "calibration": Caption(
        "Short runs against whole ones",
        "Each mark is a learning rate of an arm, its loss at a quarter of the budget against its final loss; "
        "where marks keep their order, short runs can rank learning rates.",
        "what a run with a schedule made for the short budget would have given.",
        "it takes learning curves for 20 grid points.",
    ),
    "learning": Caption(
        "Learning curves",
        "Validation loss along the run at each arm's best learning rate, mean and range over seeds; below, the "
        "momentum that each rule chose.",
        "anything about other learning rates.",
        "no learning curve has been stored.",
    ),
}


def figures(summary: Summary) -> dict[str, go.Figure]:
    """Every picture of the report by name; one whose data has not been run is left out."""
    drawn: dict[str, go.Figure] = {}
    if any(row.measured for row in summary.rows):
        drawn["surfaces"] = surfaces_figure(surfaces_info(summary))
        drawn["lr_curves"] = lr_curves_figure(lr_curves_info(summary))
        drawn["tolerance"] = tolerance_figure(tolerance_info(summary))
        drawn["tuning"] = tuning_figure(tuning_info(summary))
    if (forest := forest_info(summary)).rows:
        drawn["forest"] = forest_figure(forest)
    if (along := along_info(summary)).families:
        drawn["along"] = along_figure(along)
    if summary.laws:
        drawn["law"] = law_figure(summary.laws)
    if summary.calibration:
        drawn["calibration"] = calibration_figure(summary.calibration, style.looks(summary.study.arms))
    if (learning := learning_info(summary)).traces:
        drawn["learning"] = learning_figure(learning)
    return drawn


def write_page(summary: Summary, path: Path | str, *, command: str, provenance: Mapping[str, str] = NOTHING) -> Path:
    """Write the report as one HTML file and return its path; nothing half-written is ever left there.

    command: what made the page. provenance: versions, commit, device and the like, shown in the small print.
    Raises OSError when the folder cannot be written.
    """
    return write_atomically(Path(path), page(summary, command=command, provenance=provenance))


def page(summary: Summary, *, command: str, provenance: Mapping[str, str]) -> str:
    """The report as HTML: the same text for the same summary, command and provenance."""
    return render(
        "report.html.j2",
        figures(summary),
        summary=summary,
        rows=summary.rows,
        where=basins_info(summary),
        tally=_tally(summary),
        flags=list(_grouped_flags(summary)),
        winners=winners(summary),
        claims=_answers(summary),
        questions=list(QUESTIONS.values()),
        comparisons=_comparisons(summary),
        looks=style.looks(summary.study.arms),
        resolution=_resolution(summary),
        statistics=STATISTICS,
        window=_window(summary),
        tolerance=percent(TOLERANCE),
        command=command,
        provenance=_said_once(provenance, summary.evidence.provenance),
        ran_on=summary.evidence.provenance,
        errors=summary.evidence.errors,
        counts=summary.counts.as_dict(),
        digest=summary.evidence.digest,
    )


def render(
    template: str, drawn: Mapping[str, go.Figure], *, captions: Mapping[str, Caption] = CAPTIONS, **values: Any
) -> str:
    """A page that opens without a network: the template, its figures, and plotly's bundle once."""
    plotly, script = _plotly(), (HERE / "report.js").read_text(encoding="utf-8")
    return _template(template).render(
        figures={name: _Embedded.of(figure) for name, figure in drawn.items()},
        captions=captions,
        version=metrics.VERSION,
        plotly=Markup(plotly),
        script=Markup(script),
        policy=_policy(plotly, script),
        **values,
    )


def _plotly() -> str:
    """Plotly's bundle, its outermost function in brackets: by that sign V8 reads its five megabytes once, not twice."""
    return re.sub(r"(?<=: this, )\(\) => \{.*\}(?=\)\);?\s*$)", r"(\g<0>)", get_plotlyjs(), count=1, flags=re.DOTALL)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals |= {
        "css": Markup((HERE / "report.css").read_text(encoding="utf-8")),
        "dashes": SVG_DASHES,
        "number": number,
        "fixed": fixed,
        "decades": decades,
        "percent": percent,
    }
    return environment.get_template(name)


class _Embedded(NamedTuple):
    """A figure as the page carries it: JSON that cannot end the element it stands in."""

    json: Markup
    height: int

    @classmethod
    def of(cls, figure: go.Figure) -> _Embedded:
        text = str(figure.to_json(engine="json"))
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return cls(Markup(text), int(figure.layout.height))


def _policy(*scripts: str) -> str:
    """A content security policy under which only these scripts run and nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"


def _tally(summary: Summary) -> list[tuple[str, int]]:
    counts = summary.counts.as_dict()
    counts["unplanned"] = max(summary.evidence.planned - counts.pop("total"), 0)
    return [(name, counts[name]) for name in _ORDER if counts[name]]


_ORDER = ("converged", "diverged", "pruned", "oom", "failed", "running", "lost", "waiting", "unplanned")


def _grouped_flags(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for flag in summary.flags:
        grouped.setdefault(flag.text, []).extend([flag.arm] if flag.arm else [])
    return ((text, ["every arm"] if len(arms) == len(summary.rows) > 1 else arms) for text, arms in grouped.items())


def winners(summary: Summary) -> dict[str, set[str]]:
    """For each statistic the arms with its best value; none where all share it or nothing competes."""
    return {name: _winners(summary, name) for name in STATISTICS}


def _winners(summary: Summary, name: str) -> set[str]:
    known = {row.arm: row.metrics[name].value for row in summary.rows if row.metrics[name].known}
    if len(set(known.values())) < 2:
        return set()
    extreme = (min if STATISTICS[name].lower_is_better else max)(known.values())
    return {arm for arm, value in known.items() if math.isclose(value, extreme)}


def _resolution(summary: Summary) -> str:
    steps = {
        round(float(np.diff(np.log10(arm.lr.values)).max()), 4) for arm in summary.study.arms if len(arm.lr.values) > 1
    }
    if not steps:
        return "one learning rate, so no width can be measured"
    return f"a grid step of {decades(max(steps))} decades"


def _said_once(provenance: Mapping[str, str], ran_on: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """The page's provenance without what the list of what the trials ran on says again."""
    return {key: value for key, value in provenance.items() if value != ", ".join(ran_on.get(key, ()))}


def _window(summary: Summary) -> str:
    low, high = summary.scale.common
    return f"learning rates from {number(low)} to {number(high)}" if low == low else "the arms share no learning rate"


def _answers(summary: Summary) -> dict[str, list[Claim]]:
    """The claims by arm, in the order of the questions."""
    grouped: dict[str, list[Claim]] = {}
    for claim in summary.claims:
        grouped.setdefault(claim.difference.arm, []).append(claim)
    return grouped


def _comparisons(summary: Summary) -> dict[str, list[dict[str, str]]]:
    """The known differences by arm, in the words of the table."""
    grouped: dict[str, list[dict[str, str]]] = {}
    for each in summary.differences:
        if each.estimate.known:
            grouped.setdefault(each.arm, []).append(_compared(each))
    return grouped


def _compared(difference: Difference) -> dict[str, str]:
    return {
        "title": STATISTICS[difference.statistic].title,
        "value": number(difference.value),
        "base": number(difference.base),
        "difference": difference_text(difference),
        "p": number(difference.p_holm),
        "verdict": verdict(difference),
    }


def verdict(difference: Difference) -> str:
    """What a difference decides, in a word."""
    return {None: "undecided", True: "better", False: "worse"}[difference.better]


def write_atomically(path: Path, text: str | bytes) -> Path:
    """Write a file under a temporary name beside it, then rename: a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
