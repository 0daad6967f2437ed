"""Handwritten digits, 8 by 8 pixels, and a small residual network with BatchNorm.

The basic block is that of He et al. (2015, arXiv 1512.03385, figure 5 left), with option B where it changes size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studies.workloads.digits_cnn import images
from studies.workloads.workload import Workload


def convolution(channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """A convolution whose bias is BatchNorm's."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class Block(nn.Module):
    """ReLU(shortcut(x) + residual(x)): two 3 by 3 convolutions, and a shortcut of 1 by 1 where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(channels_in, channels_out, 3, stride), nn.ReLU(), convolution(channels_out, channels_out, 3)
        )
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else convolution(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


def residual_network() -> nn.Module:
    """A stem of 8 channels, blocks of 8 and 16, the mean over the image, a linear layer: 5,122 parameters.

    The linear layer starts at zero. The loss at initialisation is then ln 10 whatever BatchNorm's statistics are, so
    that a run which learned little did better than it, and is not taken for a diverged one.
    """
    network = nn.Sequential(
        convolution(1, 8, 3),
        nn.ReLU(),
        Block(8, 8, stride=1),
        Block(8, 16, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network


def load() -> Workload:
    train, validation = images()
    return Workload(
        name="digits-resnet",
        summary="8x8 handwritten digits, residual network of two blocks with BatchNorm",
        model=residual_network,
        train=train,
        validation=validation,
        good_accuracy=0.95,
    )
