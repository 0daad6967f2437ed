"""Where workers run."""

from studies.engines.local import Crew, Job, devices, inventory, work

__all__ = ["Crew", "Job", "devices", "inventory", "work"]
