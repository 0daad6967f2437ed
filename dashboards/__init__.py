"""Trials become numbers with intervals, pictures, and one page that opens without a network.

>>> summary = summarise(study, trials, curves)                          # doctest: +SKIP
>>> write_page(summary, "report.html", command="adamom report", provenance={})  # doctest: +SKIP
"""

from dashboards.archive import Archived, read_json, write_json
from dashboards.comparison import Difference, Estimate
from dashboards.export import FORMATS, FigureError, write_figures
from dashboards.flags import Flag
from dashboards.report import write_page
from dashboards.side_by_side import Comparison, compare, write_comparison
from dashboards.summary import ArmRow, Summary, summarise
from dashboards.tables import latex_table, markdown_table

__all__ = [
    "FORMATS",
    "Archived",
    "ArmRow",
    "Comparison",
    "Difference",
    "Estimate",
    "FigureError",
    "Flag",
    "Summary",
    "compare",
    "latex_table",
    "markdown_table",
    "read_json",
    "summarise",
    "write_comparison",
    "write_figures",
    "write_json",
    "write_page",
]
