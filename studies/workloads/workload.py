"""The shape of a workload, and the list of those we ship."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studies.dropout import seed_dropout

# name -> module; a module is imported, and its data read, only when its workload is asked for.
WORKLOADS = {
    "digits": "studies.workloads.digits",
    "digits-cnn": "studies.workloads.digits_cnn",
    "digits-resnet": "studies.workloads.digits_resnet",
    "chars-gpt": "studies.workloads.chars_gpt",
    "chars-lstm": "studies.workloads.chars_lstm",
}


@dataclass(frozen=True, slots=True)
class Split:
    """Examples that stand in one place.

    inputs: tensor of shape (examples, ...). targets: int64 tensor of shape (examples,) or (examples, positions).
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"A split needs one target per input: got {len(self.inputs)} and {len(self.targets)}.")

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Workload:
    """Data, a model, and what a good result is.

    model: makes a freshly initialised model, drawing from torch's global generator as every nn.Module does.
    good_accuracy: the validation accuracy that somebody who knows the data would call a success.
    """

    name: str
    summary: str
    model: Callable[[], nn.Module]
    train: Split
    validation: Split
    good_accuracy: float

    def initial_model(self, seed: int) -> nn.Module:
        """The model at initialisation: the same weights for the same seed in every arm, on every device.

        Its dropout depends on the seed alone (`studies.dropout`).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return seed_dropout(self.model(), seed)

    @cached_property
    def data_hash(self) -> str:
        """Sixteen hexadecimal digits that differ where the data does: its values, shapes, types and splits."""
        digest = hashlib.sha256()
        for tensor in (self.train.inputs, self.train.targets, self.validation.inputs, self.validation.targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def batch_order(self, seed: int, steps: int, batch_size: int) -> Tensor:
        """Which examples each step sees: int64 tensor of shape (steps, batch_size).

        Every epoch is a fresh permutation without its incomplete last batch. Raises ValueError when the training set
        does not fill one batch.
        """
        per_epoch = len(self.train) // batch_size
        if per_epoch == 0:
            raise ValueError(
                f"Workload {self.name!r} has {len(self.train)} training examples: too few for a batch of {batch_size}."
            )
        generator = torch.Generator().manual_seed(seed)
        epochs = [torch.randperm(len(self.train), generator=generator) for _ in range(-(-steps // per_epoch))]
        batches = [epoch[: per_epoch * batch_size].view(per_epoch, batch_size) for epoch in epochs]
        return torch.cat(batches)[:steps]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, computed in float32.

    outputs: logits of shape (..., classes). targets: int64 tensor of shape (...). Returns a 0-d tensor.
    """
    chosen = F.log_softmax(outputs.float(), dim=-1).gather(-1, targets.unsqueeze(-1))
    return -chosen.mean()


def accuracy_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of targets whose logit is the largest: a 0-d tensor in [0, 1]."""
    return (outputs.max(-1).indices == targets).float().mean()  # argmax is ten times slower along a short dimension


def known() -> tuple[str, ...]:
    """The names that a study file may give as its workload."""
    return tuple(WORKLOADS)


@cache
def load(name: str) -> Workload:
    """The workload of that name, its data read once per process. Raises KeyError naming the known ones."""
    if name not in WORKLOADS:
        raise KeyError(f"Unknown workload {name!r}. Known: {', '.join(WORKLOADS)}.")
    workload: Workload = importlib.import_module(WORKLOADS[name]).load()
    return workload
