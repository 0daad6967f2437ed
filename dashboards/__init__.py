"""Trials become numbers with intervals, pictures, and one page that opens without a network.

>>> summary = summarise(study, trials, curves)                          # doctest: +SKIP
>>> write_page(summary, "report.html", command="adamom report", provenance={})  # doctest: +SKIP
"""

from dashboards.comparison import Difference, Estimate
from dashboards.report import write_page
from dashboards.summary import ArmRow, Flag, Summary, summarise

__all__ = ["ArmRow", "Difference", "Estimate", "Flag", "Summary", "summarise", "write_page"]
