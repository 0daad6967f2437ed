"""Opening a store: what is made, what is refused, and what the user is told."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from psycopg import sql

from storage import (
    BadUrl,
    Counts,
    Point,
    Store,
    StoreForeign,
    StoreMissing,
    StoreRefused,
    StoreUnavailable,
    Study,
)
from storage.connection import connect, parse
from storage.tables import optuna_tables, our_tables
from tests.postgres import Postgres

from .conftest import grid

OPEN = "import sys; from storage import Store; Store.open(sys.argv[1]).close()"


def opening(url: str, code: str = OPEN) -> subprocess.Popen[str]:
    """A process of its own that opens the store."""
    return subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True)


class TestCreating:
    def test_eight_processes_open_an_empty_database_at_once(self, empty_url: str) -> None:
        processes = [opening(empty_url) for _ in range(8)]
        assert [process.communicate()[1] for process in processes] == [""] * 8
        with Store.open(empty_url, create=False) as store:
            assert store.studies() == {}

    def test_the_schema_is_the_one_optuna_makes(self, empty_url: str, tmp_path: Path, postgres: Postgres) -> None:
        Store.open(empty_url).close()
        if empty_url.startswith("sqlite"):
            theirs = f"sqlite:///{tmp_path / 'optuna.db'}"
        else:
            postgres.drop_database("stock")
            theirs = postgres.create_database("stock")
        theirs = theirs.replace("postgresql://", "postgresql+psycopg://")
        optuna.storages.RDBStorage(theirs)
        assert described(empty_url) == described(theirs)

    def test_an_optuna_that_makes_other_tables_makes_none(
        self, empty_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("optuna.storages._rdb.models.SCHEMA_VERSION", 13)
        with pytest.raises(StoreForeign, match=r"makes tables of version 13; this adamom knows 12.*optuna~=5\.0\.0"):
            Store.open(empty_url)
        assert sa.inspect(connect(parse(empty_url))).get_table_names() == []

    def test_the_migrations_make_what_the_tables_say(self, store: Store) -> None:
        inspector = sa.inspect(store._engine)
        for table in our_tables.sorted_tables:
            found = {c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(table.name)}
            dialect = store._engine.dialect
            assert found == {c.name: (str(c.type.compile(dialect)), c.nullable) for c in table.columns}, table.name
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == list(
                table.primary_key.columns.keys()
            )
            indexes = {index["name"] for index in inspector.get_indexes(table.name)} - {"adamom_cells_key"}
            assert indexes == {index.name for index in table.indexes}, table.name

    def test_the_columns_of_optuna_that_we_use_are_there(self, store: Store) -> None:
        inspector = sa.inspect(store._engine)
        for table in optuna_tables.tables.values():
            found = {column["name"] for column in inspector.get_columns(table.name)}
            assert {column.name for column in table.columns} <= found, table.name

    def test_a_database_of_stock_optuna_gets_our_tables_and_keeps_its_studies(self, empty_url: str) -> None:
        stock = empty_url.replace("postgresql://", "postgresql+psycopg://")
        study = optuna.create_study(study_name="theirs", storage=stock)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        with Store.open(empty_url) as store:
            assert store.studies() == {}, "a study of Optuna is none of ours"
        assert len(optuna.load_study(study_name="theirs", storage=stock).trials) == 3

    def test_only_looking_creates_nothing(self, empty_url: str, tmp_path: Path) -> None:
        with pytest.raises(StoreMissing, match=r"Try: adamom plan STUDY"):
            Store.open(empty_url, create=False)
        assert list(tmp_path.iterdir()) == []
        if empty_url.startswith("postgresql"):
            assert sa.inspect(connect(parse(empty_url))).get_table_names() == []

    def test_the_environment_names_the_store(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ADAMOM_STORE", f"sqlite:///{tmp_path / 'elsewhere.db'}")
        with Store.open() as store:
            assert store.url == f"sqlite:///{tmp_path / 'elsewhere.db'}"

    def test_without_any_name_the_store_is_a_file_in_this_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("ADAMOM_STORE", raising=False)
        monkeypatch.chdir(tmp_path)
        with Store.open():
            assert (tmp_path / "adamom.db").exists()


class TestRefusing:
    @pytest.mark.parametrize(
        "url", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "postgresql://u:secret@h:port/d"]
    )
    def test_a_wrong_address_says_what_is_allowed_and_no_password(self, url: str) -> None:
        with pytest.raises(BadUrl, match=r"Allowed: sqlite:///FILE\.db, or postgresql://") as raised:
            Store.open(url)
        assert "secret" not in str(raised.value)

    def test_no_server_is_unavailable(self) -> None:
        with pytest.raises(StoreUnavailable, match=r"127.0.0.1:9/adamom: .*Try: docker compose up -d postgres"):
            Store.open("postgresql://u:secret@127.0.0.1:9/adamom")

    def test_a_wrong_password_is_refused_without_printing_it(self, postgres: Postgres) -> None:
        with pytest.raises(StoreRefused, match=r"Check user and password") as raised:
            Store.open(postgres.url().replace(postgres.password, "wrong-secret"))
        assert "wrong-secret" not in str(raised.value)

    def test_a_missing_database_says_how_to_make_it(self, postgres: Postgres) -> None:
        with pytest.raises(StoreMissing, match=r"Try: createdb nowhere"):
            Store.open(postgres.url("nowhere"))

    def test_a_database_that_is_not_utf8_is_refused(self, postgres: Postgres) -> None:
        postgres.execute(
            sql.SQL("CREATE DATABASE latin ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        )
        with pytest.raises(StoreRefused, match=r"encoded in SQL_ASCII. Needed: UTF8"):
            Store.open(postgres.url("latin"))

    def test_a_user_who_may_not_write_is_told_so(self, postgres: Postgres, postgres_url: str) -> None:
        postgres.execute(sql.SQL("DROP ROLE IF EXISTS reader"))
        postgres.execute(sql.SQL("CREATE ROLE reader LOGIN PASSWORD 'reader'"))
        url = postgres_url.replace(f"postgres:{postgres.password}", "reader:reader")
        with pytest.raises(StoreRefused, match=r"This user may not write here"):
            Store.open(url)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreRefused, match=r"There is no folder .*/nowhere. Try: mkdir -p"):
            Store.open(f"sqlite:///{tmp_path}/nowhere/x.db")

    def test_a_folder_is_not_a_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreRefused, match=r"is a folder. Try: --store sqlite:///"):
            Store.open(f"sqlite:///{tmp_path}")

    def test_a_text_file_is_not_a_store_and_stays_as_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "notes.txt"
        file.write_text("not a database, but quite long enough to be one " * 100)
        before = file.read_bytes()
        with pytest.raises(StoreRefused, match=r"is not a store"):
            Store.open(f"sqlite:///{file}")
        assert file.read_bytes() == before

    @pytest.mark.parametrize(
        ("table", "said"),
        [("alembic_version", "Optuna's schema v9.9.9"), ("adamom_version", "schema v9.9.9 of a newer adamom")],
    )
    def test_an_unknown_schema_is_refused_and_left_alone(self, store_url: str, table: str, said: str) -> None:
        Store.open(store_url).close()
        with connect(parse(store_url)).begin() as connection:
            connection.execute(sa.text(f"UPDATE {table} SET version_num = 'v9.9.9'"))  # noqa: S608
        before = described(store_url)
        for create in (True, False):
            with pytest.raises(StoreForeign, match=said):
                Store.open(store_url, create=create)
        assert described(store_url) == before


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder that everybody may read and only its owner may write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


class TestTrouble:
    def test_an_unwritable_folder_is_refused(self, others_folder: Path) -> None:
        told = without_rights(f"sqlite:///{others_folder}/x.db")
        assert told.startswith("StoreRefused")
        assert "may you write in it?" in told

    def test_a_read_only_file_ends_with_a_clear_line_and_keeps_what_it_has(
        self, others_folder: Path, study: Study, points: tuple[Point, ...]
    ) -> None:
        url = f"sqlite:///{others_folder}/x.db"
        with Store.open(url) as store:
            store.plan(study, points)
        told = without_rights(url, "store.claim('digits', 1, worker='me')")
        assert told.startswith("StoreRefused")
        assert "chmod u+w" in told
        with Store.open(url) as store:
            assert store.counts("digits") == Counts(waiting=18)

    def test_a_full_disk_ends_with_a_clear_line_and_loses_nothing_recorded(self, tmp_path: Path, study: Study) -> None:
        with Store.open(f"sqlite:///{tmp_path}/x.db") as store:
            store.plan(study, grid(study)[:10])
            full = store._engine.raw_connection()
            pages = full.cursor().execute("PRAGMA page_count").fetchone()[0]
            full.cursor().execute(f"PRAGMA max_page_count = {pages}")
            full.close()
            larger = Study(**{**{f: getattr(study, f) for f in study.__slots__}, "seeds": tuple(range(2000))})
            with pytest.raises(StoreRefused, match=r"Make room where .* everything recorded so far is safe"):
                store.plan(larger, grid(larger))
            assert store.counts("digits") == Counts(waiting=10)

    def test_threads_share_a_store(self, store: Store, study: Study, points: tuple[Point, ...]) -> None:
        store.plan(study, points)
        with ThreadPoolExecutor(4) as threads:
            claims = list(threads.map(lambda n: store.claim("digits", 5, worker=f"thread {n}"), range(4)))
        claimed = [trial.point for trials in claims for trial in trials]
        assert sorted(claimed, key=points.index) == list(points)


def without_rights(url: str, ask: str = "None") -> str:
    """What a process that owns nothing says when it opens this store and asks: '' or 'ErrorName: message'."""
    code = (
        "import os, sys\nfrom storage import Store, StoreError\n"
        "Store.open(sys.argv[1] + '.imported-everything').close()\n"
        "if os.getuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    with Store.open(sys.argv[1]) as store:\n"
        f"        {ask}\n"
        "except StoreError as error:\n"
        "    print(f'{type(error).__name__}: {error}', end='')\n"
    )
    return subprocess.run([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, check=True).stdout


def described(url: str) -> dict[str, object]:
    """Optuna's part of a schema: columns, keys, and the versions it states."""
    engine = connect(parse(url.replace("postgresql+psycopg://", "postgresql://")))
    inspector = sa.inspect(engine)
    found: dict[str, object] = {}
    for table in sorted(inspector.get_table_names()):
        if not table.startswith("adamom_"):
            columns = [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)]
            keys = inspector.get_pk_constraint(table), inspector.get_unique_constraints(table)
            found[table] = (columns, *keys, inspector.get_foreign_keys(table), inspector.get_indexes(table))
    with engine.connect() as connection:
        for table in ("alembic_version", "version_info"):
            found[f"rows of {table}"] = connection.execute(sa.text(f"SELECT * FROM {table}")).all()  # noqa: S608
    engine.dispose()
    return found
