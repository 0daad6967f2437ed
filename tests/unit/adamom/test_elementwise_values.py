"""Numbers that the element-wise methods must reproduce, and what each of them becomes in a special case.

TOY is f(x) = (x1^2 + 10 x2^2) / 2 from (1, 1) with lr 0.05.
"""

import pytest
import torch
from torch import Tensor

import adamom
from adamom.mada import Moments, mada

CURVATURES = torch.tensor([1.0, 10.0], dtype=torch.float64)


def toy(build, steps: int, **options) -> Tensor:
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = build([x], lr=0.05, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (CURVATURES * x * x / 2).sum().backward()
        optimizer.step()
    return x.detach()


def assert_close(got: Tensor, expected: list[float], atol: float) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_adarem_takes_the_published_step():
    assert_close(toy(adamom.AdaRem, 2), [0.8977547500, 0.0002500025], atol=5e-11)


def test_sig_sign_grad_starts_with_half_a_step_and_tanh_sign_grad_with_a_whole_one():
    assert_close(toy(adamom.SigSignGrad, 1), [0.975, 0.975], atol=2e-8)
    assert_close(toy(adamom.TanhSignGrad, 1), [0.95, 0.95], atol=2e-8)


def test_sign_grads_stop_an_entry_whose_gradient_turned_and_tanh_doubles_one_that_agrees():
    def second_step(build, first: float, second: float) -> float:
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = build([x], lr=1.0, betas=(0.0, 0.0), sharpness=1e5)
        for g in (first, second):
            before = x.item()
            x.grad = torch.tensor([g], dtype=torch.float64)
            optimizer.step()
        return before - x.item()

    assert second_step(adamom.SigSignGrad, 1.0, 1.0) == pytest.approx(1.0)
    assert second_step(adamom.SigSignGrad, 1.0, -1.0) == pytest.approx(0.0)
    assert second_step(adamom.TanhSignGrad, 1.0, 1.0) == pytest.approx(2.0)
    assert second_step(adamom.TanhSignGrad, 1.0, -1.0) == pytest.approx(0.0)


def test_mada_at_the_corner_of_adam_is_adam():
    adam = toy(torch.optim.Adam, 12, betas=(0.9, 0.99))
    torch.testing.assert_close(toy(adamom.MADA, 12, learn=0.0), adam, rtol=1e-12, atol=1e-14)


def test_mada_without_its_adam_half_is_lion_with_its_own_averages():
    x, memory = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(12):
        g = CURVATURES * x
        x = x - 0.05 * (0.95 * memory + 0.05 * g).sign()
        memory = 0.98 * memory + 0.02 * g
    torch.testing.assert_close(toy(adamom.MADA, 12, learn=0.0, kappa=0.0), x, rtol=1e-12, atol=1e-14)


def test_mada_follows_the_slope_of_the_loss_in_its_coefficients():
    """One learned step against finite differences through the step before it."""
    lr, start = 0.05, torch.tensor([0.9, 0.9, 0.4, 0.6, 0.5, 0.7], dtype=torch.float64)
    h = dict(zip(("b3", "rho", "c", "kappa"), start[2:].tolist(), strict=True))
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = adamom.MADA([x], lr=lr, betas=(0.9, 0.9), learn=1e-4, **h)
    before = None
    for k in range(3):
        if k == 2:
            learned = optimizer.param_groups[0]["coefficients"].clone()
            before = Moments(*(optimizer.state[x][name].clone() for name in Moments._fields))
            position = x.detach().clone()
        optimizer.zero_grad()
        (CURVATURES * x * x / 2).sum().backward()
        optimizer.step()

    used = optimizer.param_groups[0]["coefficients"].clone()
    x.grad = (CURVATURES * x).detach()
    optimizer.step()
    change = optimizer.param_groups[0]["coefficients"] - used

    def loss(h: Tensor) -> float:
        d, _ = mada(before, CURVATURES * position, h, t=3, eps=1e-8)
        return (CURVATURES * (position - lr * d).square() / 2).sum().item()

    step = 1e-6
    slopes = torch.stack(
        [torch.tensor((loss(used + step * e) - loss(used - step * e)) / (2 * step)) for e in torch.eye(6).double()]
    )
    rates = torch.tensor([5e-4, 5e-4, 1e-1, 1e-1, 1e-1, 1e-1], dtype=torch.float64)
    torch.testing.assert_close(change, -1e-4 * rates * slopes.double(), rtol=1e-5, atol=1e-12)
    assert not torch.equal(used, learned)


def test_mada_keeps_its_coefficients_in_their_ranges():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = adamom.MADA([x], lr=0.5, learn=1e3)
    for _ in range(20):
        optimizer.zero_grad()
        (CURVATURES * x * x / 2).sum().backward()
        optimizer.step()
        b1, b2, *others = optimizer.param_groups[0]["coefficients"].tolist()
        assert 0.01 <= b1 <= 0.99
        assert 0.501 <= b2 <= 0.99
        assert all(0 <= value <= 1 for value in others)


def test_hfac_starts_as_a_clipped_adafactor():
    G = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    X.grad = G.clone()
    adamom.HFac([X], lr=1.0).step()
    squares = G.square()
    U = G / (squares.sum(1, keepdim=True) * squares.sum(0, keepdim=True) / squares.sum()).sqrt()
    torch.testing.assert_close(X.detach(), -U / max(1.0, U.square().mean().sqrt().item()), rtol=1e-10, atol=1e-12)


def test_hfac_equals_its_equations_entry_by_entry():
    generator = torch.Generator().manual_seed(0)
    rows, columns, lr, b1, b2, eps, decay = 3, 4, 0.1, 0.9, 0.999, 1e-30, 0.01
    X = torch.ones(rows, columns, dtype=torch.float64, requires_grad=True)
    optimizer = adamom.HFac([X], lr=lr, weight_decay=decay, clip=0.5)
    Y = [[1.0] * columns for _ in range(rows)]
    u, w, r, s = [0.0] * rows, [0.0] * columns, [0.0] * rows, [0.0] * columns
    for t in range(1, 6):
        G = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        X.grad = G.clone()
        optimizer.step()
        g = G.tolist()
        p, q = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        row_mean = [sum(g[i]) / columns for i in range(rows)]
        column_mean = [sum(g[i][j] for i in range(rows)) / rows for j in range(columns)]
        u = [p * u[i] + (1 - p) * row_mean[i] for i in range(rows)]
        w = [p * w[j] + (1 - p) * column_mean[j] for j in range(columns)]
        r = [q * r[i] + (1 - q) * sum(g[i][j] ** 2 + eps for j in range(columns)) for i in range(rows)]
        s = [q * s[j] + (1 - q) * sum(g[i][j] ** 2 + eps for i in range(rows)) for j in range(columns)]
        U = [[g[i][j] / (r[i] * s[j] / sum(r)) ** 0.5 for j in range(columns)] for i in range(rows)]
        rms = (sum(x * x for row in U for x in row) / (rows * columns)) ** 0.5
        for i in range(rows):
            for j in range(columns):
                phi = p * (u[i] - row_mean[i]) / (r[i] / columns) ** 0.5
                psi = p * (w[j] - column_mean[j]) / (s[j] / rows) ** 0.5
                Y[i][j] -= lr * ((phi + psi) / 2 + U[i][j] / max(1.0, rms / 0.5) + decay * Y[i][j])
    torch.testing.assert_close(X.detach(), torch.tensor(Y, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_hfac_keeps_two_rows_and_two_columns():
    X = torch.zeros(30, 50, requires_grad=True)
    X.grad = torch.ones(30, 50)
    optimizer = adamom.HFac([X])
    optimizer.step()
    kept = [value for name, value in optimizer.state[X].items() if name != "step"]
    assert sum(value.numel() for value in kept) == 2 * (30 + 50)
