"""The way to the database: its address, its engine, its schema, and what to do when it is not there.

An embedded database is one SQLite file: write-ahead log, BEGIN IMMEDIATE for every transaction that writes (so that two
workers never read the same waiting trial), a busy timeout. With synchronous = NORMAL nothing is lost when a process
dies; a power cut may take the last transactions, never the file. A server is PostgreSQL 15 or later in UTF8.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from .errors import BadUrl, StoreError, StoreForeign, StoreMissing, StoreRefused, StoreUnavailable

__all__ = ["DEFAULT_URL", "address", "check_schema", "connect", "parse", "patiently", "prepare", "translated"]

log = logging.getLogger(__name__)

DEFAULT_URL = "sqlite:///adamom.db"
STORE_VARIABLE = "ADAMOM_STORE"

VERSION_TABLE = "adamom_version"
OUR_SCHEMAS = ("0001", "0002", "0003")  # the revisions in migrations/versions, oldest first
OPTUNA_SCHEMA = "v3.2.0.a"  # the revision in Optuna's own alembic_version
OPTUNA_TABLES = 12  # what Optuna calls its tables of that revision in version_info
SUPPORTED_POSTGRES = 150_000  # server_version_num of PostgreSQL 15.0

BUSY_SECONDS = 30.0  # how long SQLite waits for another process's transaction
CONNECT_SECONDS = 10  # how long PostgreSQL may take to answer the first packet
FROZEN_SECONDS = 30  # a process that freezes in the middle of a transaction keeps its rows locked no longer
PATIENCE_SECONDS = 600.0  # a server's restart or a failover fits in, a wrong address is noticed before lunch
LONGEST_WAIT_SECONDS = 10.0
SCHEMA_LOCK = 0x6164616D  # "adam": the advisory lock under which a schema is made

Value = TypeVar("Value")


# --- address ----------------------------------------------------------------------------------------------------------


def parse(url: str | None = None) -> URL:
    """The address of the store: `url`, else ADAMOM_STORE, else the embedded database. Raises BadUrl."""
    text = url or os.environ.get(STORE_VARIABLE) or DEFAULT_URL
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise BadUrl(f"Not the address of a store: {text.split('@')[-1]!r}. {ALLOWED}") from None
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite")
    raise BadUrl(f"A store cannot live at {address(parsed)}. {ALLOWED}")


ALLOWED = "Allowed: sqlite:///FILE.db, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE."


def address(url: URL) -> str:
    """The address as it may be printed: without the password."""
    return url._replace(password=None).render_as_string().replace("postgresql+psycopg://", "postgresql://")


def database_file(url: URL) -> Path:
    """Where the embedded database lives."""
    return Path(url.database or "")


def refuse_unusable_file(url: URL, create: bool) -> None:
    """Say clearly what SQLite would say badly. Raises StoreMissing, StoreRefused."""
    if url.get_backend_name() != "sqlite":
        return
    file = database_file(url)
    if file.is_dir():
        raise StoreRefused(f"{file} is a folder. Try: --store sqlite:///{file / 'adamom.db'}")
    if not create and not file.exists():
        raise StoreMissing(f"There is no store at {file.absolute()} yet. Try: adamom plan STUDY --store {address(url)}")
    if not file.parent.is_dir():
        raise StoreRefused(f"There is no folder {file.parent.absolute()}. Try: mkdir -p {file.parent.absolute()}")


# --- engine -----------------------------------------------------------------------------------------------------------


def connect(url: URL) -> Engine:
    """An engine with a small pool: a worker needs one connection, its heartbeat a second."""
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=2, max_overflow=3)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    # psycopg warns of each broken pipeline; we say ourselves that the database is away.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    return sa.create_engine(
        url,
        pool_size=2,
        max_overflow=3,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "prepare_threshold": 0,  # every statement comes again
            "client_encoding": "utf8",
            "application_name": "adamom",
            "options": f"-c idle_in_transaction_session_timeout={FROZEN_SECONDS}s",
        },
    )


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the transaction begins where we say, not at the first write
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


# --- schema -----------------------------------------------------------------------------------------------------------


def prepare(engine: Engine, revision: str = OUR_SCHEMAS[-1]) -> None:
    """Make or upgrade the schema, Optuna's tables first; many processes may do so at once, one does the work.

    Raises StoreForeign when the tables there were made by a version we do not know, or would be.
    """
    if schema(engine) == (OPTUNA_SCHEMA, revision):
        return
    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
        optuna, ours = _revisions(connection)
        if optuna is None:
            _create_optuna(connection)
        _refuse_foreign(engine.url, optuna, ours)
        _upgrade(connection, revision)


def _write_ahead(engine: Engine) -> None:
    """Turn the write-ahead log on; it stays on in the file."""
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA journal_mode = WAL")


def _create_optuna(connection: Connection) -> None:
    """Optuna's tables, in our transaction: its own way is not safe when many processes open an empty database.

    This is the one place that touches Optuna's private models; a test compares the outcome with what
    `optuna.storages.RDBStorage` makes.
    """
    import optuna
    from optuna.storages._rdb import models

    if models.SCHEMA_VERSION != OPTUNA_TABLES:
        raise StoreForeign(
            f"Optuna {optuna.__version__} makes tables of version {models.SCHEMA_VERSION}; this adamom knows "
            f"{OPTUNA_TABLES}, those of Optuna 5.0. Try: pip install 'optuna~=5.0.0'"
        )
    models.BaseModel.metadata.create_all(connection)
    connection.execute(
        sa.insert(models.VersionInfoModel.__table__).values(
            version_info_id=1, schema_version=models.SCHEMA_VERSION, library_version=optuna.__version__
        )
    )
    revisions = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), nullable=False))
    revisions.append_constraint(sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"))
    revisions.create(connection)
    connection.execute(sa.insert(revisions).values(version_num=OPTUNA_SCHEMA))


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def schema(engine: Engine) -> tuple[str | None, str | None]:
    """The revisions found: Optuna's and ours, None where there are no tables. Writes nothing."""
    with engine.connect().execution_options(reads=True) as connection:
        return _revisions(connection)


def _revisions(connection: Connection) -> tuple[str | None, str | None]:
    tables = sa.inspect(connection).get_table_names()

    def revision(table: str) -> str | None:
        column = sa.column("version_num", sa.String)
        return connection.scalar(sa.select(column).select_from(sa.table(table, column))) if table in tables else None

    return revision("alembic_version"), revision(VERSION_TABLE)


def check_schema(engine: Engine) -> None:
    """Refuse what we cannot read. Raises StoreMissing without our tables, StoreForeign for an unknown version."""
    optuna, ours = schema(engine)
    where = address(engine.url)
    if optuna is None or ours is None:
        raise StoreMissing(f"{where} holds no store yet. Try: adamom plan STUDY --store {where}")
    _refuse_foreign(engine.url, optuna, ours)
    if ours != OUR_SCHEMAS[-1]:
        raise StoreForeign(f"{where} has schema {ours} of an older adamom. Try: adamom plan STUDY --store {where}")


def _refuse_foreign(url: URL, optuna: str | None, ours: str | None) -> None:
    where = address(url)
    if optuna not in (None, OPTUNA_SCHEMA):
        raise StoreForeign(
            f"{where} has Optuna's schema {optuna}; this adamom knows {OPTUNA_SCHEMA}, that of Optuna 5.0. "
            "Try: optuna storage upgrade --storage URL, or another database."
        )
    if ours not in (None, *OUR_SCHEMAS):
        raise StoreForeign(f"{where} has schema {ours} of a newer adamom. Try: pip install --upgrade adamom")


def check_server(engine: Engine) -> None:
    """Refuse a server that would fail later. Raises StoreRefused."""
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as connection:
        encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
        version = int(connection.execute(sa.text("SHOW server_version_num")).scalar_one())
    where = address(engine.url)
    if version < SUPPORTED_POSTGRES:
        raise StoreRefused(f"The server of {where} is PostgreSQL {version // 10_000}. Needed: 15 or later.")
    if encoding != "UTF8":
        raise StoreRefused(
            f"The database {where} is encoded in {encoding}. Needed: UTF8. "
            "Try: CREATE DATABASE adamom ENCODING 'UTF8' TEMPLATE template0"
        )


def server_version(engine: Engine) -> str:
    """The server's version, such as "18.4"."""
    with engine.connect() as connection:
        return str(connection.execute(sa.text("SHOW server_version")).scalar_one()).split()[0]


# --- trouble ----------------------------------------------------------------------------------------------------------


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn what the driver raises into one of our errors, with the place and the next thing to try."""
    driver_error = engine.dialect.loaded_dbapi.Error
    try:
        yield
    except DBAPIError as error:
        raise _translate(engine.url, error.orig) from error
    except driver_error as error:
        raise _translate(engine.url, error) from error
    except sa.exc.TimeoutError as error:
        raise StoreUnavailable(f"Every connection of this process to {address(engine.url)} is in use.") from error


def _translate(url: URL, error: BaseException | None) -> StoreError:
    reason = str(error).strip() or "no reason given"
    told = _postgres_trouble if url.get_backend_name() == "postgresql" else _sqlite_trouble
    kind, advice = told(url, getattr(error, "sqlstate", None) or "", reason.lower())
    return kind(f"{address(url)}: {reason.splitlines()[0].rstrip('.')}. {advice}")


Trouble = tuple[type[StoreError], str]


def _sqlite_trouble(url: URL, _: str, reason: str) -> Trouble:
    file = database_file(url)
    if "locked" in reason or "busy" in reason:
        return StoreUnavailable, f"Another process has been writing for {BUSY_SECONDS:g} s. Try again."
    if "unable to open" in reason:
        return StoreRefused, f"Is {file.parent} there, and may you write in it?  Try: --store sqlite:///OTHER/FILE.db"
    if "readonly" in reason:
        return StoreRefused, f"May you write {file} and its folder?  Try: chmod u+w {file}"
    if "full" in reason or "disk i/o" in reason:
        return StoreRefused, f"Make room where {file} lives; everything recorded so far is safe."
    if "not a database" in reason or "malformed" in reason:
        return StoreRefused, f"{file} is not a store. Try: another file."
    return StoreError, "Try: adamom doctor"


def _postgres_trouble(url: URL, state: str, reason: str) -> Trouble:
    if "password" in reason or state.startswith("28"):
        return StoreRefused, "Check user and password: --store URL, or ADAMOM_STORE."
    if "does not exist" in reason and ("database" in reason or "role" in reason):
        return StoreMissing, f"Try: createdb {url.database or 'adamom'}"
    if state in ("42501", "25006") or "read-only" in reason:
        return StoreRefused, "This user may not write here. Try: GRANT ALL ON SCHEMA public TO the user."
    if (state.startswith("53") and state != "53300") or "could not extend file" in reason:
        return StoreRefused, "Make room on the server's disk; everything recorded so far is safe."
    if not state or state.startswith(("08", "57P", "53300", "40")):  # no state: no server said it
        return StoreUnavailable, "Is it up?  Try: docker compose up -d postgres"
    return StoreError, "Try: adamom doctor"


def patiently(
    ask: Callable[[], Value],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    on_wait: Callable[[StoreUnavailable, float], None] | None = None,
) -> Value:
    """What `ask` returns, asking again while the store is unavailable: after 0.1 s, 0.2 s, ... 10 s.

    on_wait: told the trouble and the seconds until the next try; the default logs a warning.
    Every verb of the store may be asked twice. Raises StoreUnavailable after patience_seconds of trouble.
    """
    give_up, wait = time.monotonic() + patience_seconds, 0.1
    while True:
        try:
            return ask()
        except StoreUnavailable as trouble:
            if time.monotonic() + wait > give_up:
                raise
            if on_wait:
                on_wait(trouble, wait)
            else:
                log.warning("%s Trying again in %.1f s.", trouble, wait)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
