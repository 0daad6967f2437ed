"""PyTorch optimizers whose momentum may be a rule instead of a number.

    optimizer = adamom.SGD(model.parameters(), lr=0.1, momentum="adaptive")
    optimizer = adamom.AdamW(model.parameters(), lr=1e-3, betas=(adamom.HeavyBall(smoothing=0.999), 0.999))

Needs torch and nothing else.
"""

from . import adam, sgd
from .adam import Adam, AdamW
from .measuring import Memory, Reduction
from .momentum import (
    AdaptiveMemory,
    ConjugateGradient,
    Fixed,
    HeavyBall,
    LearningRateScaled,
    NormalizedHeavyBall,
    Rule,
    Statistics,
    quotient,
    rule,
)
from .sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveMemory",
    "ConjugateGradient",
    "Fixed",
    "HeavyBall",
    "LearningRateScaled",
    "Memory",
    "NormalizedHeavyBall",
    "Reduction",
    "Rule",
    "Statistics",
    "adam",
    "quotient",
    "rule",
    "sgd",
]
