"""The wheel is the whole application: built from what enters the image, installed elsewhere, and used there."""

from __future__ import annotations

import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("adamom", "dashboards", "storage", "studies")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and, instead of installing them again, the packages we run on."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    packages = next((home / "lib").glob("python*/site-packages"))
    # A line of a .pth file puts a folder behind our own; .pth files in there, as of the editable install, are not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return home / "bin"


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a command of the installed wheel says on stdout, run in this folder."""
    done = subprocess.run(
        [installed / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_carries_every_file_of_every_room_and_nothing_else(wheel: Path):
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS, "cli.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {path for path in tracked if (ROOT / path).exists()} <= carried
    assert {name.split("/")[0] for name in carried} == {*ROOMS, "cli.py"}


def test_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path):
    whence = f"from importlib.util import find_spec; print(*(find_spec(room).origin for room in {(*ROOMS, 'cli')}))"
    assert str(ROOT) not in run(installed, tmp_path, "python", "-c", whence)
    assert "Measure how robust optimizers are" in run(installed, tmp_path, "adamom", "--help")
    assert any(line.startswith("digits ") for line in run(installed, tmp_path, "adamom", "studies").splitlines())
    assert "cells would be added" in run(installed, tmp_path, "adamom", "plan", "digits", "--dry-run")
    assert list(tmp_path.iterdir()) == []
