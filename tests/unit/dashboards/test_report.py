"""The page: whole, escaped, the same each time, and never half-written."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards import Summary, summarise, write_page
from dashboards.report import _Embedded, page, write_atomically
from storage.records import Outcome, Study
from tests import synthetic

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"


class Reader(html.parser.HTMLParser):
    """What a browser would find: elements in order, and the text that a person sees."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._silent = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def read(summary: Summary, **options: Any) -> Reader:
    reader = Reader()
    reader.feed(page(summary, command="adamom report digits", provenance=options.get("provenance", {"commit": "abc"})))
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


@pytest.fixture(scope="module")
def whole(summary: Summary) -> Reader:
    return read(summary)


def test_sections_come_in_the_order_a_reader_asks(whole: Reader) -> None:
    headings = [
        "Which momentum forgives",
        "Before you believe a number",
        "Where each arm works",
        "One row per arm",
        "Loss over learning rate and momentum",
        "against effective learning rate",
        "How much an arm forgives",
        "What the study answers",
        "Paired comparisons",
        "Tuning and training curves",
        "Small print",
        "The study file, verbatim",
    ]
    places = [whole.text.index(heading) for heading in headings]
    assert places == sorted(places)


def test_every_number_of_the_table_stands_on_the_page(whole: Reader, summary: Summary) -> None:
    from dashboards.style import decades, fixed, number

    for row in summary.rows:
        assert row.arm in whole.text
        for text in (fixed(row.best_loss.value), decades(row.basin.value), number(row.largest_stable_lr.value)):
            assert text in whole.text
    assert "81 of 81" in whole.text


def test_the_small_print_says_how_to_make_the_page_again(whole: Reader, summary: Summary) -> None:
    for text in ("adamom report digits", "abc", summary.evidence.digest, "2.13.0", "# a study file", "diverged 207"):
        assert text in whole.text


def test_what_trials_ran_on_is_said_once(summary: Summary) -> None:
    text = read(summary, provenance={"device": "cpu", "machine": "a laptop"}).text
    assert text.count("device") == read(summary, provenance={}).text.count("device")
    assert "a laptop" in text


def test_the_page_asks_no_network_for_anything(whole: Reader) -> None:
    for tag, attributes in whole.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset"} & attributes.keys(), tag


def test_the_bundle_of_plotly_is_there_once(summary: Summary) -> None:
    text = page(summary, command="", provenance={})
    assert 4e6 < len(text) < 10e6
    assert text.count("plotly.js v") == 1


def test_the_outermost_function_of_plotly_stands_in_brackets(summary: Summary) -> None:
    """V8 then parses the bundle once, not twice: a quarter of a second. Fails when plotly wraps it in another way."""
    text = page(summary, command="", provenance={})
    bundle = text[text.index('<script type="text/plain" id="plotly">') :]
    bundle = bundle[: bundle.index("</script>")]
    assert ": this, (() => {" in bundle
    assert bundle.rstrip().endswith("return Plotly;\n})));")


def test_the_same_summary_gives_the_same_bytes(finished: Any, summary: Summary) -> None:
    again = summarise(*finished, resamples=summary.resamples)
    assert page(summary, command="a", provenance={}) == page(again, command="a", provenance={})


@pytest.fixture(scope="module")
def hostile() -> Reader:
    study = synthetic.study(points=9, name=HOSTILE, text=HOSTILE)
    arms = tuple(replace(arm, name=f"{arm.name} {HOSTILE}", family=f"{arm.family}{HOSTILE}") for arm in study.arms)
    study = replace(study, question=HOSTILE, workload=HOSTILE, arms=arms)
    trials, curves = synthetic.trials(study)
    spoilt = replace(trials[0].result, provenance={HOSTILE: HOSTILE}, error=HOSTILE)  # type: ignore[type-var]
    trials[0] = replace(trials[0], result=spoilt)
    return read(summarise(study, trials, curves, resamples=20), provenance={HOSTILE: HOSTILE})


def test_text_of_a_study_cannot_become_markup(hostile: Reader, whole: Reader) -> None:
    assert hostile.count("script") == whole.count("script")
    assert hostile.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    assert "{{ 7*7 }}" in hostile.text
    assert "<script>alert(1)</script>" in hostile.text


def test_a_figure_cannot_end_the_element_it_stands_in() -> None:
    text = _Embedded.of(go.Figure(layout={"title": {"text": "</script>&<!--\u2028"}, "height": 100})).json
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text)["layout"]["title"]["text"] == "</script>&<!--\u2028"


def test_only_the_pages_own_scripts_may_run(hostile: Reader) -> None:
    policies = [a.get("content") or "" for t, a in hostile.elements if t == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policies[0].split("style-src")[0]
    assert "unsafe-eval" not in policies[0]


def odd_studies() -> dict[str, tuple[Study, Any, Any]]:
    study = synthetic.study(points=9)
    trials, curves = synthetic.trials(study)
    first = study.arms[0].name
    waiting = [synthetic.not_finished(t, Outcome.WAITING) if t.id % 3 else t for t in trials]
    broken = [
        synthetic.not_finished(t, o) if t.id % 5 == 0 else t
        for t, o in zip(trials, [Outcome.FAILED, Outcome.PRUNED, Outcome.OOM] * 99, strict=False)
    ]
    lost = [
        replace(
            t, outcome=Outcome.DIVERGED, result=replace(t.result, outcome=Outcome.DIVERGED, final_loss=float("nan"))
        )
        for t in trials
    ]
    alone = replace(study, arms=study.arms[:1])
    one_rate = synthetic.study(points=1)
    rules = replace(study, arms=tuple(arm for arm in study.arms if arm.adaptive))
    return {
        "nothing run": (study, [], {}),
        "still running": (study, waiting, curves),
        "some failed": (study, broken, curves),
        "no curves": (study, trials, {}),
        "one seed": (replace(study, seeds=(0,)), [t for t in trials if t.point.seed == 0], curves),
        "one arm": (alone, [t for t in trials if t.point.arm == first], curves),
        "one arm not run": (study, [t for t in trials if t.point.arm != first], curves),
        "only rules": (rules, [t for t in trials if t.point.momentum is None], curves),
        "one learning rate": (one_rate, *synthetic.trials(one_rate)),
        "all diverged": (study, lost, curves),
    }


SAYS = {
    "nothing run": ["0 of 243 cells have a result", "not run: no cell has a result yet."],
    "still running": ["162 wait", "cells have not been run"],
    "some failed": ["they count as not run in every number", "A failure of", "boom"],
    "no curves": ["not run: no learning curve has been stored."],
    "one seed": ["1 seed", "no interval"],
    "one arm": ["not run: it takes two arms"],
    "one arm not run": ["27 of its 27 cells have not been run", "not run"],
    "only rules": ["not run: it takes two arms"],
    "one learning rate": ["one learning rate, so no width can be measured"],
    "all diverged": ["No arm learned", "Every run diverged"],
}


@pytest.mark.parametrize("trouble", SAYS)
def test_an_odd_study_gives_a_page_that_says_what_is_missing(trouble: str) -> None:
    text = read(summarise(*odd_studies()[trouble], resamples=20)).text
    for words in SAYS[trouble]:
        assert words in text
    assert " nan" not in text.lower()
    assert "None" not in text


class TestWriting:
    def test_a_page_is_written_where_it_was_asked_for(self, summary: Summary, tmp_path: Path) -> None:
        written = write_page(summary, tmp_path / "new" / "report.html", command="c", provenance={})
        assert written == tmp_path / "new" / "report.html"
        assert written.read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path: Path, monkeypatch: Any) -> None:
        target = tmp_path / "report.html"
        write_atomically(target, "old")

        def full_disk(self: Path, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(target, "new")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert target.read_text() == "old"
