"""The report as a reader meets it: opened from disk, in a real browser, with the network cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from dashboards import compare, summarise, write_comparison, write_page
from tests import synthetic

Opener = Callable[[Path], Page]

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
HOSTILE_LINK = "<a href='https://example.org/'>click</a>"


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens a file offline; the test fails if the page asked for anything else or raised an error."""
    context = browser.new_context(offline=True, viewport={"width": 1240, "height": 1000})
    trouble: list[str] = []

    def opener(path: Path) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("console", lambda line: trouble.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda request: trouble.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield opener
    context.close()
    harmless = ("data:", "blob:")
    assert [each for each in trouble if not each.startswith(harmless)] == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = synthetic.study()
    summary = summarise(study, *synthetic.trials(study), resamples=200)
    return write_page(
        summary, tmp_path_factory.mktemp("report") / "report.html", command="adamom report", provenance={}
    )


def read_to_the_end(page: Page) -> None:
    """Open every fold and scroll past every picture, until each is drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    for place in page.locator(".plot").all():
        place.scroll_into_view_if_needed()
        place.locator(".main-svg").first.wait_for()


def test_every_picture_is_drawn_without_a_network(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    read_to_the_end(page)
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map((p) => [p.id, p.data.length > 0])")
    assert drawn == [
        [name, True]
        for name in (
            "surfaces",
            "lr_curves",
            "tolerance",
            "forest",
            "along",
            "tuning",
            "law",
            "calibration",
            "learning",
        )
    ]


def test_the_first_screen_answers_the_question(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    assert page.locator("h1").inner_text() == "Which momentum forgives a badly chosen learning rate?"
    sentence = page.locator(".sentence")
    assert "basin 2.18 [" in sentence.inner_text()
    box = sentence.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 400


def test_the_table_has_a_row_for_each_arm_and_no_empty_cell(open_page: Opener, report: Path) -> None:
    rows = open_page(report).locator("table.arms tbody tr")
    assert rows.count() == 9
    cells = [cell.strip() for row in rows.all() for cell in row.locator("th, td").all_inner_texts()]
    assert len(cells) == 9 * 7
    assert all(cells)


def test_divergence_has_a_colour_of_its_own_on_the_surface(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    page.locator("#surfaces").scroll_into_view_if_needed()
    page.locator("#surfaces .main-svg").first.wait_for()
    flat = "document.getElementById('surfaces').data.filter((t) => t.type === 'heatmap' && !t.coloraxis)"
    colours = page.evaluate(f"{flat}.map((t) => t.colorscale[0][1])")
    assert set(colours) == {"#c2452d"}


def test_the_first_picture_needs_no_script_and_the_others_say_that_they_do(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1240, "height": 1000})
    page = context.new_page()
    page.goto(report.as_uri())
    tracks = page.locator(".basins svg.track").all()
    bars = [track.locator("rect[rx]").bounding_box() for track in tracks]
    assert len(bars) == 9
    assert all(bar is not None and bar["width"] > 20 for bar in bars)
    first = tracks[0].bounding_box()
    assert first is not None
    assert first["y"] < 1000  # on the first screen
    said = page.locator("noscript p")
    assert said.count() == 9
    assert said.first.inner_text() == "This picture needs JavaScript; its numbers are in the tables and in report.json."
    assert said.first.bounding_box() is not None
    assert not page.locator(".plot").first.is_visible()
    context.close()


def test_the_first_picture_fits_a_phone(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    page.set_viewport_size({"width": 390, "height": 844})
    for track in page.locator(".basins svg.track").all():
        box = track.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert 300 < box["width"] <= 390 - 2 * box["x"] + 1


def test_a_finger_scrolls_and_does_not_zoom(browser: Browser, report: Path) -> None:
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(report.as_uri())
    page.locator("#surfaces").scroll_into_view_if_needed()
    page.locator("#surfaces .main-svg").first.wait_for()
    assert page.evaluate("document.getElementById('surfaces').layout.dragmode") is False
    context.close()


def test_nothing_is_wider_than_a_narrow_screen(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    page.set_viewport_size({"width": 420, "height": 900})
    read_to_the_end(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_printing_draws_what_was_folded_away(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.locator("#learning .main-svg").first.wait_for()
    assert page.locator("details:not([open])").count() == 0


def test_text_of_a_study_can_neither_run_nor_link(open_page: Opener, tmp_path: Path) -> None:
    study = synthetic.study(points=9, name=HOSTILE, text=HOSTILE)
    names = (HOSTILE, HOSTILE_LINK, "${7*7}", "<b>bold</b>")
    arms = tuple(
        replace(arm, name=f"{arm.name} {names[at % 4]}", family=f"{arm.family} {HOSTILE_LINK}")
        for at, arm in enumerate(study.arms)
    )
    study = replace(study, question=HOSTILE, arms=arms)
    summary = summarise(study, *synthetic.trials(study), resamples=20)
    page = open_page(write_page(summary, tmp_path / "r.html", command=HOSTILE, provenance={HOSTILE: HOSTILE}))
    read_to_the_end(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    assert page.locator("main a[href], main a[*|href]").count() == 0
    assert page.locator("h1").inner_text() == HOSTILE
    assert "<b>bold</b>" in page.locator("#lr_curves .legend").first.text_content()


def test_studies_side_by_side_are_drawn_on_one_scale(open_page: Opener, tmp_path: Path) -> None:
    summaries = []
    for name in ("digits", HOSTILE):
        study = synthetic.study(9, name=name)
        summaries.append(summarise(study, *synthetic.trials(study), resamples=50))
    page = open_page(write_comparison(compare(summaries), tmp_path / "compare.html", command="adamom compare"))
    read_to_the_end(page)
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map((p) => [p.id, p.data.length > 0])")
    assert drawn == [[name, True] for name in ("forest", "surfaces", "along-0", "along-1", "plane", "profile")]
    assert page.evaluate("document.getElementById('surfaces').data.filter((t) => t.coloraxis).length") == 8
    assert page.evaluate("window.hacked") is None
    assert page.locator("table.arms").count() == 2
