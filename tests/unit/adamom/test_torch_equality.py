"""With a number for its momentum, every optimizer takes the steps of torch.optim, bit for bit."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

import adamom

SHAPES = ((3, 4), (5,), (), (2, 1, 3))
SGD_OPTIONS = [
    {"momentum": 0},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "foreach": True},
    {"momentum": 0.9, "foreach": False},
]
ADAM_OPTIONS = [
    {},
    {"betas": (0.0, 0.99)},
    {"betas": (0.95, 0.9), "eps": 1e-3},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"amsgrad": True},
    {"amsgrad": True, "weight_decay": 0.1, "foreach": True},
    {"foreach": False},
]
CASES = (
    [("SGD", options) for options in SGD_OPTIONS]
    + [("Adam", options) for options in ADAM_OPTIONS]
    + [("AdamW", options) for options in ADAM_OPTIONS]
    + [("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True})]
)


def parameters(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def train(
    build: Callable[..., torch.optim.Optimizer], options: dict, dtype: torch.dtype, steps: int = 20
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    params = parameters(dtype)
    optimizer = build(params, lr=0.03, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_number_takes_the_steps_of_torch(name: str, options: dict, dtype: torch.dtype):
    ours, our_optimizer = train(getattr(adamom, name), options, dtype)
    if dtype == torch.bfloat16:
        options = options | {"foreach": None}  # torch's foreach rounds the momentum itself to bfloat16 on a CPU
    theirs, their_optimizer = train(getattr(torch.optim, name), options, dtype)
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)
    for our, their in zip(ours, theirs, strict=True):
        for key, value in their_optimizer.state[their].items():
            assert value is None or torch.equal(our_optimizer.state[our][key], value)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_the_fixed_rule_is_the_number(name: str):
    def momentum(value: object) -> dict:
        return {"momentum": value} if name == "SGD" else {"betas": (value, 0.999)}

    ruled, optimizer = train(getattr(adamom, name), momentum(adamom.Fixed(0.9)), torch.float32)
    plain, _ = train(getattr(adamom, name), momentum(0.9), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(ruled, plain, strict=True))
    assert optimizer.last_momentum.item() == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_checkpoint_of_torch_goes_on_here(name: str):
    options = {"momentum": 0.9} if name == "SGD" else {}
    theirs, their_optimizer = train(getattr(torch.optim, name), options, torch.float64, steps=5)
    ours = [param.detach().clone().requires_grad_() for param in theirs]
    our_optimizer = getattr(adamom, name)(ours, **options)
    our_optimizer.load_state_dict(deepcopy(their_optimizer.state_dict()))
    for optimizer, params in ((their_optimizer, theirs), (our_optimizer, ours)):
        for param in params:
            param.grad = param.detach().sin()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rule", [adamom.ConjugateGradient("FR"), adamom.NormalizedHeavyBall(delta=1.0)])
def test_a_different_momentum_takes_different_steps(rule: adamom.Rule):
    ruled, _ = train(adamom.SGD, {"momentum": rule}, torch.float32)
    plain, _ = train(adamom.SGD, {"momentum": 0.9}, torch.float32)
    assert not any(torch.equal(a, b) for a, b in zip(ruled, plain, strict=True))
