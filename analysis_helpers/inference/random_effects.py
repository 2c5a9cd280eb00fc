"""Values with known variances that differ by more than these: their mean, and the spread tau between them.

The random-effects model of meta-analysis: value r is ``mean + N(0, tau²) + N(0, v_r)``. With a handful of values tau is
hardly known; intervals say so by Student's t with few degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import FloatArray

_MOST_DF = 1e6  # beyond, Student's t is the normal distribution


@dataclass(frozen=True)
class Pool:
    """A random-effects mean of a few values with known variances (see `pool`)."""

    mean: float
    se: float
    tau: float
    observed_variance: float
    count: int

    def interval(self, level: float) -> tuple[float, float]:
        """Return an interval for the mean, by Student's t."""
        freedom = self._degrees_of_freedom(self.se**2, 1 / self.count)
        half = self.se * float(t_quantile((1 + level) / 2, freedom))
        return self.mean - half, self.mean + half

    def predictive_freedom(self, variance: Any) -> Any:
        """Return the degrees of freedom of a predictive ``variance`` that includes ``tau² + se²``."""
        return self._degrees_of_freedom(variance, 1 + 1 / self.count)

    def _degrees_of_freedom(self, variance: Any, share: float) -> Any:
        # Satterthwaite (1946): of the variance, ``share`` times the observed one rests on few runs; the rest, sampling
        # within runs, is taken to be known. Never fewer than R - 2 (Higgins, Thompson and Spiegelhalter, 2009).
        uncertain = share * self.observed_variance
        if uncertain <= 0:
            return np.full_like(variance, _MOST_DF, dtype=float)
        freedom = (self.count - 1) * (variance / uncertain) ** 2
        return np.clip(freedom, max(self.count - 2, 1), _MOST_DF)


def pool(values: FloatArray, variances: FloatArray) -> Pool:
    """Return the random-effects mean of values with known variances.

    Parameters
    ----------
    values, variances
        Shape ``(R,)``.

    Examples
    --------
    Values that scatter no more than their variances have no spread of their own:

    >>> import numpy as np
    >>> pool(np.array([1.0, 2.0]), np.array([1.0, 1.0])).tau
    0.0
    >>> round(pool(np.array([1.0, 5.0]), np.array([1.0, 1.0])).tau ** 2, 9)  # 8 - 1
    7.0
    """
    tau2 = _between_variance(values, variances, len(values) - 1)
    total = variances + tau2
    weights = 1 / total if (total > 0).all() else np.ones_like(total)
    observed = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    return Pool(
        mean=float(weights @ values / weights.sum()),
        se=float(np.sqrt(weights**2 @ total) / weights.sum()),
        tau=float(np.sqrt(tau2)),
        observed_variance=observed,
        count=len(values),
    )


def tau_interval(values: FloatArray, variances: FloatArray, level: float) -> tuple[float, float]:
    """Return an interval for tau (Viechtbauer's Q-profile, 2007); up to infinity for a single value."""
    from scipy.stats import chi2

    freedom = len(values) - 1
    if freedom < 1:
        return 0.0, float("inf")
    bounds = (float(chi2.ppf((1 + sign * level) / 2, freedom)) for sign in (1, -1))
    low, high = (float(np.sqrt(_between_variance(values, variances, bound))) for bound in bounds)
    return low, high


def normal_quantile(probability: float) -> float:
    """Return the number of SDs about the mean that hold a normal variable with ``probability``."""
    from scipy.special import ndtri

    return float(ndtri((1 + probability) / 2))


def t_probability(value: Any, freedom: Any) -> Any:
    """Return the probability of Student's t below ``value``."""
    from scipy.special import stdtr

    return stdtr(freedom, value)


def t_quantile(probability: Any, freedom: Any) -> Any:
    """Return the value that Student's t stays below with ``probability``."""
    from scipy.special import stdtrit

    return stdtrit(freedom, probability)


def _between_variance(values: FloatArray, variances: FloatArray, target: float) -> float:
    """Return tau² at which the weighted sum of squares equals ``target``; 0 where it is smaller from the start."""
    from scipy.optimize import brentq

    def excess(tau2: float) -> float:
        weights = 1 / (variances + tau2)
        centre = weights @ values / weights.sum()
        return float(weights @ (values - centre) ** 2) - target

    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    variances = np.maximum(variances, 1e-24 * np.ptp(values) ** 2)  # what is known exactly would weigh without limit
    if excess(0.0) <= 0:
        return 0.0
    high = float(np.sum((values - values.mean()) ** 2)) / target
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-16, rtol=1e-12))
