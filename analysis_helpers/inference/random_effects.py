"""Values with known variances that differ by more than these explain: their mean, and the SD tau between them.

The random-effects model of meta-analysis: value r is ``mean + N(0, tau^2) + N(0, v_r)``. With a handful of values tau
is poorly known, so predictions average over its confidence distribution instead of plugging in one value. Use `pool`
for a mean over runs, `confidence_distribution` for the next run. A single value has no tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._checks import FloatArray, frozen

CONFIDENCE = 0.9
"""Level of the intervals of means, tau, spreads and plans."""

ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_NODES = 200  # of the confidence distribution
_HALVINGS = 50  # of an interval: to rounding
_REACHES = 400  # points between which the reach of means is interpolated
_NEWTON_STEPS = 50  # at most; a handful is enough


@dataclass(frozen=True)
class Pool:
    """A random-effects mean of values with known variances (see `pool`).

    Attributes
    ----------
    mean, se
        The mean, and its standard error.
    tau, tau_low, tau_high
        SD between values beyond their variances, and its 90 % interval (Viechtbauer's Q-profile, 2007); up to infinity
        for a single value.
    count
        Number of values.
    common_error
        The part of ``se`` that all values share, and that more values do not reduce.
    """

    mean: float
    se: float
    tau: float
    tau_low: float
    tau_high: float
    count: int
    common_error: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 90 % interval of the mean, by Student's t on ``count - 1`` degrees of freedom; normal for one value."""
        quantile = normal_quantile(CONFIDENCE) if self.count == 1 else student_quantile(self.count - 1)
        return self.mean - self.se * quantile, self.mean + self.se * quantile

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a mean of 0, by Student's t; NaN for one value."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.count - 1, -abs(self.mean) / self.se)) if self.count > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class ConfidenceDistribution:
    """Confidence distribution of mean and tau from values with known variances: equally likely pairs, as arrays.

    Attributes
    ----------
    taus
        SD between values.
    means, errors
        Given tau: the weighted mean, and its standard error.
    """

    taus: FloatArray
    means: FloatArray
    errors: FloatArray

    def sds(self, sampling_variance: float = 0.0) -> FloatArray:
        """Return the SD of the next value about each mean, with sampling variance of its own."""
        sds: FloatArray = np.sqrt(self.errors**2 + self.taus**2 + sampling_variance)
        return sds

    def below(self, values: Any, sampling_variance: float = 0.0) -> FloatArray:
        """Return the probability that the next value lies below each of the values: a mixture of normals."""
        return self._mixture(values, self.sds(sampling_variance))

    def mean_below(self, values: Any) -> FloatArray:
        """Return the confidence that the mean over all values lies below each of the values."""
        return self._mixture(values, self.errors)

    def quantiles(self, probabilities: Sequence[float], sampling_variance: float = 0.0) -> list[float]:
        """Return the values that the next value lies below with each of the probabilities."""
        return self._inverted(probabilities, self.sds(sampling_variance))

    @property
    def mean_interval(self) -> tuple[float, float]:
        """The 90 % interval of the mean over all values."""
        low, high = self._inverted(ENDS, self.errors)
        return low, high

    def _mixture(self, values: Any, sds: FloatArray) -> FloatArray:
        from scipy.special import ndtr

        distance = np.asarray(values, dtype=float)[..., None] - self.means
        with np.errstate(divide="ignore", invalid="ignore"):
            probability: FloatArray = ndtr(np.nan_to_num(distance / sds, nan=0.0)).mean(axis=-1)
        return probability

    def _inverted(self, probabilities: Sequence[float], sds: FloatArray) -> list[float]:
        wanted, reach = np.array(probabilities), 40 * sds
        low, high = np.full(wanted.shape, (self.means - reach).min()), np.full(wanted.shape, (self.means + reach).max())
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            short = self._mixture(middle, sds) < wanted
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return [float(value) for value in (low + high) / 2]

    def confidence_within(self, tolerance: float, probability: float) -> float:
        """Return the confidence that at least so many of all values, without sampling error, lie within ``±tolerance``.

        A tolerance statement (Krishnamoorthy and Mathew, 2009): for each tau, the means at which
        ``P(|N(mean, tau^2)| <= tolerance) >= probability`` form an interval about 0.
        """
        from scipy.special import ndtr

        reach = reach_of_means(self.taus, tolerance, probability)
        errors = np.maximum(self.errors, 1e-300)
        inside = ndtr((reach - self.means) / errors) - ndtr((-reach - self.means) / errors)
        return float(np.where(reach > 0, inside, 0.0).mean())


def reach_of_means(taus: FloatArray, tolerance: float, probability: float) -> FloatArray:
    """Return for each tau the largest mean at which ``P(|N(mean, tau^2)| <= tolerance) >= probability``; 0 for none."""
    reach: FloatArray = np.interp(taus, *_reaches(tolerance, probability), right=0.0)
    return reach


@lru_cache(maxsize=8)  # the same tolerance is asked for again and again
def _reaches(tolerance: float, probability: float) -> tuple[FloatArray, FloatArray]:
    """Return a grid of taus, and for each the reach of `reach_of_means`."""
    from scipy.special import ndtr

    grid = np.linspace(0, tolerance / normal_quantile(probability), _REACHES)
    sds = np.maximum(grid, 1e-12 * tolerance)
    low, high = np.zeros_like(grid), np.full_like(grid, tolerance)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = ndtr((tolerance - middle) / sds) - ndtr((-tolerance - middle) / sds) >= probability
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return frozen(grid), frozen(low)


def pool(values: FloatArray, variances: FloatArray, common_error: float = 0.0) -> Pool:
    """Return the random-effects mean of values with known variances, shape ``(R,)`` each.

    An error that all values share is no part of these variances; it is added once, to that of the mean.

    Tau by Paule and Mandel (1982); with it the standard error is that of Hartung and Knapp (2001), never below the one
    without spread between values.

    Examples
    --------
    Values that scatter no more than their variances have no spread of their own:

    >>> import numpy as np
    >>> pool(np.array([1.0, 2.0]), np.array([1.0, 1.0])).tau
    0.0
    >>> round(pool(np.array([1.0, 5.0]), np.array([1.0, 1.0])).tau ** 2, 9)  # 8 - 1
    7.0
    """
    freedom = max(len(values) - 1, 1)
    few, many = chi_square(freedom, np.array(ENDS))
    tau2 = between_variances(values, variances, np.array([freedom, many, few]))
    tau, low, high = np.sqrt(tau2).tolist()  # Q falls in tau^2: the lower end has the larger quantile
    [mean], [se] = _weighted(values, variances, tau2[:1])
    se = math.hypot(se, common_error)
    return Pool(float(mean), se, tau, low, high if len(values) > 1 else math.inf, len(values), common_error)


def confidence_distribution(
    values: FloatArray, variances: FloatArray, common_error: float = 0.0
) -> ConfidenceDistribution:
    """Return the confidence distribution of mean and tau (Nagashima, Noma and Furukawa, 2019).

    For q_b the (b - 1/2)/B quantiles of chi-square on R - 1 degrees of freedom, tau_b^2 solves ``Q(tau^2) = q_b``; 0
    where ``Q(0) <= q_b``. With one value tau is unknown and set to 0.
    """
    freedom, steps = max(len(values) - 1, 1), (np.arange(_NODES) + 0.5) / _NODES
    tau2 = between_variances(values, variances, chi_square(freedom, steps))
    means, errors = _weighted(values, variances, tau2)
    return ConfidenceDistribution(np.sqrt(tau2), means, np.hypot(errors, common_error))


def chi_square(freedom: float, probabilities: FloatArray) -> FloatArray:
    """Return quantiles of chi-square, of the shape of the probabilities."""
    from scipy.special import gammaincinv

    quantiles: FloatArray = 2 * gammaincinv(freedom / 2, probabilities)
    return quantiles


def chi_square_p(value: float, freedom: float) -> float:
    """Return the p-value of a chi-square statistic.

    Examples
    --------
    >>> round(chi_square_p(3.841, 1), 3)
    0.05
    """
    from scipy.special import gammaincc

    return float(gammaincc(freedom / 2, value / 2))


def student_quantile(freedom: float, tail: float = ENDS[0]) -> float:
    """Return the number of standard errors beyond which Student's t has a tail: by default that of a 90 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - tail))


def normal_quantile(probability: float) -> float:
    """Return the number of SDs about the mean that hold a normal variable with ``probability``."""
    from scipy.special import ndtri

    return float(ndtri((1 + probability) / 2))


def _weighted(values: FloatArray, variances: FloatArray, tau2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weighted mean and its standard error for each tau^2, shape ``(B,)``."""
    total = variances + tau2[:, None]
    weights = 1 / np.maximum(total, 1e-300)
    means: FloatArray = weights @ values / weights.sum(axis=1)
    exact = (total <= 0).any(axis=1)  # values known exactly that agree: no error
    return means, np.where(exact, 0.0, weights.sum(axis=1) ** -0.5)


def between_variances(
    values: FloatArray, variances: FloatArray, targets: FloatArray, member: FloatArray | None = None
) -> FloatArray:
    """Return tau^2 at which ``Q(tau^2)`` equals each target; 0 where it is smaller from the start.

    ``member``, shape ``(R, groups)``, is 1 where a value belongs to a group; each group has a mean of its own.
    """
    group = np.ones((len(values), 1)) if member is None else member
    most_exact = np.where(group > 0, variances[:, None], np.inf).argmin(axis=0)
    values = values - group @ values[most_exact]  # the differences of exact values are not rounded
    spread = float(np.ptp(values))
    if spread == 0:  # or a single value
        return np.zeros(len(targets))
    variances = np.maximum(variances, 1e-30 * spread**2)  # exact values would get infinite weights

    # Newton's method on 1 / Q: concave in tau^2, so that steps from 0 never go too far.
    tau2 = np.zeros(len(targets))
    for _ in range(_NEWTON_STEPS):
        weights = 1 / (variances + tau2[:, None])
        means = (weights * values) @ group / (weights @ group)  # of each group
        parts = weights * (values - means @ group.T) ** 2
        q, slope = parts.sum(axis=1), (weights * parts).sum(axis=1)
        moved = np.maximum(tau2 + (q / targets - 1) * q / slope, 0)
        if np.all(np.abs(moved - tau2) <= 1e-12 * q / slope):
            break
        tau2 = moved
    return tau2
