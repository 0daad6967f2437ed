"""One trial: model, batches, optimizer. It yields what it measures and knows no store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from storage.records import Arm, Budget, Curve, Outcome, Point, Result, Study
from studies import arms, foreign, workloads
from studies.checkpoints import Checkpoints, curve_from, curve_state
from studies.precision import forward_in, multiply_in
from studies.provenance import provenance
from studies.workloads.workload import Split, accuracy_of, loss_of

__all__ = ["Event", "conclude", "train"]

Event = Curve | Result | None
"""What a trial has to say: an evaluation, its end, or only that it is still alive."""

ENGINE = "loop"  # whose checkpoints are whose: lanes round differently
SAVED = ("model", "optimizer", "random")
EVALUATION_BATCH = 256  # validation examples per forward pass, at most: of many lanes, more fall out of the cache


def train(point: Point, study: Study, device: torch.device, checkpoints: Checkpoints | None = None) -> Iterator[Event]:
    """Train one cell alone, a plain loop over steps.

    Yields a Curve of one entry after every evaluation, starting with the model at initialisation, or with the whole
    curve so far of a trial that goes on from its checkpoint; None after every step, so that the caller may stop in
    between; last of all the Result. Nothing is read back from the device between two evaluations.
    """
    started = time.perf_counter()
    workload, budget = workloads.load(study.workload), study.budget
    training, validation = workload.train.to(device), workload.validation.to(device)
    order = workload.batch_order(point.seed, budget.steps, budget.batch_size).to(device)
    model = workload.initial_model(point.seed).to(device)
    arm = study.arm(point.arm)
    optimizer = arms.build(arm, model.parameters(), point.lr)
    multiply_in(budget.precision, device)
    torch.manual_seed(point.seed)  # for a model that draws random numbers as it trains, other than by nn.Dropout

    state = checkpoints.load(study, point, ENGINE, device, SAVED) if checkpoints else None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
    step = int(state["step"]) if state else 0
    curves = [curve_from(state["curve"]) if state else judge(model, optimizer, study, validation)]
    yield curves[0]
    finite_steps = torch.full((), step, dtype=torch.int64, device=device)
    all_finite = torch.ones((), dtype=torch.bool, device=device)
    for evaluated_at in budget.evaluated_at:
        if evaluated_at <= step:
            continue
        losses, betas = torch.zeros((), device=device), torch.zeros((), device=device)
        steps = evaluated_at - step
        while step < evaluated_at:
            batch = order[step]
            optimizer.zero_grad()
            with forward_in(budget.precision, device):
                outputs = model(training.inputs[batch])
            loss = loss_of(outputs, training.targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            foreign.step(optimizer, loss)
            losses += loss.detach()
            betas += momentum_of(optimizer, arm)
            all_finite &= loss.detach().isfinite()
            finite_steps += all_finite
            step += 1
            yield None
        curves.append(judge(model, optimizer, study, validation, step, losses / steps, betas / steps))
        yield curves[-1]
        if not all_finite:
            break
        if checkpoints and checkpoints.due:
            state = {"step": step, "curve": curve_state(Curve.join(curves)), "random": torch.get_rng_state()}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.save(study, {point: state}, ENGINE)
    ran_on = provenance(device, engine="loop", data=workload.data_hash)
    yield conclude(Curve.join(curves), int(finite_steps), budget, time.perf_counter() - started, ran_on)


def momentum_of(optimizer: Optimizer, arm: Arm) -> float | Tensor:
    """The beta of the last step, its mean where tensors have their own; nan where an optimizer does not say."""
    last = getattr(optimizer, "last_momentum", None)
    return last.mean() if last is not None else math.nan if arm.momentum is None else arm.momentum


def judge(model: nn.Module, optimizer: Optimizer, study: Study, split: Split, *rest: Any) -> Curve:
    """`evaluate` in the study's precision, with the weights in place that the optimizer wants to be judged by."""
    with foreign.evaluating(optimizer), forward_in(study.budget.precision, split.inputs.device):
        return evaluate(model, split, *rest)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    step: int = 0,
    train_loss: Tensor | float = math.nan,
    beta: Tensor | float = math.nan,
) -> Curve:
    """One entry of a curve: loss and accuracy over the whole split, in evaluation mode."""
    model.eval()
    loss, accuracy = torch.zeros(()), torch.zeros(())
    for inputs, targets in chunks(split):
        outputs = model(inputs)
        share = len(inputs) / len(split)
        loss = loss + share * loss_of(outputs, targets)
        accuracy = accuracy + share * accuracy_of(outputs, targets)
    model.train()
    return Curve.entry(step, float(train_loss), float(loss), float(accuracy), float(beta))


def chunks(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in equal parts (the last may be smaller), each for one forward pass: inputs and targets."""
    parts = -(-len(split) // EVALUATION_BATCH)
    size = -(-len(split) // parts)
    return zip(torch.split(split.inputs, size), torch.split(split.targets, size), strict=True)


def conclude(curve: Curve, finite_steps: int, budget: Budget, seconds: float, ran_on: Mapping[str, Any]) -> Result:
    """What a finished curve means.

    curve: every evaluation of the trial, the one at initialisation first.
    finite_steps: how many steps came before the first whose training loss was not finite.

    Diverged means: a training loss that was not finite, or a final validation loss no better than the initial one.
    """
    steps, initial, final = int(curve.steps[-1]), float(curve.validation_loss[0]), float(curve.validation_loss[-1])
    if not math.isfinite(initial):
        raise ValueError(f"The loss at initialisation is {initial}: the workload's model or data is broken.")
    broke = finite_steps < steps
    if broke and math.isfinite(final):
        final = float(curve.train_loss[-1])
    diverged = broke or not final < initial
    seen = curve.validation_loss[np.isfinite(curve.validation_loss)]
    return Result(
        outcome=Outcome.DIVERGED if diverged else Outcome.CONVERGED,
        steps=steps,
        initial_loss=initial,
        final_loss=final,
        best_loss=float(seen.min()),
        final_accuracy=float(curve.validation_accuracy[-1]),
        mean_momentum=mean_momentum(curve),
        diverged_at=(finite_steps + 1 if broke else steps) if diverged else None,
        seconds=seconds,
        provenance=ran_on,
    )


def mean_momentum(curve: Curve) -> float:
    """The mean of beta over all steps, from its means between evaluations; nan when no finite one was seen."""
    weights, betas = np.diff(curve.steps), curve.momentum[1:]
    known = np.isfinite(betas)
    return float(np.average(betas[known], weights=weights[known])) if known.any() else math.nan
