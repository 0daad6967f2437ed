"""PyTorch optimizers whose momentum may be a rule instead of a number.

    optimizer = adamom.SGD(model.parameters(), lr=0.1, momentum="adaptive")
    optimizer = adamom.AdamW(model.parameters(), lr=1e-3, betas=(adamom.HeavyBall(smoothing=0.999), 0.999))

Needs torch and nothing else.
"""

from . import adam, sgd
from .adam import Adam, AdamW
from .adarem import AdaRem
from .hfac import HFac
from .mada import MADA
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
from .signgrad import SigSignGrad, TanhSignGrad

__all__ = [
    "MADA",
    "SGD",
    "AdaRem",
    "Adam",
    "AdamW",
    "AdaptiveMemory",
    "ConjugateGradient",
    "Fixed",
    "HFac",
    "HeavyBall",
    "LearningRateScaled",
    "Memory",
    "NormalizedHeavyBall",
    "Reduction",
    "Rule",
    "SigSignGrad",
    "Statistics",
    "TanhSignGrad",
    "adam",
    "quotient",
    "rule",
    "sgd",
]
