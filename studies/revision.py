"""Which source code this is. Needs no torch: `adamom --version` answers at once."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["commit"]


@cache
def commit() -> str:
    """The commit of the checkout this code runs from, with "+" behind it when edited.

    Outside of one, ADAMOM_COMMIT, which an image is built with, else "released".
    """
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ADAMOM_COMMIT") or "released"
    return found.stdout.strip()
