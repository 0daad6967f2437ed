"""The momentum rules: what a step showed -> the momentum it takes.

A rule is a pure function of a few statistics of the step: norms and inner products of the gradient, of its change and
of the way just gone. Each statistic is a tensor: of shape () when all parameters are one vector (scope="global"), of
shape (tensors,) when each tensor is measured alone (scope="tensor"), and with a last dimension of lanes when many
trials train as one program (see `adamom.measuring`). A rule is arithmetic: it does not care which, and beta has that
shape too.

    g   gradient            g'  gradient of the step before      v  velocity
    x   parameters          x'  parameters of the step before    lr learning rate (gamma in the papers)

A rule of your own takes ten lines:

    @dataclass(frozen=True)
    class Cosine(adamom.Rule):
        needs = frozenset({"gradient", "velocity", "gradient_along_velocity"})

        def beta(self, s: adamom.Statistics) -> Tensor:
            cosine = quotient(s.gradient_along_velocity, s.gradient * s.velocity)
            return cosine.clamp(0, 0.99)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "AdaptiveMemory",
    "ConjugateGradient",
    "Fixed",
    "HeavyBall",
    "LearningRateScaled",
    "Momentum",
    "NormalizedHeavyBall",
    "Rule",
    "Scalar",
    "Scope",
    "Statistics",
    "as_rule",
    "quotient",
    "rule",
]

Scalar = float | Tensor
Scope = Literal["global", "tensor"]
Metric = Literal["raw", "preconditioned"]
Formula = Literal["FR", "PR", "HS", "DY"]

NORMS = frozenset({"gradient", "previous_gradient", "gradient_change", "displacement", "velocity", "velocity_error"})
PRODUCTS = frozenset({"gradient_along_change", "velocity_along_change", "gradient_along_velocity"})


class Statistics:
    """What one step showed. Only what the rule declared in `needs` was measured.

    lr: the learning rate about to be used.
    gradient, previous_gradient, velocity: the norms |g|, |g'| and |v|, the velocity being the one before this step.
    gradient_change, displacement: |g - g'| and |x - x'|, smoothed and in the metric that the rule asks for.
    velocity_error: |v - g|.
    gradient_along_change, velocity_along_change, gradient_along_velocity: <g, g - g'>, <v, g - g'> and <g, v>.
    """

    lr: Scalar
    gradient: Tensor
    previous_gradient: Tensor
    gradient_change: Tensor
    displacement: Tensor
    velocity: Tensor
    velocity_error: Tensor
    gradient_along_change: Tensor
    velocity_along_change: Tensor
    gradient_along_velocity: Tensor

    def __init__(self, lr: Scalar, **measured: Tensor) -> None:
        self.lr = lr
        vars(self).update(measured)

    def __getattr__(self, name: str) -> Tensor:
        if name in NORMS | PRODUCTS:
            raise AttributeError(f"{name!r} was not measured: add it to the rule's `needs`.")
        raise AttributeError(f"There is no statistic {name!r}. There are: {', '.join(sorted(NORMS | PRODUCTS))}.")


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0: nothing has moved yet, so there is no momentum."""
    return torch.where(denominator == 0, torch.zeros_like(denominator), numerator / denominator)


class Rule(ABC):
    """Statistics of a step in, momentum out. A frozen dataclass, so that equal rules compare equal.

    needs: the statistics it reads.
    scope: measure all parameters as one vector, or each tensor alone.
    smoothing: how long differences are averaged before their norms are taken; 0 for not at all.
    metric: norms as they are, or in the metric of Adam's preconditioner.
    averaging: the velocity is an average of gradients even in SGD, which otherwise sums them.
    optimizers: where it makes sense; AdamW counts as Adam.
    """

    registry: ClassVar[dict[str, type[Rule]]] = {}
    name: ClassVar[str] = ""
    needs: frozenset[str] = frozenset()
    scope: Scope = "global"
    smoothing: float = 0.0
    metric: Metric = "raw"
    averaging: ClassVar[bool] = False
    optimizers: frozenset[str] = frozenset({"SGD", "Adam"})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if unknown := cls.needs - NORMS - PRODUCTS:
            raise TypeError(
                f"{cls.__name__} needs {', '.join(sorted(unknown))}, which nobody measures. "
                f"Known: {', '.join(sorted(NORMS | PRODUCTS))}."
            )
        if not cls.__dict__.get("name"):  # a rule that extends another one does not take its name
            cls.name = cls.__name__
        if not getattr(cls.beta, "__isabstractmethod__", False):
            Rule.registry[cls.name] = cls

    @abstractmethod
    def beta(self, s: Statistics) -> Scalar:
        """The momentum of this step, of the shape that the statistics have."""

    def take(self, beta: Scalar) -> Scalar:
        """The weight of the gradient in a velocity that averages: v <- v + take (g - v)."""
        return 1 - beta

    def as_dict(self) -> dict[str, Any]:
        """The rule in plain words, for checkpoints and study files; `rule(**words)` builds it again."""
        options = {each: getattr(self, each) for each in options_of(type(self))}
        return {"name": type(self).name, **options}


@dataclass(frozen=True)
class Fixed(Rule):
    """The same momentum at every step, as in torch.optim."""

    momentum: float
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        if not self.momentum >= 0:
            raise ValueError(f"Fixed: momentum must be >= 0, got {self.momentum}.")

    def beta(self, s: Statistics) -> float:
        return self.momentum


@dataclass(frozen=True)
class Secant(Rule):
    """Rules that read the curvature off the last step: |g - g'| / |x - x'| estimates an eigenvalue of the Hessian.

    delta: beta stays below 1 - delta.
    scope: "global" (all parameters are one vector) or "tensor" (each tensor has its own beta).
    smoothing: a in d <- a d + (1 - a)(new difference), taken of both differences before their norms. Minibatch noise
        telescopes away in such an average, the drift of the gradient does not. 0 measures the raw differences.
    metric: "raw", or "preconditioned" (Adam and AdamW only): with D = sqrt(s) + eps, Adam's own preconditioner,
        |D^-1/2 (g - g')| / |D^1/2 (x - x')|, which does not change when the loss is multiplied by a constant. Each norm
        is taken with the D of the step at which it is measured.
    """

    delta: float = 1e-3
    scope: Scope = "global"
    smoothing: float = 0.0
    metric: Metric = "raw"
    needs = frozenset({"gradient_change", "displacement"})

    def __post_init__(self) -> None:
        check_delta(self, self.delta)
        check_word(self, "scope", self.scope, get_args(Scope))
        check_word(self, "metric", self.metric, get_args(Metric))
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"{type(self).__name__}: smoothing must lie in [0, 1), got {self.smoothing}.")
        if self.metric == "preconditioned":
            object.__setattr__(self, "optimizers", frozenset({"Adam"}))


@dataclass(frozen=True)
class HeavyBall(Secant):
    """Adaptive heavy-ball momentum: the best beta for the curvature that the last step met.

        rho = lr |g - g'| / |x - x'|,    beta = clip((1 - sqrt(rho))^2, 0, 1 - delta)

    On a quadratic with eigenvalues in [nu, L] and lr = 4 / (sqrt(L) + sqrt(nu))^2 the best constant momentum is
    (1 - sqrt(lr nu))^2; the quotient estimates the eigenvalue. beta is 0 until something has moved.

    The clipped formula is confirmed by code of co-authors of Sun, Ling, Shi, Li, Wang (2021, arXiv 2110.09057) and by a
    third-party implementation that cites them; the paper's own algorithm box could not be read. In Adam it stands in
    for beta_1; that it then uses the raw learning rate and raw norms is inferred. smoothing and
    metric="preconditioned" are ours.
    """

    name: ClassVar[str] = "heavy_ball"

    def beta(self, s: Statistics) -> Tensor:
        rho = quotient(s.lr * s.gradient_change, s.displacement)
        beta = (1 - rho.sqrt()).square().clamp(0, 1 - self.delta)
        return torch.where(s.displacement == 0, torch.zeros_like(beta), beta)


@dataclass(frozen=True)
class NormalizedHeavyBall(Secant):
    """Adaptive momentum for a velocity that averages: x <- x - lr (1 - beta) g + beta (x - x').

        r = |g - g'| / |x - x'|,    beta = clip(((1 - lr r) / (1 + lr r))^2, 0, 1 - delta)

    Wen, Deng, Sun, Li (ECAI 2023), from their code, which has lr |g| in place of |x - x'| and works per tensor. That
    it is the exact optimum of the averaging form is derived here: in one dimension with curvature h and c = lr h the
    iteration has the double root (1 - c) / (1 + c), so it is stable for every c while unclipped.
    """

    name: ClassVar[str] = "normalized_heavy_ball"
    averaging: ClassVar[bool] = True

    def beta(self, s: Statistics) -> Tensor:
        force = s.lr * s.gradient_change  # c |x - x'|, which does not overflow where c does
        beta = quotient(s.displacement - force, s.displacement + force).square().clamp(0, 1 - self.delta)
        return torch.where(s.displacement == 0, torch.zeros_like(beta), beta)


CONJUGATE_GRADIENT_NEEDS: dict[str, frozenset[str]] = {
    "FR": frozenset({"gradient", "previous_gradient"}),
    "PR": frozenset({"gradient_along_change", "previous_gradient"}),
    "HS": frozenset({"gradient_along_change", "velocity_along_change"}),
    "DY": frozenset({"gradient", "velocity_along_change"}),
}


@dataclass(frozen=True)
class ConjugateGradient(Rule):
    """Nonlinear conjugate gradients without a line search: v <- beta v + g.

        FR  |g|^2 / |g'|^2             PR  <g, g - g'> / |g'|^2
        HS  <g, g - g'> / <v, g - g'>  DY  |g|^2 / <v, g - g'>        all clipped to [0, 1 - delta]

    Wang and Ye (2020, arXiv 2012.02188); the rule is from a co-author's later code, that their FRSGD is exactly this is
    inferred. v here is the negative of the direction of the textbooks, which turns the sign of <v, g - g'> twice.
    """

    formula: Formula = "FR"
    delta: float = 1e-3
    name: ClassVar[str] = "conjugate_gradient"
    optimizers = frozenset({"SGD"})

    def __post_init__(self) -> None:
        check_delta(self, self.delta)
        check_word(self, "formula", self.formula, get_args(Formula))
        object.__setattr__(self, "needs", CONJUGATE_GRADIENT_NEEDS[self.formula])

    def beta(self, s: Statistics) -> Tensor:
        above = s.gradient.square() if self.formula in ("FR", "DY") else s.gradient_along_change
        below = s.previous_gradient.square() if self.formula in ("FR", "PR") else s.velocity_along_change
        return quotient(above, below).clamp(0, 1 - self.delta)


@dataclass(frozen=True)
class LearningRateScaled(Rule):
    """Momentum that follows the learning rate: 1 - beta = C lr^(2/3), clipped to [0, 1 - delta].

    Cowsik, Can, Glorioso (2022, arXiv 2210.16400). C is not universal; it is anchored where a pair is known to work,
    C = (1 - reference_beta) / reference_lr^(2/3).
    """

    reference_lr: float = 0.1
    reference_beta: float = 0.9
    delta: float = 1e-3
    name: ClassVar[str] = "learning_rate_scaled"

    def __post_init__(self) -> None:
        check_delta(self, self.delta)
        if not self.reference_lr > 0:
            raise ValueError(f"LearningRateScaled: reference_lr must be > 0, got {self.reference_lr}.")
        if not 0 <= self.reference_beta < 1:
            raise ValueError(f"LearningRateScaled: reference_beta must lie in [0, 1), got {self.reference_beta}.")

    def beta(self, s: Statistics) -> Scalar:
        beta = 1 - (1 - self.reference_beta) * (s.lr / self.reference_lr) ** (2 / 3)
        if isinstance(beta, Tensor):
            return beta.clamp(0, 1 - self.delta)
        return min(max(float(beta), 0.0), 1 - self.delta)


@dataclass(frozen=True)
class AdaptiveMemory(Rule):
    """Momentum from two planes, one through the gradient and one through the memory d of past gradients (here v).

        beta = clip((|g|^2 + 2 strength <g, d> - strength |d|^2) / |d - g|^2, 0, cap)
        d <- ((beta + strength) d + (1 - beta) g) / (1 + strength),    d starts as the first gradient

    Topollai and Choromanska (2025, arXiv 2510.04988), from third-party code; strength is their lambda.
    """

    strength: float = 0.1
    cap: float = 0.9
    name: ClassVar[str] = "adaptive_memory"
    needs = frozenset({"gradient", "velocity", "gradient_along_velocity", "velocity_error"})
    averaging: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"AdaptiveMemory: strength must be >= 0, got {self.strength}.")
        if not 0 <= self.cap < 1:
            raise ValueError(f"AdaptiveMemory: cap must lie in [0, 1), got {self.cap}.")

    def beta(self, s: Statistics) -> Tensor:
        planes = s.gradient.square() + self.strength * (2 * s.gradient_along_velocity - s.velocity.square())
        beta = quotient(planes, s.velocity_error.square()).clamp(0, self.cap)
        return torch.where(s.velocity == 0, torch.zeros_like(beta), beta)

    def take(self, beta: Scalar) -> Scalar:
        return (1 - beta) / (1 + self.strength)


Momentum = float | Literal["adaptive"] | Rule  # what a user may pass


def as_rule(momentum: object) -> Rule:
    """The rule that a user means by a number, the word "adaptive", or a rule. Raises TypeError or ValueError."""
    if isinstance(momentum, Rule):
        if not is_dataclass(momentum) or type(momentum).__hash__ is None:
            raise TypeError(
                f"{type(momentum).__name__} needs @dataclass(frozen=True) above it: equal rules compare equal."
            )
        return momentum
    if isinstance(momentum, str):
        if momentum == "adaptive":
            return HeavyBall()
        raise ValueError(
            f"momentum: the only word is 'adaptive', got {momentum!r}. "
            f"Pass a number or a rule, such as adamom.HeavyBall()."
        )
    if isinstance(momentum, int | float) and not isinstance(momentum, bool):
        return Fixed(float(momentum))
    raise TypeError(f"momentum must be a number, 'adaptive' or a rule such as adamom.HeavyBall(): got {momentum!r}.")


def rule(name: str, **options: Any) -> Rule:
    """The rule of that name, from plain words: `rule("heavy_ball", smoothing=0.999)`. "adaptive" is "heavy_ball".

    Raises ValueError for an unknown name or option, or a value out of range.
    """
    known: dict[str, type[Rule]] = {"adaptive": HeavyBall, **Rule.registry}
    if name not in known:
        raise ValueError(unknown("rule", name, known))
    allowed = options_of(known[name])
    numbers = [each.name for each in fields(known[name]) if each.type in (float, "float")]  # type: ignore[arg-type]
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(f"{name}: {unknown('option', option, allowed)}")
        if option in numbers and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name}: {option} must be a number, got {value!r}.")
    return known[name](**options)


def options_of(rule: type[Rule]) -> list[str]:
    """The names of the rule's options, in order."""
    return [each.name for each in fields(rule)]  # type: ignore[arg-type]  # every rule is a dataclass


def unknown(what: str, word: str, allowed: Iterable[str]) -> str:
    """The message for a word nobody knows."""
    allowed = sorted(allowed)
    close = get_close_matches(word, allowed, n=1)
    return f"unknown {what} {word!r}. Known: {', '.join(allowed)}." + (f" Did you mean {close[0]!r}?" if close else "")


def check_word(rule: Rule, option: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise ValueError(f"{type(rule).__name__}: {option} must be one of {', '.join(allowed)}: got {word!r}.")


def check_delta(rule: Rule, delta: float) -> None:
    if not 0 < delta <= 1:
        raise ValueError(f"{type(rule).__name__}: delta must lie in (0, 1], got {delta}.")
