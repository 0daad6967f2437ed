"""What a report costs: its numbers, its page, and how soon a reader sees it.

    python benchmarks/report.py [--json FILE]

Trials are synthetic (tests/synthetic.py), nine arms with learning curves. The peers, in the same run: scipy's bootstrap
for intervals, and the same figures written by plotly's own write_html for the page, opened in the same browser.
Opening counts from the navigation until the first picture stands; runs of ours and the peer alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from playwright.sync_api import Browser, Error, sync_playwright
from scipy import stats

from dashboards import Summary, metrics, read_json, summarise, write_json, write_page
from dashboards.report import figures
from tests import synthetic

Row = dict[str, Any]
REPEATS = 5
RESAMPLES = 2000


def row(name: str, ours: float, peer: float | None, target: float | None) -> Row:
    """ratio: how many times the peer's figure is ours. target: for ours, at most."""
    ratio = None if peer is None else peer / ours
    met = None if target is None else ours <= target
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met}


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def intervals(summary: Summary) -> Row:
    """95 % intervals of the learning-rate sensitivity of nine arms, by resampling seeds."""
    losses = [grid.loss for grid in summary.evidence.grids]

    def ours() -> list[tuple[float, float]]:
        weights = metrics.draws(len(losses[0]), seed=0, resamples=RESAMPLES)
        curves = (metrics.mean_over_seeds(each, weights) for each in losses)
        return [metrics.interval(metrics.learning_rate_sensitivity(curve)) for curve in curves]

    def peer() -> list[tuple[float, float]]:
        return [_scipy_interval(each) for each in losses]

    pairs = [(timed(ours)[0], timed(peer)[0]) for _ in range(3)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return row("intervals of nine arms, s (peer: scipy.stats.bootstrap)", *medians, None)


def _scipy_interval(losses: np.ndarray) -> tuple[float, float]:
    def statistic(seeds: np.ndarray) -> float:
        curve = losses[seeds.astype(int)].mean(axis=0)
        return float((curve - curve.min()).mean())

    options: dict[str, Any] = {"vectorized": False, "n_resamples": RESAMPLES, "method": "percentile"}
    found = stats.bootstrap((np.arange(len(losses)),), statistic, rng=np.random.default_rng(0), **options)
    return found.confidence_interval.low, found.confidence_interval.high


def grid(points: int, folder: Path) -> tuple[list[Row], Summary, Path]:
    """Nine arms, ten seeds: numbers, page, archive and back."""
    study = synthetic.study(points, range(10))
    trials, curves = synthetic.trials(study)
    label = f"{round(len(trials), -3):,} trials"
    large = len(trials) > 50_000
    numbers, summary = timed(lambda: summarise(study, trials, curves))
    written, page = timed(lambda: write_page(summary, folder / f"{points}.html", command="benchmark"))
    kept, archive = timed(lambda: write_json(summary, folder / f"{points}.json", command="benchmark"))
    back, _ = timed(lambda: read_json(archive))
    rows = [
        row(f"{label}: every number, s", numbers, None, 60 if large else 5),
        row(f"{label}: page, s", written, None, 60 if large else 10),
        row(f"{label}: report.json written, s", kept, None, None),
        row(f"{label}: report.json read and recomputed, s", back, None, None),
    ]
    return rows, summary, page


def plain_page(summary: Summary, path: Path) -> Path:
    """The same figures as plotly writes them."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures(summary).values())
    ]
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(parts)}</body>", encoding="utf-8")
    return path


def opening(browser: Browser, page: Path, peer: Path, label: str) -> list[Row]:
    """Seconds until text can be read and until the first picture stands, the medians of runs that alternate."""
    pairs = [(*_opened(browser, page), *_opened(browser, peer)) for _ in range(REPEATS)]
    read, drawn, peer_read, peer_drawn = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [
        row(f"{label}: page can be read, s (peer: plotly's write_html)", read, peer_read, 1.0),
        row(f"{label}: first picture stands, s (same peer)", drawn, peer_drawn, 1.0),
    ]


def _opened(browser: Browser, path: Path) -> tuple[float, float]:
    context = browser.new_context(offline=True, viewport={"width": 1240, "height": 1000})
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector(".main-svg", state="attached")
    drawn = float(page.evaluate("performance.now()")) / 1000
    read = float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")) / 1000
    context.close()
    return read, drawn


def chromium() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, summary, page = grid(111, folder)
        plain = plain_page(summary, folder / "plain.html")
        size, plain_size = (path.stat().st_size / 1e6 for path in (page, plain))
        rows += [row("10,000 trials: page, MB (peer: plotly's write_html)", size, plain_size, 10.0), intervals(summary)]
        rows += openings(page, plain)
        more, _, large = grid(1111, folder)
        return [*rows, *more, row("100,000 trials: page, MB", large.stat().st_size / 1e6, None, None)]


def openings(page: Path, plain: Path) -> list[Row]:
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        except Error:
            print("not measured: no Chromium. Try: python -m playwright install chromium", file=sys.stderr)
            nothing = dict.fromkeys(("ours", "peer", "ratio", "met"))
            return [{"name": "10,000 trials: page can be read, s", "target": 1.0} | nothing]
        measured = opening(browser, page, plain, "10,000 trials")
        browser.close()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    target = parser.parse_args().json
    rows = measure()
    print(f"{'':66}{'ours':>9}{'peer':>9}{'ratio':>8}{'target':>8}  met")
    for each in rows:
        cells = ["-" if each[name] is None else f"{each[name]:.3g}" for name in ("ours", "peer", "ratio", "target")]
        met = {None: "-", True: "yes", False: "no"}[each["met"]]
        print(f"{each['name']:66}{cells[0]:>9}{cells[1]:>9}{cells[2]:>8}{cells[3]:>8}  {met}")
    if target:
        target.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
