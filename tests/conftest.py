"""What tests of every room may ask for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

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
