"""Many trials as one program: K lanes in one call are K single calls, state included."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import adamom
from adamom import adam, sgd

RATES = torch.tensor([0.003, 0.03, 0.1, 0.3, 1.0], dtype=torch.float64)
SHAPES = ((4, 3), (7,), (2, 1, 2))
STEPS = 12

ANYWHERE = [
    adamom.Fixed(0.0),
    adamom.Fixed(0.9),
    adamom.HeavyBall(),
    adamom.HeavyBall(scope="tensor"),
    adamom.HeavyBall(smoothing=0.9),
    adamom.HeavyBall(scope="tensor", smoothing=0.99, delta=0.05),
    adamom.NormalizedHeavyBall(),
    adamom.NormalizedHeavyBall(scope="tensor", smoothing=0.5),
    adamom.LearningRateScaled(),
    adamom.AdaptiveMemory(),
]
SGD_ONLY = [adamom.ConjugateGradient(formula) for formula in ("FR", "PR", "HS", "DY")]
ADAM_ONLY = [
    adamom.HeavyBall(metric="preconditioned"),
    adamom.HeavyBall(metric="preconditioned", smoothing=0.9),
    adamom.NormalizedHeavyBall(metric="preconditioned", scope="tensor"),
]
CASES = [
    *[(sgd, rule, {}) for rule in ANYWHERE + SGD_ONLY],
    *[(adam, rule, {}) for rule in ANYWHERE + ADAM_ONLY],
    (sgd, adamom.HeavyBall(), {"nesterov": True, "weight_decay": 0.1, "maximize": True}),
    (sgd, adamom.Fixed(0.9), {"dampening": 0.1}),
    (adam, adamom.HeavyBall(), {"weight_decay": 0.1, "amsgrad": True}),
    (adam, adamom.Fixed(0.9), {"weight_decay": 0.1, "decoupled": True}),
]


def gradients(params: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """Of log cosh of the distance, per entry: the curvature changes along the way, and no rate runs off to infinity."""
    return [(param - target).tanh() for param, target in zip(params, targets, strict=True)]


def problem(lanes: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    start, goal = ([torch.randn(lanes, *s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in "ab")
    return start, goal


def run(module: Any, rule: adamom.Rule, group: Any, targets: list[Tensor], lanes: bool) -> Tensor:
    betas = []
    for _ in range(STEPS):
        group.grads = gradients(group.params, targets)
        betas.append(torch.as_tensor(module.step_(rule, [group], lanes=lanes)[0], dtype=torch.float64))
    return torch.stack(betas)


def state(group: Any) -> dict[str, Any]:
    """Every tensor the group keeps, by name."""
    kept = {field.name: getattr(group, field.name) for field in fields(group)}
    memory = kept.pop("memory")
    kept |= {field.name: getattr(memory, field.name) for field in fields(memory)}
    return {name: value for name, value in kept.items() if name not in ("fresh", "lr") and value is not None}


@pytest.mark.parametrize(("module", "rule", "options"), CASES, ids=str)
def test_k_lanes_in_one_call_are_k_single_calls(module: Any, rule: adamom.Rule, options: dict):
    start, goal = problem(len(RATES))
    fused = module.Group(params=[p.clone() for p in start], lr=RATES, **options)
    betas = run(module, rule, fused, goal, lanes=True)

    for k, rate in enumerate(RATES):
        alone = module.Group(params=[p[k].clone() for p in start], lr=float(rate), **options)
        betas_alone = run(module, rule, alone, [g[k] for g in goal], lanes=False)
        torch.testing.assert_close(betas if betas.ndim == 1 else betas[..., k], betas_alone, rtol=1e-9, atol=1e-9)
        for name, value in state(alone).items():
            of_lanes = state(fused)[name]
            if isinstance(value, list):
                of_lanes = [tensor[k] for tensor in of_lanes]
            elif isinstance(value, Tensor):
                of_lanes = of_lanes[..., k]
            torch.testing.assert_close(of_lanes, value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(("module", "rule", "options"), CASES, ids=str)
def test_a_lane_of_nan_changes_no_other_lane_by_a_bit(module: Any, rule: adamom.Rule, options: dict):
    start, goal = problem(len(RATES))
    healthy = module.Group(params=[p.clone() for p in start], lr=RATES, **options)
    run(module, rule, healthy, goal, lanes=True)

    sick_goal = [g.clone() for g in goal]
    for g in sick_goal:
        g[2] = torch.nan
    sick = module.Group(params=[p.clone() for p in start], lr=RATES, **options)
    run(module, rule, sick, sick_goal, lanes=True)

    others = torch.tensor([0, 1, 3, 4])
    for name, value in state(healthy).items():
        if isinstance(value, list):
            assert all(torch.equal(a[others], b[others]) for a, b in zip(value, state(sick)[name], strict=True)), name
        elif isinstance(value, Tensor):
            assert torch.equal(value[..., others], state(sick)[name][..., others]), name
    assert all(param[2].isnan().all() for param in sick.params)


def test_lanes_with_different_rules_are_slices_of_one_tensor():
    start, goal = problem(len(RATES))
    stacked = [p.clone() for p in start]
    rules = [
        (slice(0, 2), adamom.HeavyBall()),
        (slice(2, 4), adamom.HeavyBall(smoothing=0.9)),
        (slice(4, 5), adamom.Fixed(0.5)),
    ]
    for part, rule in rules:
        group = sgd.Group(params=[p[part] for p in stacked], lr=RATES[part])
        run(sgd, rule, group, [g[part] for g in goal], lanes=True)
    for part, rule in rules:
        for k in range(part.start, part.stop):
            alone = sgd.Group(params=[p[k].clone() for p in start], lr=float(RATES[k]))
            run(sgd, rule, alone, [g[k] for g in goal], lanes=False)
            for of_lanes, single in zip(stacked, alone.params, strict=True):
                torch.testing.assert_close(of_lanes[k], single, rtol=1e-9, atol=1e-9)


def test_lanes_with_different_rules_may_be_measured_together_and_take_concatenated_betas():
    start, goal = problem(4)
    rules = [adamom.HeavyBall(), adamom.HeavyBall(), adamom.Fixed(0.9), adamom.Fixed(0.9)]
    rates = RATES[:4]
    everyone = sgd.Group(params=[p.clone() for p in start], lr=rates)
    everyone.start(adamom.HeavyBall())
    over = adamom.Reduction(lanes=True)
    for _ in range(STEPS):
        everyone.grads = gradients(everyone.params, goal)
        parts = everyone.parts(lanes=True)
        found = sgd.measure(adamom.HeavyBall(), everyone, parts, over)
        adaptive = adamom.HeavyBall().beta(adamom.Statistics(rates[:2], **{k: v[:2] for k, v in found.items()}))
        beta = torch.cat([adaptive, torch.full((2,), 0.9, dtype=torch.float64)])
        sgd.descend_(adamom.HeavyBall(), everyone, parts, beta, over)
    for k, rule in enumerate(rules):
        alone = sgd.Group(params=[p[k].clone() for p in start], lr=float(rates[k]))
        run(sgd, rule, alone, [g[k] for g in goal], lanes=False)
        for of_lanes, single in zip(everyone.params, alone.params, strict=True):
            torch.testing.assert_close(of_lanes[k], single, rtol=1e-9, atol=1e-9)


def rebuilt(kept: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A Group or a Memory with every tensor changed."""
    changed = {}
    for field in fields(kept):
        value = getattr(kept, field.name)
        if isinstance(value, list):
            changed[field.name] = [change(each) for each in value]
        elif isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, adamom.Memory):
            changed[field.name] = rebuilt(value, change)
    return replace(kept, **changed)


def tensors(group: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    rebuilt(group, lambda tensor: found.append(tensor) or tensor)
    yield from found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("module", "rule", "options"), CASES, ids=str)
def test_a_step_that_was_written_down_once_is_the_step_to_the_bit(
    module: Any, rule: adamom.Rule, options: dict, dtype: torch.dtype
):
    start, goal = ([each.to(dtype) for each in given] for given in problem(len(RATES)))
    steps = {"steps": torch.zeros((), dtype=torch.float64)} if module is adam else {}
    called = module.Group(params=start, lr=RATES.to(dtype), **steps, **options)
    for _ in range(2):
        called.grads = gradients(called.params, goal)
        module.step_(rule, [called], lanes=True)
    replayed = rebuilt(called, torch.clone)

    def step(*state: Tensor) -> Tensor:
        given = iter(state)
        return torch.as_tensor(module.step_(rule, [rebuilt(called, lambda _: next(given))], lanes=True)[0])

    program = make_fx(step)(*tensors(rebuilt(called, torch.clone)))
    for _ in range(STEPS):
        for group in (called, replayed):
            for grad, new in zip(group.grads, gradients(group.params, goal), strict=True):
                grad.copy_(new)
        beta = torch.as_tensor(module.step_(rule, [called], lanes=True)[0])
        assert torch.equal(program(*tensors(replayed)), beta)
        for a, b in zip(tensors(replayed), tensors(called), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("module", "rule", "options"), CASES, ids=str)
def test_all_that_lanes_keep_stays_in_its_memory(module: Any, rule: adamom.Rule, options: dict):
    start, goal = problem(len(RATES))
    steps = {"steps": torch.zeros((), dtype=torch.float64)} if module is adam else {}
    group = module.Group(params=start, lr=RATES, grads=[torch.zeros_like(each) for each in start], **steps, **options)
    addresses = []
    for _ in range(4):
        for grad, new in zip(group.grads, gradients(group.params, goal), strict=True):
            grad.copy_(new)
        module.step_(rule, [group], lanes=True)
        addresses.append([tensor.data_ptr() for tensor in tensors(group)])
    assert addresses[0] == addresses[1] == addresses[3]


def test_steps_counted_in_a_tensor_are_those_counted_in_a_number():
    start, goal = problem(len(RATES))
    ends = []
    for steps in (0, torch.zeros((), dtype=torch.float64)):
        group = adam.Group(params=[each.clone() for each in start], lr=RATES, steps=steps)
        run(adam, adamom.HeavyBall(), group, goal, lanes=True)
        ends.append((group.steps, group.params))
    (number, with_number), (tensor, with_tensor) = ends
    assert (number, float(tensor)) == (STEPS, STEPS)
    for a, b in zip(with_number, with_tensor, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)  # pow of a number and of a tensor differ in a last bit
