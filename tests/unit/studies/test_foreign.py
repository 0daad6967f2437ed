"""Other libraries' optimizers as arms, with their own habits met."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from studies import foreign


def bowl() -> tuple[Tensor, Tensor]:
    x = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    return x, torch.tensor([[1.0, 4.0], [2.0, 1.0]])


def run(optimizer: torch.optim.Optimizer, x: Tensor, curvature: Tensor, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (curvature * x.square()).sum() / 2
        loss.backward()
        foreign.step(optimizer, loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", [name for name in foreign.names() if not name.endswith("Ranger21")])
def test_every_name_on_the_list_trains(name: str):
    x, curvature = bowl()
    before = x.detach().clone()
    lr = 1.0 if "DAdapt" in name else 1e-2  # a factor of the rate that D-Adaptation finds
    losses = run(foreign.build(name, [x], lr), x, curvature, 15)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert not torch.equal(x, before)


def test_the_list_has_the_optimizers_people_ask_for():
    wanted = ["Adai", "Adan", "Lion", "Prodigy", "ScheduleFreeAdamW", "ScheduleFreeSGD", "DAdaptAdam", "AggMo", "QHM"]
    wanted = [f"pytorch_optimizer.{name}" for name in wanted] + ["momo.Momo", "momo.MomoAdam", "torch.optim.RMSprop"]
    ours = ["AdaRem", "HFac", "MADA", "SigSignGrad", "TanhSignGrad"]
    assert set(wanted) <= set(foreign.names())
    assert [name for name in foreign.names() if name.startswith("adamom.")] == [
        f"adamom.{name}" for name in sorted(ours)
    ]


def test_adai_starts_as_sgd_and_takes_the_published_second_step():
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    curvature = torch.tensor([1.0, 10.0], dtype=torch.float64)
    optimizer = foreign.build("pytorch_optimizer.Adai", [x], 0.05)
    run(optimizer, x, curvature, 1)
    torch.testing.assert_close(x.detach(), torch.tensor([0.95, 0.5], dtype=torch.float64), rtol=0, atol=1e-9)
    run(optimizer, x, curvature, 1)
    expected = torch.tensor([0.9015090682, 0.1383362973], dtype=torch.float64)
    torch.testing.assert_close(x.detach(), expected, rtol=0, atol=5e-10)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("torch.optim.SGD", "momentum"),
        ("torch.optim.RMSprop", "momentum"),
        ("momo.Momo", "beta"),
        ("pytorch_optimizer.QHM", "momentum"),
    ],
)
def test_momentum_goes_where_the_optimizer_takes_it(name: str, option: str):
    x, _ = bowl()
    optimizer = foreign.build(name, [x], 0.1, momentum=0.37)
    assert getattr(optimizer, option, None) == 0.37 or optimizer.param_groups[0][option] == 0.37


@pytest.mark.parametrize("name", ["torch.optim.NAdam", "pytorch_optimizer.Lion", "momo.MomoAdam"])
def test_momentum_is_the_first_of_betas_and_the_others_stay(name: str):
    x, _ = bowl()
    default = inspect.signature(foreign.maker(name)).parameters["betas"].default
    assert foreign.build(name, [x], 0.1, momentum=0.37).param_groups[0]["betas"] == (0.37, *default[1:])


@pytest.mark.parametrize("name", ["pytorch_optimizer.ScheduleFreeSGD", "pytorch_optimizer.ScheduleFreeAdamW"])
def test_schedule_free_is_judged_by_its_average_and_goes_on_training(name: str):
    x, curvature = bowl()
    optimizer = foreign.build(name, [x], 0.05)
    run(optimizer, x, curvature, 5)
    trained = x.detach().clone()
    with foreign.evaluating(optimizer):
        assert not torch.equal(x, trained)
    torch.testing.assert_close(x.detach(), trained)
    run(optimizer, x, curvature, 5)


def test_evaluating_an_optimizer_without_two_sets_of_weights_changes_nothing():
    x, curvature = bowl()
    optimizer = foreign.build("torch.optim.Adam", [x], 0.05)
    run(optimizer, x, curvature, 5)
    trained = x.detach().clone()
    with foreign.evaluating(optimizer):
        assert torch.equal(x, trained)


def test_momo_is_given_the_loss():
    """With a rate far too large for SGD, MoMo's step is cut to what the loss allows."""
    x, curvature = bowl()
    losses = run(foreign.build("momo.Momo", [x], 100.0, momentum=0.0), x, curvature, 60)
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pytorch_optimizer.Lyon", {}, "Did you mean 'Lion'"),
        ("numpy.Lion", {}, "unknown library"),
        ("os.system", {}, "unknown library"),
        ("torch.optim.Optimizer", {}, "has no optimizer"),
        ("torch.optim.LBFGS", {}, "needs a closure"),
        ("pytorch_optimizer.SophiaH", {}, "needs second gradients"),
        ("torch.optim.SGD", {"momentun": 0.9}, "Did you mean 'momentum'"),
        ("torch.optim.SGD", {"lr": 0.9}, "has no option 'lr'"),
        ("torch.optim.Adam", {"eps": -1.0}, "epsilon"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, options: dict, message: str):
    x, _ = bowl()
    with pytest.raises(ValueError, match=message):
        foreign.build(name, [x], 0.1, options=options)


def test_a_momentum_that_has_no_place_is_refused():
    x, _ = bowl()
    with pytest.raises(ValueError, match="has no momentum to set"):
        foreign.build("torch.optim.Adagrad", [x], 0.1, momentum=0.9)
