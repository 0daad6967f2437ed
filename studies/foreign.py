"""Optimizers beyond our momentum rules as arms of a study, each through its own door and with its own habits.

A name is the library and the class, as one would import it: "torch.optim.RMSprop", "pytorch_optimizer.Lion",
"momo.MomoAdam", and our own element-wise methods, such as "adamom.MADA". What they expect of a training loop beyond
torch.optim is met here:

    foreign.step(optimizer, loss)             the loss goes to those whose step asks for it (MoMo)
    with foreign.evaluating(optimizer): ...   the weights to be judged are in place (Schedule-Free keeps two sets)

An optimizer that needs what a plain loop does not give, a second gradient or a closure, is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from adamom.optimizer import MomentumOptimizer
from studies.catalog import suggestion

__all__ = ["build", "evaluating", "is_foreign", "names", "step"]

LIBRARIES = {"adamom": "adamom", "torch.optim": "torch", "pytorch_optimizer": "pytorch_optimizer", "momo": "momo-opt"}

NEEDS_MORE = {  # what each of these wants that a plain training loop does not give
    **dict.fromkeys(["pytorch_optimizer.AdaHessian", "pytorch_optimizer.SophiaH"], "second gradients"),
    **dict.fromkeys(["torch.optim.LBFGS", "pytorch_optimizer.LBFGS", "pytorch_optimizer.BSAM"], "a closure"),
    **dict.fromkeys(["pytorch_optimizer.LOMO", "pytorch_optimizer.AdaLOMO"], "to run inside the backward pass"),
    **dict.fromkeys(
        [f"pytorch_optimizer.{name}" for name in ("AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon", "AdamMini")],
        "parameters sorted by kind",
    ),
    **dict.fromkeys(["torch.optim.Muon", "pytorch_optimizer.SpectralSphere"], "a model of matrices only"),
    **dict.fromkeys(["pytorch_optimizer.DistributedMuon", "pytorch_optimizer.DeMo"], "other processes"),
    **dict.fromkeys(["pytorch_optimizer.LoRARite", "pytorch_optimizer.SaRA"], "a model prepared for fine-tuning"),
    "torch.optim.SparseAdam": "sparse gradients",
}


def is_foreign(name: str) -> bool:
    """The name is that of another library's optimizer, known to it or not."""
    return any(name.startswith(f"{library}.") for library in LIBRARIES)


def names() -> list[str]:
    """Every optimizer of the libraries that are installed."""
    return [f"{library}.{each}" for library in LIBRARIES for each in known(library)]


def known(library: str) -> list[str]:
    """The optimizers of a library that a study can use; none if it is not installed."""
    try:
        module = import_module(library)
    except ModuleNotFoundError:
        return []
    return [each for each in sorted(dir(module)) if usable(module, library, each)]


def usable(module: ModuleType, library: str, name: str) -> bool:
    made = getattr(module, name)
    if not (inspect.isclass(made) and issubclass(made, torch.optim.Optimizer)) or inspect.isabstract(made):
        return False
    if issubclass(made, MomentumOptimizer):  # these have words of their own in a study file: sgd, adam, adamw
        return False
    return f"{library}.{name}" not in NEEDS_MORE and "lr" in inspect.signature(made).parameters


def build(
    name: str,
    params: Iterable[Tensor],
    lr: float,
    momentum: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of that name, ready for its first step.

    momentum: put where the optimizer takes it (momentum, beta, or the first of its betas); None for its own default.
    Raises ValueError naming what is unknown, and the choices.
    """
    make = maker(name)
    accepted = inspect.signature(make).parameters
    given = dict(options or {})
    for option in given:
        if option not in accepted or option in ("params", "lr"):
            raise ValueError(f"optimizer {name!r} has no option {option!r}. {suggestion(option, list(accepted))}")
    if momentum is not None:
        given |= placed(name, momentum, given, accepted)
    try:
        optimizer: Any = make(list(params), lr=lr, **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"optimizer {name!r}: {error}") from error
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def maker(name: str) -> Any:
    """The class of that name. Raises ValueError."""
    library, _, kind = name.rpartition(".")
    if library not in LIBRARIES:
        raise ValueError(f"unknown library in {name!r}. Known: {', '.join(LIBRARIES)}.")
    if name in NEEDS_MORE:
        raise ValueError(f"optimizer {name!r} needs {NEEDS_MORE[name]}, which a plain training loop does not give.")
    try:
        import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(f"optimizer {name!r} is in {LIBRARIES[library]}. Try: pip install 'adamom[zoo]'") from error
    if kind not in known(library):
        raise ValueError(f"{library} has no optimizer {kind!r}. {suggestion(kind, known(library))}")
    return getattr(import_module(library), kind)


def placed(
    name: str, momentum: float, given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The momentum under the word by which the optimizer knows it."""
    for word in ("momentum", "beta", "beta1"):
        if word in accepted:
            return {word: momentum}
    if "betas" in accepted:
        _, *others = given.get("betas", accepted["betas"].default)
        return {"betas": (momentum, *others)}
    raise ValueError(f"optimizer {name!r} has no momentum to set. Leave momentum out of its arm.")


def step(optimizer: Any, loss: Tensor) -> None:
    """One step, after loss.backward()."""
    if "loss" in inspect.signature(type(optimizer).step).parameters:
        optimizer.step(loss=loss.detach())
    else:
        optimizer.step()


@contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """The weights that are meant to be judged are in place inside, those that are trained outside."""
    switches = hasattr(optimizer, "eval") and hasattr(optimizer, "train")
    if switches:
        optimizer.eval()
    try:
        yield
    finally:
        if switches:
            optimizer.train()
