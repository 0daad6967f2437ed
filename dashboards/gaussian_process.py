"""A small Gaussian process: the baseline that a parametric law has to beat."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

from dashboards.evidence import Floats

__all__ = ["GaussianProcess"]

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)  # in units of each input's standard deviation
LARGEST = 300  # samples: the cost grows with their number cubed, and the error hardly falls beyond
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)  # variance of the noise, in units of the signal's


class GaussianProcess(NamedTuple):
    """Regression with a squared-exponential kernel, its length and noise chosen by marginal likelihood on a grid.

    A grid rather than an optimizer: the same data give the same prediction everywhere, in milliseconds.
    """

    inputs: Floats
    centre: Floats
    scale: Floats
    mean: float
    length: float
    variance: float
    factor: Floats
    weights: Floats

    @classmethod
    def fit(cls, inputs: Floats, outputs: Floats, *, seed: int = 0) -> GaussianProcess:
        """inputs: array of shape (samples, dimensions); outputs: (samples,). seed: which are kept of very many."""
        if len(outputs) > LARGEST:
            kept = np.random.default_rng(seed).permutation(len(outputs))[:LARGEST]
            inputs, outputs = inputs[kept], outputs[kept]
        centre, scale = inputs.mean(axis=0), inputs.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        unit, mean = (inputs - centre) / scale, float(outputs.mean())
        squared = cdist(unit, unit, "sqeuclidean")
        fits = [_fit(squared, outputs - mean, length, noise) for length, noise in product(LENGTHS, NOISES)]
        _, length, variance, factor, weights = max(fits, key=lambda fit: fit[0])
        return cls(unit, centre, scale, mean, length, variance, factor, weights)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation (without the noise) at inputs of shape (samples, dimensions)."""
        unit = (inputs - self.centre) / self.scale
        near = np.exp(-cdist(unit, self.inputs, "sqeuclidean") / (2 * self.length**2))
        explained = solve_triangular(self.factor, near.T, lower=True)
        spread = self.variance * np.clip(1 - (explained**2).sum(axis=0), 0.0, None)
        return self.mean + near @ self.weights, np.sqrt(spread)


def _fit(squared: Floats, centred: Floats, length: float, noise: float) -> tuple[float, float, float, Floats, Floats]:
    """Log marginal likelihood with the best signal variance, which then has a closed form."""
    kernel = np.exp(-squared / (2 * length**2)) + noise * np.eye(len(squared))
    factor = cholesky(kernel, lower=True)
    weights = cho_solve((factor, True), centred)
    variance = max(float(centred @ weights) / len(centred), 1e-300)
    likelihood = -0.5 * len(centred) * np.log(variance) - np.log(np.diag(factor)).sum()
    return float(likelihood), length, variance, factor, weights
