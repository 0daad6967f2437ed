"""Many trials as one program: K lanes, each with its own weights, batches, learning rate and momentum.

A pack of trials shares a model and a batch size, nothing else. Its weights lie in one matrix of shape (lanes, weights).
The whole step, from picking the batches to moving the weights (`adamom.sgd.step_`, `adamom.adam.step_`), is written
down once (`studies.programs`) and then only run (`studies.tape`). Lanes never mix: one that is full of NaN leaves the
others as they are, to the bit. On the CPU a lane of matrix products gives the same bits in every pack; a convolution
may take its sums in another order in a pack of another width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

import adamom
from storage.records import Curve, Point, Study, Trial
from studies import arms, native, programs, training, workloads
from studies.checkpoints import Checkpoints, curve_from, curve_state
from studies.precision import multiply_in
from studies.programs import Program, views
from studies.provenance import provenance
from studies.tape import Arena, Call, Tape, bind
from studies.training import Event
from studies.workloads.workload import Workload

__all__ = ["Pack", "train"]

ENGINE = "lanes 4"  # whose checkpoints are whose: a plain loop rounds differently
SAVED = ("weights", "buffers", "optimizer")
# Lanes, at most, that take their steps on a CPU before the next ones do: those that a core's cache holds.
# Where steps are compiled, all that is kept of them stays there from one step to the next.
TOGETHER = 32
COMPILED = 8


def train(
    trials: Sequence[Trial], study: Study, device: torch.device, checkpoints: Checkpoints | None = None
) -> Iterator[tuple[Trial, Event]]:
    """Train these trials as one program; the events of each are those of `training.train`.

    Trials that were interrupted go on from their checkpoints, those that stand at the same step together.
    """
    found = ((trial.id, checkpoints.load(study, trial.point, ENGINE, device, SAVED)) for trial in trials if checkpoints)
    states = {trial_id: state for trial_id, state in found if state}
    stands = {trial.id: int(states[trial.id]["step"]) if trial.id in states else 0 for trial in trials}
    for step in sorted(set(stands.values())):
        together = [trial for trial in trials if stands[trial.id] == step]
        pack = Pack(together, study, device)
        if step:
            yield from pack.resume(states)
        else:
            yield from pack.evaluate()
        yield from finish(pack, checkpoints)


def finish(pack: Pack, checkpoints: Checkpoints | None) -> Iterator[tuple[Trial, Event]]:
    """Train a pack to its end.

    Nothing is read back from the device between two evaluations, and once for all lanes at each.
    """
    for evaluated_at in pack.study.budget.evaluated_at:
        if evaluated_at <= pack.steps:
            continue
        for _ in pack.advance(evaluated_at):
            yield pack.trials[0], None
        yield from pack.evaluate()
        if not any(pack.live):
            return
        pack.compact()
        if checkpoints and checkpoints.due:
            checkpoints.save(pack.study, pack.states(), ENGINE)


@dataclass
class Slice:
    """The neighbouring lanes of one arm: they share the rule and the options of their optimizer."""

    rule: adamom.Rule
    lanes: slice
    group: arms.LaneGroup


@dataclass
class Block:
    """Neighbouring lanes that take their step together.

    gradient: brings them their batches, and their gradients to where the optimizer wants them.
    looks: the parts in which their validation examples are looked at, each with its share of them.
    taken: how many steps they have taken, (1,). step: the next one, once there is what the optimizers keep.
    """

    parts: list[Slice]
    lanes: slice
    gradient: Tape
    looks: list[tuple[Tape, float]]
    taken: Tensor
    step: Tape | None = None


class Pack:
    """The state of K lanes.

    weights, grads: tensors of shape (lanes, weights). params, destinations: their views of shape (lanes, *shape), one
    for each parameter of the model. buffers: stacked copies of shape (lanes, *shape).
    live: which lanes still train; the others only fill their place until the pack is compacted.
    """

    def __init__(self, trials: Sequence[Trial], study: Study, device: torch.device) -> None:
        self.started = time.perf_counter()
        self.study, self.device = study, device
        self.workload = workloads.load(study.workload)
        place = {name: i for i, name in enumerate(study.arm_names)}
        self.trials = sorted(trials, key=lambda trial: place[trial.point.arm])
        self.packed = len(self.trials)
        self.steps = self.evaluated_at = 0
        self.live = [True] * len(self.trials)
        self.curves: dict[int, list[Curve]] = {trial.id: [] for trial in self.trials}
        self.training, self.validation = self.workload.train.to(device), self.workload.validation.to(device)
        self.model = self.workload.initial_model(0)
        check(self.model)
        multiply_in(study.budget.precision, device)
        self.load_weights()
        self.load_batches()
        self.slices = list(self.arm_slices())
        self.losses, self.betas = (torch.zeros(self.packed, device=device) for _ in range(2))
        self.all_finite = torch.ones(self.packed, dtype=torch.bool, device=device)
        self.finite_steps = torch.zeros(self.packed, dtype=torch.int64, device=device)
        self.write_down()

    def load_weights(self) -> None:
        """Every lane starts from the weights of its seed."""
        starts = [start(self.workload, trial.point.seed) for trial in self.trials]
        self.weights = torch.stack([weights for weights, _ in starts]).to(self.device)
        self.grads = torch.zeros_like(self.weights)
        stacked = zip(*(buffers for _, buffers in starts), strict=True)
        self.buffers = [torch.stack(copies).to(self.device) for copies in stacked]
        self.shape_views()

    def load_batches(self) -> None:
        """Every lane sees the batches of its seed."""
        budget = self.study.budget
        seeds = sorted({trial.point.seed for trial in self.trials})
        orders = [batch_order(self.workload, seed, budget.steps, budget.batch_size) for seed in seeds]
        self.orders = torch.cat(orders).to(self.device)
        first = [seeds.index(trial.point.seed) * budget.steps for trial in self.trials]
        self.first_batch = torch.tensor(first, device=self.device)  # the row of its order, for every lane

    def shape_views(self) -> None:
        """The model's parameters, and where their gradients go, as views into the two matrices."""
        self.params = views(self.weights, self.model)
        self.destinations = views(self.grads, self.model)

    def arm_slices(self) -> Iterator[Slice]:
        """The pack's arms, each with an optimizer state of its own; trials stand in the order of their arms.

        An arm of more lanes than are taken together has several slices.
        """
        first = 0
        for (name, _), trials in groupby(
            enumerate(self.trials), key=lambda at: (at[1].point.arm, at[0] // self.together)
        ):
            arm, rates = self.study.arm(name), [trial.point.lr for _, trial in trials]
            rule, lanes = arms.rule_of(arm), slice(first, first + len(rates))
            lr = torch.tensor(rates, dtype=self.weights.dtype, device=self.device)
            group = arms.lane_group(arm, moved(rule, lanes, self.weights, self.params), lr)
            group.grads = moved(rule, lanes, self.grads, self.destinations)
            yield Slice(rule, lanes, group)
            first = lanes.stop

    @cached_property
    def compiled(self) -> bool:
        """Whether this pack's gradients are a function in machine code."""
        return self.device.type == "cpu" and native.compiles(self.gradient_program, self.destinations)

    @property
    def together(self) -> int:
        """How many lanes, at most, take their steps before the next ones do."""
        return (COMPILED if self.compiled else TOGETHER) if self.device.type == "cpu" else self.packed

    @cached_property
    def ran_on(self) -> dict[str, str]:
        engine = f"lanes {self.packed}{', compiled' if self.compiled else ''}"
        return provenance(self.device, engine, self.workload.data_hash)

    @property
    def gradient_program(self) -> Program:
        inputs, targets = (
            each[: self.study.budget.batch_size] for each in (self.training.inputs, self.training.targets)
        )
        return self.program(programs.gradient, inputs, targets, self.study.budget.precision)

    def write_down(self) -> None:
        """What is called at every step and at every evaluation, for as many lanes as there are now."""
        self.arena = Arena()
        self.blocks: list[Block] = []
        shape = (min(len(self.live), self.together), self.study.budget.batch_size)
        self.examples = (self.training.inputs, self.training.targets)
        inputs, targets = (each.new_empty(*shape, *each.shape[1:]) for each in self.examples)
        for parts in grouped(self.slices, self.together):
            lanes = slice(parts[0].lanes.start, parts[-1].lanes.stop)
            count = lanes.stop - lanes.start
            taken = torch.full((1,), self.steps, device=self.device)
            gradient = self.gradients(lanes, taken, inputs[:count], targets[:count])
            self.blocks.append(Block(parts, lanes, gradient, list(self.evaluations(lanes)), taken))

    def gradients(self, lanes: slice, taken: Tensor, inputs: Tensor, targets: Tensor) -> Tape:
        """Bring these lanes their batches and gradients, and note what they show.

        taken: how many steps there have been. inputs, targets: for the batches.
        """
        destinations = [each[lanes] for each in self.destinations]
        arguments = [*self.state(lanes), inputs, targets]
        gradient = self.bound(self.gradient_program, len(inputs), arguments, destinations)
        shown = [*gradient.results, self.losses[lanes], self.all_finite[lanes], self.finite_steps[lanes]]
        pick = [self.orders, self.first_batch[lanes], taken, *self.examples, inputs, targets]
        batches = self.done_to(next_batches, pick, [None, 0, None, None, None, 0, 0], name=str(tuple(inputs.shape[1:])))
        return Tape([*batches.calls, *gradient.calls, *self.done_to(note, shown, [0, 0, 0, 0]).calls])

    def done_to(
        self, function: Callable[..., None], tensors: Sequence[Tensor], dims: Sequence[int | None], name: str = ""
    ) -> Tape:
        """What a function does to these tensors.

        dims: those of their dimensions that count lanes. name: tells apart functions that are called the same.
        """
        program = self.program(programs.in_place, function, tensors, dims, name=f"{function.__name__} {name}")
        lanes = next(each.shape[dim] for each, dim in zip(tensors, dims, strict=True) if dim is not None)
        return self.bound(program, lanes, tensors)

    def bound(
        self, program: Program, lanes: int, arguments: Sequence[Tensor], destinations: Sequence[Tensor] = ()
    ) -> Tape:
        """The program for these lanes: one function where this can be compiled, else a list of calls.

        Where the gradients are called, so is all the rest: next to them it costs nothing.
        """
        given = (program, lanes, arguments, self.arena, destinations)
        return (native.bind(*given) if self.compiled else None) or bind(*given)

    def state(self, lanes: slice) -> list[Tensor]:
        """The weights and buffers of these lanes."""
        return [each[lanes] for each in (*self.params, *self.buffers)]

    def moves(self, part: Slice) -> list[Call]:
        """The optimizer step of one arm, once its state is there."""

        def move(betas: Tensor, *state: Tensor) -> None:
            given = iter(state)
            group = mapped(part.group, lambda tensor, dim: next(given))
            beta = arms.lane_step(part.rule, group)
            betas += beta.mean(0) if isinstance(beta, Tensor) and beta.ndim == 2 else beta
            for before, (after, _) in zip(state, tensors_of(group), strict=True):
                if after is not before:
                    before.copy_(after)

        state, dims = zip(*tensors_of(part.group), strict=True)
        name = repr((part.rule, settings(part.group)))
        return self.done_to(move, [self.betas[part.lanes], *state], [0, *dims], name).calls

    def step(self) -> None:
        """One optimizer step of every lane."""
        for _ in self.advance(self.steps + 1):
            pass

    def advance(self, to: int) -> Iterator[None]:
        """Train every lane up to that step; yields after every step of a few of them.

        Those that are taken together take all these steps before the next ones do: they are in a core's cache already.
        """
        for block in self.blocks:
            for step in range(self.steps, to):
                if step == 0:
                    self.begin(block)
                else:
                    block.step = block.step or Tape(list(self.every_call(block))).captured(self.device)
                    block.step.run()
                yield
        self.steps = to

    def begin(self, block: Block) -> None:
        """The first step, in which the optimizers make their state."""
        block.gradient.run()
        for part in block.parts:
            beta = arms.lane_step(part.rule, part.group)
            self.betas[part.lanes] += beta.mean(0) if isinstance(beta, Tensor) and beta.ndim == 2 else beta
        block.taken += 1

    def every_call(self, block: Block) -> Iterator[Call]:
        """A whole step of a block."""
        yield from block.gradient.calls
        for part in block.parts:
            yield from self.moves(part)
        yield partial(block.taken.add_, 1)

    def evaluate(self) -> Iterator[tuple[Trial, Event]]:
        """What every live lane has to say: its next entry, and its result if it has come to its end."""
        budget = self.study.budget
        since = self.steps - self.evaluated_at
        losses, accuracies = self.validate()
        measured = [self.losses / since, losses, accuracies, self.betas / since, self.finite_steps]
        rows = torch.stack([row.float() for row in measured]).cpu().numpy()  # the one synchronisation with the host
        for lane, (train_loss, loss, accuracy, beta, finite_steps) in enumerate(rows.T):
            if not self.live[lane]:
                continue
            trial = self.trials[lane]
            curve = Curve.entry(self.steps, train_loss, loss, accuracy, beta)
            self.curves[trial.id].append(curve)
            yield trial, curve
            if finite_steps < self.steps or self.steps == budget.steps:
                self.live[lane] = False
                whole = Curve.join(self.curves.pop(trial.id))
                yield trial, training.conclude(whole, int(finite_steps), budget, self.seconds_each, self.ran_on)
        self.evaluated_at = self.steps
        self.losses.zero_()
        self.betas.zero_()

    @property
    def seconds_each(self) -> float:
        """A lane's share of the time since the pack began."""
        return (time.perf_counter() - self.started) / self.packed

    def states(self) -> dict[Point, dict[str, Any]]:
        """Where every live lane stands, right after an evaluation: all that `resume` needs."""
        found = {}
        for part in self.slices:
            for at, lane in enumerate(range(part.lanes.start, part.lanes.stop)):
                trial = self.trials[lane]
                if self.live[lane]:
                    found[trial.point] = {
                        "step": self.steps,
                        "curve": curve_state(Curve.join(self.curves[trial.id])),
                        "weights": self.weights[lane].clone(),
                        "buffers": [buffer[lane].clone() for buffer in self.buffers],
                        "optimizer": lane_state(part.group, at),
                    }
        return found

    def resume(self, states: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[Trial, Event]]:
        """Put every lane where its state (by trial id) says it stood. Yields the curves so far."""
        mine = [states[trial.id] for trial in self.trials]
        self.steps = self.evaluated_at = int(mine[0]["step"])
        for block in self.blocks:
            block.taken.fill_(self.steps)
        self.finite_steps.fill_(self.steps)  # a lane that was not finite had ended
        self.weights.copy_(torch.stack([state["weights"] for state in mine]))
        for buffer, *copies in zip(self.buffers, *(state["buffers"] for state in mine), strict=True):
            buffer.copy_(torch.stack(copies))
        for part in self.slices:
            restore(part.group, [state["optimizer"] for state in mine[part.lanes]])
        for trial, state in zip(self.trials, mine, strict=True):
            self.curves[trial.id] = [curve_from(state["curve"])]
            yield trial, self.curves[trial.id][0]

    def evaluations(self, lanes: slice) -> Iterator[tuple[Tape, float]]:
        """The parts in which these lanes look at the validation examples, each with its share of them."""
        for inputs, targets in training.chunks(self.validation):
            program = self.program(programs.evaluation, inputs, targets, self.study.budget.precision)
            tape = self.bound(program, lanes.stop - lanes.start, [*self.state(lanes), inputs, targets])
            yield tape, len(inputs) / len(self.validation)

    def validate(self) -> tuple[Tensor, Tensor]:
        """Validation loss and accuracy of every lane, tensors of shape (lanes,)."""
        total = torch.zeros(2, len(self.live), device=self.device)
        for block in self.blocks:
            for tape, share in block.looks:
                tape.run()
                total[:, block.lanes] += torch.stack(tape.results) * share
        return total[0], total[1]

    def compact(self) -> None:
        """Leave ended lanes behind, where that makes the pack narrower by a step of the ladder."""
        alive = [lane for lane, live in enumerate(self.live) if live]
        width = narrower(len(alive), self.packed)
        if width >= len(self.live):
            return
        ended = [lane for lane, live in enumerate(self.live) if not live]
        lanes = sorted(alive + ended[: width - len(alive)])
        index = torch.tensor(lanes, device=self.device)
        self.weights, self.grads = self.weights[index], self.grads[index]
        self.buffers = [buffer[index] for buffer in self.buffers]
        self.shape_views()
        self.slices = [kept for part in self.slices if (kept := self.narrowed(part, lanes))]
        for name in ("first_batch", "losses", "betas", "all_finite", "finite_steps"):
            setattr(self, name, getattr(self, name)[index])
        self.trials, self.live = [self.trials[lane] for lane in lanes], [self.live[lane] for lane in lanes]
        self.write_down()

    def narrowed(self, part: Slice, lanes: list[int]) -> Slice | None:
        """The part of a slice that stays when only these lanes do; its state moves with it."""
        stay = [lane - part.lanes.start for lane in lanes if part.lanes.start <= lane < part.lanes.stop]
        if not stay:
            return None
        first = sum(lane < part.lanes.start for lane in lanes)
        here = slice(first, first + len(stay))
        index = torch.tensor(stay, device=self.device)
        group = mapped(part.group, lambda tensor, dim: tensor if dim is None else tensor.index_select(dim, index))
        group.params = moved(part.rule, here, self.weights, self.params)
        group.grads = moved(part.rule, here, self.grads, self.destinations)
        return Slice(part.rule, here, group)

    def bytes_per_lane(self) -> float:
        """Memory that a lane takes while it trains, after two steps: its share of everything the pack holds."""
        state = [self.weights, self.grads, *self.buffers]
        state += [tensor for part in self.slices for tensor, _ in tensors_of(replace(part.group, params=[], grads=[]))]
        return (sum(tensor.numel() * tensor.element_size() for tensor in state) + self.arena.bytes) / len(self.live)

    def program(self, make: Callable[..., Program], *examples: Any, name: str = "") -> Program:
        """What `make` makes of these examples; made once per process, whatever the number of lanes."""
        shapes = [tuple(each.shape) for each in examples if isinstance(each, Tensor)]
        key = (make.__name__, self.workload.name, str(self.device), str(shapes), name, self.study.budget.precision)
        if key not in PROGRAMS:
            PROGRAMS[key] = make(*([self.model] if not name else []), *examples)
        return PROGRAMS[key]


PROGRAMS: dict[tuple[str, ...], Program] = {}


def next_batches(
    orders: Tensor,
    first: Tensor,
    step: Tensor,
    all_inputs: Tensor,
    all_targets: Tensor,
    inputs: Tensor,
    targets: Tensor,
) -> None:
    """Bring every lane its next batch.

    orders: which examples a step sees, of shape (rows, batch). first: the row of each lane's first step, (lanes,).
    step: how many there have been, (1,). inputs, targets: where the batches go, (lanes, batch, ...).
    """
    examples = orders.index_select(0, first + step).flatten()
    torch.index_select(all_inputs, 0, examples, out=inputs.flatten(0, 1))
    torch.index_select(all_targets, 0, examples, out=targets.flatten(0, 1))


def note(shown: Tensor, losses: Tensor, all_finite: Tensor, finite_steps: Tensor) -> None:
    """Remember what a step showed, by lane: the loss, and whether it was finite like all before it."""
    losses += shown
    all_finite &= shown.abs() < torch.inf
    finite_steps += all_finite


SEEDS = 64  # whose weights and batches a process remembers from pack to pack


@lru_cache(SEEDS)
def start(workload: Workload, seed: int) -> tuple[Tensor, list[Tensor]]:
    """The weights of the seed, all in one vector, and its buffers."""
    model = workload.initial_model(seed)
    return torch.cat([param.detach().flatten() for param in model.parameters()]), list(model.buffers())


@lru_cache(SEEDS)
def batch_order(workload: Workload, seed: int, steps: int, batch_size: int) -> Tensor:
    return workload.batch_order(seed, steps, batch_size)


def moved(rule: adamom.Rule, lanes: slice, whole: Tensor, each: list[Tensor]) -> list[Tensor]:
    """What the optimizer of these lanes works on: their whole rows, unless its rule measures each tensor alone."""
    return [tensor[lanes] for tensor in each] if rule.scope == "tensor" else [whole[lanes]]


def grouped(slices: Sequence[Slice], together: int) -> Iterator[list[Slice]]:
    """Neighbouring slices in groups of as many lanes as are taken together, at most."""
    group: list[Slice] = []
    for part in slices:
        if group and part.lanes.stop - group[0].lanes.start > together:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def check(model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters cannot be one matrix that is trained as a whole."""
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise ValueError(
            f"Lanes train every parameter: {', '.join(frozen)} must not be. Make it a buffer, or use --lanes 1."
        )
    if len(types := {parameter.dtype for parameter in model.parameters()}) > 1:
        raise ValueError(f"Lanes keep all parameters in one type: got {', '.join(map(str, types))}. Use --lanes 1.")


def narrower(alive: int, packed: int) -> int:
    """The least width on the ladder packed, 3/4, 1/2, 1/4 of it … that holds so many lanes."""
    rungs = [max(1, -(-packed * quarters // 4)) for quarters in (4, 3, 2, 1)]
    return min(rung for rung in rungs if rung >= alive)


def mapped(state: Any, change: Callable[[Tensor, int | None], Tensor]) -> Any:
    """An optimizer's state with every tensor changed.

    change: is given a tensor and the dimension of it that counts lanes: the first in lists of tensors, the last of
    numbers per lane, None where there is one for all.
    """

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [change(each, 0) if isinstance(each, Tensor) else each for each in value]
        if isinstance(value, Tensor):
            return change(value, value.ndim - 1 if value.ndim else None)
        return mapped(value, change) if is_dataclass(value) else value

    return replace(state, **{each.name: kept(getattr(state, each.name)) for each in fields(state)})


def tensors_of(state: Any) -> list[tuple[Tensor, int | None]]:
    """The tensors of an optimizer's state, each with its dimension of lanes."""
    found: list[tuple[Tensor, int | None]] = []

    def note(tensor: Tensor, dim: int | None) -> Tensor:
        found.append((tensor, dim))
        return tensor

    mapped(state, note)
    return found


def settings(state: Any) -> dict[str, Any]:
    """What an optimizer's state holds beside tensors."""
    values = {each.name: getattr(state, each.name) for each in fields(state)}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str | None)}


OUTSIDE = ("params", "grads", "lr", "fresh")  # of an optimizer's state: what the pack has anyway, and first steps


def lane_state(state: Any, lane: int) -> dict[str, Any]:
    """One lane of an optimizer's state, as plain values and tensors that still have their dimension of lanes."""

    def mine(tensor: Tensor, dim: int | None) -> Tensor:
        return (tensor if dim is None else tensor.narrow(dim, lane, 1)).clone()

    return plain(mapped(state, mine))


def plain(state: Any) -> dict[str, Any]:
    values = {each.name: getattr(state, each.name) for each in fields(state) if each.name not in OUTSIDE}
    return {name: plain(value) if is_dataclass(value) else value for name, value in values.items()}


def restore(state: Any, lanes: Sequence[Mapping[str, Any]]) -> None:
    """Make an optimizer's state the one that these lanes had."""
    for name, value in lanes[0].items():
        mine = [lane[name] for lane in lanes]
        if isinstance(value, Mapping):
            restore(getattr(state, name), mine)
        elif isinstance(value, list):
            setattr(state, name, [torch.cat(tensors) for tensors in zip(*mine, strict=True)])
        else:
            setattr(state, name, torch.cat(mine, dim=-1) if isinstance(value, Tensor) and value.ndim else value)
