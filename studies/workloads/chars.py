"""The text of Python's own help topics, one character at a time: the data of the workloads chars-gpt and chars-lstm.

`pydoc_data.topics` comes with every Python and differs from version to version, so a result carries the hash of the
data it was trained on.
"""

from __future__ import annotations

from pydoc_data.topics import topics

import torch

from studies.workloads.workload import Split

CHARACTERS = 128  # ASCII; the few typographic ones become question marks, so that models of all Pythons have one shape
CONTEXT = 32  # characters a model sees at once
HELD_OUT = 10  # every tenth topic is for validation
VALIDATION_WINDOWS = 256  # 8,192 predictions, spread evenly over the held-out text


def splits() -> tuple[Split, Split]:
    """Training and validation windows: inputs of shape (examples, 32), and in targets the character after each."""
    names = sorted(topics)
    held_out = names[HELD_OUT - 1 :: HELD_OUT]
    train, validation = (windows(part) for part in ([name for name in names if name not in held_out], held_out))
    spread = torch.linspace(0, len(validation) - 1, VALIDATION_WINDOWS).long()
    return train, Split(validation.inputs[spread], validation.targets[spread])


def windows(names: list[str]) -> Split:
    """The text of these topics, cut into windows that do not overlap."""
    text = "\n".join(topics[name] for name in names)
    codes = torch.tensor(list(text.encode("ascii", errors="replace")))
    count = (len(codes) - 1) // CONTEXT
    inputs, targets = (codes[start : start + count * CONTEXT].view(count, CONTEXT) for start in (0, 1))
    return Split(inputs, targets)
