"""Handwritten digits, 8 by 8 pixels, and a multilayer perceptron: small enough for a thousand trials on a laptop.

The data is scikit-learn's bundled copy of the UCI test set of optical recognition of handwritten digits: 1,797 images.
The file is read without importing scikit-learn, which would take a worker longer than a hundred trials do.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from studies.workloads.workload import Split, Workload

VALIDATION_SHARE = 0.25  # of the images of every digit; the split is the same for every seed
LARGEST_PIXEL = 16.0


def splits() -> tuple[Split, Split]:
    """Training and validation images: inputs of shape (examples, 64) in [0, 1], targets of shape (examples,)."""
    rows = torch.from_numpy(np.loadtxt(file(), delimiter=",", dtype=np.float32))
    images, digits = rows[:, :-1] / LARGEST_PIXEL, rows[:, -1].long()
    held_out = share_of_each_class(digits)
    return Split(images[~held_out], digits[~held_out]), Split(images[held_out], digits[held_out])


def file() -> Path:
    """Comma-separated: 64 pixels and the digit in every line."""
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("The digits come with scikit-learn: pip install scikit-learn")
    return Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"


def share_of_each_class(labels: Tensor) -> Tensor:
    """Marks the same share of every class for validation: a bool tensor of the labels' shape."""
    held_out = torch.zeros(labels.shape, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label in range(int(labels.max()) + 1):
        here = (labels == label).nonzero().flatten()
        shuffled = here[torch.randperm(len(here), generator=generator)]
        held_out[shuffled[: round(VALIDATION_SHARE * len(here))]] = True
    return held_out


def perceptron() -> nn.Module:
    """Two hidden layers of 64 units with ReLU: 8,970 parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load() -> Workload:
    train, validation = splits()
    return Workload(
        name="digits",
        summary="8x8 handwritten digits, perceptron 64-64-64-10",
        model=perceptron,
        train=train,
        validation=validation,
        good_accuracy=0.9,
    )
