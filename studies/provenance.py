"""What a trial ran on, so that a number can be traced to the software and the device that made it."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

import torch

from studies.revision import commit

__all__ = ["device_name", "provenance"]


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
