"""Long trials survive their worker: where a trial stood at an evaluation, in a file of its own.

A trial that goes back to the queue goes on from there, on whatever machine sees the same folder, and ends as it would
have ended uninterrupted. Files hold tensors and plain values, are read with weights_only=True, and appear whole or not
at all: they are written under another name and renamed. A file nobody can read costs time, not correctness: the trial
starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.records import Curve, Point, Study
from studies import workloads

__all__ = ["FOLDER", "Checkpoints", "curve_from", "curve_state"]

log = logging.getLogger(__name__)

FOLDER = Path("adamom-checkpoints")
EVERY_SECONDS = 60.0  # shorter trials never write a file
FORMAT = 1

State = dict[str, Any]


@dataclass
class Checkpoints:
    """The checkpoints of one worker.

    folder: shared between workers that take over each other's trials. every_seconds: how much work may be lost.
    """

    folder: Path = FOLDER
    every_seconds: float = EVERY_SECONDS
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since anything was saved."""
        return time.monotonic() - self.saved_at >= self.every_seconds

    def path(self, study: Study, point: Point) -> Path:
        """The file of a cell: another for every study, budget, data and definition of its arm."""
        data = workloads.load(study.workload).data_hash
        what = [study.name, study.fixed, data, study.arm(point.arm).definition, point.key]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.pt"

    def save(self, study: Study, states: Mapping[Point, State], engine: str) -> None:
        """Write where these trials stand. A folder that cannot be written is said and does not stop the training."""
        self.saved_at = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clear(study, states)
            for point, state in states.items():
                path = self.path(study, point)
                unfinished = path.with_suffix(f".{os.getpid()}.part")
                torch.save({"format": FORMAT, "engine": engine, **state}, unfinished)
                unfinished.replace(path)
        except OSError as error:
            log.warning("no checkpoint in %s (%s): a trial that is interrupted starts anew", self.folder, error)

    def load(self, study: Study, point: Point, engine: str, device: torch.device, holds: Iterable[str]) -> State | None:
        """Where this trial stood when such an engine last saved it; None if it must start from the beginning.

        holds: what the engine needs of its state.
        """
        path = self.path(study, point)
        if not path.exists():
            return None
        try:
            state: State | object = torch.load(path, map_location=device, weights_only=True)
        except (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s): starting anew", path, str(error).splitlines()[0])
            return None
        if isinstance(state, dict) and (state.get("format"), state.get("engine")) != (FORMAT, engine):
            return None
        if not isinstance(state, dict) or not {"step", "curve", *holds} <= state.keys():
            log.warning("%s holds no checkpoint: starting anew", path)
            return None
        return state

    def drop(self, study: Study, point: Point) -> None:
        """The trial has ended: nobody needs its file any more."""
        path = self.path(study, point)
        if path.exists():
            self.clear(study, [point])
            path.unlink(missing_ok=True)

    def clear(self, study: Study, points: Iterable[Point]) -> None:
        """Remove what earlier owners of these cells were writing when they were killed."""
        mine = {self.path(study, point).stem for point in points}
        for unfinished in self.folder.glob("*.part"):
            if unfinished.name.partition(".")[0] in mine:
                unfinished.unlink(missing_ok=True)


def curve_state(curve: Curve) -> dict[str, Tensor]:
    """A curve as tensors."""
    return {name: torch.from_numpy(getattr(curve, name).copy()) for name in Curve.__slots__}


def curve_from(state: Mapping[str, Tensor]) -> Curve:
    """The curve that `curve_state` took apart."""
    return Curve(**{name: column.cpu().numpy() for name, column in state.items()})
