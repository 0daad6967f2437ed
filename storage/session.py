"""One transaction, on the driver's own connection.

Statements are written once in SQLAlchemy's language and compiled once per database. What is executed is the text, by
the driver: per trial, the object layers between cost more than the database does.

On PostgreSQL a transaction that writes is a pipeline: what is told is sent without waiting for its answer, and only
what is asked waits. An error shows where the next answer is awaited, at the end of the transaction at the latest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["Session", "among", "transaction"]

BATCH = 20_000  # rows per statement: some megabytes, so that neither side needs much memory

_DIALECTS: dict[str, sa.Dialect] = {
    "postgresql": psycopg.dialect(),  # type: ignore[no-untyped-call]
    "sqlite": sqlite.dialect(paramstyle="named"),
}


class Session:
    """A transaction that has begun."""

    def __init__(self, driver: Any, backend: str, pipeline: Any = None) -> None:
        self._driver = driver
        self._pipeline = pipeline
        self.backend = backend

    def ask(self, statement: sa.Executable, **given: Any) -> list[tuple[Any, ...]]:
        """The rows that this statement returns."""
        return self.send(statement, **given)()

    def send(self, statement: sa.Executable, **given: Any) -> Callable[[], list[tuple[Any, ...]]]:
        """Ask without waiting: what comes back waits for the answer and returns its rows."""
        binary = {"binary": True} if self.backend == "postgresql" else {}
        cursor = self._driver.execute(*self._prepared(statement, given), **binary)

        if self._pipeline is None:
            found = list(cursor.fetchall())  # now: what is written next must not be seen
            return lambda: found

        def answer() -> list[tuple[Any, ...]]:
            # Without a sync the server waits for more, and never notices that we froze with its rows locked.
            self._pipeline.sync()
            return list(cursor.fetchall())

        return answer

    def tell(self, statement: sa.Executable, **given: Any) -> None:
        """Execute a statement that returns nothing."""
        self._driver.execute(*self._prepared(statement, given))

    def insert(self, table: sa.Table, columns: Mapping[str, Any], *, replaces: tuple[str, ...] = ()) -> None:
        """Insert rows given as columns: lists of equal length, or one value that holds in every row.

        replaces: the columns of a unique key; a row that is there under the same key is overwritten.

        PostgreSQL gets one JSON array per column, so that one statement text serves any number of rows. SQLite has no
        network between, so a row at a time is fast there.
        """
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        length = len(next(iter(lists.values())))
        statement = _insertion(self.backend, table, tuple(columns), frozenset(lists), replaces)
        for start in range(0, length, BATCH):
            part = {name: values[start : start + BATCH] for name, values in lists.items()}
            if self.backend == "postgresql":
                self.tell(statement, **{**columns, **{name: _json(values) for name, values in part.items()}})
            else:
                text, constants = self._prepared(statement, {n: v for n, v in columns.items() if n not in lists})
                rows = zip(*part.values(), strict=True)
                self._driver.executemany(text, [constants | dict(zip(part, row, strict=True)) for row in rows])

    def _prepared(self, statement: sa.Executable, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        text, constants = _compiled(statement, self.backend)
        if self.backend == "sqlite":  # it knows no arrays
            given = {name: json.dumps(value) if isinstance(value, list) else value for name, value in given.items()}
        return text, {**constants, **given}


@contextmanager
def transaction(driver: Any, backend: str, *, writes: bool) -> Iterator[Session]:
    """A transaction on the driver's connection: committed at the end. When something raises, the caller rolls back."""
    if backend == "postgresql" and writes:
        with driver.pipeline() as pipeline:
            yield Session(driver, backend, pipeline)
            commit(driver)
        return
    if backend == "sqlite":
        driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    yield Session(driver, backend)
    driver.commit()


def commit(driver: Any) -> None:
    """Send the commit; leaving the pipeline waits for its answer, where the driver's own way would wait twice."""
    driver.execute("COMMIT")


@cache
def _compiled(statement: sa.Executable, backend: str) -> tuple[str, dict[str, Any]]:
    """The statement's text and the constants in it. Kept for ever: statements are made once, at import."""
    compiled = statement.compile(dialect=_DIALECTS[backend])  # type: ignore[attr-defined]
    return str(compiled), {name: value for name, value in compiled.params.items() if value is not None}


@cache
def _insertion(
    backend: str, table: sa.Table, names: tuple[str, ...], lists: frozenset[str], replaces: tuple[str, ...]
) -> Any:
    if backend == "sqlite":
        statement: Any = sqlite.insert(table).values({name: sa.bindparam(name) for name in names})
    else:
        given = sa.select(
            *(sa.func.json_array_elements_text(sa.cast(sa.bindparam(n), sa.JSON)).label(n) for n in names if n in lists)
        ).subquery("given")
        rows = sa.select(
            *(_typed(given.c[n], table.c[n]) if n in lists else sa.bindparam(n, type_=table.c[n].type) for n in names)
        )
        statement = postgresql.insert(table).from_select(names, rows.select_from(given))
    if replaces:
        rest = {name: statement.excluded[name] for name in names if name not in replaces}
        return statement.on_conflict_do_update(index_elements=replaces, set_=rest)
    return statement


def _typed(text: sa.ColumnElement[Any], column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, sa.LargeBinary):
        return sa.func.decode(text, sa.literal_column("'hex'"))
    return sa.cast(text, column.type)


def _json(values: Sequence[Any]) -> str:
    """A JSON array: bytes in hexadecimal, non-finite numbers as words."""
    if isinstance(values[0], bytes):
        return json.dumps([value.hex() for value in values])
    try:
        return json.dumps(values, allow_nan=False)
    except ValueError:
        return json.dumps([v if v is None or math.isfinite(v) else str(v) for v in values])


class among(FunctionElement[bool]):  # noqa: N801 (it reads as SQL)
    """among(column, "ids"): the column's value is one of the list given as `ids`."""

    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any], name: str) -> None:
        self.column = column
        self.parameter: sa.BindParameter[Any] = sa.bindparam(name)
        super().__init__(self.column, self.parameter)


@compiles(among, "postgresql")
def _(element: among, compiler: Any, **how: Any) -> str:
    array = sa.cast(element.parameter, postgresql.ARRAY(element.column.type))
    return f"{compiler.process(element.column, **how)} = ANY ({compiler.process(array, **how)})"


@compiles(among, "sqlite")
def _(element: among, compiler: Any, **how: Any) -> str:
    parameter = compiler.process(element.parameter, **how)
    return f"{compiler.process(element.column, **how)} IN (SELECT value FROM json_each({parameter}))"  # noqa: S608 (names)
