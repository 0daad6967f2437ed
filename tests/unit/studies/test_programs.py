"""The program of K lanes against K models trained one after another, for models of every make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from studies import native, programs
from studies.dropout import seed_dropout
from studies.tape import Arena, Tape, bind
from studies.workloads.workload import accuracy_of, loss_of

LANES, BATCH, CLASSES = 3, 5, 4
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32: products and sums are taken in another order


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, 8), nn.Parameter(torch.randn(6, 8))
        self.norm, self.in_, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, CLASSES)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.positions
        q, k, v = self.in_(self.norm(x)).view(*text.shape, 3, 2, 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x + heads.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, make: Callable[..., nn.Module], **options: object) -> None:
        super().__init__()
        self.embedding, self.memory = nn.Embedding(7, 8), make(8, 6, batch_first=True, **options)
        self.out = nn.LazyLinear(CLASSES)
        self(torch.zeros(1, 6, dtype=torch.long))

    def forward(self, text: Tensor) -> Tensor:
        return self.out(self.memory(self.embedding(text))[0])


class Tied(nn.Module):
    """One matrix is used twice, as the first and as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)
        self.out.weight = self.into.weight

    def forward(self, text: Tensor) -> Tensor:
        return self.out(torch.tanh(self.into(text)))


class TwoBiases(nn.Module):
    """Two parameters with one and the same gradient, one of them alone in its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, CLASSES))
        self.a, self.b, self.scale = (nn.Parameter(torch.randn(n)) for n in (CLASSES, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.a + self.b) * self.scale


class InPlace(nn.Module):
    """Overwrites what it has computed, through views too."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        h[:, ::2] += 1.0
        first = h.view(-1, 2, 4)
        h.mul_(0.5)
        return self.out(F.relu(h, inplace=True) + first.flatten(1))


class Counting(nn.Module):
    """Changes its buffers as it trains, and reads them before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, CLASSES)
        self.register_buffer("calls", torch.ones(()))
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        before = self.calls * 1
        if self.training:
            self.calls += 1
            self.seen.mul_(0.75).add_(x.detach().mean(0), alpha=0.25)
        return self.out(torch.relu((self.calls + 0.25) * x / before) + self.seen)


class OwnConstants(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer, and makes another one as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.signs = nn.Linear(6, CLASSES), torch.tensor([1.0, -1.0] * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * self.signs + torch.tensor([0.5] * 6))


class FewLogits(nn.Module):
    """A softmax in the middle, along another dimension than the last, and a residual that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        weights = h.view(-1, 2, 4).log_softmax(1).exp() * h.view(-1, 2, 4).softmax(-1)
        return self.out(torch.relu(h + weights.flatten(1)) + torch.relu(h) + h)


class Doubling(nn.Module):
    """Adds a tensor to itself, and a number to a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x) * 1
        h = h + h
        return self.out(torch.relu(1 + h.log_softmax(-1).exp().view(-1, 2, 4).flatten(1)) + 2)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...] = (6,)
    text: int = 0  # how many characters the inputs are made of; 0 for numbers


CASES = {
    "perceptron": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))),
    "one layer": Case(lambda: nn.Linear(6, 4)),
    "no biases": Case(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))),
    "convolution": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
        ),
        inputs=(2, 4, 4),
    ),
    "BatchNorm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
        ),
        inputs=(2, 6, 6),
    ),
    "BatchNorm over features": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    ),
    "GroupNorm": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 4)),
        inputs=(2, 6),
    ),
    "attention": Case(Attention, inputs=(6,), text=7),
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(7, 8), nn.Flatten(), nn.Linear(48, 4)), text=7),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), inputs=(4,), text=7),
    "two bidirectional LSTMs": Case(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), inputs=(3,), text=7),
    "GRU": Case(lambda: Recurrent(nn.GRU), inputs=(4,), text=7),
    "RNN": Case(lambda: Recurrent(nn.RNN), inputs=(4,), text=7),
    "tied weights": Case(Tied, text=CLASSES),
    "two biases": Case(TwoBiases),
    "in place": Case(InPlace),
    "ReLU in place": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))),
    "changing buffers": Case(Counting),
    "own constants": Case(OwnConstants),
    "softmax inside": Case(FewLogits),
    "doubling": Case(Doubling),
    "dropout": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    ),
}


# Those whose gradients are one function in C, where there is a compiler.
COMPILED = {
    "perceptron", "one layer", "no biases", "two biases", "ReLU in place", "changing buffers", "own constants",
    "softmax inside", "doubling", "dropout",
}  # fmt: skip


@dataclass
class Stack:
    """LANES models of one make, stacked, with a minibatch for each. bind: how their programs are run."""

    bind: Callable[..., Tape | None]
    models: list[nn.Module]
    params: list[Tensor]
    buffers: list[Tensor]
    inputs: Tensor
    targets: Tensor

    @property
    def state(self) -> list[Tensor]:
        return [*self.params, *self.buffers]


def stack(case: Case, bind: Callable[..., Tape | None] = bind) -> Stack:
    torch.manual_seed(0)
    models = [seed_dropout(case.make(), seed).train() for seed in range(LANES)]
    shape = (LANES, BATCH, *case.inputs)
    inputs = torch.randint(case.text, shape) if case.text else torch.randn(shape)
    positions = models[0].eval()(inputs[0]).shape[:-1]
    for model in models:
        model.train()
    return Stack(
        bind,
        models,
        [torch.stack([p.detach() for p in ps]) for ps in zip(*(m.parameters() for m in models), strict=True)],
        [torch.stack(list(bs)) for bs in zip(*(m.buffers() for m in models), strict=True)],
        inputs,
        torch.randint(CLASSES, (LANES, *positions)),
    )


def one_by_one(given: Stack) -> tuple[Tensor, list[list[Tensor]]]:
    """Losses of shape (lanes,), and the gradients of each lane, by autograd, one model after another."""
    losses, grads = [], []
    for lane, model in enumerate(given.models):
        model.train()
        loss = loss_of(model(given.inputs[lane]), given.targets[lane])
        grads.append(list(torch.autograd.grad(loss, list(model.parameters()))))
        losses.append(loss.detach())
    return torch.stack(losses), grads


def gradients(given: Stack, grads: list[Tensor], state: list[Tensor] | None = None) -> Tape:
    program = programs.gradient(given.models[0], given.inputs[0], given.targets[0])
    tape = given.bind(program, LANES, [*(state or given.state), given.inputs, given.targets], Arena(), grads)
    assert tape
    return tape


@pytest.fixture(params=[*CASES, *(f"{case}, compiled" for case in CASES if case in COMPILED)])
def given(request: pytest.FixtureRequest) -> Stack:
    case, _, compiled = request.param.partition(", ")
    return stack(CASES[case], native.bind if compiled else bind)


def test_the_models_that_are_compiled_are_these():
    given = {case: stack(CASES[case], native.bind) for case in CASES}
    programs_of = {
        case: programs.gradient(each.models[0], each.inputs[0], each.targets[0]) for case, each in given.items()
    }
    assert {case for case, each in given.items() if native.compiles(programs_of[case], each.params)} == COMPILED


def test_the_program_gives_each_lane_its_own_loss_gradients_and_buffers(given: Stack):
    before = [param.clone() for param in given.params]
    grads = [torch.full_like(param, torch.nan) for param in given.params]
    tape = gradients(given, grads)
    for _ in range(3):  # buffers go on from where the step before left them
        tape.run()
        (losses,) = tape.results
        expected_losses, expected_grads = one_by_one(given)
        torch.testing.assert_close(losses, expected_losses, **TOLERANCE)
        for lane, model in enumerate(given.models):
            torch.testing.assert_close([grad[lane] for grad in grads], expected_grads[lane], **TOLERANCE)
            torch.testing.assert_close([b[lane] for b in given.buffers], list(model.buffers()), **TOLERANCE)
    assert all(torch.equal(param, old) for param, old in zip(given.params, before, strict=True))


def test_the_program_evaluates_every_lane_on_the_same_examples_and_changes_nothing(given: Stack):
    inputs, targets = given.inputs[0], given.targets[0]
    before = [tensor.clone() for tensor in given.state]
    program = programs.evaluation(given.models[0], inputs, targets)
    arguments = [*given.state, inputs, targets]
    tape = given.bind(program, LANES, arguments, Arena()) or bind(program, LANES, arguments, Arena())
    tape.run()
    losses, accuracies = tape.results
    for lane, model in enumerate(given.models):
        outputs = model.eval()(inputs)
        torch.testing.assert_close(losses[lane], loss_of(outputs, targets).detach(), **TOLERANCE)
        assert accuracies[lane] == accuracy_of(outputs, targets)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given.state, before, strict=True))


def test_a_lane_of_nan_leaves_every_other_lane_as_it_is(given: Stack):
    def results(state: list[Tensor]) -> list[Tensor]:
        state = [tensor.clone() for tensor in state]
        grads = [torch.empty_like(param) for param in given.params]
        tape = gradients(given, grads, state)
        tape.run()
        return [*tape.results, *grads, *state[len(grads) :]]

    healthy = results(given.state)
    sick_state = [tensor.clone() for tensor in given.state]
    for param in sick_state[: len(given.params)]:
        param[1] = torch.nan
    sick = results(sick_state)
    assert sick[0][1].isnan()
    for a, b in zip(healthy, sick, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


# Recurrent layers are a thousand small pieces of the same few kinds: all rewrites at once will do there.
RECURRENT = {"LSTM", "two bidirectional LSTMs", "GRU", "RNN"}


@pytest.mark.parametrize("case", [case for case in CASES if case not in RECURRENT])
def test_each_rewrite_keeps_the_values(case: str, monkeypatch: pytest.MonkeyPatch):
    given = stack(CASES[case])
    expected_losses, expected_grads = one_by_one(copy.deepcopy(given))
    for rewrite in programs.REWRITES:
        monkeypatch.setattr(programs, "REWRITES", [rewrite])
        grads = [torch.full_like(param, torch.nan) for param in given.params]
        tape = gradients(given, grads, copies(given.state))
        tape.run()
        torch.testing.assert_close(tape.results[0], expected_losses, **TOLERANCE, msg=rewrite.__name__)
        for lane, expected in enumerate(expected_grads):
            torch.testing.assert_close([g[lane] for g in grads], expected, **TOLERANCE, msg=rewrite.__name__)


def losses_and_grads(model: nn.Module) -> Callable[..., list[Tensor]]:
    """(params, buffers, inputs, targets) -> losses and gradients, all stacked: what the rewrites are given."""
    names, buffer_names = ([name for name, _ in named()] for named in (model.named_parameters, model.named_buffers))

    def loss(params: list[Tensor], buffers: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        state = dict(zip(names, params, strict=True)) | dict(zip(buffer_names, buffers, strict=True))
        return loss_of(functional_call(model, state, (inputs,)), targets)

    def over_lanes(*flat: Tensor) -> list[Tensor]:
        leaves = [param.detach().requires_grad_() for param in flat[: len(names)]]
        losses = vmap(loss)(leaves, list(flat[len(names) : -2]), flat[-2], flat[-1])
        return [losses.detach(), *torch.autograd.grad(losses.sum(), leaves)]

    return over_lanes


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def test_each_rewrite_finds_something_in_the_perceptron_or_in_a_rule():
    given = stack(CASES["perceptron"])
    with programs.writing_down(given.inputs.device) as mode:
        examples = [mode.from_tensor(each) for each in (*given.state, given.inputs, given.targets)]
        perceptron = make_fx(losses_and_grads(given.models[0]))(*examples)
        rule = make_fx(lambda x: torch.stack([x * x]).sum(dim=0).sqrt())(examples[0])
        for rewrite in programs.REWRITES:
            before = str(perceptron.graph), str(rule.graph)
            rewrite(perceptron.graph)
            rewrite(rule.graph)
            after = str(perceptron.graph), str(rule.graph)
            assert before != after, f"{rewrite.__name__} keeps the values by doing nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_root_is_that_of_torch_at_both_ends_of_the_numbers(dtype: torch.dtype):
    numbers = [0.0, 1e-36, 1e-20, 0.5, 2.0, 3e38, torch.inf, torch.nan, -1.0]
    x = torch.tensor(numbers, dtype=dtype).repeat(LANES, 1)
    root = torch.empty_like(x)
    program = programs.in_place(lambda x, root: root.copy_(x.sqrt()), [x, root], [0, 0])
    bind(program, LANES, [x, root], Arena()).run()
    torch.testing.assert_close(root, x.sqrt(), rtol=3e-7, atol=0, equal_nan=True)


def test_what_nobody_reads_is_taken_out_unless_it_writes():
    def wasteful(x: Tensor, y: Tensor) -> Tensor:
        _ = x * 2
        y.add_(x)
        return x + 1

    traced = make_fx(wasteful)(torch.ones(2), torch.ones(2))
    programs.drop_unused(traced.graph)
    left = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert left == [torch.ops.aten.add_.Tensor, torch.ops.aten.add.Tensor]


REFUSED = {
    "a branch on the data": lambda x: x if x.sum() > 0 else -x,
    "dropout without a seed": lambda x: F.dropout(x, 0.5),
    "a number read from the device": lambda x: x * x.mean().item(),
}


class Layer(nn.Linear):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__(6, CLASSES)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(super().forward(x))


@pytest.mark.parametrize("then", REFUSED.values(), ids=REFUSED)
def test_what_differs_from_lane_to_lane_is_refused(then: Callable[[Tensor], Tensor]):
    given = stack(Case(lambda: Layer(then)))
    with pytest.raises(RuntimeError, match="vmap"):
        programs.gradient(given.models[0], given.inputs[0], given.targets[0])
