"""The shell of the methods that are not a momentum rule: each tensor takes a step of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from .optimizer import ParamGroup, State, check_options

__all__ = ["ElementwiseOptimizer"]


class ElementwiseOptimizer(torch.optim.Optimizer):
    """A torch optimizer made of a pure update of one tensor; the subclass says what it keeps and how it moves.

    ranges: for each option of the optimizer that is a number, (lowest allowed, first not allowed).
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {}

    @abstractmethod
    def start(self, param: Tensor, group: ParamGroup) -> State:
        """What a parameter keeps before its first step."""

    @abstractmethod
    def update_(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> None:
        """Move one parameter, in place. state["step"] counts the steps before this one."""

    def add_param_group(self, param_group: ParamGroup) -> None:
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check(self, group: ParamGroup) -> None:
        name = type(self).__name__
        check_options(name, group)
        for option, (low, high) in self.ranges.items():
            values = group[option] if isinstance(group[option], tuple) else (group[option],)
            if not all(low <= value < high for value in values):
                raise ValueError(f"{name}: {option} must lie in [{low}, {high}), got {group[option]}.")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step. closure: evaluates the model again and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def step_group(self, group: ParamGroup) -> None:
        for param in group["params"]:
            if param.grad is None:
                continue
            refuse_exotic(type(self).__name__, param)
            state = self.state[param]
            if not state:
                state.update(self.start(param, group), step=torch.zeros(()))
            self.update_(param, -param.grad if group["maximize"] else param.grad, state, group)
            state["step"] += 1


def refuse_exotic(optimizer: str, param: Tensor) -> None:
    if param.grad is not None and param.grad.is_sparse:
        raise RuntimeError(f"adamom.{optimizer} does not take sparse gradients. Build the embedding with sparse=False.")
    if param.is_complex():
        raise RuntimeError(f"adamom.{optimizer} does not take complex parameters. Optimize torch.view_as_real of them.")


def zeros(param: Tensor, *names: str) -> State:
    """Tensors like the parameter, all zero, by name."""
    return {name: torch.zeros_like(param, memory_format=torch.preserve_format) for name in names}


def count(state: State) -> Any:
    """Steps taken before this one, as a number."""
    return state["step"].item()
