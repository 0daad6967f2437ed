"""Numbers that every implementation of the rules must reproduce, worked out in float64.

TOY is f(x) = (x1^2 + 10 x2^2) / 2 from (1, 1) with lr 0.05, unless a test says otherwise.
"""

import math

import pytest
import torch
from torch import Tensor

import adamom

CURVATURES = torch.tensor([1.0, 10.0], dtype=torch.float64)


def trace(optimizer: torch.optim.Optimizer, tensors: list[Tensor], steps: int, scale: float = 1.0):
    """Betas (steps, ...) and iterates (steps, 2) of TOY, the loss multiplied by scale."""
    betas, iterates = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.cat(tensors)
        (scale * (CURVATURES * x * x).sum() / 2).backward()
        optimizer.step()
        betas.append(optimizer.last_momentum.clone())
        iterates.append(torch.cat(tensors).detach().clone())
    return torch.stack(betas), torch.stack(iterates)


def one_tensor() -> list[Tensor]:
    return [torch.ones(2, dtype=torch.float64, requires_grad=True)]


def two_tensors() -> list[Tensor]:
    return [torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def sgd(momentum, tensors: list[Tensor], lr: float = 0.05) -> adamom.SGD:
    return adamom.SGD(tensors, lr=lr, momentum=momentum)


def assert_close(got: Tensor, expected: list, atol: float = 5e-12) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_adaptive_sgd_takes_the_published_betas_and_iterates_on_toy():
    x = one_tensor()
    betas, iterates = trace(sgd("adaptive", x), x, 6)
    assert_close(betas, [0, 0.086808243075, 0.088954167695, 0.100106224539, 0.153668397693, 0.298466088215])
    assert_close(iterates[:3], [[0.95, 0.5], [0.898159587846, 0.206595878462], [0.848640187738, 0.077198419802]])


def test_tensors_that_are_several_are_one_vector_when_the_scope_is_global():
    apart, together = two_tensors(), one_tensor()
    betas_apart, iterates_apart = trace(sgd("adaptive", apart), apart, 6)
    betas, iterates = trace(sgd("adaptive", together), together, 6)
    torch.testing.assert_close(betas_apart, betas)
    torch.testing.assert_close(iterates_apart, iterates)


def test_each_tensor_finds_its_own_constant_beta_when_the_scope_is_tensor():
    x = two_tensors()
    betas, iterates = trace(sgd(adamom.HeavyBall(scope="tensor"), x), x, 3)
    assert_close(betas, [[0, 0], [0.6027864, 0.08578644], [0.6027864, 0.08578644]], atol=1e-8)
    assert_close(iterates[-1], [0.78194272, 0.07842712], atol=1e-8)


@pytest.mark.parametrize(
    ("c", "beta"), [(0.09, 0.49), (0.5, 0.085786), (1.0, 0.0), (2.25, 0.25), (3.0, 0.535898), (4.0, 0.999)]
)
def test_first_beta_on_a_parabola_is_the_square_of_one_minus_root_c(c: float, beta: float):
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = sgd("adaptive", [x], lr=c)
    for _ in range(2):
        optimizer.zero_grad()
        (x * x / 2).sum().backward()
        optimizer.step()
    assert optimizer.last_momentum.item() == pytest.approx(beta, abs=1e-6)


def test_scaling_the_loss_and_the_inverse_of_the_rate_changes_nothing_for_sgd():
    plain, scaled = one_tensor(), one_tensor()
    betas, iterates = trace(sgd("adaptive", plain), plain, 12)
    scaled_betas, scaled_iterates = trace(sgd("adaptive", scaled, lr=0.05 / 1000), scaled, 12, scale=1000)
    torch.testing.assert_close(scaled_betas, betas, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled_iterates, iterates, rtol=1e-9, atol=1e-12)


def test_normalized_heavy_ball_takes_the_published_betas():
    x = one_tensor()
    betas, _ = trace(sgd(adamom.NormalizedHeavyBall(), x), x, 4)
    assert_close(betas, [0, 0.112574003959, 0.115406545435, 0.128400039688])


def test_fletcher_reeves_takes_the_published_betas():
    x = one_tensor()
    betas, _ = trace(sgd(adamom.ConjugateGradient("FR"), x), x, 4)
    assert_close(betas, [0, 0.25646039604, 0.08780286059, 0.34384792294], atol=5e-11)


@pytest.mark.parametrize("formula", ["FR", "PR", "HS", "DY"])
def test_conjugate_gradient_equals_its_textbook_formula(formula: str):
    x = one_tensor()
    _, iterates = trace(sgd(adamom.ConjugateGradient(formula), x), x, 6)

    position, velocity, before = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), None
    expected = []
    for _ in range(6):
        g = CURVATURES * position
        if before is None:
            beta = 0.0
        else:
            change = g - before
            above = {"FR": g @ g, "PR": g @ change, "HS": g @ change, "DY": g @ g}[formula]
            below = {"FR": before @ before, "PR": before @ before, "HS": velocity @ change, "DY": velocity @ change}
            beta = min(max((above / below[formula]).item(), 0.0), 0.999)
        velocity = beta * velocity + g
        position = position - 0.05 * velocity
        before = g
        expected.append(position.tolist())
    assert_close(iterates, expected)


@pytest.mark.parametrize(
    ("lr", "beta"), [(0.01, 0.97846), (0.001, 0.995358), (0.1, 0.9), (1.0, 0.535841), (100.0, 0.0)]
)
def test_learning_rate_scaled_momentum_follows_the_two_thirds_power(lr: float, beta: float):
    x = one_tensor()
    betas, _ = trace(sgd(adamom.LearningRateScaled(), x, lr=lr), x, 1)
    assert betas.item() == pytest.approx(beta, abs=5e-6)


def test_learning_rate_scaled_momentum_is_the_same_for_a_tensor_rate():
    statistics = adamom.Statistics(torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64))
    one_by_one = [adamom.LearningRateScaled().beta(adamom.Statistics(lr)) for lr in (0.01, 0.1, 1.0)]
    assert_close(adamom.LearningRateScaled().beta(statistics), one_by_one)


def test_adaptive_memory_takes_the_published_betas_and_iterate():
    x = one_tensor()
    betas, iterates = trace(sgd(adamom.AdaptiveMemory(), x), x, 5)
    assert_close(betas, [0, 0.9, 0, 0.3738276441, 0.9], atol=5e-11)
    assert_close(iterates[1], [0.9002272727, 0.0227272727], atol=5e-11)


def test_smoothing_averages_the_differences_before_their_norms():
    a, lr = 0.9, 0.05
    x = one_tensor()
    betas, iterates = trace(sgd(adamom.HeavyBall(smoothing=a), x), x, 8)

    position, velocity = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    change, path, before, way = torch.zeros(2), torch.zeros(2), None, None
    for k in range(8):
        g = CURVATURES * position
        beta = 0.0
        if before is not None:
            change = a * change + (1 - a) * (g - before)
            path = a * path + (1 - a) * way
            beta = min((1 - math.sqrt(lr * change.norm() / path.norm())) ** 2, 0.999)
        velocity = beta * velocity + g
        before, way = g, -lr * velocity
        position = position + way
        assert betas[k].item() == pytest.approx(beta, abs=1e-12)
        assert_close(iterates[k], position.tolist())


def test_adam_with_the_preconditioned_metric_measures_in_its_own_preconditioner():
    lr, b2, eps = 0.05, 0.99, 1e-8
    x = one_tensor()
    rule = adamom.HeavyBall(metric="preconditioned")
    optimizer = adamom.AdamW(x, lr=lr, betas=(rule, b2), eps=eps, weight_decay=0.1)
    betas, iterates = trace(optimizer, x, 8)

    position, m, s = (torch.zeros(2, dtype=torch.float64) for _ in range(3))
    position += 1
    before, way = None, 0.0
    for k in range(8):
        g = CURVATURES * position
        s = b2 * s + (1 - b2) * g * g
        d = (s / (1 - b2 ** (k + 1))).sqrt() + eps
        beta = 0.0
        if before is not None:
            beta = min((1 - math.sqrt(lr * ((g - before) / d.sqrt()).norm() / way)) ** 2, 0.999)
        m = beta * m + (1 - beta) * g
        move = -lr * (m / d + 0.1 * position)
        before, way = g, (d.sqrt() * move).norm()
        position = position + move
        assert betas[k].item() == pytest.approx(beta, abs=1e-12)
        assert_close(iterates[k], position.tolist())


def test_the_displacement_carries_the_rate_it_was_made_with():
    x = one_tensor()
    optimizer = sgd("adaptive", x)
    trace(optimizer, x, 1)
    before = x[0].detach().clone()
    g_before = CURVATURES * torch.ones(2, dtype=torch.float64)
    optimizer.param_groups[0]["lr"] = 0.01
    trace(optimizer, x, 1)
    rho = 0.01 * (CURVATURES * before - g_before).norm() / (before - 1).norm()
    assert optimizer.last_momentum.item() == pytest.approx((1 - math.sqrt(rho)) ** 2, abs=1e-12)


def test_groups_with_one_rule_are_measured_as_one_vector_each_with_its_own_rate():
    x = two_tensors()
    optimizer = adamom.SGD([{"params": x[:1], "lr": 0.05}, {"params": x[1:], "lr": 0.02}], momentum="adaptive")
    trace(optimizer, x, 2)
    way = torch.tensor([0.05 * 1, 0.02 * 10], dtype=torch.float64)
    curvature = (CURVATURES * way).norm() / way.norm()
    assert_close(optimizer.last_momentum, [(1 - math.sqrt(lr * curvature)) ** 2 for lr in (0.05, 0.02)])
