"""Handwritten digits, 8 by 8 pixels, and a multilayer perceptron: small enough for a thousand trials on a laptop.

The data is scikit-learn's bundled copy of the UCI test set of optical recognition of handwritten digits: 1,797 images.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from studies.workloads.workload import Split, Workload

VALIDATION_SHARE = 0.25  # 450 of 1,797 images; the split is stratified and the same for every seed
LARGEST_PIXEL = 16.0


def splits() -> tuple[Split, Split]:
    """Training and validation images: inputs of shape (examples, 64) in [0, 1], targets of shape (examples,)."""
    digits = load_digits()
    parts = train_test_split(
        digits.data / LARGEST_PIXEL,
        digits.target,
        test_size=VALIDATION_SHARE,
        stratify=digits.target,
        random_state=0,
    )
    train_x, validation_x, train_y, validation_y = parts
    return (
        Split(torch.tensor(train_x, dtype=torch.float32), torch.tensor(train_y)),
        Split(torch.tensor(validation_x, dtype=torch.float32), torch.tensor(validation_y)),
    )


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
