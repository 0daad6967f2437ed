"""The pictures and tables of a report as files for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from dashboards.basins import basins_figure, basins_info
from dashboards.report import figures, write_atomically
from dashboards.summary import Summary
from dashboards.tables import latex_table, markdown_table

__all__ = ["FORMATS", "FigureError", "write_figures"]

FORMATS = ("svg", "png", "pdf")
WIDTH = 1080  # pixels: the page's own, so that a picture reads the same in a paper
PNG_SCALE = 2  # device pixels per pixel: 300 dots an inch over a page's 7.2 inches


class FigureError(RuntimeError):
    """Static pictures cannot be made on this machine; says what to install."""


def write_figures(summary: Summary, folder: Path | str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write every picture of the report in each format, and its table as table.md and table.tex; return the paths.

    Raises ValueError for an unknown format and FigureError when there is no browser to draw with.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f"Unknown picture format {unknown[0]!r}. Known: {', '.join(FORMATS)}.")
    folder = Path(folder)
    tables = {"table.md": markdown_table(summary), "table.tex": latex_table(summary)}
    written = [write_atomically(folder / name, text) for name, text in tables.items()]
    where = basins_info(summary)
    drawn = {"basins": basins_figure(where)} | figures(summary) if where.rows else {}
    wanted = [(name, figure, kind) for name, figure in drawn.items() for kind in formats]
    for (name, _, kind), picture in zip(wanted, _images((f, k) for _, f, k in wanted), strict=True):
        written.append(write_atomically(folder / f"{name}.{kind}", picture))
    return written


def _images(wanted: Iterable[tuple[go.Figure, str]]) -> list[bytes]:
    """Draw in one browser, started once: 3 seconds to begin, a third of a second each."""
    wanted = list(wanted)
    if not wanted:
        return []
    try:
        import kaleido
        from choreographer.browsers import Chromium
    except ImportError as error:
        raise FigureError("Static pictures need kaleido. Try: pip install 'adamom[figures]'") from error
    browser = Chromium.find_browser(skip_local=False)
    if not browser or not Path(browser).is_file():  # kaleido's server would wait for it for ever
        raise FigureError("Static pictures need a Chromium. Try: apt install chromium, or plotly_get_chrome")
    try:
        kaleido.start_sync_server(n=1, silence_warnings=True)
        return [bytes(kaleido.calc_fig_sync(figure, opts=_options(figure, kind))) for figure, kind in wanted]
    finally:
        kaleido.stop_sync_server(silence_warnings=True)


def _options(figure: go.Figure, kind: str) -> dict[str, object]:
    return {"format": kind, "width": WIDTH, "height": figure.layout.height, "scale": PNG_SCALE if kind == "png" else 1}
