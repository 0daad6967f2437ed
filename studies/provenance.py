"""What a trial ran on, so that a number can be traced to the software and the device that made it."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["commit", "device_name", "provenance"]


def provenance(device: torch.device, engine: str, data: str) -> dict[str, str]:
    """Device, versions, commit, engine and the hash of the data, all as text."""
    return {
        "device": device_name(device),
        "engine": engine,
        "data": data,
        "adamom": version("adamom"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


@cache
def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


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
