"""A program on memory of its own: for any number of lanes, without allocating, and with no value in another's place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from studies import programs
from studies.tape import Arena, Tape, bind

BATCH, INPUTS, CLASSES = 6, 5, 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


@pytest.fixture(scope="module")
def gradient(model: nn.Module) -> programs.Program:
    return programs.gradient(model, torch.empty(BATCH, INPUTS), torch.empty(BATCH, dtype=torch.long))


def bound(program: programs.Program, model: nn.Module, lanes: int, arena: Arena) -> tuple[Tape, Tensor]:
    """A tape over so many copies of the model, and the matrix that its gradients go to."""
    weights = torch.cat([param.detach().flatten() for param in model.parameters()]).repeat(lanes, 1)
    grads = torch.full_like(weights, torch.nan)
    torch.manual_seed(1)
    inputs, targets = torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))
    arguments = [*programs.views(weights, model), inputs.repeat(lanes, 1, 1), targets.repeat(lanes, 1)]
    return bind(program, lanes, arguments, arena, programs.views(grads, model)), grads


@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_one_program_serves_every_number_of_lanes(gradient: programs.Program, model: nn.Module, lanes: int):
    tape, grads = bound(gradient, model, lanes, Arena())
    alone, expected = bound(gradient, model, 3, Arena())
    tape.run()
    alone.run()
    assert all(torch.equal(grad, expected[0]) for grad in grads)
    assert torch.equal(tape.results[0], alone.results[0][:1].expand(lanes))


def test_a_tape_gives_the_same_at_every_run_and_allocates_nothing(gradient: programs.Program, model: nn.Module):
    tape, grads = bound(gradient, model, 2, Arena())
    tape.run()
    first = grads.clone()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        tape.run()
    assert torch.equal(grads, first)
    assert max(event.self_cpu_memory_usage for event in seen.events()) <= 8, "more than a number"


def test_values_share_places_but_never_while_both_are_read(gradient: programs.Program, model: nn.Module):
    arena = Arena()
    tape, grads = bound(gradient, model, 2, arena)
    tape.run()
    values = [programs.held(node) for node in gradient.graph.nodes if node.op == "call_function"]
    whole = sum(value.numel() * value.element_size() for value in values) * 2 // programs.LANES
    assert arena.bytes < whole / 2
    separate = [Arena() for _ in range(2)]
    for other in separate:
        another, expected = bound(gradient, model, 2, other)
        another.run()
        assert torch.equal(grads, expected)


def test_tapes_that_share_an_arena_leave_each_others_results_alone(gradient: programs.Program, model: nn.Module):
    arena = Arena()
    first, _ = bound(gradient, model, 2, arena)
    first.run()
    losses, before = first.results[0].clone(), arena.bytes
    second, _ = bound(gradient, model, 2, arena)
    second.run()
    assert torch.equal(first.results[0], losses)
    assert arena.bytes < 2 * before


def test_a_tape_outside_a_gpu_is_run_as_it_is(gradient: programs.Program, model: nn.Module):
    tape, _ = bound(gradient, model, 2, Arena())
    assert tape.captured(torch.device("cpu")) is tape
