"""Whether a store can be worked with, check by check, without changing anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import sqlalchemy as sa

from . import connection
from .errors import StoreError, StoreMissing
from .store import Store

__all__ = ["Check", "doctor"]

SUPPORTED_OPTUNA = "5.0"  # the minor version that pyproject.toml pins and every test runs with
ENOUGH_BYTES = 2**30  # room for some 100,000 trials with their curves


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a diagnosis. advice: what to do, empty when all is well."""

    name: str
    found: str
    ok: bool = True
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f"  {self.advice}" if self.advice else "")


def doctor(url: str | None = None) -> tuple[Check, ...]:
    """What there is to say about the store at this address; `Store.open` has the rules for `url`.

    Nothing is created. What cannot be checked because an earlier check failed is left out.
    """
    return tuple(_checks(url))


def _checks(url: str | None) -> Iterator[Check]:
    installed = version("optuna")
    known = installed.split(".")[:2] == SUPPORTED_OPTUNA.split(".")
    yield Check("optuna", installed, known, "" if known else f"Try: pip install 'optuna~={SUPPORTED_OPTUNA}.0'")
    try:
        with Store.open(url, create=False) as store:
            yield Check("database", f"reachable, {store.describe()}, schema current")
            yield from _embedded_checks(store) if store._backend == "sqlite" else _server_checks(store)
            owed = store.untold()
            advice = "Their processes of Optuna died. Try: adamom work STUDY" if owed else ""
            yield Check("optuna's view", f"{owed} trials ended without it" if owed else "current", not owed, advice)
            counts = store.studies()
            yield Check("studies", f"{len(counts)}, {sum(each.total for each in counts.values())} trials")
    except StoreMissing as missing:
        yield Check("database", "nothing there yet", advice=str(missing))
    except StoreError as error:
        yield Check("database", "cannot be used", ok=False, advice=str(error))


def _embedded_checks(store: Store) -> Iterator[Check]:
    file = connection.database_file(store._engine.url).absolute()
    with store._engine.connect().execution_options(reads=True) as c:
        mode = str(c.exec_driver_sql("PRAGMA journal_mode").scalar())
        damage = str(c.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    advice = "" if mode == "wal" else "Several workers will wait for each other. Is this a network folder?"
    yield Check("write-ahead log", "on" if mode == "wal" else f"off ({mode})", mode == "wal", advice)
    advice = "" if damage == "ok" else f"Try: sqlite3 {file} .recover"
    yield Check("file", "whole" if damage == "ok" else damage, damage == "ok", advice)
    free = shutil.disk_usage(file.parent).free
    advice = "" if free > ENOUGH_BYTES else f"Make room in {file.parent}"
    yield Check("disk", f"{free / 2**30:.1f} GiB free", free > ENOUGH_BYTES, advice)


def _server_checks(store: Store) -> Iterator[Check]:
    with store._engine.connect() as c:
        read_only = c.execute(sa.text("SHOW transaction_read_only")).scalar_one() == "on"
        used, allowed = c.execute(
            sa.text("SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity")
        ).one()
    advice = "Try: a server that is no standby, or ALTER DATABASE ... SET default_transaction_read_only = off"
    yield Check(
        "writing", "refused, the server is read-only" if read_only else "allowed", not read_only, advice * read_only
    )
    crowded = used > 0.9 * allowed
    advice = "Workers will wait for a connection. Try: a larger max_connections" if crowded else ""
    yield Check("connections", f"{used} of {allowed} in use", not crowded, advice)
