"""What a report costs: its numbers, its page, and how soon a reader sees it.

    python benchmarks/report.py [--json FILE]

Trials are synthetic (tests/synthetic.py), nine arms with learning curves. The peers, in the same run: scipy's bootstrap
for intervals, and the same figures written by plotly's own write_html for the page, opened in the same browser.
Opening counts from the navigation, on the page's own clock; runs of ours and the peer alternate. Our first picture is
plain SVG; how soon plotly's first one stands is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy import stats

from dashboards import Summary, metrics, read_json, summarise, write_json, write_page
from dashboards.report import figures
from tests import synthetic

Row = dict[str, Any]
REPEATS = 5
RESAMPLES = 2000
SETTLED_SECONDS = 3.0  # by then the slower of both pages has drawn all that is in sight
WATCH = """
  const stands = (name) => requestAnimationFrame(() => setTimeout(() => performance.mark(name)));  // after the paint
  const wanted = { picture: "figure svg.track, .main-svg", plotly: ".main-svg" };
  window.busy = [0];
  new PerformanceObserver((tasks) => busy.push(...tasks.getEntries().map((task) => task.duration)))
    .observe({type: "longtask"});
  new MutationObserver(() => Object.keys(wanted).forEach((name) => {
    if (document.querySelector(wanted[name])) { stands(name); delete wanted[name]; }
  })).observe(document, {childList: true, subtree: true});
  addEventListener("DOMContentLoaded", () =>
    setTimeout(() => document.querySelector(".plot, .plotly-graph-div").scrollIntoView()));
"""  # scrolled to plotly's first picture at once, as the most impatient reader would
MARKS = """[
  ["text", performance.getEntriesByName("first-contentful-paint")[0].startTime],
  ...performance.getEntriesByType("mark").map((mark) => [mark.name, mark.startTime]),
  ["busy", Math.max(...busy)],
]"""


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


class Browser:
    """A Chromium driven over a pipe with no debugger attached: one makes V8 read plotly's bundle three times over.

    Only the DevTools domains named below are used, and the page is asked for its marks after everything is over.
    """

    def __init__(self, executable: str) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = ["--headless=new", "--remote-debugging-pipe", "--window-size=1240,1000", "--no-first-run"]
        options += [f"--user-data-dir={self.profile.name}", *["--no-sandbox"] * (os.geteuid() == 0), "about:blank"]
        plumbing = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where Chromium looks for its commands
        self.process = subprocess.Popen(
            ["bash", "-c", plumbing, "chromium", executable, *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.commands, self.answers, self.asked = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb"), 0

    def ask(self, method: str, session: str | None = None, **parameters: object) -> Row:
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": parameters}
        self.commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := json.loads(self._line())).get("id") != self.asked:
            pass
        return dict(answer["result"])

    def _line(self) -> bytes:
        letters = iter(lambda: self.answers.read(1), b"\0")
        return b"".join(letters)

    def opened(self, path: Path) -> Row:
        """Seconds from the navigation to each of MARKS, as the page itself saw them."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable", session)
        self.ask("Page.addScriptToEvaluateOnNewDocument", session, source=WATCH)
        self.ask("Page.navigate", session, url=path.as_uri())
        time.sleep(SETTLED_SECONDS)
        marks = self.ask("Runtime.evaluate", session, expression=MARKS, returnByValue=True)["result"]["value"]
        self.ask("Target.closeTarget", targetId=target)
        return {name: at / 1000 for name, at in marks}

    def close(self) -> None:
        self.ask("Browser.close")
        self.process.wait()
        self.profile.cleanup()


def opening(browser: Browser, page: Path, peer: Path, label: str) -> list[Row]:
    """Until text can be read, a picture stands, and plotly's first stands: medians of runs that alternate."""
    pairs = [(browser.opened(page), browser.opened(peer)) for _ in range(REPEATS)]
    ours, theirs = (
        {name: statistics.median(run[name] for run in runs) for name in runs[0]} for runs in zip(*pairs, strict=True)
    )
    return [
        row(f"{label}: page can be read, s (peer: plotly's write_html)", ours["text"], theirs["text"], 1.0),
        row(f"{label}: first picture stands, s (same peer)", ours["picture"], theirs["picture"], 0.6),
        row(f"{label}: first picture to turn and zoom, s (same peer)", ours["plotly"], theirs["plotly"], 1.0),
        row(f"{label}: longest that the page does not answer, s (same)", ours["busy"], theirs["busy"], None),
    ]


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
    executable = chromium()
    if executable is None:
        print("not measured: no Chromium. Try: apt install chromium", file=sys.stderr)
        nothing = dict.fromkeys(("ours", "peer", "ratio", "met"))
        return [{"name": "10,000 trials: page can be read, s", "target": 1.0} | nothing]
    browser = Browser(executable)
    browser.opened(plain)  # the first page of a new browser is slower than any other
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
