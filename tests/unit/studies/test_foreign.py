"""Other libraries' optimizers as arms, with their own habits met."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adamom
from studies import foreign, spec


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


@pytest.mark.parametrize("name", foreign.names())
def test_every_name_on_the_list_trains_a_model_with_convolutions_matrices_and_biases(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    before = [param.detach().clone() for param in model.parameters()]
    options = {"num_iterations": 15} if name.endswith("Ranger21") else {}
    lr = 1.0 if "DAdapt" in name else 1e-2  # a factor of the rate that D-Adaptation finds
    optimizer = foreign.build(name, model.parameters(), lr, options=options)
    inputs, classes = torch.randn(8, 4), torch.randint(0, 2, (8,))
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        foreign.step(optimizer, loss)
        assert loss.isfinite()
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_what_a_plain_loop_cannot_train_is_refused_with_what_it_needs():
    for name, needs in foreign.NEEDS_MORE.items():
        with pytest.raises(ValueError, match=f"{name}.* needs {needs}, which a plain training loop does not give"):
            foreign.build(name, [bowl()[0]], 0.1)
    assert not set(foreign.NEEDS_MORE) & set(foreign.names())


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


class TestThePage:
    PAGE = (Path(__file__).parents[3] / "docs" / "optimizers.md").read_text()

    @pytest.mark.parametrize("library", ["torch.optim", "pytorch_optimizer", "momo"])
    def test_it_lists_the_optimizers_that_a_study_can_name(self, library: str) -> None:
        (listed,) = re.findall(rf"^\*\*`{library}`\*\*.*\n\n((?:`.*\n)+)", self.PAGE, re.MULTILINE)
        named = [f"{library}.{name}" for name in re.findall(r"`(\w+)`", listed)]
        assert named == [name for name in foreign.names() if name.rpartition(".")[0] == library]

    def test_it_lists_ours(self) -> None:
        named = {name for row in re.findall(r"^\| (`.*?`) \|", self.PAGE, re.MULTILINE) for name in row.split(", ")}
        ours = {name.removeprefix("adamom.") for name in foreign.names() if name.startswith("adamom.")}
        words = set(adamom.Rule.registry) | {"adaptive"}
        words = {
            word for word in words if word == "adaptive" or adamom.Rule.registry[word].__module__.startswith("adamom")
        }
        assert {name.strip("`") for name in named} == ours | words

    def test_its_rules_have_the_options_it_says(self) -> None:
        for call in re.findall(r"`(adamom\.\w+\(\w+=.*?\))`", self.PAGE):
            assert eval(call, {"adamom": adamom}) == eval(call.partition("(")[0], {"adamom": adamom})()

    def test_it_lists_what_is_refused_and_why(self) -> None:
        _, refused = self.PAGE.split("## Refused, and why")
        rows = re.findall(r"^\| ([\w -]+) \| (`.*`) \|$", refused, re.MULTILINE)
        assert {name: why for why, names in rows for name in re.findall(r"`(.+?)`", names)} == foreign.NEEDS_MORE

    def test_its_study_can_be_planned(self, tmp_path: Path) -> None:
        (arms,) = re.findall(r"```toml\n(.*?)```", self.PAGE, re.DOTALL)
        study = tmp_path / "zoo.toml"
        head = 'question = "?"\nworkload = "digits"\nseeds = 1\nlr = { values = [0.1] }\n'
        head += "budget = { steps = 1, evaluations = 1, batch_size = 8 }\n"
        study.write_text(head + arms)
        assert set(tomllib.loads(arms)["arms"]) == {arm.family for arm in spec.load(study).arms}
