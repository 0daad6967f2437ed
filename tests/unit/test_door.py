"""The command line without its processes: mistakes, help, and what the door must not import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli

STUDY = """
question = "Does the door open?"
workload = "digits"
seeds = 2

[budget]
steps = 42
evaluations = 3
batch_size = 64

[lr]
low = 0.01
high = 1000.0
points = 6

[arms.sgd]
optimizer = "sgd"
momentum = [0.9, "adaptive"]
"""

# what is wrong: (the edit of a good study file, the command, the place that the message names, the way out)
MISTAKES = {
    "unknown study": (None, "plan digitz", "digitz", "Did you mean 'digits'?"),
    "unknown optimizer": (('r = "sgd"', 'r = "sgdd"'), "plan bad.toml", "[arms.sgd]", "Did you mean 'sgd'?"),
    "unknown option": (("seeds", "nestrov = true\nseeds"), "plan bad.toml", "nestrov", "Known: arms, budget"),
    "unknown rule": (("adaptive", "adptive"), "plan bad.toml", "[arms.sgd]", "Did you mean 'adaptive'?"),
    "unknown workload": (('"digits"', '"digit"'), "plan bad.toml", "workload", "Did you mean 'digits'?"),
    "unknown key": (("batch_size", "batchsize"), "plan bad.toml", "[budget] batchsize", "Did you mean 'batch_size'?"),
    "missing key": (("seeds = 2", ""), "plan bad.toml", "seeds", "is missing"),
    "wrong type": (("= 42", '= "x"'), "plan bad.toml", "[budget] steps", "valid integer"),
    "precision": (("steps = 42", 'steps = 42\nprecision = "fp8"'), "plan bad.toml", "[budget] precision", "'bfloat16'"),
    "name of a number": (("question", "name = 3\nquestion"), "plan bad.toml", "name", "valid string"),
    "lr too small to be one": (("= 0.01", "= 1e-320"), "plan bad.toml", "[lr] low", "between 1e-30 and 1e+30"),
    "too many seeds": (("seeds = 2", "seeds = 100000000"), "plan bad.toml", "seeds", "100000"),
    "too many points": (("points = 6", "points = 1000000000"), "plan bad.toml", "[lr] points", "100000"),
    "lr of zero": (("= 0.01", "= 0.0"), "run bad.toml", "[lr] low", "greater than 0"),
    "lr below zero": (("= 0.01", "= -0.1"), "run bad.toml", "[lr] low", "greater than 0"),
    "lr upside down": (("= 0.01", "= 1e4"), "run bad.toml", "[lr]", "low must not be above high"),
    "empty grid": (("points = 6", "points = 0"), "plan bad.toml", "[lr] points", "greater than or equal to 1"),
    "no seeds": (("seeds = 2", "seeds = []"), "plan bad.toml", "seeds: ", "valid integer"),
    "no momentum": (('[0.9, "adaptive"]', "[]"), "plan bad.toml", "[arms.sgd] momentum", "at least one"),
    "momentum of 1": (("[0.9,", "[1.0,"), "plan bad.toml", "[arms.sgd] momentum", "[0, 1)"),
    "an arm twice": (("[0.9,", "[0.9, 0.9,"), "plan bad.toml", "arms", "must differ"),
    "too many evaluations": (("= 3", "= 300"), "plan bad.toml", "[budget]", "42 steps"),
    "batch too large": (("= 64", "= 6400"), "run bad.toml", "[budget] batch_size", "1347"),
    "not TOML": (("[lr]", "[lr"), "plan bad.toml", "bad.toml", "line 11"),
    "no store": (None, "status --store sqlite:///nowhere.db", "nowhere.db", "Try: adamom plan"),
    "no server": (None, "status --store postgresql://u:secret@127.0.0.1:1/x", "127.0.0.1:1", "Is it up?"),
    "no such store": (None, "status --store mysql://u:secret@h/x", "mysql://", "postgresql://"),
    "no folder": (None, "run bad.toml --out /proc/nowhere", "--out /proc/nowhere", "Try: --out"),
    "figures nowhere": (None, "report x --figures /proc/nowhere", "--figures /proc/nowhere", "Try: --figures"),
    "export nowhere": (None, "export x --to /proc/nowhere/x.csv", "--to /proc/nowhere", "Try: --to"),
    "a page over its data": (None, "report x --out page.json", "--out page.json", "Try: --out page.html"),
    "a page over a folder": (None, "report x --out .", "--out .", "is a folder"),
    "seed too large": (("seeds = 2", "seeds = [9999999999]"), "plan bad.toml", "seeds", "2147483647"),
    "steps too many": (("= 42", "= 9999999999"), "plan bad.toml", "[budget] steps", "2147483647"),
    "a rate for an arm's grid": (
        ("momentum =", "lr = 3\nmomentum ="),
        "plan bad.toml",
        "[arms.sgd] lr",
        "low, high, points, v",
    ),
    "blank name": (("question", 'name = "  "\nquestion'), "plan bad.toml", "name", "printable"),
    "NUL in a name": (("question", 'name = "a\\u0000b"\nquestion'), "plan bad.toml", "name", "printable"),
    "NUL in an arm": (("[arms.sgd]", '[arms."s\\u0000"]'), "plan bad.toml", "name", "printable"),
    "no rule in a table": (('"adaptive"', '{ rul = "adaptive" }'), "plan bad.toml", "[arms.sgd]", "Got the keys rul"),
    "word for a number": (
        ('"adaptive"', '{ rule = "adaptive", smoothing = "x" }'),
        "plan bad.toml",
        "[arms.sgd]",
        "number",
    ),
    "no such device": (None, "run bad.toml --device cuda:99", "--device cuda:99", "Try: --device cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, command, place, way_out = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAMOM_STORE", raising=False)
    Path("bad.toml").write_text(STUDY.replace(*edit) if edit else STUDY)
    answer = CliRunner().invoke(cli.app, command.split())
    assert (answer.exit_code, answer.stdout) == (2, ""), answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert place in answer.stderr
    assert way_out in answer.stderr
    assert "secret" not in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    "command", [command.name or command.callback.__name__ for command in cli.app.registered_commands]
)
def test_every_command_has_an_imperative_first_line_and_an_example(command: str) -> None:
    answer = CliRunner().invoke(cli.app, [command, "--help"])
    assert answer.exit_code == 0
    assert f"Example: adamom {command}" in answer.stdout
    first = answer.stdout.splitlines()[2].strip()
    assert first.endswith(".")
    assert not first.split()[0].endswith("s"), f"{first!r} should tell, not describe"


def test_every_command_is_in_the_readme() -> None:
    readme = (Path(cli.__file__).parent / "README.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert [name for name in names if f"adamom {name}" not in readme] == []


def test_help_and_the_list_of_studies_import_no_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; import cli; "
        "codes = [CliRunner().invoke(cli.app, words).exit_code for words in (['--help'], ['studies'])]; "
        "print(codes, sorted({'torch', 'optuna', 'plotly', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 0] []\n"


def test_the_version_is_told_without_torch() -> None:
    script = "import cli, sys\ntry: cli.main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", script, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"adamom \d+\.\d+\.\d+ \(.+\)\n", done.stdout)


def test_a_full_disk_behind_the_output_is_one_line_and_a_closed_pipe_is_none() -> None:
    command = [sys.executable, cli.__file__, "studies"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be written: No space left on device. Try: " in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


def test_tables_have_no_blanks_at_the_ends_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_rows(("study", "cells"), [("short", "1"), ("a long name", "100000")], title="Cells")
    printed = capsys.readouterr().out
    assert "a long name" in printed
    assert printed == "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
