"""Bad input gets an error that names the place, what is allowed, and what to try."""

import re
from collections.abc import Callable

import pytest
import torch

import adamom
from adamom.momentum import as_rule

X = torch.ones(2, requires_grad=True)

REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: adamom.SGD([X], lr=-1.0), "SGD: lr must be >= 0, got -1.0"),
    (lambda: adamom.SGD([X], lr=float("nan")), "SGD: lr must be >= 0, got nan"),
    (lambda: adamom.SGD([X], lr=torch.ones(2)), "tensor lr must have one element, got shape (2,)"),
    (lambda: adamom.SGD([X], momentum=-0.1), "momentum must be >= 0, got -0.1"),
    (lambda: adamom.SGD([X], momentum="adaptiv"), "the only word is 'adaptive', got 'adaptiv'"),
    (lambda: adamom.SGD([X], weight_decay=-1), "SGD: weight_decay must be >= 0"),
    (lambda: adamom.SGD([X], nesterov=True), "nesterov needs a momentum > 0"),
    (lambda: adamom.SGD([X], momentum=0.9, nesterov=True, dampening=0.1), "nesterov needs a momentum > 0"),
    (lambda: adamom.SGD([X], momentum=adamom.AdaptiveMemory(), nesterov=True), "no averaging rule"),
    (lambda: adamom.SGD([X], momentum="adaptive", dampening=0.1), "dampening belongs to a constant momentum"),
    (lambda: adamom.SGD([X], momentum=adamom.HeavyBall(metric="preconditioned")), "makes sense in Adam only"),
    (lambda: adamom.Adam([X], betas=(adamom.ConjugateGradient(), 0.9)), "makes sense in SGD only"),
    (lambda: adamom.SGD([X], momentum=0.9, fused=True), "fused=True is for momentum='adaptive'"),
    (lambda: adamom.SGD([X], momentum=adamom.HeavyBall(smoothing=0.9), fused=True), "fused=True is for"),
    (lambda: adamom.SGD([X], differentiable=True), "SGD: differentiable=True is not supported. torch.optim.SGD has it"),
    (lambda: adamom.Adam([X], fused=True), "Adam: fused=True is not supported. torch.optim.Adam has it"),
    (lambda: adamom.Adam([X], betas=(1.0, 0.9)), "Adam: betas[0] must be in [0, 1), got 1.0"),
    (lambda: adamom.AdamW([X], betas=(0.9, 1.0)), "AdamW: betas[1] must be in [0, 1), got 1.0"),
    (lambda: adamom.Adam([X], eps=-1.0), "Adam: eps must be >= 0, got -1.0"),
    (lambda: adamom.HeavyBall(delta=0.0), "HeavyBall: delta must lie in (0, 1], got 0.0"),
    (lambda: adamom.HeavyBall(smoothing=1.0), "HeavyBall: smoothing must lie in [0, 1), got 1.0"),
    (lambda: adamom.HeavyBall(scope="group"), "HeavyBall: scope must be one of global, tensor: got 'group'"),
    (lambda: adamom.NormalizedHeavyBall(metric="x"), "metric must be one of raw, preconditioned: got 'x'"),
    (lambda: adamom.ConjugateGradient("XY"), "formula must be one of FR, PR, HS, DY: got 'XY'"),
    (lambda: adamom.LearningRateScaled(reference_lr=0.0), "reference_lr must be > 0, got 0.0"),
    (lambda: adamom.LearningRateScaled(reference_beta=1.0), "reference_beta must lie in [0, 1), got 1.0"),
    (lambda: adamom.AdaptiveMemory(strength=-1.0), "strength must be >= 0, got -1.0"),
    (lambda: adamom.AdaptiveMemory(cap=1.0), "cap must lie in [0, 1), got 1.0"),
    (lambda: adamom.Fixed(-1.0), "Fixed: momentum must be >= 0, got -1.0"),
    (lambda: adamom.rule("heavy_bal"), "unknown rule 'heavy_bal'"),
    (lambda: adamom.rule("heavy_bal"), "Did you mean 'heavy_ball'?"),
    (lambda: adamom.rule("adaptive", smooth=0.9), "Did you mean 'smoothing'?"),
    (lambda: adamom.AdaRem([X], decay=1.1), "AdaRem: decay must lie in"),
    (lambda: adamom.HFac([X], betas=(0.9, 1.0)), "HFac: betas must lie in [0, 1), got (0.9, 1.0)"),
    (lambda: adamom.SigSignGrad([X], lr=-1.0), "SigSignGrad: lr must be >= 0"),
    (lambda: adamom.MADA([X], b3=1.5), "MADA: b3 must lie in [0.0, 0.99], got 1.5"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_makes_no_sense_is_refused_with_a_reason(build: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("momentum", [None, True, [0.9], torch.tensor(0.9)], ids=str)
def test_a_momentum_that_is_no_number_word_or_rule_is_a_type_error(momentum: object):
    with pytest.raises(TypeError, match="a number, 'adaptive' or a rule"):
        as_rule(momentum)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = adamom.SGD([X], momentum="adaptive")
    with pytest.raises(ValueError, match="dampening"):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "dampening": 0.5})
    assert len(optimizer.param_groups) == 1


def test_a_rule_that_needs_what_nobody_measures_is_refused_when_it_is_written():
    with pytest.raises(TypeError, match=r"needs hessian, which nobody measures. Known: .*gradient_change"):

        class Impossible(adamom.Rule):
            needs = frozenset({"hessian"})

            def beta(self, s: adamom.Statistics) -> float:
                return 0.0


def test_a_statistic_that_was_not_asked_for_is_a_clear_error():
    with pytest.raises(AttributeError, match="add it to the rule's `needs`"):
        _ = adamom.Statistics(0.1).gradient
    with pytest.raises(AttributeError, match=r"There is no statistic 'grad'. There are: .*gradient"):
        _ = adamom.Statistics(0.1).grad


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ({"name": "adaptive"}, adamom.HeavyBall()),
        ({"name": "heavy_ball", "smoothing": 0.999}, adamom.HeavyBall(smoothing=0.999)),
        ({"name": "conjugate_gradient", "formula": "PR"}, adamom.ConjugateGradient("PR")),
        ({"name": "fixed", "momentum": 0.5}, adamom.Fixed(0.5)),
    ],
    ids=str,
)
def test_a_rule_is_built_from_its_words_and_told_in_them(words: dict, rule: adamom.Rule):
    assert adamom.rule(**words) == rule
    assert adamom.rule(**rule.as_dict()) == rule
