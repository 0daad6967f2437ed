"""The text of Python's help topics, one character at a time, and a small LSTM."""

from __future__ import annotations

from torch import Tensor, nn

from studies.workloads.chars import CHARACTERS, splits
from studies.workloads.workload import Workload

WIDTH, MEMORY = 32, 64


class CharacterLSTM(nn.Module):
    """Characters (batch, positions) -> logits of the next one, (batch, positions, characters)."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, WIDTH)
        self.memory = nn.LSTM(WIDTH, MEMORY, batch_first=True)
        self.logits = nn.Linear(MEMORY, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        remembered, _ = self.memory(self.characters(text))
        logits: Tensor = self.logits(remembered)
        return logits


def load() -> Workload:
    train, validation = splits()
    return Workload(
        name="chars-lstm",
        summary="characters of Python's help, one LSTM of 64 cells",
        model=CharacterLSTM,
        train=train,
        validation=validation,
        good_accuracy=0.5,
    )
