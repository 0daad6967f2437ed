"""Many trials as one program: K lanes, each with its own weights, batches, learning rate and momentum.

A pack of trials shares a model and a batch size, nothing else. Its weights lie in one matrix of shape (lanes, weights);
one program computes the losses and gradients of all lanes (`studies.program`), and one step per arm moves them all
(`adamom.sgd.step_`, `adamom.adam.step_`). Lanes never mix: one that is full of NaN leaves the others as they are, to
the bit. On the CPU a lane of matrix products gives the same bits in every pack; a convolution may take its sums in
another order in a pack of another width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

import adamom
from storage.records import Curve, Point, Study, Trial
from studies import arms, program, training, workloads
from studies.checkpoints import Checkpoints, curve_from, curve_state
from studies.provenance import provenance
from studies.training import Event

__all__ = ["Pack", "train"]

ENGINE = "lanes"  # whose checkpoints are whose: a plain loop rounds differently


def train(
    trials: Sequence[Trial], study: Study, device: torch.device, checkpoints: Checkpoints | None = None
) -> Iterator[tuple[Trial, Event]]:
    """Train these trials as one program; the events of each are those of `training.train`.

    Trials that were interrupted go on from their checkpoints, those that stand at the same step together.
    """
    found = ((trial.id, checkpoints.load(study, trial.point, ENGINE, device)) for trial in trials if checkpoints)
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
        while pack.steps < evaluated_at:
            pack.step()
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
        self.ran_on = provenance(device, engine=f"lanes {len(trials)}", data=self.workload.data_hash)
        place = {name: i for i, name in enumerate(study.arm_names)}
        self.trials = sorted(trials, key=lambda trial: place[trial.point.arm])
        self.packed = len(self.trials)
        self.steps = self.evaluated_at = 0
        self.live = [True] * len(self.trials)
        self.curves: dict[int, list[Curve]] = {trial.id: [] for trial in self.trials}
        self.training, self.validation = self.workload.train.to(device), self.workload.validation.to(device)
        self.model = self.workload.initial_model(0)
        check(self.model)
        self.load_weights()
        self.load_batches()
        self.slices = list(self.arm_slices())
        self.losses, self.betas = (torch.zeros(self.packed, device=device) for _ in range(2))
        self.all_finite = torch.ones(self.packed, dtype=torch.bool, device=device)
        self.finite_steps = torch.zeros(self.packed, dtype=torch.int64, device=device)

    def load_weights(self) -> None:
        """Every lane starts from the weights of its seed."""
        models = {seed: self.workload.initial_model(seed) for seed in {trial.point.seed for trial in self.trials}}
        mine = [models[trial.point.seed] for trial in self.trials]
        flat = {id(model): torch.cat([p.detach().flatten() for p in model.parameters()]) for model in mine}
        self.weights = torch.stack([flat[id(model)] for model in mine]).to(self.device)
        self.grads = torch.zeros_like(self.weights)
        stacked = zip(*(list(model.buffers()) for model in mine), strict=True)
        self.buffers = [torch.stack(copies).to(self.device) for copies in stacked]
        self.shape_views()

    def load_batches(self) -> None:
        """Every lane sees the batches of its seed."""
        budget = self.study.budget
        seeds = sorted({trial.point.seed for trial in self.trials})
        orders = [self.workload.batch_order(seed, budget.steps, budget.batch_size) for seed in seeds]
        self.orders = torch.stack(orders, dim=1).to(self.device)  # (steps, seeds, batch)
        self.seed_of = torch.tensor([seeds.index(trial.point.seed) for trial in self.trials], device=self.device)

    def shape_views(self) -> None:
        """The model's parameters, and where their gradients go, as views into the two matrices."""
        self.params = views(self.weights, self.model)
        self.destinations = views(self.grads, self.model)

    def arm_slices(self) -> Iterator[Slice]:
        """The pack's arms, each with an optimizer state of its own; trials stand in the order of their arms."""
        first = 0
        for name, trials in groupby(self.trials, key=lambda trial: trial.point.arm):
            arm, rates = self.study.arm(name), [trial.point.lr for trial in trials]
            rule, lanes = arms.rule_of(arm), slice(first, first + len(rates))
            lr = torch.tensor(rates, dtype=self.weights.dtype, device=self.device)
            yield Slice(rule, lanes, arms.lane_group(arm, moved(rule, lanes, self.weights, self.params), lr))
            first = lanes.stop

    def step(self) -> None:
        """One optimizer step of every lane."""
        batch = self.orders[self.steps][self.seed_of]
        inputs, targets = self.training.inputs[batch], self.training.targets[batch]
        run = self.program("gradient", inputs, targets)
        (losses,) = run(*self.params, *self.buffers, inputs, targets, *self.destinations)
        for part in self.slices:
            part.group.grads = moved(part.rule, part.lanes, self.grads, self.destinations)
            beta = arms.lane_step(part.rule, part.group)
            self.betas[part.lanes] += beta.mean(0) if isinstance(beta, Tensor) and beta.ndim == 2 else beta
        self.losses += losses
        self.all_finite &= losses.isfinite()
        self.finite_steps += self.all_finite
        self.steps += 1

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
        self.finite_steps.fill_(self.steps)  # a lane that was not finite had ended
        self.weights.copy_(torch.stack([state["weights"] for state in mine]))
        for buffer, *copies in zip(self.buffers, *(state["buffers"] for state in mine), strict=True):
            buffer.copy_(torch.stack(copies))
        for part in self.slices:
            restore(part.group, [state["optimizer"] for state in mine[part.lanes]])
        for trial, state in zip(self.trials, mine, strict=True):
            self.curves[trial.id] = [curve_from(state["curve"])]
            yield trial, self.curves[trial.id][0]

    def validate(self) -> tuple[Tensor, Tensor]:
        """Validation loss and accuracy of every lane, tensors of shape (lanes,)."""
        total = torch.zeros(2, len(self.live), device=self.device)
        for inputs, targets in training.chunks(self.validation):
            run = self.program("evaluation", inputs, targets)
            total += torch.stack(run(*self.params, *self.buffers, inputs, targets)) * (
                len(inputs) / len(self.validation)
            )
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
        for name in ("seed_of", "losses", "betas", "all_finite", "finite_steps"):
            setattr(self, name, getattr(self, name)[index])
        self.trials, self.live = [self.trials[lane] for lane in lanes], [self.live[lane] for lane in lanes]

    def narrowed(self, part: Slice, lanes: list[int]) -> Slice | None:
        """The part of a slice that stays when only these lanes do; its state moves with it."""
        stay = [lane - part.lanes.start for lane in lanes if part.lanes.start <= lane < part.lanes.stop]
        if not stay:
            return None
        first = sum(lane < part.lanes.start for lane in lanes)
        here = slice(first, first + len(stay))
        group = selected(part.group, torch.tensor(stay, device=self.device))
        group.params = moved(part.rule, here, self.weights, self.params)
        return Slice(part.rule, here, group)

    def bytes_per_lane(self) -> float:
        """Memory that a lane takes while it trains, after at least one step: its share of everything the pack holds."""
        batch = self.orders[0][self.seed_of]
        inputs, targets = self.training.inputs[batch], self.training.targets[batch]
        state = [self.weights, self.grads, *self.buffers, inputs, targets]
        state += [tensor for part in self.slices for tensor in tensors_of(part.group)]
        steps = self.program("gradient", inputs, targets).peak_bytes
        looks = max(self.program("evaluation", *chunk).peak_bytes for chunk in training.chunks(self.validation))
        return (sum(tensor.numel() * tensor.element_size() for tensor in state) + max(steps, looks)) / len(self.live)

    def program(self, kind: str, inputs: Tensor, targets: Tensor) -> program.Program:
        """The compiled gradient or evaluation for the shapes at hand; compiled once per process."""
        key = (kind, self.workload.name, len(self.live), tuple(inputs.shape), str(self.device))
        if key not in PROGRAMS:
            make = program.gradient if kind == "gradient" else program.evaluation
            PROGRAMS[key] = make(self.model, self.params, self.buffers, inputs, targets)
        return PROGRAMS[key]


PROGRAMS: dict[tuple[str, str, int, tuple[int, ...], str], program.Program] = {}


def moved(rule: adamom.Rule, lanes: slice, whole: Tensor, each: list[Tensor]) -> list[Tensor]:
    """What the optimizer of these lanes works on: their whole rows, unless its rule measures each tensor alone."""
    return [tensor[lanes] for tensor in each] if rule.scope == "tensor" else [whole[lanes]]


def check(model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters cannot be one matrix that is trained as a whole."""
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise ValueError(
            f"Lanes train every parameter: {', '.join(frozen)} must not be. Make it a buffer, or use --lanes 1."
        )
    if len(types := {parameter.dtype for parameter in model.parameters()}) > 1:
        raise ValueError(f"Lanes keep all parameters in one type: got {', '.join(map(str, types))}. Use --lanes 1.")


def views(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """A matrix of shape (lanes, weights) as one view of shape (lanes, *shape) for each of the model's parameters."""
    sizes = [p.numel() for p in model.parameters()]
    return [
        part.view(len(flat), *p.shape)
        for part, p in zip(torch.split(flat, sizes, dim=1), model.parameters(), strict=True)
    ]


def narrower(alive: int, packed: int) -> int:
    """The least width on the ladder packed, 3/4, 1/2, 1/4 of it … that holds so many lanes."""
    rungs = [max(1, -(-packed * quarters // 4)) for quarters in (4, 3, 2, 1)]
    return min(rung for rung in rungs if rung >= alive)


OUTSIDE = ("params", "grads", "lr", "fresh")  # of an optimizer's state: what the pack has anyway, and first steps


def tensors_of(state: Any) -> Iterator[Tensor]:
    """The tensors that belong to an optimizer's state."""
    for name in (each.name for each in fields(state) if each.name not in OUTSIDE):
        value = getattr(state, name)
        if is_dataclass(value):
            yield from tensors_of(value)
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Tensor))


def lane_state(state: Any, lane: int) -> dict[str, Any]:
    """One lane of an optimizer's state, as plain values and tensors that still have their dimension of lanes."""
    kept: dict[str, Any] = {}
    for name in (each.name for each in fields(state) if each.name not in OUTSIDE):
        value = getattr(state, name)
        if is_dataclass(value):
            kept[name] = lane_state(value, lane)
        elif isinstance(value, list):
            kept[name] = [tensor[lane : lane + 1].clone() for tensor in value]
        else:
            kept[name] = value[..., lane : lane + 1].clone() if isinstance(value, Tensor) else value
    return kept


def restore(state: Any, lanes: Sequence[Mapping[str, Any]]) -> None:
    """Make an optimizer's state the one that these lanes had."""
    for name, value in lanes[0].items():
        mine = [lane[name] for lane in lanes]
        if isinstance(value, Mapping):
            restore(getattr(state, name), mine)
        elif isinstance(value, list):
            setattr(state, name, [torch.cat(tensors) for tensors in zip(*mine, strict=True)])
        else:
            setattr(state, name, torch.cat(mine, dim=-1) if isinstance(value, Tensor) else value)


def selected(state: Any, lanes: Tensor) -> Any:
    """An optimizer's state with only these lanes: lists of tensors by their first dimension, numbers by their last."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [each[lanes] if isinstance(each, Tensor) else each for each in value]
        if isinstance(value, Tensor):
            return value[..., lanes]
        return selected(value, lanes) if is_dataclass(value) else value

    return replace(state, **{each.name: kept(getattr(state, each.name)) for each in fields(state)})
