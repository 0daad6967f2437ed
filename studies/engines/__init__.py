"""Where workers run."""

from studies.engines.local import Crew, devices, work

__all__ = ["Crew", "devices", "work"]
