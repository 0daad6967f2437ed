"""Text in C, compiled for this machine's processor when it is first wanted, and kept for the next process."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["CompilerError", "compiler", "load"]

log = logging.getLogger(__name__)

KERNELS = Path(__file__).with_name("kernels.h")
# -fno-trapping-math and -fno-math-errno let comparisons and roots be vectors; sums keep their order, and nan is nan.
# -fwrapv: integers overflow as torch's do.
FLAGS = [
    *("-std=gnu11", "-O3", "-march=native", "-fopenmp-simd", "-ffp-contract=off"),
    *("-fno-math-errno", "-fno-trapping-math", "-fwrapv"),
]
LIBRARIES = ["-lmvec", "-lm"]
SECONDS = 60.0  # a compiler that takes longer is stuck


class CompilerError(Exception):
    """There is no C compiler, or it does not compile this."""


def load(text: str) -> Callable[[int, ctypes.Array[ctypes.c_void_p]], int]:
    """The function `run` of this text. Raises CompilerError saying why there is none."""
    digest = hashlib.sha256("\0".join([target(), *FLAGS, *LIBRARIES, KERNELS.read_text(), text]).encode()).hexdigest()
    library = folder() / f"{digest[:32]}.so"
    try:
        if not library.exists():
            build(text, library)
        function = ctypes.CDLL(str(library)).run
    except OSError as error:  # as where the folder may hold no programs
        raise CompilerError(str(error)) from error
    function.argtypes, function.restype = (ctypes.c_long, ctypes.c_void_p), ctypes.c_int
    return function


def build(text: str, library: Path) -> None:
    """Compile the text to that file, which is there as a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=library.parent) as workshop:
        source, built = Path(workshop) / "program.c", Path(workshop) / "program.so"
        source.write_text(text)
        command = [
            *compiler(),
            *FLAGS,
            "-shared",
            "-fPIC",
            f"-I{KERNELS.parent}",
            "-o",
            str(built),
            str(source),
            *LIBRARIES,
        ]
        said(command)
        built.replace(library)


@cache
def compiler() -> list[str]:
    """The words that start the compiler: those of $CC, or gcc. An empty $CC means that none is to be used."""
    words = os.environ.get("CC", "gcc").split()
    if not words or not shutil.which(words[0]):
        raise CompilerError(f"no C compiler ({words[0]} is not there)" if words else "CC is empty")
    return words


@cache
def target() -> str:
    """Everything that the compiler knows of itself and of this machine's processor."""
    return said([*compiler(), *FLAGS, "-dM", "-E", "-x", "c", "/dev/null"])


def said(command: list[str]) -> str:
    """What the command prints. Raises CompilerError with what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(str(error)) from error
    if done.returncode:
        raise CompilerError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")
    return done.stdout


@cache
def folder() -> Path:
    """Where compiled programs are kept: nobody else may write there, since what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = Path(base).expanduser() / "adamom" / "programs"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = place.stat()
        if about.st_uid == os.geteuid() and not about.st_mode & 0o022 and os.access(place, os.W_OK):
            return place
    except (OSError, RuntimeError) as error:  # no home, or one that is read-only
        log.info("compiled programs are not kept (%s)", error)
    return Path(own_folder().name)


@cache
def own_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="adamom-")
