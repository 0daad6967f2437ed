"""The fast steps against a slow twin that knows nothing but numbers: steps, betas and state."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import adamom
from adamom import parts

SHAPES = ((3, 4), (5,), (), (2, 7))
Vector = list[float]


class Twin:
    """SGD or Adam with HeavyBall on lists of floats, one list per tensor; the equations and nothing else."""

    def __init__(self, start: list[Vector], lr: float, **options: Any) -> None:
        self.x, self.lr, self.k = start, lr, 0
        self.delta, self.a = options.get("delta", 1e-3), options.get("smoothing", 0.0)
        self.each = options.get("scope") == "tensor"
        self.decay, self.sign = options.get("weight_decay", 0.0), -1 if options.get("maximize") else 1
        self.nesterov = options.get("nesterov", False)
        self.adam, self.decoupled = options.get("adam", False), options.get("decoupled", False)
        self.amsgrad, self.metric = options.get("amsgrad", False), options.get("metric", "raw")
        self.b2, self.eps = 0.99, 1e-8
        zero = [[0.0] * len(x) for x in start]
        self.v, self.s, self.top, self.change, self.path = ([list(z) for z in zero] for _ in range(5))
        self.before: list[Vector] | None = None
        self.way = [0.0] * len(start)

    def step(self, gradients: list[Vector]) -> list[float]:
        self.k += 1
        coupled = 0.0 if self.decoupled else self.decay
        g = [
            [self.sign * e + coupled * w for e, w in zip(*pair, strict=True)]
            for pair in zip(gradients, self.x, strict=True)
        ]
        scale = [self.preconditioner(i, gi) for i, gi in enumerate(g)]
        root = [[math.sqrt(d) if self.metric == "preconditioned" else 1.0 for d in row] for row in scale]
        changes = [self.measured_change(i, gi, root[i]) for i, gi in enumerate(g)]
        betas = [self.beta(i, changes) for i in range(len(g))]
        for i, gi in enumerate(g):
            take = 1 - betas[i] if self.adam else 1.0
            self.v[i] = [betas[i] * v + take * e for v, e in zip(self.v[i], gi, strict=True)]
            move = [e + betas[i] * v if self.nesterov else v for v, e in zip(self.v[i], gi, strict=True)]
            if self.adam:
                move = [m / d for m, d in zip(move, scale[i], strict=True)]
            if self.decoupled:
                move = [m + self.decay * x for m, x in zip(move, self.x[i], strict=True)]
            self.x[i] = [x - self.lr * m for x, m in zip(self.x[i], move, strict=True)]
            self.path[i] = [self.a * p - (1 - self.a) * self.lr * m for p, m in zip(self.path[i], move, strict=True)]
            self.way[i] = math.sqrt(sum((p * r) ** 2 for p, r in zip(self.path[i], root[i], strict=True)))
        self.before = g
        return betas if self.each else betas[:1]

    def preconditioner(self, i: int, g: Vector) -> Vector:
        self.s[i] = [self.b2 * s + (1 - self.b2) * e * e for s, e in zip(self.s[i], g, strict=True)]
        self.top[i] = [max(pair) for pair in zip(self.top[i], self.s[i], strict=True)]
        used = self.top[i] if self.amsgrad else self.s[i]
        return [math.sqrt(s / (1 - self.b2**self.k)) + self.eps for s in used]

    def measured_change(self, i: int, g: Vector, root: Vector) -> float:
        if self.before is None:
            return 0.0
        self.change[i] = [
            self.a * c + (1 - self.a) * (e - b) for c, e, b in zip(self.change[i], g, self.before[i], strict=True)
        ]
        return math.sqrt(sum((c / r) ** 2 for c, r in zip(self.change[i], root, strict=True)))

    def beta(self, i: int, changes: list[float]) -> float:
        change, way = (changes[i], self.way[i]) if self.each else (math.hypot(*changes), math.hypot(*self.way))
        if way == 0:
            return 0.0
        return min((1 - math.sqrt(self.lr * change / way)) ** 2, 1 - self.delta)


CASES: list[dict[str, Any]] = [
    {},
    {"scope": "tensor"},
    {"smoothing": 0.8},
    {"smoothing": 0.8, "scope": "tensor", "delta": 0.3},
    {"nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"adam": True},
    {"adam": True, "weight_decay": 0.1},
    {"adam": True, "weight_decay": 0.1, "decoupled": True, "scope": "tensor"},
    {"adam": True, "amsgrad": True, "smoothing": 0.5, "maximize": True},
    {"adam": True, "metric": "preconditioned"},
    {
        "adam": True,
        "metric": "preconditioned",
        "smoothing": 0.9,
        "scope": "tensor",
        "weight_decay": 0.1,
        "decoupled": True,
    },
]


def fast(params: list[Tensor], lr: float, case: dict[str, Any]) -> adamom.SGD | adamom.Adam:
    rule = adamom.HeavyBall(**{name: case[name] for name in ("delta", "scope", "smoothing", "metric") if name in case})
    shared = {name: case[name] for name in ("weight_decay", "maximize") if name in case}
    if not case.get("adam"):
        return adamom.SGD(params, lr, rule, nesterov=case.get("nesterov", False), **shared)
    kind = adamom.AdamW if case.get("decoupled") else adamom.Adam
    return kind(params, lr, (rule, 0.99), amsgrad=case.get("amsgrad", False), **shared)


def flat(tensors: list[Tensor]) -> list[Vector]:
    return [tensor.detach().reshape(-1).tolist() for tensor in tensors]


@pytest.fixture(params=[parts.piece(), 4], ids=["whole", "in pieces"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The size above which a tensor is cut; 4 cuts all of them."""
    monkeypatch.setattr(parts, "piece", lambda: request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fast_step_is_the_slow_one(case: dict[str, Any], piece: int):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    twin, optimizer = Twin(flat(params), 0.05, **case), fast(params, 0.05, case)
    for _ in range(10):
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = param.detach() + 0.3 * noise
        expected = twin.step(flat([param.grad for param in params]))
        optimizer.step()
        assert optimizer.last_momentum.reshape(-1).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    velocity = "exp_avg" if case.get("adam") else "momentum_buffer"
    kept = {"velocity": velocity, "previous": "previous_grad"}
    state = {name: flat([optimizer.state[param][key] for param in params]) for name, key in kept.items()}
    for i in range(len(params)):
        assert flat(params)[i] == pytest.approx(twin.x[i], rel=1e-9, abs=1e-12)
        assert state["velocity"][i] == pytest.approx(twin.v[i], rel=1e-9, abs=1e-12)
        assert state["previous"][i] == pytest.approx(twin.before[i], rel=1e-9, abs=1e-12)


def test_tensors_that_cannot_be_cut_are_worked_on_whole(monkeypatch: pytest.MonkeyPatch):
    """A transposed parameter has no flat view: its pieces would be copies, and the step would be lost in them."""
    monkeypatch.setattr(parts, "piece", lambda: 4)
    plain = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    straight, turned = plain.clone().requires_grad_(), plain.T.contiguous().T.requires_grad_()
    assert not turned.is_contiguous()
    optimizers = [adamom.SGD([each], 0.1, "adaptive") for each in (straight, turned)]
    for _ in range(5):
        for each, optimizer in zip((straight, turned), optimizers, strict=True):
            each.grad = each.detach().sin()
            optimizer.step()
    torch.testing.assert_close(turned.detach(), straight.detach())


@pytest.mark.parametrize("trouble", ["no way gone", "nan"])
def test_pieces_take_a_step_of_any_momentum(trouble: str, piece: int):
    """beta is 0 while nothing has moved, and NaN once a gradient is."""
    params = [torch.ones(shape, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    twin, optimizer = Twin(flat(params), 0.0), adamom.SGD(params, 0.0, "adaptive")
    for k in range(6):
        twin.lr = optimizer.param_groups[0]["lr"] = 0.0 if trouble == "no way gone" and k < 3 else 0.1
        for param in params:
            param.grad = param.detach().sin() * (k + 1)
        if trouble == "nan" and k == 4:
            params[0].grad.view(-1)[0] = torch.nan
        twin.step(flat([param.grad for param in params]))
        optimizer.step()
    for i, param in enumerate(params):
        assert flat(params)[i] == pytest.approx(twin.x[i], rel=1e-9, abs=1e-12, nan_ok=True)
        assert flat([optimizer.state[param]["momentum_buffer"]])[0] == pytest.approx(twin.v[i], rel=1e-9, nan_ok=True)
    assert params[0].isnan().any() == (trouble == "nan")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_pieces_of_any_precision_move_as_the_whole_does(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    found = []
    for size in (parts.piece(), 4):
        monkeypatch.setattr(parts, "piece", lambda size=size: size)
        param = torch.linspace(-1, 1, 50).to(dtype).requires_grad_()
        optimizer = adamom.SGD([param], 0.05, "adaptive", weight_decay=0.1)
        for _ in range(6):
            param.grad = param.detach() * (1 + param.detach().abs())
            optimizer.step()
        found.append(param.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)  # half precisions round their own way
    assert not torch.equal(found[0], torch.linspace(-1, 1, 50).to(dtype))


def test_cutting_covers_every_number_once_with_small_tensors_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "piece", lambda: 10)
    params = [torch.arange(n) + 100 * i for i, n in enumerate((3, 4, 25, 2, 9, 10, 11, 1))]
    cuts = list(parts.cut(parts.Part(range(len(params)), False, params, params)))
    assert [list(part.indices) for part in cuts] == [[2], [2], [2], [0, 1, 3], [4], [6], [6], [5], [7]]
    assert [part.flat for part in cuts] == [True, True, True, False, False, True, True, False, False]
    covered = torch.cat([t for part in cuts for t in part.params]).sort().values
    assert torch.equal(covered, torch.cat(params).sort().values)
    assert all(sum(t.numel() for t in part.params) <= 10 for part in cuts)
