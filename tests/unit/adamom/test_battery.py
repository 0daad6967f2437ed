"""One battery for every optimizer, ours and other people's: five problems, and the inputs that break optimizers.

A problem counts as solved when some rate of a short grid brings the loss below its goal; an optimizer that cannot solve
a parabola at any rate is broken, one that is slow at one rate is not.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import adamom
from studies import foreign

Build = Callable[[list[Tensor], float], torch.optim.Optimizer]


def with_momentum(momentum: object) -> Build:
    return lambda params, lr: adamom.SGD(params, lr, momentum=momentum)


def with_beta(beta: object, kind: type[adamom.Adam] = adamom.Adam) -> Build:
    return lambda params, lr: kind(params, lr, betas=(beta, 0.99))


OURS: dict[str, Build] = {
    "SGD": with_momentum(0.9),
    "SGD adaptive": with_momentum("adaptive"),
    "SGD adaptive per tensor": with_momentum(adamom.HeavyBall(scope="tensor")),
    "SGD smoothed": with_momentum(adamom.HeavyBall(smoothing=0.9)),
    "SGD normalized": with_momentum(adamom.NormalizedHeavyBall()),
    "SGD conjugate FR": with_momentum(adamom.ConjugateGradient("FR", delta=0.1)),
    "SGD conjugate PR": with_momentum(adamom.ConjugateGradient("PR", delta=0.1)),
    "SGD conjugate HS": with_momentum(adamom.ConjugateGradient("HS", delta=0.1)),
    "SGD conjugate DY": with_momentum(adamom.ConjugateGradient("DY", delta=0.1)),
    "SGD rate": with_momentum(adamom.LearningRateScaled()),
    "SGD memory": with_momentum(adamom.AdaptiveMemory()),
    "Adam": with_beta(0.9),
    "Adam adaptive": with_beta("adaptive"),
    "Adam preconditioned": with_beta(adamom.HeavyBall(metric="preconditioned")),
    "Adam normalized": with_beta(adamom.NormalizedHeavyBall(metric="preconditioned")),
    "Adam memory": with_beta(adamom.AdaptiveMemory()),
    "AdamW adaptive": with_beta("adaptive", adamom.AdamW),
    "AdaRem": lambda params, lr: adamom.AdaRem(params, lr),
    "SigSignGrad": lambda params, lr: adamom.SigSignGrad(params, lr),
    "TanhSignGrad": lambda params, lr: adamom.TanhSignGrad(params, lr),
    "HFac": lambda params, lr: adamom.HFac(params, lr),
    "MADA": lambda params, lr: adamom.MADA(params, lr),
}
FOREIGN_NAMES = [
    *[f"torch.optim.{name}" for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax")],
    *[f"pytorch_optimizer.{name}" for name in ("Adai", "Adan", "Lion", "Prodigy", "DAdaptAdam", "AggMo", "QHM")],
    *[f"pytorch_optimizer.{name}" for name in ("ScheduleFreeSGD", "ScheduleFreeAdamW")],
    "momo.Momo",
    "momo.MomoAdam",
]
FOREIGN: dict[str, Build] = {
    name: lambda params, lr, name=name: foreign.build(name, params, lr) for name in FOREIGN_NAMES
}

every_optimizer = pytest.mark.parametrize("build", [pytest.param(b, id=n) for n, b in (OURS | FOREIGN).items()])
our_optimizers = pytest.mark.parametrize("build", [pytest.param(b, id=n) for n, b in OURS.items()])


class Problem(NamedTuple):
    """start: makes the parameters. loss: of the parameters. goal: the share of the first loss that counts as solved."""

    start: Callable[[], list[Tensor]]
    loss: Callable[[list[Tensor]], Tensor]
    goal: float


def rosenbrock(params: list[Tensor]) -> Tensor:
    x, y = params[0].reshape(-1)
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def factorisation(params: list[Tensor]) -> Tensor:
    left, right = params
    target = torch.outer(torch.arange(1.0, 5.0), torch.arange(-1.0, 2.0)) / 4
    return (left @ right - target).square().sum()


def network_loss(params: list[Tensor]) -> Tensor:
    inputs = torch.linspace(-2, 2, 20)[:, None]
    hidden = torch.tanh(inputs @ params[0] + params[1])
    return (hidden @ params[2] + params[3] - torch.sin(2 * inputs)).square().mean()


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 0.7 for shape in shapes]


PROBLEMS = {
    "parabola": Problem(lambda: [torch.tensor([[1.0, -2.0], [3.0, 4.0]])], lambda p: p[0].square().sum(), 0.05),
    "ill-conditioned": Problem(
        lambda: [torch.ones(2, 3)], lambda p: (p[0].square() * torch.logspace(0, 1.5, 6).view(2, 3)).sum(), 0.05
    ),
    "Rosenbrock": Problem(lambda: [torch.tensor([[-1.0, 1.5]])], rosenbrock, 0.2),
    "factorisation": Problem(lambda: random((4, 2), (2, 3)), factorisation, 0.2),
    "network": Problem(lambda: random((1, 8), (8,), (8, 1), (1,)), network_loss, 0.5),
}
RATES = (1e-2, 1e-1, 1e-3, 1.0, 1e-4)


def train(build: Build, problem: Problem, lr: float, steps: int) -> float:
    """The share of the first loss that is left; judged at the weights that are meant to be judged."""
    params = [nn.Parameter(p) for p in problem.start()]
    optimizer = build(params, lr)
    first = problem.loss(params).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem.loss(params)
        loss.backward()
        foreign.step(optimizer, loss)
        if not loss.isfinite():
            return float("inf")
    with foreign.evaluating(optimizer), torch.no_grad():
        return problem.loss(params).item() / first


@pytest.mark.parametrize("problem", [pytest.param(p, id=n) for n, p in PROBLEMS.items()])
@every_optimizer
def test_every_optimizer_solves_the_problem_at_some_rate(build: Build, problem: Problem):
    left = float("inf")
    for lr in RATES:
        left = min(left, train(build, problem, lr, steps=200))
        if left < problem.goal:
            return
    pytest.fail(f"At its best rate it leaves {left:.3g} of the loss; {problem.goal} is solved.")


@every_optimizer
def test_zero_gradients_leave_finite_weights(build: Build):
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build(params, 0.01)
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        foreign.step(optimizer, torch.tensor(1.0))
    assert all(param.isfinite().all() for param in params)


@our_optimizers
def test_zero_gradients_do_not_move_ours(build: Build):
    params = [nn.Parameter(torch.full((3, 2), 2.0))]
    optimizer = build(params, 0.01)
    optimizer.param_groups[0]["weight_decay"] = 0.0  # AdamW's default moves weights by itself
    for _ in range(3):
        params[0].grad = torch.zeros_like(params[0])
        optimizer.step()
    assert torch.equal(params[0].detach(), torch.full((3, 2), 2.0))


@our_optimizers
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (2, 3, 4), (2, 1, 2, 2)], ids=str)
def test_ours_take_tensors_of_every_shape(build: Build, shape: tuple[int, ...]):
    params = [nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(4))]
    optimizer = build(params, 0.01)
    for _ in range(3):
        for param in params:
            param.grad = param.detach() * 2
        optimizer.step()
    assert all(param.isfinite().all() for param in params)
    assert (params[0] < 1).all()


@our_optimizers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ours_work_in_every_precision_and_keep_it(build: Build, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, generator=generator)
    ends = {}
    for each in (dtype, torch.float64):
        param = nn.Parameter(start.clone().to(each))
        optimizer = build([param], 0.01)
        for _ in range(10):
            param.grad = param.detach() * torch.linspace(0.5, 2, 4).to(each)
            optimizer.step()
        assert param.dtype == each
        ends[each] = param.detach().double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}[dtype]
    torch.testing.assert_close(ends[dtype], ends[torch.float64], rtol=tolerance, atol=tolerance)


@our_optimizers
def test_a_nan_gradient_is_not_hidden(build: Build):
    param = nn.Parameter(torch.ones(3))
    optimizer = build([param], 0.01)
    for gradient in (1.0, float("nan"), 1.0):
        param.grad = torch.full((3,), gradient)
        optimizer.step()
    assert param.isnan().all()


@our_optimizers
def test_the_same_start_gives_the_same_end_to_the_bit(build: Build):
    assert train(build, PROBLEMS["network"], 0.01, 20) == train(build, PROBLEMS["network"], 0.01, 20)
