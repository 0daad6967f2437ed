"""What theory says about the rules, measured on quadratics; and properties that hold for any input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import adamom

RULES = [
    adamom.HeavyBall(),
    adamom.HeavyBall(delta=0.1),
    adamom.NormalizedHeavyBall(delta=0.01),
    *[adamom.ConjugateGradient(formula, delta=0.05) for formula in ("FR", "PR", "HS", "DY")],
    adamom.LearningRateScaled(),
    adamom.AdaptiveMemory(),
]


def distances(momentum: object, curvatures: Tensor, lr: float, steps: int) -> list[float]:
    """|x| after each step on the quadratic with these curvatures, from all ones."""
    x = torch.ones_like(curvatures, requires_grad=True)
    optimizer = adamom.SGD([x], lr=lr, momentum=momentum)
    norms = []
    for _ in range(steps):
        x.grad = (curvatures * x).detach()
        optimizer.step()
        norms.append(x.detach().norm().item())
    return norms


def rate(norms: list[float]) -> float:
    """By how much a step shrinks the distance, over the last two thirds."""
    first = len(norms) // 3
    return float((norms[-1] / norms[first]) ** (1 / (len(norms) - 1 - first)))


@pytest.mark.parametrize("condition", [10, 100, 1000])
def test_heavy_ball_is_as_fast_as_the_best_constant_one_and_far_faster_than_gradient_descent(condition: int):
    curvatures = torch.logspace(0, math.log10(condition), 40, dtype=torch.float64)
    root = math.sqrt(condition)
    lr, steps = 4 / (root + 1) ** 2, int(30 * root)
    best = (root - 1) / (root + 1)

    adaptive = rate(distances("adaptive", curvatures, lr, steps))
    constant = rate(distances(best**2, curvatures, lr, steps))
    descent = rate(distances(0, curvatures, 2 / (condition + 1), steps))
    assert constant == pytest.approx(best, rel=0.02)
    assert adaptive == pytest.approx(best, rel=0.04)
    assert descent == pytest.approx((condition - 1) / (condition + 1), rel=0.01)
    assert math.log(adaptive) < 2.5 * math.log(descent)


def beta_in_one_dimension(rule: adamom.Rule, c: float) -> float:
    """The beta that the optimizer takes at its second step on a parabola of curvature c, with lr 1."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = adamom.SGD([x], lr=1.0, momentum=rule)
    for _ in range(2):
        x.grad = c * x.detach()
        optimizer.step()
    return optimizer.last_momentum.item()


def spectral_radius(trace: float, determinant: float) -> float:
    """Of x_(k+1) = trace x_k - determinant x_(k-1)."""
    root = complex(trace * trace - 4 * determinant) ** 0.5
    return max(abs(trace + root), abs(trace - root)) / 2


@given(st.floats(1e-3, 3.997))
def test_heavy_ball_is_stable_below_four(c: float):
    beta = beta_in_one_dimension(adamom.HeavyBall(), c)
    assert spectral_radius(1 + beta - c, beta) < 1


@given(st.floats(4.0, 1e3))
def test_heavy_ball_is_unstable_from_four_on(c: float):
    beta = beta_in_one_dimension(adamom.HeavyBall(), c)
    assert spectral_radius(1 + beta - c, beta) > 1


@given(st.floats(1e-3, 3.99))
def test_heavy_ball_has_a_double_root(c: float):
    beta = beta_in_one_dimension(adamom.HeavyBall(), c)
    assert spectral_radius(1 + beta - c, beta) == pytest.approx(abs(1 - math.sqrt(c)), abs=1e-5)


@given(st.floats(2e-3, 3.9e3))
def test_normalized_heavy_ball_is_stable_for_every_c_while_unclipped(c: float):
    beta = beta_in_one_dimension(adamom.NormalizedHeavyBall(), c)
    radius = spectral_radius(1 + beta - (1 - beta) * c, beta)
    assert radius < 1
    assert radius == pytest.approx(abs(1 - c) / (1 + c), abs=1e-4)


@pytest.mark.parametrize("c", [0.05, 1.0, 2.5, 3.8])
def test_the_iteration_in_one_dimension_converges_as_its_root_says(c: float):
    assert distances("adaptive", torch.tensor([c], dtype=torch.float64), 1.0, 3000)[-1] < 1e-10


@pytest.mark.parametrize(("momentum", "limit"), [(0.0, 2.0), (0.9, 3.8), ("adaptive", 4.0)])
def test_the_largest_stable_c_of_each_momentum(momentum: object, limit: float):
    below, above = (torch.tensor([c * limit], dtype=torch.float64) for c in (0.97, 1.03))
    assert distances(momentum, below, 1.0, 4000)[-1] < 1e-8
    assert not distances(momentum, above, 1.0, 4000)[-1] < 1e8


sequences = st.integers(0, 2**32 - 1)


def random_walk(seed: int, steps: int, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(steps)]


def betas(optimizer: adamom.SGD | adamom.Adam, gradients: list[Tensor], scale: float = 1.0) -> Tensor:
    (param,) = optimizer.param_groups[0]["params"]
    found = []
    for gradient in gradients:
        param.grad = scale * gradient
        optimizer.step()
        found.append(optimizer.last_momentum.clone())
    return torch.stack(found)


def fresh(size: int = 6) -> list[Tensor]:
    return [torch.ones(size, dtype=torch.float64, requires_grad=True)]


@given(sequences, st.floats(-4, 4), st.sampled_from([0.0, 0.9]))
def test_sgd_is_invariant_when_the_loss_is_scaled_and_the_rate_inversely(seed: int, exponent: float, smoothing: float):
    scale, rule, gradients = 10**exponent, adamom.HeavyBall(smoothing=smoothing), random_walk(seed, 6)
    plain = betas(adamom.SGD(fresh(), 0.1, rule), gradients)
    scaled = betas(adamom.SGD(fresh(), 0.1 / scale, rule), gradients, scale)
    torch.testing.assert_close(scaled, plain, rtol=1e-7, atol=1e-9)


@given(sequences, st.floats(-2, 4))
def test_adam_in_its_own_metric_does_not_see_the_scale_of_the_loss(seed: int, exponent: float):
    def build() -> adamom.Adam:
        return adamom.Adam(fresh(), 0.001, (adamom.HeavyBall(metric="preconditioned"), 0.99), eps=0.0)

    gradients = random_walk(seed, 6)
    plain, scaled = betas(build(), gradients), betas(build(), gradients, 10**exponent)
    torch.testing.assert_close(scaled, plain, rtol=1e-7, atol=1e-9)


def test_adam_with_raw_norms_does_see_the_scale_of_the_loss():
    plain, scaled = (
        betas(adamom.Adam(fresh(), 1e-3, ("adaptive", 0.99)), random_walk(0, 6), scale) for scale in (1e-3, 1e-2)
    )
    assert (plain[1:] - scaled[1:]).abs().min() > 1e-3


@given(sequences)
def test_a_rotation_of_the_parameters_changes_no_beta(seed: int):
    gradients = random_walk(seed, 6)
    rotation, _ = torch.linalg.qr(torch.stack(gradients))
    turned = [rotation @ gradient for gradient in gradients]
    rule = adamom.HeavyBall(smoothing=0.5)
    plain, rotated = betas(adamom.SGD(fresh(), 0.1, rule), gradients), betas(adamom.SGD(fresh(), 0.1, rule), turned)
    torch.testing.assert_close(rotated, plain, rtol=1e-7, atol=1e-9)


@settings(max_examples=300)
@given(st.sampled_from(RULES), st.floats(1e-6, 1e3), st.lists(st.floats(0, 1e15), min_size=6, max_size=6), st.data())
def test_beta_lies_between_zero_and_its_cap_for_any_statistics(
    rule: adamom.Rule, lr: float, norms: list[float], data: st.DataObject
):
    names = ("gradient", "previous_gradient", "gradient_change", "displacement", "velocity", "velocity_error")
    found = {name: torch.tensor(norm, dtype=torch.float64) for name, norm in zip(names, norms, strict=True)}
    for name in ("gradient_along_change", "velocity_along_change", "gradient_along_velocity"):
        found[name] = torch.tensor(data.draw(st.floats(-1e30, 1e30)), dtype=torch.float64)
    beta = float(rule.beta(adamom.Statistics(lr, **{name: found[name] for name in rule.needs})))
    cap = rule.cap if isinstance(rule, adamom.AdaptiveMemory) else 1 - rule.delta
    assert 0 <= beta <= cap


@given(sequences)
def test_beta_starts_at_zero_and_stays_below_its_cap_along_any_walk(seed: int):
    found = betas(adamom.SGD(fresh(), 0.1, adamom.HeavyBall(delta=0.2)), random_walk(seed, 8))
    assert found[0] == 0
    assert ((found >= 0) & (found <= 0.8)).all()
