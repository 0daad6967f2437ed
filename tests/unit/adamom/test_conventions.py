"""What people expect of a torch optimizer, for each of ours, with a constant and with rules."""

import io
import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import adamom
from adamom.momentum import as_rule

Build = Callable[..., adamom.SGD | adamom.Adam]
RULES = {
    "adaptive": "adaptive",
    "tensor": adamom.HeavyBall(scope="tensor"),
    "smoothed": adamom.HeavyBall(smoothing=0.9),
    "normalized": adamom.NormalizedHeavyBall(),
    "memory": adamom.AdaptiveMemory(),
    "rate": adamom.LearningRateScaled(),
    "constant": 0.9,
}
SGD_RULES = RULES | {"fr": adamom.ConjugateGradient("FR"), "hs": adamom.ConjugateGradient("HS")}
ADAM_RULES = RULES | {"preconditioned": adamom.HeavyBall(metric="preconditioned")}


def sgd(momentum: Any, params: Any, **options: Any) -> adamom.SGD:
    return adamom.SGD(params, momentum=momentum, **{"lr": 0.05} | options)


def adam(momentum: Any, params: Any, **options: Any) -> adamom.Adam:
    return adamom.Adam(params, betas=(momentum, 0.99), **{"lr": 0.05} | options)


def adamw(momentum: Any, params: Any, **options: Any) -> adamom.AdamW:
    return adamom.AdamW(params, betas=(momentum, 0.99), **{"lr": 0.05} | options)


BUILDS = [pytest.param(partial(sgd, rule), id=f"SGD-{name}") for name, rule in SGD_RULES.items()]
BUILDS += [pytest.param(partial(adam, rule), id=f"Adam-{name}") for name, rule in ADAM_RULES.items()]
BUILDS += [pytest.param(partial(adamw, "adaptive"), id="AdamW-adaptive")]
every_optimizer = pytest.mark.parametrize("build", BUILDS)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def loss_of(model: nn.Module, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    batch = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return (model(batch) - batch[:, :3]).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """The betas of these steps; every step has a batch of its own."""
    betas = []
    for k in steps:
        optimizer.zero_grad()
        loss_of(model, k).backward()
        optimizer.step()
        betas.append(optimizer.last_momentum.clone())
    return betas


def weights(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().reshape(-1) for param in model.parameters()])


@every_optimizer
def test_training_lowers_the_loss(build: Build, model: nn.Module):
    before = loss_of(model, 99).item()
    train(model, build(model.parameters()), range(60))
    assert loss_of(model, 99).item() < before


@every_optimizer
def test_resuming_from_a_saved_state_is_exact_to_the_bit(build: Build, model: nn.Module):
    other = deepcopy(model)
    optimizer = build(model.parameters())
    train(model, optimizer, range(7))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    betas = train(model, optimizer, range(7, 14))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed = build(other.parameters(), lr=123.0)
    resumed.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(betas, train(other, resumed, range(7, 14)), strict=True))
    assert torch.equal(weights(model), weights(other))


@every_optimizer
def test_resuming_in_bfloat16_is_exact_to_the_bit(build: Build, model: nn.Module):
    model = model.bfloat16()
    other = deepcopy(model)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, ks: range) -> None:
        for k in ks:
            for i, param in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * k + i)
                param.grad = torch.randn(param.shape, generator=generator).bfloat16() + param.detach()
            optimizer.step()

    optimizer = build(model.parameters())
    steps(model, optimizer, range(5))
    other.load_state_dict(model.state_dict())
    resumed = build(other.parameters())
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    steps(model, optimizer, range(5, 10))
    steps(other, resumed, range(5, 10))
    assert torch.equal(weights(model), weights(other))
    assert torch.equal(optimizer.last_momentum, resumed.last_momentum)


@every_optimizer
def test_a_distributed_checkpoint_resumes_to_the_bit(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(5))
    other = deepcopy(model)
    resumed = build(other.parameters(), lr=123.0)
    set_optimizer_state_dict(other, resumed, deepcopy(get_optimizer_state_dict(model, optimizer)))
    train(model, optimizer, range(5, 8))
    train(other, resumed, range(5, 8))
    assert torch.equal(weights(model), weights(other))


@every_optimizer
def test_pickles_and_deep_copies_go_on_alike(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(5))
    copies = [deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    betas = train(model, optimizer, range(5, 10))
    for copied_model, copied_optimizer in copies:
        again = train(copied_model, copied_optimizer, range(5, 10))
        assert all(torch.equal(a, b) for a, b in zip(betas, again, strict=True))
        assert torch.equal(weights(copied_model), weights(model))


@every_optimizer
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(build: Build, model: nn.Module):
    other = deepcopy(model)
    train(other, build(other.parameters()), range(3))
    optimizer = build(model.parameters())
    for k in range(3):

        def closure(k: int = k) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            return loss

        expected = loss_of(model, k).item()
        assert optimizer.step(closure).item() == expected
    assert torch.equal(weights(model), weights(other))


@every_optimizer
def test_maximize_climbs_the_way_that_minimising_the_negative_descends(build: Build, model: nn.Module):
    other = deepcopy(model)
    up = build(model.parameters(), maximize=True, weight_decay=0.1)
    down = build(other.parameters(), weight_decay=0.1)
    for k in range(8):
        for sign, net, optimizer in ((1, model, up), (-1, other, down)):
            optimizer.zero_grad()
            (sign * loss_of(net, k)).backward()
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-10, atol=1e-12)


@every_optimizer
def test_one_tensor_at_a_time_is_the_same_step(build: Build, model: nn.Module):
    other = deepcopy(model)
    train(model, build(model.parameters(), foreach=True), range(10))
    train(other, build(other.parameters(), foreach=False), range(10))
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-9, atol=1e-11)


@every_optimizer
def test_a_rate_in_a_tensor_is_the_number(build: Build, model: nn.Module):
    other = deepcopy(model)
    train(model, build(model.parameters(), lr=0.03), range(10))
    train(other, build(other.parameters(), lr=torch.tensor(0.03, dtype=torch.float64)), range(10))
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-9, atol=1e-11)


@every_optimizer
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: CosineAnnealingLR(o, T_max=10),
        lambda o: LambdaLR(o, lambda k: min(1.0, k / 3)),  # a warm-up that starts at 0: nothing moves at first
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=20, cycle_momentum=False),
    ],
    ids=["cosine", "warm-up from zero", "one cycle"],
)
def test_schedules_of_the_rate_leave_everything_finite(build: Build, model: nn.Module, schedule: Callable):
    optimizer = build(model.parameters())
    scheduler = schedule(optimizer)
    for k in range(12):
        train(model, optimizer, range(k, k + 1))
        scheduler.step()
    assert weights(model).isfinite().all()
    assert optimizer.last_momentum.isfinite().all()


@pytest.mark.parametrize("build", [partial(sgd, "adaptive"), partial(adam, "adaptive")])
def test_a_schedule_that_cycles_momentum_over_a_rule_is_refused(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    with pytest.raises(ValueError, match="cycle_momentum=False"):
        train(model, optimizer, range(1))


def test_a_schedule_that_cycles_a_constant_momentum_is_torchs(model: nn.Module):
    other = deepcopy(model)
    ours, theirs = sgd(0.9, model.parameters()), torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    schedules = [OneCycleLR(each, max_lr=0.1, total_steps=20) for each in (ours, theirs)]
    for k in range(10):
        for net, optimizer, scheduler in zip((model, other), (ours, theirs), schedules, strict=True):
            optimizer.zero_grad()
            loss_of(net, k).backward()
            optimizer.step()
            scheduler.step()
    assert torch.equal(weights(model), weights(other))


@every_optimizer
def test_complex_parameters_are_pairs_of_real_ones(build: Build):
    start = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    complex_, pair = start.clone().requires_grad_(), torch.view_as_real(start).clone().requires_grad_()
    ours, reals = build([complex_]), build([pair])
    for k in range(8):
        gradient = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(k + 1))
        complex_.grad, pair.grad = gradient, torch.view_as_real(gradient).clone()
        ours.step()
        reals.step()
    assert torch.equal(torch.view_as_real(complex_.detach()), pair.detach())


@every_optimizer
def test_sparse_gradients_are_refused_with_a_way_out(build: Build):
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = build(embedding.parameters())
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


@every_optimizer
def test_the_grad_scaler_skips_a_bad_step_and_leaves_the_state_untouched(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(4))
    before, saved = weights(model), deepcopy(optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 4) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weights(model), before)
    assert same(optimizer.state_dict(), saved)


@every_optimizer
def test_the_grad_scaler_takes_the_unscaled_step(build: Build, model: nn.Module):
    other = deepcopy(model)
    optimizer, plain = build(model.parameters()), build(other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k in range(6):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, k)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(other, plain, range(6))
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-9, atol=1e-11)


def same(a: Any, b: Any) -> bool:
    """Nested states are equal, to the bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@every_optimizer
def test_parameters_may_be_added_later(build: Build, model: nn.Module):
    optimizer = build(model[0].parameters())
    train(model, optimizer, range(3))
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    before = weights(model[2])
    betas = train(model, optimizer, range(3, 6))
    assert not torch.equal(weights(model[2]), before)
    assert all(beta.isfinite().all() for beta in betas)


@every_optimizer
def test_a_velocity_starts_as_the_first_gradient_whenever_its_tensor_joins(build: Build, model: nn.Module):
    optimizer = build(model[0].parameters())
    rule = as_rule(optimizer.momentum_of(optimizer.param_groups[0]))
    train(model, optimizer, range(3))
    optimizer.add_param_group({"params": [model[2].weight]})
    train(model, optimizer, range(3, 4))
    name = "exp_avg" if isinstance(optimizer, adamom.Adam) else "momentum_buffer"
    started = optimizer.state[model[2].weight][name]
    corrected = 0.1 if isinstance(rule, adamom.Fixed) and name == "exp_avg" else 1.0  # torch's Adam starts at zero
    torch.testing.assert_close(started, corrected * model[2].weight.grad)


@every_optimizer
def test_a_tensor_without_a_gradient_stays_where_it_is(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(3))
    still = model[2].bias.detach().clone()
    for k in range(3, 6):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        model[2].bias.grad = None
        optimizer.step()
    assert torch.equal(model[2].bias, still)
    assert all(beta.isfinite().all() for beta in train(model, optimizer, range(6, 8)))
    assert not torch.equal(model[2].bias, still)


def test_each_group_may_have_a_rule_and_a_rate_of_its_own(model: nn.Module):
    together, first, second = (deepcopy(model) for _ in range(3))
    groups = [
        {"params": list(together[0].parameters()), "momentum": adamom.HeavyBall(smoothing=0.5)},
        {"params": list(together[2].parameters()), "momentum": 0.9, "lr": 0.01},
    ]
    optimizer = adamom.SGD(groups, lr=0.05)
    one = sgd(adamom.HeavyBall(smoothing=0.5), first[0].parameters())
    two = sgd(0.9, second[2].parameters(), lr=0.01)
    for k in range(6):
        optimizer.zero_grad()
        loss_of(together, k).backward()
        for net in (first, second):
            for param, its in zip(net.parameters(), together.parameters(), strict=True):
                param.grad = its.grad.clone()
        for each in (optimizer, one, two):
            each.step()
    assert torch.equal(weights(together[0]), weights(first[0]))
    assert torch.equal(weights(together[2]), weights(second[2]))
    assert optimizer.last_momentum.tolist() == [one.last_momentum.item(), 0.9]


@every_optimizer
def test_hooks_run_before_and_after_the_step(build: Build, model: nn.Module):
    optimizer, seen = build(model.parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, range(2))
    assert seen == ["before", "after"] * 2


def test_momentum_before_the_first_step_is_a_clear_error(model: nn.Module):
    with pytest.raises(RuntimeError, match="no step has been taken"):
        _ = sgd("adaptive", model.parameters()).last_momentum


@every_optimizer
def test_a_step_reads_nothing_back_from_the_device(build: Build):
    """Tensors of the meta device have no data, and stand for a GPU's: reading a number from one of them raises."""
    params = [torch.empty(shape, device="meta", requires_grad=True) for shape in ((3, 4), (5,), ())]
    optimizer = build(params, **({"capturable": True} if build.func is not sgd else {}))
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        params[0].sum().item()


@every_optimizer
def test_the_state_stays_where_it_is_for_a_captured_graph(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(2))
    addresses = list(pointers(optimizer))
    train(model, optimizer, range(2, 5))
    assert list(pointers(optimizer)) == addresses


def pointers(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, int]]:
    for state in optimizer.state.values():
        yield from ((name, value.data_ptr()) for name, value in state.items())
    for group in optimizer.param_groups:
        yield from ((name, value.data_ptr()) for name, value in group.get("memory", {}).items())


@pytest.mark.parametrize(
    "build",
    [
        partial(sgd, "adaptive"),
        partial(sgd, adamom.HeavyBall(scope="tensor", smoothing=0.9)),
        partial(adam, "adaptive"),
        partial(adamw, adamom.HeavyBall(metric="preconditioned")),
    ],
)
def test_a_compiled_step_is_the_same_step(build: Build, model: nn.Module):
    other = deepcopy(model)
    betas = train(model, build(model.parameters()), range(6))
    optimizer = build(other.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(optimizer.step, backend="aot_eager")
    for k in range(6):
        optimizer.zero_grad()
        loss_of(other, k).backward()
        compiled()
    torch.testing.assert_close(optimizer.last_momentum, betas[-1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-3, atol=1e-6)  # it counts in float32


def test_a_rule_of_ones_own_works_in_every_optimizer_and_survives_a_checkpoint(model: nn.Module):
    @dataclass(frozen=True)
    class Cosine(adamom.Rule):
        cap: float = 0.9
        needs = frozenset({"gradient", "velocity", "gradient_along_velocity"})

        def beta(self, s: adamom.Statistics) -> Tensor:
            cosine = adamom.quotient(s.gradient_along_velocity, s.gradient * s.velocity)
            return cosine.clamp(0, self.cap)

    for build in (sgd, adam):
        net = deepcopy(model)
        optimizer = build(Cosine(cap=0.5), net.parameters())
        betas = train(net, optimizer, range(8))
        assert 0 < max(betas) <= 0.5
        again = build("adaptive", deepcopy(model).parameters())
        again.load_state_dict(optimizer.state_dict())
        assert again.momentum_of(again.param_groups[0]) == Cosine(cap=0.5)


@every_optimizer
def test_a_rate_of_one_element_suits_parameters_of_every_shape(build: Build):
    ends = []
    for lr in (0.1, torch.tensor([0.1])):
        params = [torch.ones(shape, requires_grad=True) for shape in ((), (3,), (2, 2))]
        optimizer = build(params, lr=lr)
        for _ in range(3):
            for param in params:
                param.grad = param.detach().sin()
            optimizer.step()
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    torch.testing.assert_close(*ends)


@every_optimizer
def test_a_checkpoint_from_before_an_option_takes_its_default(build: Build, model: nn.Module):
    optimizer = build(model.parameters())
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["maximize"]
    optimizer.load_state_dict(state)
    train(model, optimizer, range(2))
    assert optimizer.param_groups[0]["maximize"] is False


def test_a_rule_that_extends_another_leaves_it_its_name():
    @dataclass(frozen=True)
    class Bolder(adamom.HeavyBall):
        delta: float = 0.5

    assert type(adamom.rule("heavy_ball")) is adamom.HeavyBall
    assert adamom.rule(**Bolder().as_dict()) == Bolder()


def test_a_rule_that_is_no_frozen_dataclass_is_told_so():
    class Bare(adamom.Rule):
        def beta(self, s: adamom.Statistics) -> float:
            return 0.5

    Open = dataclass(Bare)  # equal, but without a hash
    for made in (Bare(), Open()):
        with pytest.raises(TypeError, match=r"needs @dataclass\(frozen=True\) above it"):
            adamom.SGD([torch.ones(1, requires_grad=True)], 0.1, made)


def test_a_default_device_elsewhere_is_not_where_numbers_of_the_step_go():
    param = torch.ones(4, requires_grad=True)
    optimizer = adamom.Adam([param], 0.1, ("adaptive", 0.999))
    for _ in range(3):
        param.grad = param.detach().sin()
        with torch.device("meta"):
            optimizer.step()
    assert param.isfinite().all()
    assert (param < 1).all()
