"""The shell around the pure steps: what torch.optim.Optimizer keeps, plus a momentum that may be a rule."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from .measuring import Memory, keeps_gradient
from .momentum import Fixed, Rule, Scalar, as_rule, rule

__all__ = [
    "MomentumOptimizer",
    "ParamGroup",
    "Params",
    "State",
    "check_number",
    "check_options",
    "keep",
    "kept",
    "rate",
    "real",
    "recall",
    "with_gradients",
]

# torch keeps this method from being compiled; to say so, it imports its compiler, which takes a second.
WRAPPED = torch.optim.Optimizer.add_param_group

ParamGroup = dict[str, Any]
Params = Iterable[Tensor] | Iterable[ParamGroup] | Iterable[tuple[str, Tensor]]
State = dict[str, Any]


class MomentumOptimizer(torch.optim.Optimizer):
    """An optimizer each of whose parameter groups has a momentum: a number or a rule.

    Groups with equal rules are measured as one vector (scope="global"), each with its own learning rate; a group with
    a rule of its own is measured alone. A tensor that had no gradient in a step did not move in it and is not measured.
    """

    kind: ClassVar[str]  # "SGD" or "Adam", as rules name the optimizers they fit
    refuses: ClassVar[tuple[str, ...]] = ("differentiable", "fused")  # options of torch.optim that must stay unset

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._momenta: dict[
            int, Scalar
        ] = {}  # of the last step, by group; a compiled step changes dicts, not attributes
        super().__init__(params, defaults)

    def __setstate__(self, state: State) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_momenta", {})
        for group in self.param_groups:  # of a checkpoint from before some option was there
            for option, value in self.defaults.items():
                group.setdefault(option, value)

    @classmethod
    @abstractmethod
    def momentum_of(cls, group: ParamGroup) -> object:
        """What the group holds as its momentum: a number or a rule, or plain words in a checkpoint."""

    @classmethod
    @abstractmethod
    def set_momentum(cls, group: ParamGroup, momentum: object) -> None: ...

    @classmethod
    @abstractmethod
    def check_group(cls, group: ParamGroup, rule: Rule) -> None:
        """Raise ValueError where the group's options make no sense, alone or with the rule."""

    @abstractmethod
    def step_groups(self, rule: Rule, groups: Sequence[ParamGroup]) -> list[Scalar]:
        """Take the step of groups that share a rule, and return the beta of each."""

    def add_param_group(self, param_group: ParamGroup) -> None:
        add = super().add_param_group
        if getattr(add, "__func__", None) is WRAPPED:  # and not what somebody else has put in its place
            inspect.unwrap(WRAPPED)(self, param_group)
        else:
            add(param_group)
        try:
            self._settle(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _settle(self, group: ParamGroup) -> None:
        """Check the group; words become rules, and constants become the numbers that schedulers may cycle."""
        name = type(self).__name__
        settled = as_rule(self.momentum_of(group))
        if self.kind not in settled.optimizers:
            wanted = ", ".join(sorted(settled.optimizers))
            raise ValueError(f"{name}: {settled} makes sense in {wanted} only. See adamom.HeavyBall for one that fits.")
        check_options(name, group, self.refuses)
        self.check_group(group, settled)
        if isinstance(settled, Fixed):
            self.set_momentum(group, settled.momentum)
        else:
            self.set_momentum(group, settled)
            group.setdefault("memory", {})

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
        self._momenta.clear()
        for shared, indices in self._sharing().items():
            groups = [self.param_groups[i] for i in indices]
            self._momenta.update(zip(indices, self.step_groups(shared[0], groups), strict=True))
        return loss

    def _sharing(self) -> dict[tuple[Rule, int], list[int]]:
        """The groups (by index) that are measured together, by their rule; those without gradients take no part."""
        sharing: dict[tuple[Rule, int], list[int]] = {}
        for i, group in enumerate(self.param_groups):
            if all(param.grad is None for param in group["params"]):
                continue
            shared = self._rule(i, group)
            alone = shared.scope == "tensor" or isinstance(shared, Fixed)
            sharing.setdefault((shared, i if alone else -1), []).append(i)
        return sharing

    def _rule(self, i: int, group: ParamGroup) -> Rule:
        found = as_rule(self.momentum_of(group))
        if isinstance(found, Fixed) and "memory" in group:
            raise ValueError(
                f"Parameter group {i} was given a rule for its momentum, and something has put {found.momentum} in its "
                "place. A scheduler that cycles momentum does that: pass cycle_momentum=False."
            )
        return found

    @property
    def last_momentum(self) -> Tensor:
        """The beta of the last step: of shape () when one beta served all parameters, else one per group or tensor.

        Raises RuntimeError before the first step.
        """
        if not self._momenta:
            raise RuntimeError("There is no momentum yet: no step has been taken.")
        momenta = [self._momenta[i] for i in sorted(self._momenta)]
        found = [b if isinstance(b, Tensor) else torch.tensor(b, dtype=torch.float64) for b in momenta]
        if len(found) == 1:
            return found[0].detach()
        return torch.cat([beta.reshape(-1).to(found[0]) for beta in found])

    def state_dict(self) -> State:
        """As in torch.optim, of plain values only: a rule is saved as its words, so weights_only=True can load it."""
        state = super().state_dict()
        for group in state["param_groups"]:
            found = self.momentum_of(group)
            if isinstance(found, Rule):
                self.set_momentum(group, found.as_dict())
        return state

    def load_state_dict(self, state_dict: State) -> None:
        """As in torch.optim. A checkpoint of torch's own optimizer brings its constant momentum with it."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        for group in groups:
            found = self.momentum_of(group)
            if isinstance(found, dict):
                self.set_momentum(group, rule(**found))
        super().load_state_dict({**state_dict, "param_groups": groups})
        for group in self.param_groups:
            if "memory" in group and group["params"]:
                home = group["params"][0].device
                group["memory"] = {name: value.to(home) for name, value in group["memory"].items()}


def with_gradients(name: str, group: ParamGroup) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """The parameters of the group that have a gradient: their indices, they themselves, and their gradients."""
    found = [(i, param, param.grad) for i, param in enumerate(group["params"]) if param.grad is not None]
    present, params, grads = (list(column) for column in zip(*found, strict=True))
    if any(grad.is_sparse for grad in grads):
        raise RuntimeError(
            f"adamom.{name} does not take sparse gradients: differences of them are not sparse. "
            "Build the embedding with sparse=False, or use torch.optim.SparseAdam for it."
        )
    return present, params, grads


def kept(states: Sequence[State], params: Sequence[Tensor], name: str) -> tuple[list[Tensor], list[int]]:
    """What each parameter keeps under that name, and where (by index) it was made just now, all zero."""
    fresh = [i for i, state in enumerate(states) if state.get(name) is None]
    for i in fresh:
        states[i][name] = torch.zeros_like(params[i], memory_format=torch.preserve_format)
    return real([state[name] for state in states]), fresh


def recall(rule: Rule, group: ParamGroup, present: list[int], states: Sequence[State], params: list[Tensor]) -> Memory:
    """The memory of the group's parameters that have a gradient."""
    memory = Memory()
    if keeps_gradient(rule):
        memory.previous, memory.fresh = kept(states, params, "previous_grad")
    if rule.smoothing:
        memory.change, _ = kept(states, params, "grad_change")
        memory.path, _ = kept(states, params, "param_change")
    for name, value in group.get("memory", {}).items():
        setattr(memory, name, value[present] if partial(rule, group, present) else value)
    return memory


def keep(rule: Rule, group: ParamGroup, present: list[int], memory: Memory) -> None:
    """Put the numbers of the memory back into the group; its tensors were changed in place."""
    for name in ("displacement", "previous_gradient"):
        value = getattr(memory, name)
        if value is not None and partial(rule, group, present):
            whole = group["memory"].setdefault(name, value.new_zeros(len(group["params"])))
            whole[present] = value
        elif value is not None:
            group["memory"][name] = value


def partial(rule: Rule, group: ParamGroup, present: list[int]) -> bool:
    """Only some tensors of the group take part in this step, and each is measured alone."""
    return rule.scope == "tensor" and len(present) < len(group["params"])


def rate(group: ParamGroup) -> Scalar:
    """The group's learning rate: a number, or a tensor of shape ()."""
    lr: Scalar = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def real(tensors: list[Tensor]) -> list[Tensor]:
    """Complex tensors as views of pairs of real ones, as torch.optim treats them."""
    if not any(tensor.is_complex() for tensor in tensors):
        return tensors
    return [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]


def check_number(optimizer: str, name: str, value: Any, low: float, high: float = float("inf")) -> None:
    if not low <= value < high:
        wanted = f">= {low}" if high == float("inf") else f"in [{low}, {high})"
        raise ValueError(f"{optimizer}: {name} must be {wanted}, got {value}.")


def check_options(optimizer: str, group: ParamGroup, refused: Sequence[str] = ()) -> None:
    """Refuse what every optimizer here refuses."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{optimizer}: a tensor lr must have one element, got shape {tuple(lr.shape)}.")
    check_number(optimizer, "lr", lr, 0)
    check_number(optimizer, "weight_decay", group["weight_decay"], 0)
    for option in refused:
        if group[option]:
            raise ValueError(f"{optimizer}: {option}=True is not supported. torch.optim.{optimizer} has it.")
