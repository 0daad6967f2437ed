"""Pictures and tables for a paper."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from dashboards import FigureError, Summary, latex_table, markdown_table, summarise, write_figures

MAGIC = {".svg": b"<svg", ".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-"}


def test_every_picture_is_written_in_every_format(summary: Summary, tmp_path: Path) -> None:
    written = write_figures(summary, tmp_path / "figures")
    names = {path.stem for path in written if path.suffix in MAGIC}
    assert names == {
        "basins",
        "surfaces",
        "lr_curves",
        "tolerance",
        "forest",
        "along",
        "law",
        "calibration",
        "tuning",
        "learning",
    }
    assert len(written) == 2 + 3 * len(names)
    for path in written:
        assert path.read_bytes().startswith(MAGIC.get(path.suffix, b""))
        assert path.stat().st_size > 500
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().get("width") == "1080"


def test_an_unknown_format_is_refused_before_anything_is_written(summary: Summary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown picture format 'gif'\. Known: svg, png, pdf"):
        write_figures(summary, tmp_path / "figures", ("svg", "gif"))
    assert not (tmp_path / "figures").exists()


def test_without_a_browser_the_pictures_say_what_to_install(
    summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no browser"))  # where kaleido looks first
    with pytest.raises(FigureError, match=r"need a Chromium\. Try: apt install chromium"):
        write_figures(summary, tmp_path / "figures")


def test_markdown_has_a_row_per_arm_and_equal_columns(summary: Summary) -> None:
    lines = markdown_table(summary).splitlines()
    assert len(lines) == 2 + 9
    assert {line.count("|") for line in lines} == {9}
    assert "| SGD, adaptive, smoothing 0.999 | 0.108 [" in lines[7]


def test_names_cannot_break_a_table(hand_made: Any) -> None:
    summary = summarise(*hand_made(**{r"a|b_50%&<i>\x{": [[1.0, 0.5, 3.0]] * 2}))
    assert r"| a\|b_50%&&lt;i>\x{ |" in markdown_table(summary)
    assert r"a|b\_50\%\&\textless{}i\textgreater{}\textbackslash{}x\{ & 0.500 [" in latex_table(summary)


def test_latex_says_what_was_not_run_and_what_the_grid_cut_off(hand_made: Any) -> None:
    study, trials, curves = hand_made(a=[[0.5, 0.5, 0.5]], rule=[[1.0, 1.0, 1.0]])
    text = latex_table(summarise(study, [t for t in trials if t.point.arm == "a"], curves))
    assert r"a & 0.500 & 0.001 & $\geq$ 2.00 & $\geq$ 0.1 &" in text
    assert "rule & not run & not run &" in text
    assert text.count(r"\\") == 3
