"""The study files we ship, and how a word on the command line becomes the text of one.

Needs no torch: listing studies and asking the store about one answers at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

__all__ = ["StudyFileError", "name_of", "questions", "read", "shipped", "suggestion"]

HERE = Path(__file__).parent


class StudyFileError(Exception):
    """A study file cannot be used: where, what, what is allowed, what to do next."""


def shipped() -> dict[str, Path]:
    """The studies we ship: name -> file."""
    return {path.stem: path for path in sorted(HERE.glob("*.toml"))}


def questions() -> dict[str, str]:
    """What each shipped study asks: name -> question."""
    return {name: tomllib.loads(path.read_text(encoding="utf-8"))["question"] for name, path in shipped().items()}


def read(study: str) -> tuple[Path, str]:
    """The file and the text of a shipped study, or of the file at that path. Raises StudyFileError."""
    path = shipped().get(study, Path(study))
    try:
        return path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyFileError(
            f"Unknown study {study!r}: not shipped, and no file of that name. {suggestion(study, shipped())} "
            "Try: adamom studies"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(f"{path}: cannot be read as text ({error}). A study is a TOML file.") from error


def name_of(study: str) -> str:
    """What the store calls the study: a file's own name or its stem; any other word stands for itself."""
    if study in shipped() or not study.endswith(".toml"):
        return study
    path, text = read(study)
    try:
        name = tomllib.loads(text).get("name", path.stem)
        if isinstance(name, str):
            return name
        raise StudyFileError(f"{path}, name: input should be a valid string, got {name!r}")
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not valid TOML: {error}.") from None


def suggestion(word: str, known: Iterable[str]) -> str:
    """What is allowed, and the nearest of it: the second half of an error message."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    return f"Known: {', '.join(names)}." + (f" Did you mean {near[0]!r}?" if near else "")
