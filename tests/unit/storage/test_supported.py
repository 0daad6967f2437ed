"""Which Optuna is supported is said once in pyproject.toml, once by the doctor, and is the one these tests run with."""

from __future__ import annotations

import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from storage.doctor import SUPPORTED_OPTUNA, doctor

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def pinned() -> Requirement:
    service = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["service"]
    (requirement,) = [each for each in map(Requirement, service) if each.name == "optuna"]
    return requirement


def test_the_pin_is_the_minor_version_that_the_doctor_knows() -> None:
    major, minor = SUPPORTED_OPTUNA.split(".")
    assert str(pinned().specifier) == f"<{major}.{int(minor) + 1},>={SUPPORTED_OPTUNA}"


def test_the_installed_optuna_is_the_pinned_one_and_the_doctor_says_so() -> None:
    assert pinned().specifier.contains(version("optuna"))
    assert [(check.found, check.ok) for check in doctor("sqlite:///nowhere.db") if check.name == "optuna"] == [
        (version("optuna"), True)
    ]


@pytest.mark.parametrize("other", ["4.9.0", "5.1.0", "5.01", "50.0"])
def test_the_doctor_names_another_optuna(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("storage.doctor"), "version", lambda _: other)
    (check, *_) = doctor("sqlite:///nowhere.db")
    assert str(check) == f"optuna: {other}  Try: pip install 'optuna~=5.0.0'"
    assert not check.ok
