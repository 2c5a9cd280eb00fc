"""The rule behind "yes" and "no", and the chance that more runs would reach one of them.

*Yes* is a tolerance statement: with confidence 0.9, at least ``probability`` of updates have an error within the
tolerance (Krishnamoorthy and Mathew, 2009). *No*: the 90 % interval of the mean error lies beyond it, or updates differ
too much for any mean. Whether more runs would reach an answer is given as probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._checks import FloatArray
from .prediction import PooledEstimate
from .random_effects import CONFIDENCE, ENDS, chi_square, normal_quantile, reach_of_means

AnswerWord = Literal["yes", "no", "cannot tell"]

LIKELY = 0.5
"""The chance of an answer that the additional runs must reach."""

_MORE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_TAUS, _MEANS, _NEW, _SPREADS, _NODES = 20, 7, 5, 5, 50  # nodes of the quadrature


@dataclass(frozen=True)
class Goal:
    """The question: one batch of ``n``, an error within ``tolerance`` (true changes), with ``probability``."""

    n: int
    tolerance: float
    probability: float


@dataclass(frozen=True)
class Chances:
    """The probabilities of "yes" and of "no" after this number of further runs like these."""

    more: int
    yes: float
    no: float

    @property
    def answer(self) -> float:
        """The probability of either."""
        return self.yes + self.no


def within(estimate: PooledEstimate, goal: Goal) -> AnswerWord:
    """Return whether the error of the next update lies within the tolerance, with the probability.

    One run never gives a "yes".
    """
    pooled, known = estimate.pooled, estimate.distribution
    below, above = known.mean_below([-goal.tolerance, goal.tolerance])
    scattered = normal_quantile(goal.probability) * pooled.tau_low > goal.tolerance
    if below > ENDS[1] or above < ENDS[0] or scattered:
        return "no"
    confident = known.confidence_within(goal.tolerance, goal.probability) >= CONFIDENCE
    return "yes" if confident and pooled.count > 1 else "cannot tell"


def chances(estimate: PooledEstimate, goal: Goal) -> Chances | None:
    """Return the chances of an answer after the smallest number of more runs that reaches one half; None if none does.

    By quadrature over the joint confidence distribution of mean and tau, and over what further runs of the same size
    would then give. With one run tau is unknown: None.
    """
    if len(estimate.values) == 1:
        return None
    for more in _MORE:
        outlook = _chances_after(more, estimate, goal)
        if outlook.answer >= LIKELY:
            return outlook
    return None


def _chances_after(more: int, estimate: PooledEstimate, goal: Goal) -> Chances:
    values, own = estimate.values, float(np.mean(estimate.variances))
    count, total = len(values), len(values) + more
    mean, weight, spread = _scenarios(more, estimate, own)
    far = (mean - values.mean()) ** 2 * count * more / total
    sums = spread + far + float(np.sum((values - values.mean()) ** 2))  # of squares about the mean of all runs
    means = (count * values.mean() + more * mean) / total
    yes, no = _decided(means, sums, total, own, estimate.common_error, goal)
    return Chances(more, float(weight @ yes), float(weight @ no))


def _scenarios(more: int, estimate: PooledEstimate, own: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return means of further runs, the weight of each scenario, and their sums of squares, shape ``(K,)`` each."""
    known = estimate.distribution
    at = np.linspace(0, len(known.taus), _TAUS, endpoint=False).astype(int) + len(known.taus) // (2 * _TAUS)
    at_means, of_means = np.polynomial.hermite_e.hermegauss(_MEANS)
    at_new, of_new = np.polynomial.hermite_e.hermegauss(_NEW)
    variance = (known.taus[at] ** 2 + own)[:, None, None, None]
    true_mean = known.means[at][:, None] + known.errors[at][:, None] * at_means
    means = true_mean[:, :, None, None] + np.sqrt(variance / more) * at_new[:, None]
    squares = chi_square(more - 1, (np.arange(_SPREADS) + 0.5) / _SPREADS) if more > 1 else np.zeros(1)
    sums = variance * squares
    weights = (of_means[:, None, None] * of_new[:, None]) / (of_means.sum() * of_new.sum() * _TAUS * len(squares))
    shape = np.broadcast_shapes(means.shape, sums.shape)
    mean, weight, spread = (np.broadcast_to(each, shape).ravel() for each in (means, weights, sums))
    return mean, weight, spread


def _decided(
    means: FloatArray, sums: FloatArray, count: int, own: float, common: float, goal: Goal
) -> tuple[FloatArray, FloatArray]:
    """Return whether runs of equal variance with these means and sums of squares give "yes", and "no"."""
    from scipy.special import ndtr

    freedom = count - 1
    tau_low = np.sqrt(np.maximum(sums / chi_square(freedom, np.array([ENDS[1]])) - own, 0.0))
    no, near = normal_quantile(goal.probability) * tau_low > goal.tolerance, np.abs(means) < goal.tolerance
    yes, open_yet = np.zeros_like(no), ~no
    taus = np.sqrt(np.maximum(sums[:, None] / chi_square(freedom, (np.arange(_NODES) + 0.5) / _NODES) - own, 0.0))
    errors = np.sqrt((own + taus**2) / count + common**2)
    # A mean within the tolerance is never clearly beyond it, and no other one clearly within: half of the work.
    far = open_yet & ~near
    no[far] = ndtr((np.abs(means[far])[:, None] - goal.tolerance) / errors[far]).mean(axis=1) > ENDS[1]
    near &= open_yet
    middle, width = means[near][:, None], errors[near]
    reach = reach_of_means(taus[near], goal.tolerance, goal.probability)
    inside = ndtr((reach - middle) / width) - ndtr((-reach - middle) / width)
    yes[near] = np.where(reach > 0, inside, 0.0).mean(axis=1) >= CONFIDENCE
    return yes.astype(float), no.astype(float)
