"""The text of Python's help topics, one character at a time, and a small GPT.

A decoder of pre-norm transformer blocks as in Radford et al. (2019, GPT-2), its dropout included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studies.workloads.chars import CHARACTERS, CONTEXT, splits
from studies.workloads.workload import Workload

WIDTH, HEADS, BLOCKS = 32, 2, 2
DROPOUT = 0.1


class Attention(nn.Module):
    """Causal self-attention: each position looks at itself and at those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        q, k, v = self.queries_keys_values(x).view(batch, positions, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.mixed(heads.transpose(1, 2).reshape(x.shape))
        return mixed


class Block(nn.Module):
    """x + attention(norm(x)), and of that, y + perceptron(norm(y))."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(), nn.Dropout(DROPOUT))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        attended = x + self.attention(x)
        thought: Tensor = attended + self.perceptron(attended)
        return thought


class GPT(nn.Module):
    """Characters (batch, positions) -> logits of the next one, (batch, positions, characters)."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)), nn.LayerNorm(WIDTH))
        self.logits = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        positions = torch.arange(text.shape[-1], device=text.device)
        logits: Tensor = self.logits(self.blocks(self.characters(text) + self.positions(positions)))
        return logits


def load() -> Workload:
    train, validation = splits()
    return Workload(
        name="chars-gpt",
        summary="characters of Python's help, GPT of two blocks, width 32",
        model=GPT,
        train=train,
        validation=validation,
        good_accuracy=0.35,
    )
