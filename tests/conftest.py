"""What tests of every room may ask for."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from storage import Store
from tests.postgres import Postgres

_names = (f"test_{n}" for n in itertools.count())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole session. fsync is off: a test never survives a power cut anyway."""
    with Postgres.start(fsync="off") as server:
        yield server


@pytest.fixture(scope="session")
def store_template(postgres: Postgres) -> str:
    """The name of a database with our schema and nothing in it, to be copied."""
    Store.open(postgres.create_database("store_template")).close()
    return "store_template"


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A fresh, empty PostgreSQL database of this test's own."""
    name = next(_names)
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty store of this test's own: once embedded, once on a server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'adamom.db'}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = next(_names)
    yield postgres.create_database(name, template=request.getfixturevalue("store_template"))
    postgres.drop_database(name)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open, empty store of this test's own: once embedded, once on a server."""
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium: playwright's own, else the system's. Without one, tests fail and say how to get it."""
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox root
    installed = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        for path in (None, *filter(None, installed)):
            try:
                opened = playwright.chromium.launch(executable_path=path, args=options)
            except Error:
                continue  # not there, or not for this system: the next one
            yield opened
            opened.close()
            return
        pytest.fail("These tests read pages in a real browser. Try: python -m playwright install chromium")
