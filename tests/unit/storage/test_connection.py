"""Addresses, patience, and what an error of the driver becomes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from storage import BadUrl, StoreRefused, StoreUnavailable, patiently
from storage.connection import DEFAULT_URL, _postgres_trouble, _sqlite_trouble, address, parse
from storage.errors import StoreError, StoreMissing


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2", "postgres"])
def test_every_spelling_of_postgresql_means_the_one_driver(scheme: str) -> None:
    url = parse(f"{scheme}://me:secret@db:5433/x")
    assert url.drivername == "postgresql+psycopg"
    assert address(url) == "postgresql://me@db:5433/x"


def test_the_default_is_a_file_in_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAMOM_STORE", raising=False)
    assert str(parse()) == DEFAULT_URL == "sqlite:///adamom.db"


def test_a_given_address_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMOM_STORE", "sqlite:///environment.db")
    assert str(parse("sqlite:///given.db")) == "sqlite:///given.db"
    assert str(parse()) == "sqlite:///environment.db"


@pytest.mark.parametrize("text", ["x", "oracle://a:secret@b/c", "sqlite://", "a:secret@b"])
def test_an_address_that_is_none_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(BadUrl) as raised:
        parse(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("state", "reason", "kind"),
    [
        ("", "connection refused", StoreUnavailable),
        ("", "server closed the connection unexpectedly", StoreUnavailable),
        ("57P01", "terminating connection due to administrator command", StoreUnavailable),
        ("57P03", "the database system is starting up", StoreUnavailable),
        ("53300", "sorry, too many clients already", StoreUnavailable),
        ("40P01", "deadlock detected", StoreUnavailable),
        ("08006", "connection failure", StoreUnavailable),
        ("28P01", "password authentication failed", StoreRefused),
        ("42501", "permission denied for table trials", StoreRefused),
        ("25006", "cannot execute insert in a read-only transaction", StoreRefused),
        ("53100", "could not write: no space left on device", StoreRefused),
        ("3D000", 'database "x" does not exist', StoreMissing),
        ("22003", "integer out of range", StoreError),
    ],
)
def test_what_postgresql_says_becomes_one_of_our_errors(state: str, reason: str, kind: type[StoreError]) -> None:
    assert _postgres_trouble(parse("postgresql://h/x"), state, reason)[0] is kind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("database is locked", StoreUnavailable),
        ("unable to open database file", StoreRefused),
        ("attempt to write a readonly database", StoreRefused),
        ("database or disk is full", StoreRefused),
        ("file is not a database", StoreRefused),
        ("no such column: x", StoreError),
    ],
)
def test_what_sqlite_says_becomes_one_of_our_errors(reason: str, kind: type[StoreError]) -> None:
    assert _sqlite_trouble(parse("sqlite:///x.db"), "", reason)[0] is kind


class TestPatiently:
    def test_it_asks_until_there_is_an_answer_and_says_how_long_it_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []
        monkeypatch.setattr("time.sleep", slept.append)
        answers = iter([StoreUnavailable("away")] * 9 + [None])
        told: list[tuple[str, float]] = []

        def ask() -> str:
            if trouble := next(answers):
                raise trouble
            return "answer"

        assert patiently(ask, on_wait=lambda trouble, wait: told.append((str(trouble), wait))) == "answer"
        assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
        assert told == [("away", wait) for wait in slept]

    def test_patience_ends(self) -> None:
        def ask() -> None:
            raise StoreUnavailable("away")

        with pytest.raises(StoreUnavailable, match="away"):
            patiently(ask, patience_seconds=0.3)

    def test_other_errors_are_not_waited_for(self) -> None:
        def ask() -> None:
            raise StoreRefused("no")

        with pytest.raises(StoreRefused):
            patiently(ask, on_wait=lambda *_: pytest.fail("waited"))


def test_importing_the_store_loads_neither_torch_nor_optuna_nor_parquet() -> None:
    code = "import sys, storage; print([m for m in ('torch', 'optuna', 'pyarrow', 'alembic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
