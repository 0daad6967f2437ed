"""The table of a report for a paper (LaTeX) and for a README (Markdown)."""

from __future__ import annotations

import math
from collections.abc import Callable

from dashboards.comparison import Estimate
from dashboards.style import decades, fixed, number, percent
from dashboards.summary import ArmRow, Summary

__all__ = ["latex_table", "markdown_table"]

HEADINGS = ("arm", "best loss", "at lr", "basin, decades", "largest stable lr", "lr sensitivity", "diverged", "trials")
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "≥": r"$\geq$", "β": r"$\beta$", "∞": r"$\infty$",
}  # fmt: skip


def markdown_table(summary: Summary) -> str:
    """The report's table in Markdown, one row per arm; 95 % intervals in square brackets."""
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(_cells, summary.rows)]
    escaped = [[cell.replace("|", r"\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def latex_table(summary: Summary) -> str:
    """The report's table in LaTeX, for the package booktabs; 95 % intervals in square brackets."""
    body = "".join(f"  {' & '.join(map(_latex, row))} \\\\\n" for row in map(_cells, summary.rows))
    return (
        f"% {_latex(summary.study.question or summary.study.name)}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}\n  \\toprule\n"
        f"  {' & '.join(HEADINGS)} \\\\\n  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n"
    )


def _cells(row: ArmRow) -> tuple[str, ...]:
    return (
        " ".join(row.arm.split()),
        _estimate(row.best_loss, fixed),
        number(row.best_lr),
        _estimate(row.basin, decades),
        _estimate(row.largest_stable_lr, number),
        _estimate(row.sensitivity, fixed),
        _estimate(row.diverged, percent),
        f"{row.measured} of {row.planned}",
    )


def _estimate(found: Estimate, show: Callable[[float], str]) -> str:
    if not found.known:
        return "none" if found.n else "not run"
    bound = "≥ " if found.bound else ""
    between = f" [{show(found.low)}, {show(found.high)}]" if math.isfinite(found.low) else ""
    return f"{bound}{show(found.value)}{between}"


def _latex(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in " ".join(text.split()))
