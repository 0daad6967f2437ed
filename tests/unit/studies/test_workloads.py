"""What every workload promises: real data split once, weights from a seed, a model that learns and can be broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from storage.records import Budget, Outcome, Point, Result, Study
from studies import catalog, spec, training, workloads
from studies.workloads import Split, Workload, chars
from studies.workloads.workload import loss_of

CPU = torch.device("cpu")
EXAMPLES = {  # of training and validation; the text differs between versions of Python
    "digits": (1347, 450),
    "digits-cnn": (1347, 450),
    "digits-resnet": (1347, 450),
    "chars-lstm": (None, 256),
    "chars-gpt": (None, 256),
}
GOOD = {  # an arm and a learning rate that somebody who knows the workload would try
    "digits": ("sgd 0.9", 0.1),
    "digits-cnn": ("sgd 0.9", 0.1),
    "digits-resnet": ("sgd 0.9", 0.1),
    "chars-lstm": ("sgd 0.9", 2.0),
    "chars-gpt": ("adam 0.9", 0.01),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=workloads.known())
def workload(request: pytest.FixtureRequest) -> Workload:
    return workloads.load(request.param)


def run(study: Study, arm: str, lr: float, seed: int = 0) -> Result:
    *_, result = training.train(Point(arm, lr, None, seed), study, CPU)
    assert isinstance(result, Result)
    return result


def test_every_workload_has_a_study_of_its_name():
    assert set(workloads.known()) <= set(catalog.shipped())
    assert {spec.load(name).workload for name in catalog.shipped()} == set(workloads.known())


def test_data_is_split_into_examples_with_a_target_for_every_prediction(workload: Workload):
    train, validation = EXAMPLES[workload.name]
    assert train in (None, len(workload.train))
    assert len(workload.validation) == validation
    model = workload.initial_model(0)
    for split in (workload.train, workload.validation):
        outputs = model(split.inputs[:4])
        assert outputs.shape[:-1] == split.targets[:4].shape
        assert split.targets.min() >= 0
        assert split.targets.max() < outputs.shape[-1]


def test_no_validation_example_is_trained_on(workload: Workload):
    seen = {example.numpy().tobytes() for example in workload.train.inputs}
    shared = sum(example.numpy().tobytes() in seen for example in workload.validation.inputs)
    assert shared <= 0.02 * len(workload.validation), "the texts quote each other here and there, the images never"
    assert shared == 0 or workload.name.startswith("chars")


def test_text_is_cut_into_windows_that_follow_each_other():
    train, _ = chars.splits()
    assert torch.equal(train.inputs[:, 1:], train.targets[:, :-1])
    assert torch.equal(train.inputs[1:, 0], train.targets[:-1, -1])
    text = bytes(train.inputs[:3].flatten().tolist()).decode()
    assert "".join(chars.topics[name] for name in sorted(chars.topics)[:1])[:96] == text


def test_initial_weights_depend_on_the_seed_and_on_nothing_else(workload: Workload):
    torch.manual_seed(123)
    models = [workload.initial_model(seed) for seed in (0, 0, 1)]
    before = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(before, torch.rand(1)), "making a model must not disturb torch's generator"
    first, again, other = (list(model.state_dict().values()) for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_loss_at_initialisation_is_about_that_of_guessing(workload: Workload):
    with torch.no_grad():
        outputs = workload.initial_model(0).eval()(workload.validation.inputs)
    guessing = torch.tensor(float(outputs.shape[-1])).log()
    assert float(loss_of(outputs, workload.validation.targets)) == pytest.approx(float(guessing), rel=0.1)


def test_the_data_s_hash_changes_with_any_value_and_with_the_split(workload: Workload):
    flipped = workload.validation.targets.clone()
    flipped.view(-1)[-1] = (flipped.view(-1)[-1] + 1) % 2
    others = [
        replace(workload, validation=Split(workload.validation.inputs, flipped)),
        replace(workload, train=workload.validation, validation=workload.train),
        replace(workload, train=Split(workload.train.inputs[:-1], workload.train.targets[:-1])),
    ]
    assert replace(workload, name="renamed").data_hash == workload.data_hash
    assert len({workload.data_hash, *(other.data_hash for other in others)}) == 4


def test_digits_are_the_same_data_everywhere():
    assert workloads.load("digits").data_hash == "edff40fbfebf5682"


def test_a_result_carries_the_hash_of_its_data(workload: Workload):
    small = replace(spec.load(workload.name), budget=Budget(1, 1, 4))
    assert run(small, "sgd 0", 1e-3).provenance["data"] == workload.data_hash


def test_a_known_good_rate_reaches_a_good_accuracy(workload: Workload):
    shipped = spec.load(workload.name)
    result = run(replace(shipped, budget=replace(shipped.budget, evaluations=1)), *GOOD[workload.name])
    assert result.outcome is Outcome.CONVERGED
    assert result.final_accuracy >= workload.good_accuracy


def test_the_grid_s_highest_rate_diverges_in_every_arm(workload: Workload):
    shipped = spec.load(workload.name)
    small = replace(shipped, budget=Budget(20, 1, shipped.budget.batch_size))
    for arm in shipped.arms:
        assert run(small, arm.name, arm.lr.values[-1]).outcome is Outcome.DIVERGED, arm.name


def test_the_grid_s_lowest_rate_hardly_learns_in_any_arm(workload: Workload):
    shipped = spec.load(workload.name)
    small = replace(shipped, budget=Budget(20, 1, shipped.budget.batch_size))
    for arm in shipped.arms:
        result = run(small, arm.name, arm.lr.values[0])
        assert result.final_loss > 0.9 * result.initial_loss, arm.name
