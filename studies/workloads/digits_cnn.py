"""Handwritten digits, 8 by 8 pixels, and a small convolutional network: the images of the workload `digits`."""

from __future__ import annotations

from torch import nn

from studies.workloads import digits
from studies.workloads.workload import Split, Workload

SIDE = 8  # pixels


def images() -> tuple[Split, Split]:
    """Training and validation images: inputs of shape (examples, 1, 8, 8) in [0, 1], targets of shape (examples,)."""
    train, validation = (Split(split.inputs.view(-1, 1, SIDE, SIDE), split.targets) for split in digits.splits())
    return train, validation


def convolutional_network() -> nn.Module:
    """Two convolutions of 8 and 16 channels, each halved in size, and a linear layer: 1,898 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 10),
    )


def load() -> Workload:
    train, validation = images()
    return Workload(
        name="digits-cnn",
        summary="8x8 handwritten digits, two convolutions of 8 and 16 channels",
        model=convolutional_network,
        train=train,
        validation=validation,
        good_accuracy=0.95,
    )
