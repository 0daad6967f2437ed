"""A study moved between stores: out of either database, through every format, into the other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from storage import (
    BadExport,
    Counts,
    Imported,
    Outcome,
    Planned,
    Point,
    Store,
    Study,
    StudyChanged,
    Trial,
    doctor,
    export_study,
    import_study,
)
from tests.postgres import Postgres

from .conftest import CONVERGED, DIVERGED, curve, grid
from .test_optuna import ENDINGS, every_ending, loaded
from .test_store import claim, expire

__all__ = ["every_ending"]  # a fixture


@pytest.fixture
def other(store_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    """An empty store of the other kind, and its address."""
    if store_url.startswith("sqlite"):
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"sqlite:///{tmp_path / 'other.db'}"
    with Store.open(url) as store:
        yield store, url


def without_ids(trials: tuple[Trial, ...]) -> list[str]:
    return [repr(replace(trial, id=0)) for trial in trials]


def curves_by_number(store: Store) -> dict[int, Any]:
    numbers = {trial.id: trial.number for trial in store.trials("digits") if trial.outcome.finished}
    return {numbers[trial_id]: found for trial_id, found in store.curves("digits").items() if trial_id in numbers}


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
class TestMoving:
    def test_a_study_moves_without_losing_anything(
        self,
        store: Store,
        store_url: str,
        other: tuple[Store, str],
        tmp_path: Path,
        suffix: str,
        every_ending: tuple[Trial, ...],
    ) -> None:
        file = tmp_path / f"digits.{suffix}"
        store.release([trial for trial in every_ending if trial.outcome is Outcome.RUNNING])
        assert export_study(store, "digits", file) == 18
        there, there_url = other
        assert import_study(there, file) == Imported(Planned(added=18, present=0), results=len(ENDINGS))
        assert there.study("digits") == store.study("digits")
        finished = len(ENDINGS)
        assert without_ids(there.trials("digits"))[:finished] == without_ids(store.trials("digits"))[:finished]
        assert there.counts("digits") == store.counts("digits")
        assert curves_by_number(there) == curves_by_number(store)
        assert [seen(trial) for trial in loaded(there_url).trials] == [seen(t) for t in loaded(store_url).trials]
        assert loaded(there_url).user_attrs == loaded(store_url).user_attrs
        again = tmp_path / f"again.{suffix}"
        export_study(there, "digits", again)
        assert import_study(store, again) == Imported(Planned(added=0, present=18), results=0)

    def test_an_import_fills_what_is_missing_and_leaves_what_is_there(
        self, store: Store, other: tuple[Store, str], tmp_path: Path, suffix: str, study: Study
    ) -> None:
        store.plan(study, grid(study))
        trials = claim(store, 3)
        store.finish([(trial, CONVERGED) for trial in trials])
        export_study(store, "digits", tmp_path / f"x.{suffix}")
        there, _ = other
        there.plan(study, grid(study)[:10])
        own = claim(there, 2)
        there.finish([(own[0], DIVERGED)])
        assert import_study(there, tmp_path / f"x.{suffix}") == Imported(Planned(added=8, present=10), results=1)
        assert there.counts("digits") == Counts(waiting=15, running=1, converged=1, diverged=1)
        assert there.finish([(own[1], CONVERGED)]) == (), "a running trial stays with its worker"

    def test_an_imported_study_goes_on(
        self, store: Store, other: tuple[Store, str], tmp_path: Path, suffix: str, study: Study
    ) -> None:
        store.plan(study, grid(study))
        first = claim(store, 1)
        expire(store, first)
        (second,) = claim(store, 1)
        store.record({second: curve([2, 4])})
        store.finish([(second, CONVERGED)])
        export_study(store, "digits", tmp_path / f"x.{suffix}")
        there, _ = other
        import_study(there, tmp_path / f"x.{suffix}")
        assert there.trials("digits")[0].attempt == 2
        rest = claim(there, 100)
        assert len(rest) == 17
        assert there.finish([(trial, CONVERGED) for trial in rest]) == ()

    @pytest.mark.parametrize(
        "content", [b"", b"{}", b"a,b\n1,2\n", b'{"format": "adamom study", "version": 2}', b"PAR1"]
    )
    def test_a_file_that_is_no_export_is_refused(
        self, store: Store, tmp_path: Path, suffix: str, content: bytes
    ) -> None:
        file = tmp_path / f"x.{suffix}"
        file.write_bytes(content)
        with pytest.raises(BadExport, match=r"holds no exported study.*Try: adamom export STUDY --to"):
            import_study(store, file)
        assert store.studies() == {}

    def test_an_export_that_fails_leaves_the_old_file(
        self, store: Store, tmp_path: Path, suffix: str, study: Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.plan(study, grid(study))
        file = tmp_path / f"x.{suffix}"
        file.write_text("precious")
        monkeypatch.setattr("os.replace", broken)
        with pytest.raises(OSError, match="no space"):
            export_study(store, "digits", file)
        assert file.read_text() == "precious"
        assert sorted(path.name for path in tmp_path.glob(".export*")) == []


def broken(*_: object) -> None:
    raise OSError("no space")


def seen(trial: Any) -> tuple[Any, ...]:
    """Everything that Optuna knows of a trial but its id."""
    said = (trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.user_attrs)
    return (*said, repr(trial.intermediate_values), trial.datetime_start, trial.datetime_complete)


def test_an_import_of_another_study_under_the_same_name_is_refused(store: Store, tmp_path: Path, study: Study) -> None:
    store.plan(study, grid(study))
    export_study(store, "digits", tmp_path / "x.json")
    said = json.loads((tmp_path / "x.json").read_text())
    said["study"]["workload"] = "iris"
    (tmp_path / "x.json").write_text(json.dumps(said))
    with pytest.raises(StudyChanged, match="workload is digits; now it is iris"):
        import_study(store, tmp_path / "x.json")


def test_an_unknown_format_is_refused_with_those_that_are_known(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadExport, match=r"unknown format '.xlsx'. Known: .json, .parquet, .csv"):
        export_study(store, "digits", tmp_path / "x.xlsx")


class TestDoctor:
    def test_a_healthy_store_has_only_good_checks(
        self, store: Store, store_url: str, study: Study, points: tuple[Point, ...]
    ) -> None:
        store.plan(study, points)
        found = {check.name: check for check in doctor(store_url)}
        assert all(check.ok for check in found.values())
        assert "schema current" in found["database"].found
        assert found["studies"].found == "1, 18 trials"
        kind = "SQLite" if store_url.startswith("sqlite") else "PostgreSQL 18"
        assert str(found["database"]).startswith(f"database: reachable, {kind}")

    def test_no_store_yet_is_no_fault_and_nothing_is_made(self, tmp_path: Path) -> None:
        database = doctor(f"sqlite:///{tmp_path}/x.db")[-1]
        assert (database.ok, database.found) == (True, "nothing there yet")
        assert list(tmp_path.iterdir()) == []

    def test_an_unreachable_server_is_a_fault_with_advice(self) -> None:
        database = doctor("postgresql://u:secret@127.0.0.1:9/adamom")[-1]
        assert not database.ok
        assert "docker compose up -d postgres" in database.advice
        assert "secret" not in str(database)

    def test_a_damaged_file_is_found(self, tmp_path: Path, study: Study) -> None:
        url = f"sqlite:///{tmp_path}/x.db"
        with Store.open(url) as store:
            store.plan(replace(study, seeds=tuple(range(50))), grid(replace(study, seeds=tuple(range(50)))))
        content = bytearray((tmp_path / "x.db").read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8192] = b"\xff" * 8192
        (tmp_path / "x.db").write_bytes(content)
        assert not all(check.ok for check in doctor(url))

    def test_a_read_only_server_is_found(self, postgres: Postgres, postgres_url: str) -> None:
        Store.open(postgres_url).close()

        name = sql.Identifier(postgres_url.rsplit("/", 1)[1])
        postgres.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        (writing,) = [check for check in doctor(postgres_url) if check.name == "writing"]
        assert not writing.ok
