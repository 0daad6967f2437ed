"""Programs in C: every word means what torch's operation means, in every order, and without a compiler all goes on."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studies import native, programs
from studies.native import library
from studies.tape import Arena, bind

LANES = 3
AWKWARD = [0.0, -0.0, 1.5, -2.25, 0.4, 1e30, 1e-30, torch.inf, -torch.inf, torch.nan, 3.0, -1.0]

InPlace = Callable[..., None]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for compiled programs, and a process that remembers none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (native.compiled, library.compiler, library.target, library.folder)
    for each in caches:
        each.cache_clear()
    yield tmp_path / "adamom" / "programs"
    for each in caches:
        each.cache_clear()


def in_place(
    function: InPlace, examples: Sequence[Tensor], dims: Sequence[int | None] | None = None
) -> programs.Program:
    return programs.in_place(function, examples, dims or [0] * len(examples))


def assert_same(function: InPlace, examples: Sequence[Tensor], dims: Sequence[int | None] | None = None) -> None:
    """That the function in C does to its arguments what torch does, twice in a row."""
    program = in_place(function, examples, dims)
    ours, theirs = ([each.clone() for each in examples] for _ in range(2))
    compiled, called = native.bind(program, LANES, ours, Arena()), bind(program, LANES, theirs, Arena())
    assert compiled, "there is a compiler, and it has words for this"
    for _ in range(2):
        compiled.run()
        called.run()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def awkward(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers of every kind, each beside each other as seeds differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(AWKWARD, dtype=dtype)[torch.randint(len(AWKWARD), (LANES, *shape), generator=generator)]


WORDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "abs": lambda x, y, z: x.abs(),
    "add": lambda x, y, z: torch.add(x, y, alpha=-2),
    "addcdiv": lambda x, y, z: torch.addcdiv(x, y, z, value=0.5),
    "addcmul": lambda x, y, z: torch.addcmul(x, y, z, value=-0.5),
    "clamp": lambda x, y, z: x.clamp(-1, 0.5),
    "clamp_min": lambda x, y, z: x.clamp_min(0),
    "clone": lambda x, y, z: x.clone(),
    "div": lambda x, y, z: x / y,
    "division of whole numbers": lambda x, y, z: (y > 0).long() / 2,
    "eq": lambda x, y, z: (x == y).float(),
    "erf": lambda x, y, z: torch.erf(x),
    "exp": lambda x, y, z: x.exp(),
    "ge": lambda x, y, z: (x >= y).float(),
    "gt": lambda x, y, z: (x > 0).float(),
    "le": lambda x, y, z: (x <= y).float(),
    "lerp": lambda x, y, z: torch.lerp(x, y, 0.25),
    "lerp from beyond the middle": lambda x, y, z: torch.lerp(x, y, 0.75),
    "log": lambda x, y, z: x.log(),
    "logical_and": lambda x, y, z: torch.logical_and(x > 0, y > 0).float(),
    "lt": lambda x, y, z: (x < y).float(),
    "maximum": lambda x, y, z: torch.maximum(x, y),
    "mul": lambda x, y, z: x * y,
    "ne": lambda x, y, z: (x != y).float(),
    "neg": lambda x, y, z: -x,
    "one number less": lambda x, y, z: 1 - x,
    "pow": lambda x, y, z: x**3,
    "square": lambda x, y, z: x**2,
    "root by a power": lambda x, y, z: x.abs() ** 0.5,
    "power of a number": lambda x, y, z: 0.9 ** x.clamp(-5, 5),
    "reciprocal": lambda x, y, z: x.reciprocal(),
    "relu": lambda x, y, z: x.relu(),
    "rsqrt": lambda x, y, z: x.rsqrt(),
    "sigmoid": lambda x, y, z: x.sigmoid(),
    "sqrt": lambda x, y, z: x.sqrt(),
    "sub": lambda x, y, z: torch.sub(x, y, alpha=0.5),
    "tanh": lambda x, y, z: x.tanh(),
    "where": lambda x, y, z: torch.where(x > y, z, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_a_word_means_what_torch_means(word: Callable[..., Tensor], dtype: torch.dtype):
    x, y, z = (awkward(37, dtype=dtype, seed=seed) for seed in range(3))
    assert_same(lambda into, x, y, z: into.copy_(word(x, y, z)), [torch.zeros_like(x), x, y, z])


def test_whole_numbers_wrap_shift_and_mix_as_in_torch():
    def mix(x: Tensor) -> None:
        x ^= (x >> 15) & 0x1FFFF
        x *= 0x735A2D97
        x |= x + 1

    generator = torch.Generator().manual_seed(0)
    assert_same(mix, [torch.randint(-(2**31), 2**31 - 1, (LANES, 50), dtype=torch.int32, generator=generator)])


@pytest.mark.parametrize("keepdim", [False, True], ids=["", "keepdim"])
@pytest.mark.parametrize("dims", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
def test_sums_over_any_dimensions_of_a_lane_are_those_of_torch(dims: list[int], keepdim: bool, turned: bool):
    def sums(totals: Tensor, largest: Tensor, squares: Tensor, x: Tensor) -> None:
        x = x.transpose(1, 3) if turned else x
        over = [dim + 1 for dim in dims]
        totals.copy_((x - 1).sum(over, keepdim=keepdim).view_as(totals))
        largest.copy_(x.amax(over, keepdim=keepdim).view_as(largest))
        squares.copy_((x * x).mean(over, keepdim=keepdim).view_as(squares))

    x = torch.randn(LANES, 4, 1, 19, generator=torch.Generator().manual_seed(0))
    x[1, 2, 0, 7] = torch.nan
    left = x.transpose(1, 3).sum([dim + 1 for dim in dims]) if turned else x.sum([dim + 1 for dim in dims])
    assert_same(sums, [torch.zeros_like(left) for _ in range(3)] + [x])


@pytest.mark.parametrize("dim", [1, 2])
def test_softmaxes_and_the_places_of_maxima_are_those_of_torch(dim: int):
    def classes(logs: Tensor, shares: Tensor, best: Tensor, x: Tensor) -> None:
        logs.copy_(x.log_softmax(dim))
        shares.copy_(x.softmax(dim))
        best.copy_(x.max(dim).indices)

    x = torch.randn(LANES, 7, 18, generator=torch.Generator().manual_seed(0)) * 30
    x[0, 3, :5], x[1, :, 4], x[2] = torch.nan, torch.inf, 1.0
    best = torch.zeros(x.max(dim).indices.shape, dtype=torch.long)
    assert_same(classes, [torch.zeros_like(x), torch.zeros_like(x), best, x])


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_products_are_those_of_torch_and_write_nothing_beside_them(turned: tuple[bool, bool]):
    def multiply(*tensors: Tensor) -> None:
        for c, a, b in zip(*(tensors[i::3] for i in range(3)), strict=True):
            c.copy_(torch.bmm(a.transpose(1, 2) if turned[0] else a, b.transpose(1, 2) if turned[1] else b))

    generator = torch.Generator().manual_seed(0)
    tensors, wholes = list[Tensor](), list[Tensor]()
    for m, n, k in [(1, 1, 1), (4, 3, 16), (7, 16, 1), (1, 33, 21), (6, 64, 16), (5, 97, 3), (8, 130, 32), (3, 48, 17)]:
        wholes.append(torch.full((LANES + 2, m, n), torch.nan))
        a = torch.randn(LANES, *((k, m) if turned[0] else (m, k)), generator=generator)
        b = torch.randn(LANES, *((n, k) if turned[1] else (k, n)), generator=generator)
        tensors += [wholes[-1][1:-1], a, b]
    expected = [each.clone() for each in tensors]
    tape = native.bind(in_place(multiply, tensors), LANES, tensors, Arena())
    assert tape
    tape.run()
    multiply(*expected)
    torch.testing.assert_close(tensors, expected, rtol=1e-4, atol=1e-5)
    assert all(whole[[0, -1]].isnan().all() for whole in wholes)


def copy_what_then_changes(x: Tensor, y: Tensor) -> None:
    old = x * 1
    x += y
    y.copy_(old + x)


def write_half_of_what_is_read_whole(x: Tensor, y: Tensor) -> None:
    x[:, :5] += 1
    y += x
    x[:, 5:] *= y[:, :5]


def read_turned_what_is_written(x: Tensor, y: Tensor) -> None:
    square = x[:, :9].view(-1, 3, 3)
    square += 1
    y[:, :9].view(-1, 3, 3).copy_(square.transpose(1, 2) + square)


def sum_and_go_on(x: Tensor, y: Tensor) -> None:
    x -= y
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x.copy_(y)
    y *= norm
    y -= x.sum(1, keepdim=True)


def give_a_place_in_turn(x: Tensor, y: Tensor) -> None:
    torch.addcmul(y, x, x, out=x)
    torch.div(x, y, out=y)


def change_a_number_that_is_read_before(x: Tensor, y: Tensor) -> None:
    number = x[:, 0] * 2
    y *= number.view(-1, 1)
    number += 1
    x += number.view(-1, 1)


def pick_from_a_sum(x: Tensor, y: Tensor) -> None:
    sums = x.view(-1, 5, 2).sum(2, keepdim=True)
    y[:, :5].copy_(sums.index_select(1, torch.tensor([4, 0, 1, 3, 2])).squeeze(2))


def invert_what_has_changed(x: Tensor, y: Tensor) -> None:
    inverse = x.abs().rsqrt()
    inverse[:, :2] *= 3
    y.copy_(inverse.reciprocal())


def take_two_equal_ones_from_each_other(x: Tensor, y: Tensor) -> None:
    y.copy_(x)
    x.copy_((x * x - y * y).sqrt())


def join_and_part(x: Tensor, y: Tensor) -> None:
    norms = torch.stack([x.square().sum(1), y.square().sum(1)])
    x *= norms[1].view(-1, 1)
    y.copy_(torch.cat([x[:, 3:], y[:, :3]], dim=1) - norms.sum(0).view(-1, 1))


ORDERS = [
    change_a_number_that_is_read_before,
    pick_from_a_sum,
    invert_what_has_changed,
    take_two_equal_ones_from_each_other,
    join_and_part,
    copy_what_then_changes,
    write_half_of_what_is_read_whole,
    read_turned_what_is_written,
    sum_and_go_on,
    give_a_place_in_turn,
]


@pytest.mark.parametrize("function", ORDERS, ids=lambda each: each.__name__)
def test_what_is_written_and_read_again_is_so_in_its_order(function: InPlace):
    generator = torch.Generator().manual_seed(0)
    assert_same(function, [torch.randn(LANES, 10, generator=generator) for _ in range(2)])


def test_what_all_lanes_share_is_done_once():
    def count(steps: Tensor, x: Tensor) -> None:
        steps += 1
        x *= 1 - 0.5**steps

    assert_same(count, [torch.zeros((), dtype=torch.float64), torch.ones(LANES, 20)], [None, 0])


def test_numbers_per_lane_and_tensor_may_lie_between_each_other():
    def move(betas: Tensor, x: Tensor) -> None:
        betas *= 2
        x *= betas[1].view(-1, 1)

    assert_same(move, [torch.randn(2, LANES), torch.randn(LANES, 20)], [1, 0])


def pick(table: Tensor, rows: Tensor, into: Tensor) -> None:
    torch.index_select(table, 0, rows.flatten(), out=into.flatten(0, 1))


def test_rows_are_picked_from_a_table_of_any_length():
    rows = torch.tensor([[0, 2], [1, 1], [2, 0]])
    program = in_place(pick, [torch.empty(3, 4), rows, torch.empty(LANES, 2, 4)], [None, 0, 0])
    for length in (3, 8):
        table, into = torch.randn(length, 4), torch.zeros(LANES, 2, 4)
        tape = native.bind(program, LANES, [table, rows + length - 3, into], Arena())
        assert tape
        tape.run()
        assert torch.equal(into, table[rows + length - 3])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_index_outside_raises_and_writes_nothing_elsewhere(wrong: int):
    table, rows, into = torch.randn(3, 4), torch.tensor([[0, 2], [1, wrong], [2, 0]]), torch.zeros(LANES, 2, 4)
    tape = native.bind(in_place(pick, [table, rows, into], [None, 0, 0]), LANES, [table, rows, into], Arena())
    assert tape
    with pytest.raises(IndexError, match="points outside"):
        tape.run()
    assert torch.equal(into[1:], torch.zeros(2, 2, 4))


def test_a_number_that_each_of_many_tensors_has_is_one_of_each():
    def part(numbers: Tensor, x: Tensor) -> None:
        (only,) = (numbers * 2).unbind()
        x *= only.view(-1, 1)

    assert_same(part, [torch.randn(1, LANES), torch.randn(LANES, 5)], [1, 0])


def test_bounds_that_cross_or_are_no_numbers_bind_as_in_torch():
    def bind_(x: Tensor, low: Tensor, high: Tensor) -> None:
        x.copy_(x.clamp(low, high).clamp_min(low).clamp(1.0, -1.0) + x.clamp_min(0.5))

    assert_same(bind_, [awkward(60, seed=seed) for seed in range(3)])


def test_an_argument_that_the_program_was_not_made_for_is_refused():
    program = in_place(double, [torch.ones(LANES, 4)])
    for wrong in (torch.ones(LANES, 2), torch.ones(2, 4), torch.ones(LANES, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"Argument 0 is .*, not torch.float32 of shape \(3, 4\)"):
            native.bind(program, LANES, [wrong], Arena())


def shared_and_written(x: Tensor, shared: Tensor) -> None:
    x *= shared
    shared += 1


def scatter_over(x: Tensor, index: Tensor, source: Tensor) -> None:
    x.scatter_add_(1, index, source)


REFUSED: dict[str, tuple[InPlace, list[Tensor]]] = {
    "numbers that all lanes share, and that change": (shared_and_written, [torch.ones(3, 4), torch.ones(4)]),
    "a sum to a given place": (lambda x, y: torch.sum(x, 1, out=y), [torch.ones(3, 4), torch.ones(3)]),
    "scatter_add in place": (scatter_over, [torch.ones(3, 4), torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2)]),
    "another lane": (lambda x: x.copy_(x * 2 + x[1]), [torch.ones(3, 4)]),
    "lanes turned": (lambda x, y: y.copy_(x.view(4, x.shape[0]).t() * 1), [torch.ones(3, 4), torch.ones(3, 4)]),
    "the sum of a constant over lanes": (lambda x: x.add_(torch.ones_like(x).sum(0)), [torch.ones(3, 4)]),
    "the number of lanes": (lambda x: x.div_(x.shape[0]), [torch.ones(3, 4)]),
    "no elements": (lambda x: x[:, 0:0].add_(1), [torch.ones(3, 4)]),
    "a shift too far": (lambda x: x.copy_(x >> 40), [torch.ones(3, 4, dtype=torch.int32)]),
    "conv1d": (lambda x: x.copy_(torch.conv1d(x.unsqueeze(1), torch.ones(1, 1, 1)).squeeze(1)), [torch.ones(3, 4)]),
    "sum over lanes": (lambda x: x.copy_(x.sum(0, keepdim=True)), [torch.ones(3, 4)]),
    "half precision": (lambda x: x.mul_(2), [torch.ones(3, 4, dtype=torch.bfloat16)]),
    "rounding division": (lambda x: x.copy_(torch.div(x, 2, rounding_mode="floor")), [torch.ones(3, 4)]),
    "truth of a number": (lambda x, y: y.copy_(x), [torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)]),
}


@pytest.mark.parametrize(("function", "examples"), REFUSED.values(), ids=REFUSED)
def test_what_there_are_no_words_for_is_left_to_torch(
    function: InPlace, examples: list[Tensor], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        shared = [None if each.ndim == 1 and len(each) != LANES else 0 for each in examples]
        assert native.bind(in_place(function, examples, shared), LANES, examples, Arena()) is None
    assert "called operation by operation" in caplog.text


def double(x: Tensor) -> None:
    x *= 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [("", "CC is empty"), ("no-such-compiler", "no-such-compiler is not there"), ("false", "false failed")],
)
def test_without_a_compiler_torch_is_called_and_the_log_says_why(
    words: str, reason: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CC", words)
    x = torch.ones(LANES, 4)
    with caplog.at_level(logging.INFO):
        assert native.bind(in_place(double, [x]), LANES, [x], Arena()) is None
    assert reason in caplog.text


def test_a_program_is_compiled_once_and_found_by_the_next_process(fresh: Path):
    x = torch.ones(LANES, 4)
    assert native.compiles(in_place(double, [x]))
    (library_file,) = fresh.iterdir()
    made = library_file.stat().st_mtime_ns
    again = f"""
import sys, torch
sys.path[:0] = {sys.path!r}
from studies import native
from tests.unit.studies.test_native import double, in_place
assert native.compiles(in_place(double, [torch.ones({LANES}, 4)]))
"""
    subprocess.run([sys.executable, "-c", again], check=True, cwd=Path(__file__).parents[3], env=os.environ)
    assert [each.stat().st_mtime_ns for each in fresh.iterdir()] == [made]


def test_a_folder_that_others_may_write_to_is_not_trusted(fresh: Path):
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    assert native.compiles(in_place(double, [torch.ones(LANES, 4)]))
    assert not list(fresh.iterdir())


def test_a_home_that_is_a_file_keeps_nobody_from_compiling(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = fresh.parents[1] / "home"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert native.compiles(in_place(double, [torch.ones(LANES, 4)]))
